"""How systems answer under the contest rule: every sentence means one object, every answer is one object."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from vlm_occ.eval.evaluate import Scenes, record, true_voxels
from vlm_occ.eval.metrics import QueryRecord
from vlm_occ.models.adapter import VLMOcc
from vlm_occ.models.baselines import Baseline
from vlm_occ.models.kept_features import KeptFeatures
from vlm_occ.models.references import RandomReference
from vlm_occ.types import GroundingResult, LabelledScene
from vlm_occ.voxels import voxels_in_box


@dataclass(frozen=True)
class Scores:
    """The records of one system on the contest's scenes."""

    plain: tuple[QueryRecord, ...]
    refined: tuple[QueryRecord, ...]  # the occupied voxels in the box of the same answer
    seconds: float  # of all answers

    def as_dict(self) -> dict[str, object]:
        """Plain values, fit for JSON: the names of a record's fields once, then a list a record."""
        names = [field.name for field in dataclasses.fields(QueryRecord)]
        rows = {
            part: [[getattr(r, name) for name in names] for r in getattr(self, part)]
            for part in ("plain", "refined")
        }
        return {"fields": names, **rows, "seconds": self.seconds}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Scores:
        """What `as_dict` gave, whatever else is beside it."""
        plain, refined = (
            tuple(QueryRecord(**dict(zip(values["fields"], row, strict=True))) for row in values[part])
            for part in ("plain", "refined")
        )
        return cls(plain, refined, float(values["seconds"]))


@torch.no_grad()
def answer(
    model: VLMOcc | Baseline | RandomReference,
    item: LabelledScene,
    texts: Sequence[str],
    *,
    keep: KeptFeatures | None = None,
) -> list[GroundingResult]:
    """One object a sentence: of VLM-Occ its surest candidate, whatever the threshold.

    `keep`: where what the trunk of one of the paper's systems says of scenes is remembered.
    """
    if isinstance(model, RandomReference):
        return model.ground(model.encode(item.labels, item.scene.grid, name=item.scene.name), list(texts))
    if isinstance(model, Baseline):
        return model.ground(model.encode(item.scene, keep=keep), list(texts))
    state = model.encode(item.scene)
    asked = model.query_states(state, texts)
    scores = model.state_scores(state, asked)  # [Q, N]
    surest = scores.argsort(dim=1, descending=True)[:, :1]  # [Q, 1], or none without a candidate
    parts = zip(texts, asked.ground, scores, surest, strict=True)
    return [model.answer(state, *part, refine=False) for part in parts]


def refined(result: GroundingResult) -> GroundingResult:
    """The answer with each object's voxels replaced by the occupied ones in its box (-Refine)."""
    objects = [
        replace(found, occupancy=result.scene_occupancy & voxels_in_box(found.box, result.grid))
        for found in result.objects
    ]
    return replace(result, objects=tuple(objects))


def score(
    model: VLMOcc | Baseline | RandomReference, scenes: Scenes, *, features: str | Path | None = None
) -> Scores:
    """Records of every sentence of every scene, with a progress bar on stderr.

    `features`: folder that keeps what the frozen trunk of the paper's systems says.
    """
    from tqdm import tqdm

    keep = KeptFeatures(features, model) if features and isinstance(model, Baseline) else None
    plain, better, seconds = [], [], 0.0
    for index in tqdm(range(len(scenes)), unit="scene", desc="scoring"):
        item = scenes[index]
        start = time.perf_counter()
        results = answer(model, item, [query.text for query in item.queries], keep=keep)
        seconds += time.perf_counter() - start
        for n, (query, result) in enumerate(zip(item.queries, results, strict=True)):
            truth = true_voxels(item, query.targets)
            plain.append(record(item, n, result.objects, truth))
            better.append(record(item, n, refined(result).objects, truth))
    return Scores(tuple(plain), tuple(better), seconds)
