"""The state of a run on disk: written atomically, found again after a kill."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vlm_occ.models.adapter import VLMOcc
from vlm_occ.models.checkpoint import (
    load_model_state,
    model_state,
    read_shards,
    write_folder,
    write_shards,
)


def save_training_state(
    out: Path, model: VLMOcc, optimizer: Any, averaged: dict[str, Tensor], step: int, *, keep: int
) -> None:
    """Write weights, optimiser state and averages of a step into `out`/step-N, at once or not at all."""
    state = {f"model.{name}": tensor.detach().cpu() for name, tensor in model_state(model).items()}
    inner = optimizer.state_dict()["state"]
    for index, values in inner.items():
        for name, value in values.items():
            state[f"optimizer.{index}.{name}"] = torch.as_tensor(value).detach().cpu()
    state.update({f"average.{name}": value.cpu() for name, value in averaged.items()})

    def write(path: Path) -> None:
        write_shards(state, path)
        (path / "step.json").write_text(json.dumps({"step": step}) + "\n")

    write_folder(out / f"step-{step:07d}", write)
    for old in sorted(out.glob("step-*"))[:-keep]:
        shutil.rmtree(old)


def resume(out: Path, model: VLMOcc, optimizer: Any, averaged: dict[str, Tensor]) -> int:
    """Load the newest good training state in `out`; the step to go on from (0 where there is none)."""
    for folder in sorted(out.glob("step-*"), reverse=True):
        try:
            state = read_shards(folder)
            step = int(json.loads((folder / "step.json").read_text())["step"])
        except (ValueError, OSError, KeyError) as error:
            print(f"skipping {folder}: {error}", file=sys.stderr)
            continue
        load_model_state(model, _part(state, "model."), where=str(folder))
        saved: dict[int, dict[str, Tensor]] = {}
        for name, value in _part(state, "optimizer.").items():
            index, field = name.split(".", 1)
            saved.setdefault(int(index), {})[field] = value
        plain = optimizer.state_dict()
        plain["state"] = saved
        optimizer.load_state_dict(plain)
        for name, value in _part(state, "average.").items():
            averaged[name].copy_(value)
        print(f"resuming {out} from step {step}", file=sys.stderr)
        return step
    return 0


def _part(state: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}
