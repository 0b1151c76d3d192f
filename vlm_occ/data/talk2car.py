"""Talk2Car commands: sentences with one box each, given in the CAM_FRONT frame at the camera's time.

`size` is (width, length, height) and `rotation` the quaternion (w, x, y, z) of a nuScenes box in camera
axes, whose x is the length; `sample_token` is a sample_data token of CAM_FRONT (FACTS 2.2).
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from vlm_occ.data.annotations import class_of_category
from vlm_occ.geometry import quaternion_to_rotation, transform_points

_SIGNS = torch.tensor([[x, y, z] for x in (1, -1) for y in (1, -1) for z in (1, -1)], dtype=torch.float64)


@dataclass(frozen=True)
class Talk2CarCommand:
    """One command; its box is in OpenCV camera axes, metres."""

    text: str
    command_token: str
    scene_token: str
    sample_data_token: str  # the CAM_FRONT image; empty where the file gives none
    box_token: str  # sample_annotation
    category: str  # nuScenes category, such as vehicle.car
    translation: tuple[float, float, float]
    size: tuple[float, float, float]  # width, length, height
    rotation: tuple[float, float, float, float]  # w, x, y, z
    box_2d: tuple[float, float, float, float] | None  # x, y, width, height in pixels

    @property
    def label(self) -> int:
        """Index in TALK2OCC_CLASSES."""
        return class_of_category(self.category)

    @property
    def camera_from_box(self) -> Tensor:
        """Rotation float64 [3, 3] whose columns are the box's length, width and height axes."""
        return quaternion_to_rotation(torch.tensor(self.rotation, dtype=torch.float64))

    @property
    def corners(self) -> Tensor:
        """Corners float64 [8, 3] in the camera frame."""
        width, length, height = self.size
        half = torch.tensor([length, width, height], dtype=torch.float64) / 2
        centre = torch.tensor(self.translation, dtype=torch.float64)
        return (_SIGNS * half) @ self.camera_from_box.T + centre


def read_commands(path: str | Path) -> list[Talk2CarCommand]:
    """All commands of a `{split}_commands.json`, checked; ValueError names file, command and key."""
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"Talk2Car commands {path} are missing; give the folder that holds them")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is truncated or not valid JSON ({error}); restore the file") from error
    commands = content.get("commands") if isinstance(content, dict) else None
    if not isinstance(commands, list):
        raise ValueError(f"{path} has no list 'commands'; expected Talk2Car's {{scene_tokens, commands}}")
    return [_command(row, f"command {i} of {path}") for i, row in enumerate(commands)]


def _command(row: object, where: str) -> Talk2CarCommand:
    """One checked command."""
    if not isinstance(row, dict):
        raise ValueError(f"{where} is a {type(row).__name__}, expected an object")
    text, category = _text(row, "command", where), _text(row, "obj_name", where)
    if class_of_category(category) < 0:
        raise ValueError(f"{where} has obj_name {category!r}, expected a nuScenes object category")
    size = _numbers(row, "size", 3, where)
    if min(size) <= 0:
        raise ValueError(f"{where} has size {list(size)}, expected three positive lengths in metres")
    rotation = _numbers(row, "rotation", 4, where)
    if abs(sum(v * v for v in rotation) - 1) > 1e-3:
        raise ValueError(f"{where} has rotation {list(rotation)}, expected a unit quaternion w, x, y, z")
    x, y, z = _numbers(row, "translation", 3, where)
    box_2d = _numbers(row, "2d_box", 4, where) if row.get("2d_box") is not None else None
    return Talk2CarCommand(
        text=text,
        command_token=_text(row, "command_token", where),
        scene_token=_text(row, "scene_token", where),
        sample_data_token=_text(row, "sample_token", where),
        box_token=_text(row, "box_token", where),
        category=category,
        translation=(x, y, z),
        size=(size[0], size[1], size[2]),
        rotation=(rotation[0], rotation[1], rotation[2], rotation[3]),
        box_2d=(box_2d[0], box_2d[1], box_2d[2], box_2d[3]) if box_2d else None,
    )


def _text(row: Mapping[str, object], key: str, where: str) -> str:
    """A non-empty string of a command."""
    value = row.get(key)
    if not isinstance(value, str) or not value.strip():
        raise ValueError(f"{where} has {key} = {value!r}, expected text; restore the file")
    return value


def _numbers(row: Mapping[str, object], key: str, count: int, where: str) -> tuple[float, ...]:
    """`count` finite numbers of a command, which may be written as strings."""
    value = row.get(key)
    if value is None:
        raise ValueError(f"{where} has no {key}, so its box is unknown; restore the file")
    try:
        numbers = tuple(float(v) for v in value) if isinstance(value, Sequence) else ()
    except (TypeError, ValueError):
        numbers = ()
    if len(numbers) != count or not all(abs(v) < float("inf") for v in numbers):
        raise ValueError(f"{where} has {key} = {value!r}, expected {count} finite numbers")
    return numbers


def box_in_ego(command: Talk2CarCommand, ego_from_camera: Tensor) -> Tensor:
    """The command's box, float32 [7], in the ego frame of `ego_from_camera` [4, 4].

    Use the camera's pose relative to the ego frame at the LiDAR time, where the occupancy labels live. What
    the ego frame is tilted against the box is dropped, as boxes stay upright.
    """
    transform = ego_from_camera.double()
    centre = transform_points(transform, torch.tensor([command.translation], dtype=torch.float64))[0]
    heading = transform[:3, :3] @ command.camera_from_box[:, 0]  # the length axis
    yaw = torch.atan2(heading[1], heading[0])
    width, length, height = command.size
    return torch.tensor([*centre.tolist(), length, width, height, yaw.item()])


def project_to_image(corners: Tensor, intrinsics: Tensor, image_size: tuple[int, int]) -> Tensor:
    """The 2D box (x0, y0, x1, y1) in pixels of camera-frame corners [8, 3], clipped to the image (H, W).

    Corners behind the camera are left out; zeros where all are.
    """
    front = corners[corners[:, 2] > 0.1].double()
    if len(front) == 0:
        return torch.zeros(4, dtype=torch.float64)
    pixels = front @ intrinsics.double().T
    pixels = pixels[:, :2] / pixels[:, 2:]
    limit = torch.tensor([image_size[1], image_size[0]], dtype=torch.float64)
    low = pixels.amin(0).clamp(min=0).minimum(limit)
    return torch.cat([low, pixels.amax(0).minimum(limit).maximum(low)])
