"""Fixtures of many tests: a small keyframe folder made by hand, and the real one where it is at hand."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vlm_occ.types import CAMERAS


def real_data() -> Path:
    """The folder of real samples; tests that need it are skipped where it is absent."""
    folder = Path(os.environ.get("VLM_OCC_REAL_DATA", Path(__file__).parents[1] / ".." / "shared" / "data"))
    if not (folder / "nuscenes_keyframe" / "keyframe.json").is_file():
        pytest.skip(f"no real samples in {folder}; set VLM_OCC_REAL_DATA")
    return folder


@pytest.fixture
def real_keyframe() -> Path:
    """The real nuScenes keyframe."""
    return real_data() / "nuscenes_keyframe"


@pytest.fixture
def keyframe_folder(tmp_path: Path) -> Path:
    """A keyframe folder with six cameras of 90 x 160 pixels, each of one colour, and 500 LiDAR points."""
    folder = tmp_path / "keyframe"
    folder.mkdir()
    camera_from_ego = np.array([[0.0, -1, 0], [0, 0, -1], [1, 0, 0]])  # x right, y down, z forward
    cams = {}
    for index, name in enumerate(reversed(CAMERAS)):
        place = CAMERAS.index(name)
        yaw = -place * np.pi / 3  # clockwise from the front
        turn = np.array([[np.cos(yaw), -np.sin(yaw), 0], [np.sin(yaw), np.cos(yaw), 0], [0, 0, 1]])
        pose = np.eye(4)
        pose[:3, :3] = turn @ camera_from_ego.T
        pose[:3, 3] = [1.0, 0.0, 1.6]
        pixels = np.full((90, 160, 3), (40 * place, 100, 7), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{index}.png")
        cams[name] = {
            "file": f"{index}.png",
            "K": [[120, 0, 80], [0, 120, 45], [0, 0, 1]],
            "cam2ego": pose.tolist(),
        }
    rng = np.random.default_rng(0)
    points = np.concatenate([rng.uniform(-20, 20, (500, 3)), rng.uniform(0, 255, (500, 2))], axis=1)
    points.astype("<f4").tofile(folder / "sweep.bin")
    lidar_pose = np.eye(4)
    lidar_pose[:3] = [[0, 1, 0, 0.9], [-1, 0, 0, 0.0], [0, 0, 1, 1.8]]
    record = {
        "token": "tiny",
        "timestamp": 12.5,
        "ego2global": np.eye(4).tolist(),
        "lidar": {"file": "sweep.bin", "fields": ["x", "y", "z", "intensity", "ring"], "dtype": "float32"},
        "lidar2ego": lidar_pose.tolist(),
        "cams": cams,
    }
    (folder / "keyframe.json").write_text(json.dumps(record))
    return folder
