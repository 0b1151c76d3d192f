"""Evaluation of a model on labelled scenes: records of every query, then figures with intervals."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Literal, Protocol

import torch
from torch import Tensor

from vlm_occ.data.augment import without_cameras, without_lidar
from vlm_occ.eval.metrics import QueryRecord, calibration, matched_box_iou, occupancy_iou, summarise
from vlm_occ.losses.matching import match_boxes
from vlm_occ.models.adapter import VLMOcc
from vlm_occ.types import (
    FREE,
    TALK2OCC_CLASSES,
    GroundedObject,
    GroundingResult,
    LabelledScene,
)
from vlm_occ.voxels import voxels_in_box

Sensors = Literal["all", "lidar", "cameras"]


class Scenes(Protocol):
    """Any indexed collection of labelled scenes."""

    def __len__(self) -> int: ...
    def __getitem__(self, index: int, /) -> LabelledScene: ...


@dataclass(frozen=True)
class Outcome:
    """One query's records: as answered, refined by the box, and with a perfect half."""

    plain: QueryRecord
    refined: QueryRecord
    perfect_pointer: QueryRecord  # the true objects' tokens, the model's masks
    perfect_masks: QueryRecord  # the model's tokens, the true masks of the objects that they stand for


class Keep(Protocol):
    """Remembers the outcomes of scenes by what was seen of them; `eval.kept_outcomes` has one."""

    def __call__(
        self, sensors: str, item: LabelledScene, make: Callable[[], list[Outcome]], /
    ) -> list[Outcome]: ...


def true_voxels(item: LabelledScene, targets: Sequence[int]) -> Tensor:
    """The ground truth of Talk2Occ's eq. 1 for several targets: bool [X, Y, Z]."""
    result = torch.zeros(item.scene.grid.shape, dtype=torch.bool)
    for target in targets:
        result |= voxels_in_box(item.labels.boxes[target], item.scene.grid)
    return result & (item.labels.semantics != FREE)


def record(item: LabelledScene, number: int, objects: Sequence[GroundedObject], truth: Tensor) -> QueryRecord:
    """The record of one answer."""
    query = item.queries[number]
    predicted = torch.zeros_like(truth)
    for found in objects:
        predicted |= found.occupancy.cpu()
    boxes = item.labels.boxes[list(query.targets)]
    found_boxes = torch.stack([o.box.cpu() for o in objects]) if objects else torch.zeros(0, 7)
    label = TALK2OCC_CLASSES[int(item.labels.classes[query.targets[0]])] if query.targets else ""
    return QueryRecord(
        scene=item.scene.name,
        query=number,
        label=label,
        distance=float(boxes[:, :2].norm(dim=-1).min()) if query.targets else float("nan"),
        unique=query.unique,
        iou=occupancy_iou(predicted, truth),
        box_iou=matched_box_iou(found_boxes, boxes),
        num_predicted=len(objects),
        num_true=len(query.targets),
        score=max((o.score for o in objects), default=0.0),
        kind=query.kind,
        lexicon=query.lexicon,
        near_miss=query.near_miss,
    )


