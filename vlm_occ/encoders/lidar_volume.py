"""LiDAR points to a dense volume on the voxel queries' grid: F^L of section IV-B a, at its own scale."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from vlm_occ.encoders.lidar import PointEncoder, ResidualBlock, pool_max, pool_mean, voxelize_batch
from vlm_occ.encoders.sparse import SparseTensor, ravel_batch, unravel_batch
from vlm_occ.types import VoxelGrid


class LidarVolume(nn.Module):
    """Parameterised voxelisation, sparse 3D convolutions, and a stride that may differ by axis."""

    def __init__(
        self, width: int, out_width: int, shape: tuple[int, int, int], *, grid: VoxelGrid | None = None
    ) -> None:
        """`shape` of the volume divides the grid's."""
        super().__init__()
        self.grid, self.shape = grid or VoxelGrid(), shape
        self.points = PointEncoder(width, self.grid)
        self.fine = nn.Sequential(ResidualBlock(width), ResidualBlock(width))
        self.down = nn.Linear(2 * width, out_width)
        self.coarse = nn.Sequential(ResidualBlock(out_width), ResidualBlock(out_width))
        self.norm = nn.LayerNorm(out_width)

    def forward(self, points: list[Tensor]) -> Tensor:
        """[B, out_width, x, y, z] of scenes' points [N_b, 5]; zero where there is no point."""
        voxels = voxelize_batch(points, self.grid)
        fine = self.fine(
            SparseTensor(voxels.index, self.points(voxels), self.grid.shape, len(points))
        ).features  # [M, width]
        stride = [1, *(g // s for g, s in zip(self.grid.shape, self.shape, strict=True))]
        cell = ravel_batch(voxels.index // torch.tensor(stride, device=fine.device), self.shape)  # [M]
        cells, row, count = cell.unique(return_inverse=True, return_counts=True)
        pooled = torch.cat([pool_mean(fine, row, count), pool_max(fine, row, len(cells))], dim=1)
        start = SparseTensor(unravel_batch(cells, self.shape), self.down(pooled), self.shape, len(points))
        coarse = self.coarse(start)
        return coarse.with_features(self.norm(coarse.features)).dense()
