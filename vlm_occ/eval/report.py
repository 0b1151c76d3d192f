"""The evaluation command: every figure of a model on a data set, its protocol, and the real keyframe."""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import platform
import subprocess
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any, cast

import torch

from vlm_occ.data.keyframe_labels import load_labelled_keyframe
from vlm_occ.data.store import SimulatedScenes
from vlm_occ.eval.contenders import score
from vlm_occ.eval.evaluate import (
    Outcome,
    Scenes,
    Sensors,
    evaluate_scenes,
    summary,
    token_recall,
    true_voxels,
)
from vlm_occ.eval.kept_outcomes import KeptOutcomes, file_sums
from vlm_occ.eval.metrics import QueryRecord, occupancy_iou, summarise
from vlm_occ.geometry import box_iou_3d
from vlm_occ.models.adapter import VLMOcc
from vlm_occ.models.baselines import Baseline
from vlm_occ.models.checkpoint import find_checkpoint
from vlm_occ.models.load import load_model
from vlm_occ.timing import default_device


def protocol(model: VLMOcc | Baseline, name: str, scenes: Scenes, split: str, data: str) -> dict[str, object]:
    """What is needed to run an evaluation again and to know that it is the same one."""
    digest = hashlib.sha256()
    for query in (q for i in range(min(len(scenes), 20)) for q in scenes[i].queries):
        digest.update(repr((query.text, query.targets)).encode())
    return {
        "model": name,
        "data": data,
        "split": split,
        "scenes": len(scenes),
        "sentences_sha256_of_first_20_scenes": digest.hexdigest(),
        "truth": "occupied voxels that touch the box (Talk2Occ eq. 1), whole grid, no visibility mask",
        "iou": "union of the targets' voxels, strict > thresholds",
        "score_threshold": model.config.score_threshold,
        "existence_threshold": getattr(model.config, "existence_threshold", None),
        "commit": commit_of_tree(),
        "command": " ".join(sys.argv),
        "hardware": f"{platform.machine()}, {os.cpu_count()} CPU cores, model on {model.device}",
        "torch": torch.__version__,
    }


def circumstances() -> dict[str, str]:
    """Commit, command, machine and library of a run whose models are wherever there is room."""
    card = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"
    return {
        "commit": commit_of_tree(),
        "command": " ".join(sys.argv),
        "hardware": f"{platform.machine()}, {os.cpu_count()} CPU cores, {card}",
        "torch": torch.__version__,
    }


@cache
def commit_of_tree() -> str:
    """The commit of the working tree, if it is one, as it was when it was first asked for: code that changes
    during a run is not the run's.
    """
    try:
        done = subprocess.run(
            ["git", "describe", "--always", "--dirty", "--abbrev=12"],
            cwd=Path(__file__).parent,
            capture_output=True,
            text=True,
            check=True,
        )
    except (OSError, subprocess.CalledProcessError):
        return "not a git checkout"
    return done.stdout.strip()


