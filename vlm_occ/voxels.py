"""Points to voxels, boxes to voxels, coarse and fine grids."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from vlm_occ.geometry import rotation_z
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
    return voxels_in_boxes(box[None], grid, rule=rule)[1]


def voxels_in_boxes(
    boxes: Tensor, grid: VoxelGrid, *, rule: MembershipRule = "touching"
) -> tuple[Tensor, Tensor]:
    """The voxels that belong to boxes [K, 7], box by box: the box [M] and the index [M, 3] of each."""
    if not len(boxes):
        none = torch.zeros(0, dtype=torch.long, device=boxes.device)
        return none, none.reshape(0, 3)
    half = grid.voxel_size / 2 if rule == "touching" else 0.0
    margin = 1e-6 if rule == "centre" else -1e-6  # cubes that share only a face do not touch
    radius = boxes[:, 3:5].norm(dim=1) / 2  # [K]
    origin = boxes.new_tensor(grid.origin)
    low = ((boxes[:, :2] - radius[:, None] - origin[:2]) / grid.voxel_size).floor().long() - 1  # [K, 2]
    steps = torch.arange(int(2 * radius.max() / grid.voxel_size) + 5, device=boxes.device)
    cells = low[:, :, None] + steps  # [K, 2, w]
    x, y = cells[:, 0, :, None].expand(-1, -1, len(steps)), cells[:, 1, None].expand(-1, len(steps), -1)
    flat = torch.stack([x, y], dim=-1)  # [K, w, w, 2]
    limit = torch.tensor(grid.shape[:2], device=boxes.device)
    offset = origin[:2] + (flat.to(boxes.dtype) + 0.5) * grid.voxel_size - boxes[:, None, None, :2]
    rotation = rotation_z(boxes[:, 6])[:, :2, :2]  # [K, 2, 2]
    local, turned = (offset @ rotation[:, None]).abs(), rotation.abs()
    # Separating axes of two upright boxes: the box's own two horizontal axes, the grid's two, and z.
    reach_box = half * turned.sum(1)  # [K, 2], the cube's half extent along the box's axes
    reach_grid = (turned @ (boxes[:, 3:5, None] / 2))[..., 0]  # the box's half extent along the grid's axes
    near = ((flat >= 0) & (flat < limit)).all(-1)
    near &= (local <= (boxes[:, 3:5] / 2 + reach_box + margin)[:, None, None]).all(-1)
    if rule == "touching":
        near &= (offset.abs() <= (reach_grid + half + margin)[:, None, None]).all(-1)  # [K, w, w]
    height = origin[2] + (torch.arange(grid.shape[2], device=boxes.device) + 0.5) * grid.voxel_size
    level = (height - boxes[:, 2:3]).abs() <= boxes[:, 5:6] / 2 + half + margin  # [K, Z]
    row, column, line, z = (near[..., None] & level[:, None, None]).nonzero(as_tuple=True)
    return row, torch.stack([low[row, 0] + column, low[row, 1] + line, z], dim=-1)


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
