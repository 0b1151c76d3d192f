"""Points to voxels, boxes to voxels, coarse and fine grids."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from vlm_occ.geometry import rotation_z, to_box_frame
from vlm_occ.types import VoxelGrid

MembershipRule = Literal["touching", "centre"]


def voxelize(points: Tensor, grid: VoxelGrid) -> tuple[Tensor, Tensor]:
    """Occupied voxels [M, 3] (long, sorted by x, y, z) of points [N, >=3], and each point's row in it [N]
    (-1 outside).
    """
    index, inside = grid.index_of(points[:, :3])
    _, size_y, size_z = grid.shape
    key = (index[:, 0] * size_y + index[:, 1]) * size_z + index[:, 2]
    unique, row = torch.unique(key[inside], return_inverse=True)
    rows = torch.full((len(points),), -1, dtype=torch.long, device=points.device)
    rows[inside] = row
    return unravel(unique, grid.shape), rows


def unravel(key: Tensor, shape: tuple[int, int, int]) -> Tensor:
    """Indices [M, 3] of flat indices [M] of a grid in the order x, y, z."""
    _, size_y, size_z = shape
    return torch.stack([key // (size_y * size_z), key // size_z % size_y, key % size_z], dim=-1)


def ravel(index: Tensor, shape: tuple[int, int, int]) -> Tensor:
    """Flat indices [M] of indices [M, 3]."""
    return (index[:, 0] * shape[1] + index[:, 1]) * shape[2] + index[:, 2]


def voxels_in_box(box: Tensor, grid: VoxelGrid, *, rule: MembershipRule = "touching") -> Tensor:
    """Voxels that belong to a box [7]: bool [X, Y, Z].

    `touching`: the voxel's cube meets the box (separating axes, exact for boxes rotated about z);
    `centre`: the voxel's centre lies in it. One function for builder, simulator, losses and evaluation
    (FACTS 2.3).
    """
    member = torch.zeros(grid.shape, dtype=torch.bool, device=box.device)
    index = voxel_indices_in_box(box, grid, rule=rule)
    member[index[:, 0], index[:, 1], index[:, 2]] = True
    return member


def voxel_indices_in_box(box: Tensor, grid: VoxelGrid, *, rule: MembershipRule = "touching") -> Tensor:
    """Indices [M, 3] of the voxels that belong to a box [7]; see `voxels_in_box`."""
    window = _window(box, grid)
    if window is None:
        return torch.zeros(0, 3, dtype=torch.long, device=box.device)
    ranges = [torch.arange(low, high, device=box.device) for low, high in window]
    index = torch.stack(torch.meshgrid(*ranges, indexing="ij"), dim=-1).reshape(-1, 3)
    centre = grid.center_of(index).to(box.dtype)
    half = grid.voxel_size / 2 if rule == "touching" else 0.0
    local = to_box_frame(centre, box[None])[0].abs()  # [M, 3]
    rotation = rotation_z(box[6]).abs()
    # Separating axes of two upright boxes: the box's own two horizontal axes, the grid's two, and z.
    reach_box = half * (rotation[0, :2] + rotation[1, :2])  # the cube's half extent along the box's axes
    reach_grid = rotation[:2, :2] @ (box[3:5] / 2)  # the box's half extent along the grid's axes
    margin = 1e-6 if rule == "centre" else -1e-6  # cubes that share only a face do not touch
    member = (local[:, :2] <= box[3:5] / 2 + reach_box + margin).all(-1)
    member &= local[:, 2] <= box[5] / 2 + half + margin
    if rule == "touching":
        member &= ((centre[:, :2] - box[:2]).abs() <= reach_grid + half + margin).all(-1)
    return index[member]


def _window(box: Tensor, grid: VoxelGrid) -> list[tuple[int, int]] | None:
    """Index ranges that hold every voxel near a box [7], or None where the box lies outside the grid."""
    radius = (box[3:5].norm() / 2).item()
    centre, half = box[:3].tolist(), [radius, radius, box[5].item() / 2]
    window = []
    for axis in range(3):
        low = int((centre[axis] - half[axis] - grid.origin[axis]) // grid.voxel_size) - 1
        high = int((centre[axis] + half[axis] - grid.origin[axis]) // grid.voxel_size) + 2
        low, high = max(low, 0), min(high, grid.shape[axis])
        if low >= high:
            return None
        window.append((low, high))
    return window


def coarsen(occupancy: Tensor, factor: tuple[int, int, int]) -> Tensor:
    """Coarse occupancy, bool [X/fx, Y/fy, Z/fz]: a coarse voxel is occupied if any fine one [X, Y, Z] in it
    is.
    """
    x, y, z = occupancy.shape
    fx, fy, fz = factor
    if x % fx or y % fy or z % fz:
        raise ValueError(
            f"grid {[x, y, z]} is not divisible by {list(factor)}; choose a factor that divides it"
        )
    blocks = occupancy.reshape(x // fx, fx, y // fy, fy, z // fz, fz)
    return blocks.bool().any(5).any(3).any(1)


def refine(coarse: Tensor, factor: tuple[int, int, int]) -> Tensor:
    """Fine grid [X*fx, Y*fy, Z*fz] by repeating each coarse value [X, Y, Z]."""
    for axis in range(3):
        coarse = coarse.repeat_interleave(factor[axis], dim=axis)
    return coarse