def write_json(values: object, path: Path, *, indent: int | None = 1) -> None:
    """Write JSON under a temporary name, then rename; without `indent` in one line."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    temporary.write_text(json.dumps(values, indent=indent) + "\n")
    os.replace(temporary, path)


def open_split(data: str, split: str, scenes: int, queries: int) -> Scenes:
    """The scenes of an evaluation: of the simulator ("sim"), or of a built Talk2Occ folder."""
    if data == "sim":
        if split not in ("calibration", "val", "test"):
            raise ValueError(f"split {split!r} of the simulator, expected calibration, val or test")
        return SimulatedScenes(split, scenes, num_frames=2, num_queries=queries, lexicon="both")
    from vlm_occ.data.dataset import Talk2OccDataset

    if split not in ("train", "val", "test"):
        raise ValueError(f"split {split!r} of {data}, expected train, val or test")
    return Talk2OccDataset(data, split)


def evaluate_command(
    model: str,
    data: str,
    split: str,
    out: str | Path,
    *,
    scenes: int = 200,
    queries: int = 6,
    sensor_scenes: int = 60,
    device: torch.device | None = None,
    workers: int = 1,
) -> dict[str, object]:
    """`vlm-occ eval`: every figure of a model, written to `out`; the result is returned.

    Of one of the paper's systems those that it has: it rejects no sentence, and no half of it can be perfect.

    `data` is "sim" or a folder of `vlm-occ data talk2occ`. Simulated: `scenes` scenes, each with `queries`
    sentences of the training words and as many of the held-out ones; the figures with one kind of sensor and
    the recall of the voxel tokens use the first `sensor_scenes` of them. What a killed run has done is kept
    beside `out`, and the same command goes on from there, with any number of `workers`: processes that take
    scenes in turn.
    """
    if workers < 1:
        raise ValueError(f"workers = {workers}, expected at least 1")
    out, device = Path(out), device or default_device()
    commit = commit_of_tree()
    source, loaded = open_split(data, split, scenes, queries), load_model(model, device=device)
    kept: KeptOutcomes | None = None
    if isinstance(loaded, Baseline):
        if workers > 1:
            raise ValueError(f"workers = {workers}, expected 1: {model} is evaluated by one process")
        result = _system_figures(loaded, source)
    else:
        part = Share(model, data, split, scenes, queries, sensor_scenes, device, out, commit)
        if workers > 1:
            part.work(workers)
        kept = part.keep()
        result = _model_figures(loaded, source, sensor_scenes, kept)
    result["real_keyframe"] = evaluate_keyframe(loaded)
    result["protocol"] = protocol(loaded, model, source, split, data)
    write_json(result, out)
    if kept is not None:
        kept.forget()
    return result


@dataclass(frozen=True)
class Share:
    """What one of several processes needs to know of an evaluation."""

    model: str
    data: str
    split: str
    scenes: int
    queries: int
    sensor_scenes: int
    device: torch.device
    out: Path
    commit: str  # of the code that runs

    def keep(self, number: int | None = None) -> KeptOutcomes:
        """What has been done; `number`: of the process that adds to it."""
        folder = find_checkpoint(self.model)
        about = [file_sums(folder) if folder else self.model, self.commit]
        return KeptOutcomes(self.out.with_name(f".{self.out.name}.scenes.jsonl"), repr(about), share=number)

    def work(self, count: int) -> None:
        """Outcomes of all scenes by `count` processes, which share the cores."""
        threads = max(1, torch.get_num_threads() // count)
        context = multiprocessing.get_context("spawn")
        start = partial(torch.set_num_threads, threads)
        with ProcessPoolExecutor(count, mp_context=context, initializer=start) as pool:
            for done in [pool.submit(_evaluate_share, self, number, count) for number in range(count)]:
                done.result()


def _evaluate_share(part: Share, number: int, count: int) -> None:
    """The scenes of one process."""
    source = open_split(part.data, part.split, part.scenes, part.queries)
    loaded = load_model(part.model, device=part.device)
    assert isinstance(loaded, VLMOcc)
    _outcomes(loaded, source, part.sensor_scenes, part.keep(number), (number, count))


def _outcomes(
    vlm: VLMOcc, source: Scenes, sensor_scenes: int, keep: KeptOutcomes, share: tuple[int, int] = (0, 1)
) -> dict[Sensors, list[Outcome]]:
    """Outcomes of a share of all scenes, and of the first `sensor_scenes` with one kind of sensor."""
    limits: dict[Sensors, int | None] = {"all": None, "lidar": sensor_scenes, "cameras": sensor_scenes}
    return {
        sensors: evaluate_scenes(vlm, source, sensors=sensors, limit=limit, keep=keep, share=share)
        for sensors, limit in limits.items()
    }


def _model_figures(vlm: VLMOcc, source: Scenes, sensor_scenes: int, keep: KeptOutcomes) -> dict[str, object]:
    """All figures of VLM-Occ on simulated or recorded scenes."""
    outcomes = _outcomes(vlm, source, sensor_scenes, keep)
    everything = outcomes.pop("all")
    result = summary([o for o in everything if o.plain.lexicon == "train"])
    result.update(_unseen_words([o.plain for o in everything]))
    for sensors, some in outcomes.items():
        part = summarise([o.plain for o in some if o.plain.lexicon == "train"])
        result[f"{sensors}_only"] = {key: part[key] for key in ("overall", "macro_acc25", "no_target")}
    result["token_recall"] = token_recall(vlm, source, limit=sensor_scenes)
    return result


def _system_figures(system: Baseline, source: Scenes) -> dict[str, object]:
    """Those of one of the paper's systems, which answers every sentence by one object."""
    scores = score(system, source)
    result = dict(summarise([r for r in scores.plain if r.lexicon == "train"]))
    refined = summarise([r for r in scores.refined if r.lexicon == "train"])
    result["refined"] = {key: refined[key] for key in ("overall", "unique", "multiple", "macro_acc25")}
    return {**result, **_unseen_words(scores.plain)}


