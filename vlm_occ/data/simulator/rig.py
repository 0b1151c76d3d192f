"""The sensors of a nuScenes car: six cameras and a spinning 32-beam LiDAR, with the jitter of a calibration.

The figures are those of the nuScenes car n015 (scene-0061), rounded; nuScenes v1.0, calibrated_sensor.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from vlm_occ.geometry import quaternion_to_rotation, rigid
from vlm_occ.types import CAMERAS, CameraRig

NATIVE_SIZE = (900, 1600)
"""Height and width of a nuScenes image, pixels."""

_FOCAL = (1266.4, 1260.8, 1259.5, 809.2, 1256.7, 1272.6)  # pixels, in the order of CAMERAS
_PRINCIPAL = ((816.3, 491.5), (808.0, 495.3), (807.3, 501.2), (829.2, 481.8), (792.1, 492.8), (826.6, 479.8))
_POSITION = (  # metres in the ego frame
    (1.701, 0.016, 1.511),
    (1.551, -0.493, 1.496),
    (1.015, -0.481, 1.562),
    (0.028, 0.003, 1.579),
    (1.036, 0.485, 1.591),
    (1.524, 0.495, 1.509),
)
_AXIS = (  # heading, elevation and roll of the optical axis, degrees (left, up and clockwise positive)
    (0.33, -0.32, -0.05),
    (-56.40, -0.78, 0.52),
    (-110.79, -0.93, 0.62),
    (179.86, 0.96, 0.23),
    (108.60, -0.92, -0.22),
    (55.16, 0.14, 0.12),
)

LIDAR_POSITION = (0.94, 0.0, 1.84)
"""Origin of the LiDAR in the ego frame, metres."""

LIDAR_BEAMS, LIDAR_STEPS, LIDAR_RANGE = 32, 1085, 80.0
"""Rings, firings a turn, and the farthest return in metres."""


def lidar_tangents(*, device: torch.device | str = "cpu") -> Tensor:
    """Tangents of the HDL-32E's elevations [32], from -30.67 to +10.67 degrees, evenly spaced."""
    return torch.linspace(math.radians(-30.67), math.radians(10.67), LIDAR_BEAMS, device=device).tan()


def nuscenes_rig(
    image_size: tuple[int, int] = (256, 704), *, calibration_seed: int | None = None, lift: float = 0.0
) -> CameraRig:
    """The six cameras for images of `image_size` (H, W).

    A native image is scaled to the width, then rows are cut from its top (or sky is added). A seed turns the
    cameras by about 0.5 degrees, moves them by about 2 cm and scales their focal lengths by about 1 %;
    `lift` raises them all (metres). A pixel with integer coordinates (u, v) has its centre there.
    """
    height, width = image_size
    if height < 1 or width < 1:
        raise ValueError(f"image_size = {image_size}, expected (height, width) of at least one pixel each")
    scale = width / NATIVE_SIZE[1]
    cut = round(NATIVE_SIZE[0] * scale) - height  # rows cut from the top
    jitter = torch.zeros(len(CAMERAS), 8)
    if calibration_seed is not None:
        generator = torch.Generator().manual_seed(calibration_seed)
        jitter = torch.randn(len(CAMERAS), 8, generator=generator).clamp(-2.5, 2.5)
    intrinsics = torch.eye(3).repeat(len(CAMERAS), 1, 1)
    focal = torch.tensor(_FOCAL) * (1 + 0.01 * jitter[:, 6])
    intrinsics[:, 0, 0] = intrinsics[:, 1, 1] = focal * scale
    # A pixel's centre lies at +0.5 of its index, before and after the scaling.
    intrinsics[:, :2, 2] = (torch.tensor(_PRINCIPAL) + 0.5) * scale - 0.5
    intrinsics[:, 1, 2] -= cut
    turn = torch.cat([torch.ones(len(CAMERAS), 1), math.radians(0.25) * jitter[:, :3]], dim=1)
    rotation = _camera_rotations() @ quaternion_to_rotation(turn)
    position = torch.tensor(_POSITION) + 0.02 * jitter[:, 3:6] + torch.tensor([0.0, 0.0, lift])
    return CameraRig(CAMERAS, intrinsics, rigid(rotation, position), image_size)


def _camera_rotations() -> Tensor:
    """ego_from_camera rotations [6, 3, 3] from heading, elevation and roll."""
    heading, elevation, roll = torch.deg2rad(torch.tensor(_AXIS)).unbind(-1)
    zero = torch.zeros_like(heading)
    forward = torch.stack(
        [heading.cos() * elevation.cos(), heading.sin() * elevation.cos(), elevation.sin()], dim=-1
    )
    right = torch.stack([heading.sin(), -heading.cos(), zero], dim=-1)
    down = torch.linalg.cross(forward, right)
    cos, sin = roll.cos()[:, None], roll.sin()[:, None]
    return torch.stack([cos * right + sin * down, cos * down - sin * right, forward], dim=-1)
