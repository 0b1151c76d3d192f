"""The world in the ego frame: solids moved there, and the plane and raster of the ground."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from vlm_occ.data.simulator.objects import Ground, Solids
from vlm_occ.data.simulator.spans import Scanlines
from vlm_occ.geometry import box_corners


@dataclass(frozen=True)
class Plane:
    """The ground in the ego frame: normal . p = offset."""

    normal: Tensor  # float32 [3], unit
    offset: float


def move_solids(a_from_b: Tensor, solids: Solids, *, device: torch.device | str | None = None) -> Solids:
    """Solids of frame b in frame a by a transform [4, 4], in float64 since world coordinates are large."""
    target = solids.centre.device if device is None else device
    rotation, shift = a_from_b[:3, :3].double(), a_from_b[:3, 3].double()
    centre = (solids.centre.double().cpu() @ rotation.T + shift).float()
    turned = (rotation @ solids.rotation.double().cpu()).float()
    rest = (
        solids.half_size,
        solids.shape,
        solids.colour,
        solids.semantic,
        solids.instance,
        solids.reflectance,
    )
    return Solids(*(value.to(target) for value in (centre, turned, *rest)))


def ground_plane(ground: Ground, world_from_ego: Tensor, *, device: torch.device | str = "cpu") -> Plane:
    """The ground's plane in the ego frame of `world_from_ego` [4, 4] float64."""
    normal = torch.tensor([-ground.slope[0], -ground.slope[1], 1.0], dtype=torch.float64)
    length = normal.norm()
    offset = (ground.height - normal @ world_from_ego[:3, 3].double().cpu()) / length
    local = world_from_ego[:3, :3].double().cpu().T @ (normal / length)
    return Plane(local.float().to(device), float(offset))


def solid_corners(solids: Solids) -> Tensor:
    """Corners [P, 8, 3] of the boxes about solids."""
    unit = torch.tensor([[0.0, 0, 0, 2, 2, 2, 0]], device=solids.centre.device)
    signs = box_corners(unit)  # [1, 8, 3], +-1
    return (signs * solids.half_size[:, None]) @ solids.rotation.transpose(-1, -2) + solids.centre[:, None]


def ground_height(plane: Plane, points: Tensor) -> Tensor:
    """Height [...] of the ground (ego frame) above or below points [..., 3]."""
    normal = plane.normal
    return (plane.offset - points[..., 0] * normal[0] - points[..., 1] * normal[1]) / normal[2]


def ground_inverse(plane: Plane, lines: Scanlines) -> Tensor:
    """1 / t [L, S] at which rays meet the ground, 0 where they do not."""
    gap = plane.offset - lines.origin @ plane.normal  # [L], negative above the ground
    slope = lines.step @ plane.normal / gap
    return ((lines.base @ plane.normal / gap)[:, None] + slope[:, None] * lines.position).clamp(min=0)


def ground_cells(points: Tensor, ground: Ground, world_from_ego: Tensor) -> Tensor:
    """Flat cells [N] of the ground's raster under points [N, 3] (ego frame), clamped to its rim."""
    pose = world_from_ego.tolist()
    index = torch.zeros(len(points), dtype=torch.long, device=points.device)
    for axis, size in enumerate(ground.semantic.shape):
        world = sum(pose[axis][i] * points[:, i] for i in range(3)) + (pose[axis][3] - ground.origin[axis])
        index = index * size + (world / ground.cell).long().clamp(0, size - 1)
    return index