def _unseen_words(records: Sequence[QueryRecord]) -> dict[str, object]:
    """Figures of the sentences of the held-out lexicon, where there are any."""
    held_out = [r for r in records if r.lexicon == "heldout"]
    if not held_out:
        return {}
    words = summarise(held_out)
    return {"heldout_words": words["overall"], "heldout_no_target": words["no_target"]}


def format_evaluation(result: Mapping[str, Any]) -> str:
    """The figures of `evaluate_command` as a table."""
    rows = {name: result[name] for name in ("overall", "unique", "multiple")}
    rows["held-out words"] = result.get("heldout_words")
    rows["cut to the box (--refine)"] = result["refined"]["overall"]
    for name, ceiling in result.get("ceilings", {}).items():
        rows[f"with {name.replace('_', ' ')}"] = ceiling["overall"]
    for name in ("lidar_only", "cameras_only"):
        rows[name.replace("_", " ")] = result.get(name, {}).get("overall")
    lines = [f"{'sentences':28s}{'n':>6s}  {'Acc@0.25, %':>21s}  {'Acc@0.5, %':>21s}  mIoU, %"]
    lines += [_line(name, row) for name, row in rows.items() if row and row["n"]]
    if result["macro_acc25"] is not None:
        lines.append(f"{'mean over classes':34s}  {100 * result['macro_acc25']:5.1f}")
    none = result["no_target"]
    if none["n"] and none["false_rejected"] is not None:
        lines.append(
            f"sentences that mean nothing: {100 * none['rejected']:.1f} % of {none['n']} rejected, "
            f"{100 * none['false_rejected']:.1f} % of the others rejected too"
        )
    frame = result["real_keyframe"]
    if not isinstance(frame, str):
        lines.append(
            f"real keyframe: {frame['both_iou_above_half']} of {frame['n']} with both IoUs above 0.5"
        )
    return "\n".join(lines)


def _line(name: str, row: Mapping[str, Any]) -> str:
    cells = []
    for metric in ("acc25", "acc50"):
        low, high = (100 * value for value in row[f"{metric}_interval"])
        cells.append(f"{100 * row[metric]:5.1f} [{low:5.1f}, {high:5.1f}]")
    return f"{name:28s}{row['n']:6d}  {cells[0]:>21s}  {cells[1]:>21s}  {100 * row['miou']:5.1f}"


def real_data() -> Path:
    """The folder of the real samples: VLM_OCC_REAL_DATA, or `shared/data` beside the repository."""
    return Path(os.environ.get("VLM_OCC_REAL_DATA", Path(__file__).parents[3] / "shared" / "data"))


def evaluate_keyframe(model: VLMOcc | Baseline) -> dict[str, object] | str:
    """The ten sentences on the real keyframe: IoU over the LiDAR-occupied voxels, box IoU, centre error."""
    folder = real_data()
    if not (folder / "nuscenes_keyframe").is_dir():
        return "not measured: the real keyframe is not here (VLM_OCC_REAL_DATA)"
    known = load_labelled_keyframe(folder / "nuscenes_keyframe", folder / "nuscenes_keyframe_queries.json")
    item, asked = known.item, cast(Any, model)
    state = asked.encode(item.scene)
    rows = []
    for query, accepted in zip(item.queries, known.accepted, strict=True):
        answer = asked.ground(state, query.text, refine=False)
        best = {"iou": 0.0, "box_iou": 0.0, "centre_error_m": float("inf")}
        for target in accepted:
            truth = true_voxels(item, [target])
            predicted = answer.occupancy.cpu() == 2
            box = item.labels.boxes[target]
            found = answer.objects[0].box.cpu() if answer.objects else None
            scores = {
                "iou": occupancy_iou(predicted & item.labels.mask_lidar, truth),
                "box_iou": float(box_iou_3d(found[None], box[None])) if found is not None else 0.0,
                "centre_error_m": float((found[:3] - box[:3]).norm()) if found is not None else float("inf"),
            }
            best = max(best, scores, key=lambda s: (s["iou"], s["box_iou"]))
        rows.append({"query": query.text, "objects": len(answer.objects), **best})
    right = sum(row["iou"] > 0.5 and row["box_iou"] > 0.5 for row in rows)
    for row in rows:
        if row["centre_error_m"] == float("inf"):
            row["centre_error_m"] = None
    return {"sentences": rows, "both_iou_above_half": right, "n": len(rows)}
