"""LiDAR sweeps to voxel features: points to voxels, then sparse convolutions at two scales."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from vlm_occ.encoders.sparse import (
    SparseConv3d,
    SparseTensor,
    SubmanifoldConv3d,
    ravel_batch,
    unravel_batch,
)
from vlm_occ.geometry import invert_rigid, transform_points
from vlm_occ.types import Scene, VoxelGrid

POINT_CHANNELS = 9
"""Offset from the voxel's centre (3), offset from its points' mean (3), height, intensity, age."""

VOXEL_CHANNELS = 4
"""Log count, youngest and oldest age, horizontal distance from the vehicle."""


@dataclass(frozen=True)
class LidarFeatures:
    """What the LiDAR says about a batch of scenes, at three densities."""

    fine: SparseTensor  # [M, width] on the voxels that hold points
    volume: Tensor  # [B, out_width, X/2, Y/2, Z/2], zero where nothing was hit
    bev: Tensor  # [B, width + Z, X, Y]: maximum over z of the fine features, then occupied heights (0 or 1)


@dataclass(frozen=True)
class PointVoxels:
    """Points of a batch inside the grid, and the voxels that hold them."""

    points: Tensor  # [N, 5]
    row: Tensor  # long [N]: each point's voxel
    index: Tensor  # long [M, 4]: batch, x, y, z; sorted
    count: Tensor  # [M] points in each voxel


def merge_sweeps(scene: Scene, max_frames: int) -> Tensor:
    """Points [N, 5] of the latest `max_frames` sweeps: x, y, z (reference ego, metres), intensity, age (s).

    Ego motion is compensated in float64, as world coordinates are kilometres; points outside the grid go.
    """
    reference_from_world = invert_rigid(scene.reference.world_from_ego.double())
    parts = [torch.zeros(0, 5)]
    for frame in scene.frames[-max_frames:]:
        if frame.points is None:
            continue
        reference_from_ego = reference_from_world @ frame.world_from_ego.double()
        xyz = transform_points(reference_from_ego, frame.points[:, :3].double()).float()  # [N, 3]
        age = torch.full_like(xyz[:, :1], scene.reference.timestamp - frame.timestamp)
        points = torch.cat([xyz, frame.points[:, 3:4].float(), age], dim=1)  # [N, 5]
        parts.append(points[scene.grid.index_of(xyz)[1]])
    return torch.cat(parts)


def voxelize_batch(points: list[Tensor], grid: VoxelGrid) -> PointVoxels:
    """The voxels of each scene's points [N_b, 5]; points outside the grid are left out."""
    batch = torch.cat([torch.full((len(p),), b, device=p.device) for b, p in enumerate(points)])
    together = torch.cat(points)  # [N, 5]
    index, inside = grid.index_of(together[:, :3])
    cell = ravel_batch(torch.cat([batch[:, None], index], dim=1), grid.shape)[inside]  # [N]
    count = torch.bincount(cell, minlength=len(points) * math.prod(grid.shape))
    occupied = count > 0
    cells = occupied.nonzero()[:, 0]  # [M]
    row = (occupied.cumsum(0) - 1)[cell]
    return PointVoxels(together[inside], row, unravel_batch(cells, grid.shape), count[cells])


def pool_mean(values: Tensor, row: Tensor, count: Tensor) -> Tensor:
    """Means [M, C] of the values [N, C] of each row's points; `count` [M] > 0."""
    total = values.new_zeros(len(count), values.shape[1]).index_add(0, row, values)
    return total / count[:, None]


def pool_max(values: Tensor, row: Tensor, size: int) -> Tensor:
    """Maxima [size, C] of the values [N, C] of each row's points, 0 for a row without points.

    Equal maxima share the gradient. The maximum is found without gradients and read back as the mean of the
    values that equal it, whose backward is cheaper than that of scatter_reduce.
    """
    with torch.no_grad():
        target = values.new_zeros(size, values.shape[1])
        top = target.scatter_reduce(0, row[:, None].expand_as(values), values, "amax", include_self=False)
        chosen = (values == top[row]).to(values.dtype)  # [N, C]
        ties = torch.zeros_like(top).index_add(0, row, chosen).clamp(min=1)
    return torch.zeros_like(top).index_add(0, row, values * chosen) / ties


