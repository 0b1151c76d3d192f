"""What each system costs: parameters, seconds, peak memory. The paper gives none of these."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import torch

from vlm_occ.data.scenes import load_scene
from vlm_occ.eval.contest import Contest
from vlm_occ.eval.report import write_json
from vlm_occ.models.load import load_model
from vlm_occ.timing import default_device, median_milliseconds, peak_gib

SENTENCE = "the truck in front of us on the left"
REPEAT = 3


def costs(contest: Contest) -> dict[str, dict[str, float]]:
    """The cost of every system of Table II that learns, each in a process of its own, kept once measured."""
    result = {}
    for name in ("L-baseline", "C-baseline", "M-baseline", "GroundingOcc", "VLM-Occ"):
        folder = contest.folder(name)
        path = folder / "cost.json"
        if not path.exists():
            if contest.config.assemble and not (folder / "final").exists():
                continue
            write_json(cost_of(folder / "final", contest.config.sample_scene), path)
        result[name] = json.loads(path.read_text())
        if name in ("GroundingOcc", "VLM-Occ"):
            result[f"{name}-Refine"] = result[name]  # cutting an answer to a box takes a millisecond
    return result


def cost_of(model: Path, scene: str) -> dict[str, float]:
    """The cost of a saved model, measured in a new process, whose memory is the model's own."""
    command = [sys.executable, "-c", _MEASURE, str(model), scene]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return json.loads(done.stdout.splitlines()[-1])


_MEASURE = "import sys; from vlm_occ.eval.cost import measure; measure(sys.argv[1], sys.argv[2])"


def measure(name: str, scene_name: str) -> None:
    """Print the cost of a model on a scene as one line of JSON: medians after a warm-up."""
    device = default_device()
    model, scene = cast(Any, load_model(name, device=device)), load_scene(scene_name)
    state = model.encode(scene)
    values = {
        "parameters": sum(p.numel() for p in model.parameters()),
        "trained_parameters": saved_parameters(Path(name)),
        "encode_s": _seconds(lambda: model.encode(scene), device),
        "query_s": _seconds(lambda: model.ground(state, SENTENCE, refine=True), device),
        "peak_gib": round(peak_gib(device), 3),
    }
    print(json.dumps(values))


def saved_parameters(folder: Path) -> int:
    """Numbers that a checkpoint holds: all that were trained here, the trunk included."""
    from vlm_occ.models.checkpoint import read_shards

    return sum(value.numel() for value in read_shards(folder).values())


def _seconds(call: Callable[[], object], device: torch.device) -> float:
    return round(median_milliseconds(call, device, repeat=REPEAT) / 1000, 4)
