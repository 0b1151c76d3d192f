"""`vlm-occ eval --spatial`: localisation, layout and question answering of a model, with its protocol."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from vlm_occ.data.simulator.vague_bounds import Allowed, allowed_poses
from vlm_occ.data.store import SimulatedScenes
from vlm_occ.eval.report import commit_of_tree, protocol, write_json
from vlm_occ.eval.spatial import Located, SpatialRecords, evaluate_spatial_scene
from vlm_occ.eval.spatial_figures import (
    layout_figures,
    localisation_figures,
    qa_figures,
    uncertainty_figures,
)
from vlm_occ.models.adapter import VLMOcc
from vlm_occ.situated import SituationQuery
from vlm_occ.timing import default_device

SENTENCES = 8
"""Situations, and as many questions, of each scene in each of the two lexicons."""

ACCURACIES = ("acc_0.5m", "acc_1m", "acc_15deg", "acc_30deg")

PUBLISHED: dict[str, object] = {
    "data": "SQA3D's 719 test situations in ScanNet rooms: OTHER DATA than the simulated drives of this file",
    "source": "Loc3R-VLM (arXiv 2603.18002), from summaries of the paper; shares of 1",
    "localisation": {
        "SIG3D": {"acc_0.5m": 0.274, "acc_1m": 0.591, "acc_15deg": 0.287, "acc_30deg": 0.425},
        "View2Cap": {"acc_0.5m": 0.174, "acc_1m": 0.369, "acc_15deg": 0.241, "acc_30deg": 0.285},
        "Loc3R-VLM": {"acc_0.5m": 0.426, "acc_1m": 0.759, "acc_15deg": 0.384, "acc_30deg": 0.630},
    },
    "ablation": {
        "situation": {"acc_0.5m": 0.270, "acc_1m": 0.515, "acc_15deg": 0.267, "acc_30deg": 0.487},
        "+ layout": {"acc_0.5m": 0.301, "acc_1m": 0.593, "acc_15deg": 0.282, "acc_30deg": 0.532},
        "+ camera": {"acc_0.5m": 0.399, "acc_1m": 0.755, "acc_15deg": 0.319, "acc_30deg": 0.563},
    },
}
"""The rows of FACTS 4, beside ours."""


def spatial_command(
    model: str,
    split: str,
    out: str | Path,
    *,
    scenes: int = 200,
    ablation: Mapping[str, str] | None = None,
    ablation_scenes: int | None = None,
    folder: str | None = None,
    questions: bool = True,
    device: torch.device | None = None,
) -> dict[str, object]:
    """Figures of a model on simulated drives, written to `out`; `ablation` names other models by their step.

    With `ablation_scenes` those see the first scenes only.
    `folder` keeps the scenes between runs; without `questions`, which take most of the time, none is asked.
    ValueError where a model has no spatial heads.
    """
    commit_of_tree()  # as it is when the run starts
    vlm = load_spatial(model, device=device)
    source = open_spatial(split, scenes, vlm, folder=folder)
    records, bounds = evaluate_source(vlm, source, answers=questions)
    result = spatial_figures(records)
    localisation = result["localisation"]
    assert isinstance(localisation, dict)
    localisation["vague_sentence_bound"] = uncertainty_figures(bounds)
    steps: dict[str, object] = {}
    some = min(ablation_scenes or len(source), len(source))
    for name, path in (ablation or {}).items():
        found, _ = evaluate_source(load_spatial(path, device=device), source, answers=questions, limit=some)
        steps[name] = {"model": path, **spatial_figures(found)}
    result["ablation"] = steps
    result["published"] = PUBLISHED
    about = protocol(vlm, model, source, split, "sim")
    for name in (
        "truth",
        "iou",
        "score_threshold",
        "existence_threshold",
        "sentences_sha256_of_first_20_scenes",
    ):
        about.pop(name)
    result["protocol"] = {
        **about,
        "situations": f"{SENTENCES} a scene and lexicon, about half of them exact; bounds are met strictly "
        "below them",
        "questions": f"{SENTENCES} a scene and lexicon; exact match after the normalisation of LEO"
        if questions
        else "none asked",
        "ablation": f"the first {some} scenes" if steps else "none",
        "layout": "vision tokens whose surface is within 30 m, exact depth; median over tokens",
        "intervals": "95 % percentile bootstrap over scenes",
    }
    write_json(result, Path(out))
    return result


def load_spatial(name: str, *, device: torch.device | None = None) -> VLMOcc:
    """A model with spatial heads."""
    vlm = VLMOcc.from_pretrained(name, device=device or default_device())
    if vlm.config.spatial is None:
        raise ValueError(f"model {name!r} has no spatial heads; train one with configs/loc3r_sim.yaml")
    return vlm


def open_spatial(split: str, scenes: int, model: VLMOcc, *, folder: str | None = None) -> SimulatedScenes:
    """Simulated drives with situations, questions and depth of every picture that the model sees."""
    if split not in ("calibration", "val", "test"):
        raise ValueError(f"split {split!r} of the simulator, expected calibration, val or test")
    frames = max(2, model.config.vlm_frames)
    return SimulatedScenes(
        split,
        scenes,
        num_frames=frames,
        camera_frames=max(model.config.vlm_frames, model.config.perception.camera_frames),
        num_queries=0,
        num_situations=SENTENCES,
        num_questions=SENTENCES,
        views=True,
        lexicon="both",
        folder=Path(folder) if folder else None,
    )


def evaluate_source(
    model: VLMOcc, source: SimulatedScenes, *, answers: bool = True, limit: int | None = None
) -> tuple[SpatialRecords, list[Located]]:
    """Records of the first `limit` scenes, and for each vague situation the best that its words allow."""
    from tqdm import tqdm

    from vlm_occ.data.simulator.scene import split_seed

    records, bounds = SpatialRecords(), []
    for index in tqdm(range(min(len(source), limit or len(source))), unit="scene", desc="spatial"):
        item, facts = source.with_facts(index)
        records.extend(evaluate_spatial_scene(model, item, answers=answers))
        seed = split_seed(source.split, index)
        for told, allowed in allowed_poses(facts, seed=seed, count=source.num_situations):
            if allowed is not None:
                bounds.append(best_located(item.scene.name, told, allowed))
    return records, bounds


def best_located(scene: str, told: SituationQuery, allowed: Allowed, *, bins: int = 36) -> Located:
    """What a model would say that knows which poses a sentence allows: their Gaussian and their histogram."""
    position = torch.from_numpy(allowed.position).float()
    turn = torch.from_numpy(allowed.yaw).float()
    row = ((torch.remainder(turn + torch.pi, 2 * torch.pi)) / (2 * torch.pi) * bins).long().clamp(0, bins - 1)
    counts = torch.bincount(row, minlength=bins).float() + 0.5  # an unseen bin is unlikely, not impossible
    return Located(
        scene,
        told.kind,
        told.lexicon,
        position.mean(0),
        position.std(0).clamp(min=0.05),
        float(torch.atan2(turn.sin().mean(), turn.cos().mean())),
        counts / counts.sum(),
        torch.tensor(told.position),
        told.yaw,
    )


def spatial_figures(records: SpatialRecords) -> dict[str, object]:
    """The figures of a model."""
    return {
        "localisation": localisation_figures(records.located),
        "layout": layout_figures(records.laid_out),
        "qa": qa_figures(records.answered),
    }


def format_spatial(result: Mapping[str, Any]) -> str:
    """The main figures as text, in percent and metres."""
    found, lines = result["localisation"], []
    for name, part in (("exact situations", found), ("their held-out words", found["heldout_words"])):
        if part["n"]:
            shares = [
                f"{key.removeprefix('acc_')} {100 * part[key]:.1f}" for key in part if key in ACCURACIES
            ]
            lines.append(f"{name} (n = {part['n']}): within {', '.join(shares)} %")
    for name in ("vague", "vague_sentence_bound"):
        if found[name]["n"]:
            likelihood = (
                f"position {found[name]['position_nll']:.2f}, heading {found[name]['yaw_nll']:.2f} nats"
            )
            lines.append(f"{name.replace('_', ' ')} (n = {found[name]['n']}): {likelihood}")
    if result["layout"]["n"]:
        lines.append(
            f"layout (n = {result['layout']['n']}): median {result['layout']['median_error_m']:.2f} m"
        )
    for name, part in result["qa"].items():
        if part["n"]:
            lines.append(f"questions, {name} (n = {part['n']}): {100 * part['accuracy']:.1f} % right")
    return "\n".join(lines)
