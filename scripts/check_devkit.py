"""Loads an export with the official nuscenes-devkit and compares its answers with ours.

Runs in an environment of its own (the devkit needs numpy below 2): a venv with `nuscenes-devkit==1.2.0` and
torch, started from the repository's root as `PYTHONPATH=. VENV/bin/python scripts/check_devkit.py EXPORT`.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
from nuscenes.nuscenes import NuScenes  # pyright: ignore[reportMissingImports]
from nuscenes.utils.data_classes import LidarPointCloud  # pyright: ignore[reportMissingImports]
from nuscenes.utils.geometry_utils import (  # pyright: ignore[reportMissingImports]
    BoxVisibility,
    points_in_box,
    view_points,
)
from pyquaternion import Quaternion  # pyright: ignore[reportMissingImports]

from vlm_occ.data.annotations import CATEGORY_CLASSES, load_boxes
from vlm_occ.data.nuscenes import LIDAR, NuScenesTables, load_scene
from vlm_occ.geometry import box_corners, points_in_boxes, project
from vlm_occ.types import TALK2OCC_CLASSES, Scene

LIMITS = {"corner_m": 1e-3, "point_m": 1e-3, "pixel_px": 0.05, "point_in_box_share": 1e-3}
"""Largest differences that count as agreement; the tables round to what float32 holds."""

NEAR = 1.0  # metres; corners nearer to a camera magnify rounding without bound


def note(worst: dict[str, float], name: str, value: float) -> None:
    """Keep the largest difference."""
    worst[name] = max(worst[name], value)


def compare_sample(devkit: NuScenes, tables: NuScenesTables, sample: dict, worst: dict, counts: dict) -> None:
    """Compare one keyframe; `worst` keeps the largest differences, `counts` what was compared."""
    scene, found = load_scene(tables, sample["token"]), load_boxes(tables, sample["token"])
    corners = box_corners(found.boxes).double()  # [M, 8, 3]
    lidar = devkit.get("sample_data", sample["data"][LIDAR])
    pose = devkit.get("ego_pose", lidar["ego_pose_token"])
    for row, token in enumerate(sample["anns"]):
        box = devkit.get_box(token)
        same_class = CATEGORY_CLASSES[box.name] == TALK2OCC_CLASSES[int(found.classes[row])]
        if not same_class or found.tokens[row] != token:
            raise ValueError(f"annotation {token} has another row or class with us")
        box.translate(-np.array(pose["translation"]))
        box.rotate(Quaternion(pose["rotation"]).inverse)
        theirs = torch.from_numpy(box.corners().T)  # [8, 3], in another order
        note(worst, "corner_m", torch.cdist(corners[row], theirs).min(1).values.max().item())
        counts["boxes"] += 1
    compare_cameras(devkit, sample, scene, corners, worst, counts)
    compare_points(devkit, lidar, scene, found.boxes, worst, counts)


def compare_cameras(
    devkit: NuScenes, sample: dict, scene: Scene, corners: torch.Tensor, worst: dict, counts: dict
) -> None:
    """Compare the pixels of all box corners at least NEAR in front of each camera."""
    pixels, depth = project(corners.reshape(-1, 3).float(), scene.rig.intrinsics, scene.rig.ego_from_camera)
    pixels, depth = pixels.reshape(len(pixels), -1, 8, 2), depth.reshape(len(depth), -1, 8)
    for camera, name in enumerate(scene.rig.names):
        _, boxes, matrix = devkit.get_sample_data(sample["data"][name], box_vis_level=BoxVisibility.NONE)
        for row, box in enumerate(boxes):
            if depth[camera, row].min() < NEAR or box.corners()[2].min() < NEAR:
                continue
            theirs = torch.from_numpy(view_points(box.corners(), matrix, normalize=True)[:2].T)
            distance = torch.cdist(pixels[camera, row].double(), theirs).min(1).values
            # Far outside the image, pixels grow without bound: differences count relative to 1,000 pixels.
            scale = (pixels[camera, row].double().norm(dim=-1) / 1000).clamp(min=1)
            note(worst, "pixel_px", (distance / scale).max().item())
            counts["projected_corners"] += 8


def compare_points(
    devkit: NuScenes, lidar: dict, scene: Scene, boxes: torch.Tensor, worst: dict, counts: dict
) -> None:
    """Compare the sweep in ego axes, and which of its points lie in which box."""
    cloud = LidarPointCloud.from_file(str(Path(devkit.dataroot) / lidar["filename"]))
    _, local_boxes, _ = devkit.get_sample_data(lidar["token"], box_vis_level=BoxVisibility.NONE)
    theirs = [points_in_box(box, cloud.points[:3]) for box in local_boxes]
    calibration = devkit.get("calibrated_sensor", lidar["calibrated_sensor_token"])
    cloud.rotate(Quaternion(calibration["rotation"]).rotation_matrix)
    cloud.translate(np.array(calibration["translation"]))
    points = scene.reference.points
    if points is None:
        raise ValueError("the keyframe has no points with us")
    note(worst, "point_m", (points[:, :3] - torch.from_numpy(cloud.points[:3].T)).abs().max().item())
    ours = points_in_boxes(points[:, :3], boxes).numpy()
    counts["points"] += len(points)
    counts["points_in_boxes"] += int(ours.sum())
    counts["points_in_boxes_that_differ"] += int(
        sum((a != b).sum() for a, b in zip(ours, theirs, strict=True))
    )


def main() -> int:
    """Compare all keyframes of an export that have annotations; 1 where an answer differs."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("export", type=Path)
    parser.add_argument("--out", type=Path, default=Path("results/devkit_check.json"))
    given = parser.parse_args()
    tables = NuScenesTables(given.export)
    devkit = NuScenes(version=tables.folder.name, dataroot=str(tables.root), verbose=False)
    worst: dict[str, float] = dict.fromkeys(("corner_m", "point_m", "pixel_px"), 0.0)
    names = (
        "keyframes",
        "boxes",
        "projected_corners",
        "points",
        "points_in_boxes",
        "points_in_boxes_that_differ",
    )
    counts = dict.fromkeys(names, 0)
    for sample in devkit.sample:
        if sample["anns"]:
            compare_sample(devkit, tables, sample, worst, counts)
            counts["keyframes"] += 1
    share = counts["points_in_boxes_that_differ"] / max(1, counts["points_in_boxes"])
    worst["point_in_box_share"] = share
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True
    ).stdout.strip()
    result = {
        "command": "python " + " ".join(sys.argv),
        "commit": commit,
        "versions": {name: version(name) for name in ("nuscenes-devkit", "numpy", "torch")},
        "scenes": len(devkit.scene),
        **counts,
        "largest_difference": worst,
        "limit": LIMITS,
        "agrees": bool(counts["boxes"]) and all(worst[name] <= limit for name, limit in LIMITS.items()),
    }
    given.out.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result, indent=1))
    return 0 if result["agrees"] else 1


if __name__ == "__main__":
    sys.exit(main())
