"""The keyframes of a Talk2Occ index: their files, calibration, poses and objects, one row each."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from vlm_occ.data.annotations import load_boxes
from vlm_occ.data.nuscenes import LIDAR, NuScenesTables, previous_samples
from vlm_occ.data.occ3d import labels_path
from vlm_occ.data.talk2occ_join import Joined
from vlm_occ.types import TALK2OCC_CLASSES

HISTORY = 8
"""Keyframes, the reference included, that a scene of the index can have at most."""


@dataclass
class FrameFiles:
    """Rows of `frames.parquet`, and what the builder needs of the keyframes that sentences refer to."""

    rows: list[dict[str, object]] = field(default_factory=list)
    sensor_files: list[str] = field(default_factory=list)  # below the nuScenes root
    labels: dict[str, str] = field(default_factory=dict)  # by sample token, below the Occ3D root
    boxes: dict[str, tuple[tuple[float, ...], ...]] = field(default_factory=dict)
    classes: dict[str, tuple[int, ...]] = field(default_factory=dict)


def collect_frames(tables: NuScenesTables, joined: Joined, occ3d: Path) -> FrameFiles:
    """All keyframes that the sentences need, in the order of the scenes' time."""
    frames = FrameFiles()
    wanted = dict.fromkeys(sentence.sample_token for sentence in joined.sentences)
    seen: set[str] = set()
    for reference in wanted:
        for token in previous_samples(tables, reference, HISTORY):
            if token not in seen:
                seen.add(token)
                frames.rows.append(_frame_row(tables, token, frames, joined, token in wanted))
    return frames


def _frame_row(
    tables: NuScenesTables, token: str, frames: FrameFiles, joined: Joined, is_reference: bool
) -> dict[str, object]:
    """One keyframe; its files and objects are noted in `frames`."""
    sample = tables.get("sample", token, asked_by="a sentence")
    scene = tables.get("scene", sample["scene_token"], asked_by=f"sample {token}")
    sensors = tables.keyframe(token)
    cameras = sorted(name for name in sensors if name.startswith("CAM_"))
    frames.sensor_files.extend(str(sensors[name]["filename"]) for name in (*cameras, LIDAR))
    row: dict[str, object] = {
        "sample_token": token,
        "prev": str(sample["prev"]),
        "scene_token": str(sample["scene_token"]),
        "scene_name": str(scene["name"]),
        "timestamp": float(str(sensors[LIDAR]["timestamp"])) * 1e-6,
        "world_from_ego": tables.world_from_ego(sensors[LIDAR]).flatten().tolist(),
        "ego_from_lidar": tables.ego_from_sensor(sensors[LIDAR]).flatten().tolist(),
        "lidar": str(sensors[LIDAR]["filename"]),
        "cameras": [
            {
                "name": name,
                "image": str(sensors[name]["filename"]),
                "intrinsics": tables.intrinsics(sensors[name]).flatten().tolist(),
                "ego_from_camera": tables.ego_from_camera(token, name).flatten().tolist(),
            }
            for name in cameras
        ],
        "labels": "",
        "objects": [],
        "situations": [],
    }
    if is_reference:
        extra = joined.samples.get(token, {})
        row["labels"] = frames.labels[token] = str(labels_path("", str(scene["name"]), token))
        row["objects"] = _objects(tables, token, frames, extra)
        row["situations"] = extra.get("situations", [])
    return row


def _objects(
    tables: NuScenesTables, token: str, frames: FrameFiles, extra: Mapping[str, object]
) -> list[dict[str, object]]:
    """The objects of a reference keyframe; a simulated one also knows colours, speeds and visibility."""
    found = load_boxes(tables, token)
    frames.boxes[token] = tuple(tuple(box) for box in found.boxes.tolist())
    frames.classes[token] = tuple(found.classes.tolist())
    facts = extra.get("objects", [])
    known = {str(fact["box_token"]): fact for fact in facts} if isinstance(facts, list) else {}
    objects = []
    for i, own in enumerate(found.tokens):
        fact = known.get(own, {})
        if int(found.classes[i]) < 0:
            continue
        objects.append(
            {
                "token": own,
                "label": TALK2OCC_CLASSES[int(found.classes[i])],
                "colour": fact.get("colour", ""),
                "box": found.boxes[i].tolist(),
                "velocity": fact.get("velocity", found.velocities[i].tolist()),
                "visibility": fact.get("visibility", float(found.visibility[i])),
                "num_points": int(found.num_points[i]),
            }
        )
    return objects
