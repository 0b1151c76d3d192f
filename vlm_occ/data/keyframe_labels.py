"""What is known of the real keyframe: its annotated boxes, the voxels that its one sweep hit, its
sentences.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import torch

from vlm_occ.data.annotations import class_of_category
from vlm_occ.data.keyframe import load_keyframe, read_record
from vlm_occ.types import FREE, GroundingQuery, LabelledScene, SceneLabels
from vlm_occ.voxels import voxelize


@dataclass(frozen=True)
class KeyframeSentences:
    """A keyframe with its sentences; `accepted[i]` are the boxes that are right for sentence i."""

    item: LabelledScene
    accepted: tuple[tuple[int, ...], ...]


def load_labelled_keyframe(folder: str | Path, sentences: str | Path) -> KeyframeSentences:
    """A keyframe folder with the sentences of a JSON file ([{query, box, also?}]).

    Only one sweep is known, so `semantics` says "others" for voxels that it hit and free elsewhere, and IoU
    is
    computed over those voxels (FACTS 2.3). Boxes whose centre is outside the grid are left out.
    """
    folder = Path(folder)
    scene = load_keyframe(folder)
    boxes = read_record(folder)["boxes"]
    if not isinstance(boxes, list):
        raise ValueError(f"{folder}: 'boxes' is {type(boxes).__name__}, expected a list of annotated boxes")
    values = [[*b["center_ego"], *b["size_lwh"], b["yaw_ego"]] for b in boxes]
    all_boxes = torch.tensor(values, dtype=torch.float32)
    _, inside = scene.grid.index_of(all_boxes[:, :3])
    rows = [i for i in inside.nonzero()[:, 0].tolist() if boxes[i]["name"] in _CATEGORIES]
    place = {row: i for i, row in enumerate(rows)}
    kept = [boxes[row] for row in rows]
    labels = _labels(scene.reference.points, all_boxes[rows], kept, scene.grid)
    queries, accepted = [], []
    for entry in json.loads(Path(sentences).read_text()):
        right = [place[i] for i in (entry["box"], *entry.get("also", ())) if i in place]
        if not right:
            raise ValueError(f"{sentences}: box {entry['box']} of {entry['query']!r} is outside the grid")
        unique = int((labels.classes == labels.classes[right[0]]).sum()) == 1
        queries.append(GroundingQuery(entry["query"], (right[0],), unique))
        accepted.append(tuple(right))
    return KeyframeSentences(LabelledScene(scene, labels, tuple(queries)), tuple(accepted))


def _labels(points: torch.Tensor | None, boxes: torch.Tensor, records: list[dict], grid) -> SceneLabels:
    """Labels of the boxes and of the voxels that hold a point."""
    hit = torch.zeros(grid.shape, dtype=torch.bool)
    if points is not None:
        index, _ = voxelize(points, grid)
        hit[index[:, 0], index[:, 1], index[:, 2]] = True
    counts = torch.tensor([int(r["points_inside"]) for r in records])
    return SceneLabels(
        semantics=torch.where(hit, 0, FREE).to(torch.uint8),
        mask_lidar=hit,
        mask_camera=torch.zeros_like(hit),
        boxes=boxes,
        classes=torch.tensor([class_of_category(_CATEGORIES[r["name"]]) for r in records]),
        colours=torch.full((len(records),), -1),
        velocities=torch.tensor([[v or 0.0 for v in r["velocity"][:2]] for r in records]).nan_to_num(),
        visibility=(counts > 0).float(),
        num_points=counts,
    )


_CATEGORIES = {
    "pedestrian": "human.pedestrian.adult",
    "barrier": "movable_object.barrier",
    "traffic_cone": "movable_object.trafficcone",
    "bicycle": "vehicle.bicycle",
    "motorcycle": "vehicle.motorcycle",
    "car": "vehicle.car",
    "bus": "vehicle.bus.rigid",
    "truck": "vehicle.truck",
    "trailer": "vehicle.trailer",
    "construction_vehicle": "vehicle.construction",
}
"""The nuScenes category of each detection name; boxes of other names are left out."""