class ResidualBlock(nn.Module):
    """Two submanifold convolutions around a skip connection, LayerNorm and GELU first (He et al. 2016)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norms = nn.ModuleList([nn.LayerNorm(width), nn.LayerNorm(width)])
        self.convs = nn.ModuleList([SubmanifoldConv3d(width, width), SubmanifoldConv3d(width, width)])

    def forward(self, tensor: SparseTensor) -> SparseTensor:
        """Features [M, width] to [M, width]."""
        inner = tensor
        for norm, conv in zip(self.norms, self.convs, strict=True):
            inner = conv(inner.with_features(functional.gelu(norm(inner.features))))
        return tensor.with_features(tensor.features + inner.features)


class PointEncoder(nn.Module):
    """A small network on each point, pooled over its voxel by mean and maximum (Zhou and Tuzel 2018)."""

    def __init__(self, width: int, grid: VoxelGrid) -> None:
        super().__init__()
        self.grid = grid
        self.mlp = nn.Sequential(
            nn.Linear(POINT_CHANNELS, width), nn.LayerNorm(width), nn.GELU(), nn.Linear(width, width)
        )
        self.mix = nn.Linear(2 * width + VOXEL_CHANNELS, width)

    def forward(self, voxels: PointVoxels) -> Tensor:
        """Features [M, width] of the voxels."""
        points, row, count = voxels.points, voxels.row, voxels.count
        centre = self.grid.center_of(voxels.index[:, 1:])  # [M, 3]
        offset = (points[:, :3] - centre[row]) / self.grid.voxel_size  # [N, 3] in [-0.5, 0.5]
        from_mean = offset - pool_mean(offset, row, count)[row]
        inputs = torch.cat([offset, from_mean, points[:, 2:] / points.new_tensor([3.0, 1.0, 1.0])], dim=1)
        hidden = self.mlp(inputs).float()  # [N, width]
        age = points[:, 4:]
        extra = [
            torch.log(count[:, None].float()),
            -pool_max(-age, row, len(count)),
            pool_max(age, row, len(count)),
            centre[:, :2].norm(dim=1, keepdim=True) / 40,
        ]
        pooled = [pool_mean(hidden, row, count), pool_max(hidden, row, len(count))]
        return self.mix(torch.cat([*pooled, *extra], dim=1))


class LidarEncoder(nn.Module):
    """Voxel features of merged LiDAR sweeps by sparse convolution; no LiDAR point at all is legal."""

    def __init__(self, width: int = 32, out_width: int = 32, grid: VoxelGrid | None = None) -> None:
        super().__init__()
        self.grid = grid or VoxelGrid()
        self.points = PointEncoder(width, self.grid)
        self.fine = nn.Sequential(ResidualBlock(width), ResidualBlock(width))
        self.fine_norm = nn.LayerNorm(width)
        # Kernel 2 keeps 8.3k coarse voxels of a real scene; kernel 3 reaches 15.0k and doubles the time.
        self.down = SparseConv3d(width, 2 * width, 2, 2, 0)
        self.coarse = nn.Sequential(ResidualBlock(2 * width), ResidualBlock(2 * width))
        self.out = nn.Sequential(nn.LayerNorm(2 * width), nn.Linear(2 * width, out_width))

    def forward(self, points: list[Tensor]) -> LidarFeatures:
        """Features of scenes whose points are [N_b, 5]: x, y, z (reference ego, metres), intensity, age (s).

        Intensity lies in [0, 1]; the sweeps of a scene are merged (`merge_sweeps`). Four sweeps with 129k
        points in 18.7k voxels take 0.24 s of one core forward, 0.54 s with backward (float32).
        """
        voxels = voxelize_batch(points, self.grid)
        start = SparseTensor(voxels.index, self.points(voxels), self.grid.shape, len(points))
        fine = self.fine(start)
        fine = fine.with_features(self.fine_norm(fine.features))
        coarse = self.coarse(self.down(fine.with_features(functional.gelu(fine.features))))
        volume = coarse.with_features(self.out(coarse.features)).dense()
        return LidarFeatures(fine=fine, volume=volume, bev=flatten_height(fine))


def flatten_height(fine: SparseTensor) -> Tensor:
    """Bird's-eye view [B, C + Z, X, Y]: maximum over z of the features, then occupied heights (0 or 1)."""
    size_x, size_y, size_z = fine.shape
    batch, x, y, z = fine.index.unbind(1)
    column = (batch * size_x + x) * size_y + y  # [M]
    columns = fine.batch_size * size_x * size_y
    heights = fine.features.new_zeros(columns, size_z)
    heights[column, z] = 1
    flat = torch.cat([pool_max(fine.features, column, columns), heights], dim=1)  # [B X Y, C + Z]
    return flat.view(fine.batch_size, size_x, size_y, -1).permute(0, 3, 1, 2)