def evaluate_scene(model: VLMOcc, item: LabelledScene, *, sensors: Sensors = "all") -> list[Outcome]:
    """Outcomes of all queries of a scene; with `sensors` the model sees only some of them."""
    scene = item.scene
    if sensors == "lidar":
        scene = without_cameras(scene)
    elif sensors == "cameras":
        scene = without_lidar(scene)
    state = model.encode(scene)
    texts = [query.text for query in item.queries]
    match = match_boxes(state.token_boxes.cpu(), item.labels.boxes)
    heard = model.understood(state, texts)
    scores = heard.scores
    chosen = [model.chosen_tokens(row, text).tolist() for row, text in zip(scores, texts, strict=True)]
    wanted = [[int(match[t]) for t in q.targets if match[t] >= 0] for q in item.queries]

    def answered(tokens: Sequence[Sequence[int]], *, refine: bool = False) -> list[GroundingResult]:
        rows = [torch.tensor(row, dtype=torch.long, device=scores.device) for row in tokens]
        parts = zip(texts, heard.states.ground, scores, rows, strict=True)
        return [model.answer(state, *part, refine=refine) for part in parts]

    answers, refined, pointed = answered(chosen), answered(chosen, refine=True), answered(wanted)
    return [
        Outcome(
            record(item, n, answers[n].objects, truth),
            record(item, n, refined[n].objects, truth),
            record(item, n, pointed[n].objects, truth),
            record(item, n, _true_masks(item, answers[n], chosen[n], match), truth),
        )
        for n, truth in enumerate(true_voxels(item, q.targets) for q in item.queries)
    ]


def _true_masks(
    item: LabelledScene, answer: GroundingResult, tokens: Sequence[int], match: Tensor
) -> list[GroundedObject]:
    """The answer's objects with the true voxels of the object that each token stands for."""
    objects = []
    for found, token in zip(answer.objects, tokens, strict=True):
        stands_for = (match == token).nonzero()[:, 0].tolist()
        objects.append(replace(found, occupancy=true_voxels(item, stands_for)) if stands_for else found)
    return objects


def evaluate_scenes(
    model: VLMOcc,
    scenes: Scenes,
    *,
    sensors: Sensors = "all",
    limit: int | None = None,
    keep: Keep | None = None,
    share: tuple[int, int] = (0, 1),
) -> list[Outcome]:
    """Outcomes of every query of every scene, with a progress bar on stderr; `keep` remembers them.

    `share` (k, n): only every n-th scene from the k-th on, the work of one process of n; the first shows the
    bar.
    """
    from tqdm import tqdm

    outcomes = []
    chosen = range(share[0], min(len(scenes), limit or len(scenes)), share[1])
    for index in tqdm(chosen, unit="scene", desc=sensors, disable=share[0] > 0):
        item = scenes[index]
        make = partial(evaluate_scene, model, item, sensors=sensors)
        outcomes += make() if keep is None else keep(sensors, item, make)
    return outcomes


def summary(outcomes: Sequence[Outcome]) -> dict[str, object]:
    """The figures of a run: as answered at the top level, then refined, ceilings and calibration."""
    result = dict(summarise([o.plain for o in outcomes]))
    short = ("overall", "unique", "multiple", "macro_acc25", "per_class")
    for name in ("refined", "perfect_pointer", "perfect_masks"):
        full = summarise([getattr(o, name) for o in outcomes])
        part = {key: full[key] for key in short if key in full}
        if name == "refined":
            result["refined"] = part
        else:
            ceilings = result.setdefault("ceilings", {})
            assert isinstance(ceilings, dict)
            ceilings[name] = part
    answered = [o.plain for o in outcomes if o.plain.num_predicted]
    result["calibration"] = calibration(
        [r.score for r in answered], [r.iou > 0.25 and r.num_true > 0 for r in answered]
    )
    return result


def token_recall(model: VLMOcc, scenes: Scenes, *, limit: int) -> dict[str, float]:
    """Share of the referable objects (those that a sentence means) that a voxel token stands for, per
    class.
    """
    hits: dict[str, list[bool]] = {}
    for index in range(min(limit, len(scenes))):
        item = scenes[index]
        match = match_boxes(model.encode(item.scene).token_boxes.cpu(), item.labels.boxes)
        for target in sorted({t for query in item.queries for t in query.targets}):
            name = TALK2OCC_CLASSES[int(item.labels.classes[target])]
            hits.setdefault(name, []).append(bool(match[target] >= 0))
    result = {name: sum(values) / len(values) for name, values in sorted(hits.items())}
    everything = [value for values in hits.values() for value in values]
    return {"overall": sum(everything) / max(len(everything), 1), **result}
