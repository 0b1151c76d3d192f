"""nuScenes annotations: a sample's objects as boxes in its ego frame at the LiDAR time."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from vlm_occ.data.nuscenes import LIDAR, NuScenesTables, Row
from vlm_occ.geometry import invert_rigid, quaternion_to_rotation, transform_points
from vlm_occ.types import TALK2OCC_CLASSES

CATEGORY_CLASSES = {
    "animal": "animal",
    "human.pedestrian.adult": "pedestrian",
    "human.pedestrian.child": "pedestrian",
    "human.pedestrian.construction_worker": "pedestrian",
    "human.pedestrian.personal_mobility": "pedestrian",
    "human.pedestrian.police_officer": "pedestrian",
    "human.pedestrian.stroller": "pedestrian",
    "human.pedestrian.wheelchair": "pedestrian",
    "movable_object.barrier": "barrier",
    "movable_object.debris": "debris",
    "movable_object.pushable_pullable": "movable object",
    "movable_object.trafficcone": "traffic cone",
    "static_object.bicycle_rack": "bicycle rack",
    "vehicle.bicycle": "bicycle",
    "vehicle.bus.bendy": "bus",
    "vehicle.bus.rigid": "bus",
    "vehicle.car": "car",
    "vehicle.construction": "construction vehicle",
    "vehicle.emergency.ambulance": "emergency vehicle",
    "vehicle.emergency.police": "emergency vehicle",
    "vehicle.motorcycle": "motorcycle",
    "vehicle.trailer": "trailer",
    "vehicle.truck": "truck",
}
"""The 23 object categories of nuScenes and their Talk2Occ classes."""


def class_of_category(category: str) -> int:
    """Index in TALK2OCC_CLASSES of a nuScenes category, -1 where it is no object of Talk2Occ."""
    name = CATEGORY_CLASSES.get(category)
    return -1 if name is None else TALK2OCC_CLASSES.index(name)


@dataclass(frozen=True)
class AnnotatedBoxes:
    """The objects of a sample in its ego frame at the LiDAR time."""

    boxes: Tensor  # float32 [M, 7]
    classes: Tensor  # long [M], index in TALK2OCC_CLASSES, -1 for others
    velocities: Tensor  # float32 [M, 2] m/s over ground, ego axes; NaN where a drive has one sample
    num_points: Tensor  # long [M]
    visibility: Tensor  # float32 [M]: the middle of nuScenes' bin, in [0, 1]
    tokens: tuple[str, ...]  # sample_annotation


VISIBILITY_MIDDLE = {"1": 0.2, "2": 0.5, "3": 0.7, "4": 0.9}
"""Middle of nuScenes' visibility bins 0-40, 40-60, 60-80 and 80-100 %."""

MAX_GAP = 1.5
"""Seconds between two annotations beyond which their difference says nothing about speed."""


def load_boxes(tables: NuScenesTables, sample_token: str) -> AnnotatedBoxes:
    """The boxes of a sample in the order of the file; ValueError names a dangling or malformed row."""
    rows = tables.annotations(sample_token)
    lidar = tables.keyframe(sample_token)[LIDAR]
    ego_from_world = invert_rigid(tables.world_from_ego(lidar))
    return AnnotatedBoxes(
        boxes=torch.stack([annotation_box(row, ego_from_world) for row in rows]).reshape(-1, 7)
        if rows
        else torch.zeros(0, 7),
        classes=torch.tensor([class_of_category(category_of(tables, row)) for row in rows], dtype=torch.long),
        velocities=torch.tensor([_velocity(tables, row, ego_from_world) for row in rows]).reshape(-1, 2),
        num_points=torch.tensor([int(str(row["num_lidar_pts"])) for row in rows], dtype=torch.long),
        visibility=torch.tensor([VISIBILITY_MIDDLE.get(str(row["visibility_token"]), 0.0) for row in rows]),
        tokens=tuple(str(row["token"]) for row in rows),
    )


def annotation_box(row: Row, ego_from_world: Tensor) -> Tensor:
    """The box float32 [7] of a sample_annotation (world frame; size is width, length, height) in ego axes."""
    try:
        centre = torch.tensor(row["translation"], dtype=torch.float64).reshape(1, 3)
        width, length, height = (float(v) for v in torch.tensor(row["size"], dtype=torch.float64).reshape(3))
        rotation = quaternion_to_rotation(torch.tensor(row["rotation"], dtype=torch.float64).reshape(4))
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise ValueError(
            f"sample_annotation {row['token']} lacks a translation [3], size [3] or rotation [4]; "
            "restore the table"
        ) from error
    heading = ego_from_world[:3, :3] @ rotation[:, 0]
    place = transform_points(ego_from_world, centre)[0].tolist()
    return torch.tensor([*place, length, width, height, torch.atan2(heading[1], heading[0]).item()])


def category_of(tables: NuScenesTables, row: Row) -> str:
    """The nuScenes category of a sample_annotation."""
    name = f"sample_annotation {row['token']}"
    instance = tables.get("instance", row["instance_token"], asked_by=name)
    category = tables.get("category", instance["category_token"], asked_by=f"instance of {name}")
    return str(category["name"])


def _velocity(tables: NuScenesTables, row: Row, ego_from_world: Tensor) -> tuple[float, float]:
    """Speed over ground (m/s, ego axes) from the annotations before and after, as far as they exist."""
    name = f"sample_annotation {row['token']}"
    ends = []
    for key in ("prev", "next"):
        other = tables.get("sample_annotation", row[key], asked_by=name) if row[key] else row
        sample = tables.get("sample", other["sample_token"], asked_by=f"{key} of {name}")
        ends.append((float(str(sample["timestamp"])) * 1e-6, other["translation"]))
    gap = ends[1][0] - ends[0][0]
    if not 0 < gap <= MAX_GAP * (2 if row["prev"] and row["next"] else 1):
        return float("nan"), float("nan")
    start, end = (torch.tensor(place, dtype=torch.float64) for _, place in ends)
    x, y, _ = (ego_from_world[:3, :3] @ (end - start) / gap).tolist()
    return x, y
