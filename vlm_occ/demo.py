"""The main job on a bundled scene: sentences in, a table with the truth beside it and pictures out."""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from vlm_occ.data.simulator.scene import simulate_details, with_sentences
from vlm_occ.eval.evaluate import true_voxels
from vlm_occ.eval.metrics import occupancy_iou
from vlm_occ.render import draw_birds_eye, draw_cameras
from vlm_occ.types import GroundingQuery, GroundingResult, LabelledScene

if TYPE_CHECKING:
    from vlm_occ.models.adapter import VLMOcc
    from vlm_occ.models.baselines import Baseline

NUM_QUERIES = 6
RIGHT, CLOSE = 0.25, 0.5
"""Voxel IoU above which an answer means the right objects, and above which it marks them closely: Talk2Occ's
Acc@0.25 and Acc@0.5. "None" has an IoU of 1 where nothing is meant."""


@dataclass(frozen=True)
class Row:
    """One line of the demo's table."""

    result: GroundingResult
    iou: float


def choose_queries(queries: Sequence[GroundingQuery], count: int = NUM_QUERIES) -> list[GroundingQuery]:
    """A varied choice: one of each kind and new targets first, in the scene's order."""
    chosen: list[GroundingQuery] = []
    for fresh in (True, False):
        for query in queries:
            seen = any(query.kind == c.kind and query.targets == c.targets for c in chosen)
            kinds = [c.kind for c in chosen]
            crowded = kinds.count(query.kind) >= (2 if query.kind in ("expression", "command") else 1)
            if len(chosen) < count and query not in chosen and not (fresh and (seen or crowded)):
                chosen.append(query)
    return sorted(chosen, key=queries.index)


def demo_scene(seed: int) -> LabelledScene:
    """A simulated scene with sentences; "the excavator on the left" comes first where there is just one."""
    details = simulate_details(seed, num_frames=2, camera_frames=1)
    sample = with_sentences(details, seed=seed, num_queries=12)
    diggers = [i for i, fact in enumerate(details.facts) if fact.variant == "excavator"]
    if len(diggers) == 1 and details.facts[diggers[0]].referable and details.facts[diggers[0]].box[1] > 2:
        first = GroundingQuery("the excavator on the left", (diggers[0],), unique=True)
        sample = replace(sample, queries=(first, *sample.queries))
    return sample


def run_demo(sample: LabelledScene, model: VLMOcc | Baseline, out: Path) -> list[Row]:
    """Ground a few of the scene's sentences, write their pictures into `out`, and score them by the truth."""
    queries = choose_queries(sample.queries)
    if not queries:
        raise ValueError(f"scene {sample.scene.name!r} has no sentences to show; choose another seed")
    state = model.encode(sample.scene)
    results = model.ground(state, [query.text for query in queries])  # type: ignore[arg-type]
    rows = []
    for number, (query, result) in enumerate(zip(queries, results, strict=True), start=1):
        found = (result.occupancy == 2).cpu()
        rows.append(Row(result, occupancy_iou(found, true_voxels(sample, query.targets))))
        print(f"vlm-occ: drawing {number} of {len(queries)}", file=sys.stderr)
        draw_birds_eye(result, out / f"{number}_birds_eye.png", scene=sample.scene)
        if sample.scene.rig.names:
            draw_cameras(sample.scene, result, out / f"{number}_cameras.png")
    return rows


def place_of(x: float, y: float) -> str:
    """A position in words: its distance and one of eight directions."""
    names = ("ahead", "ahead left", "left", "behind left", "behind", "behind right", "right", "ahead right")
    return f"{math.hypot(x, y):.0f} m {names[round(math.atan2(y, x) / (math.pi / 4)) % 8]}"


def format_table(rows: Sequence[Row]) -> str:
    """The table of `vlm-occ demo`."""
    header = ("#", "query", "answer", "objects", "where", "score", "IoU", "verdict")
    lines: list[tuple[str, ...]] = [header]
    for number, row in enumerate(rows, start=1):
        objects = row.result.objects
        where = place_of(*objects[0].box[:2].tolist()) if objects else "-"
        score = f"{objects[0].score:.2f}" if objects else "-"
        cells = (str(number), _cut(row.result.query, 60), _cut(row.result.text, 44), str(len(objects)))
        lines.append((*cells, where, score, f"{row.iou:.2f}", _verdict(row.iou)))
    widths = [max(len(line[column]) for line in lines) for column in range(len(header))]
    text = [
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in lines
    ]
    text.insert(1, "  ".join("-" * width for width in widths))
    right, close = (sum(row.iou > least for row in rows) for least in (RIGHT, CLOSE))
    text.append(
        f"{right} of {len(rows)} answers are right (voxel IoU with the scene's truth above {RIGHT:g}), "
        f"{close} of them above {CLOSE:g}."
    )
    return "\n".join(text)


def _verdict(iou: float) -> str:
    """An IoU in words."""
    return "wrong" if iou <= RIGHT else "right" if iou <= CLOSE else "right, close"


def _cut(text: str, limit: int) -> str:
    """At most `limit` characters of a text."""
    return text if len(text) <= limit else text[: limit - 1].rstrip() + "…"
