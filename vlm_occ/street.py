"""Points of a made street, as a roof LiDAR sees it: surfaces, rings and shadows, in any number of voxels."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from vlm_occ.encoders.lidar import voxelize_batch
from vlm_occ.types import VoxelGrid

COARSE, FINE = 0.4, 0.1
"""Voxel sizes in metres: of our grid, and for more voxels than a street has there."""
COARSE_VOXELS = 30_000
BEAMS, AZIMUTHS, OBSTACLES, MOST_SWEEPS = 32, 1000, 60, 40
SENSOR_HEIGHT, STEP = 1.84, 4.0  # metres; STEP is driven between two sweeps
EVERY = 4  # sweeps after which the voxels are counted, which takes longer than a sweep


def street_grid(voxels: int) -> VoxelGrid:
    """Our grid, or one of the same extent with smaller voxels where it could not hold so many."""
    plain = VoxelGrid()
    if voxels <= COARSE_VOXELS:
        return plain
    ratio = round(plain.voxel_size / FINE)
    x, y, z = plain.shape
    return VoxelGrid(plain.origin, FINE, (x * ratio, y * ratio, z * ratio))


def street_points(voxels: int, *, seed: int = 0) -> tuple[VoxelGrid, Tensor]:
    """A grid and points [N, 5] (x, y, z, intensity, age) that lie in just `voxels` voxels of it.

    Sweeps from along the street are added until there are enough; the voxels nearest to its middle stay.
    ValueError where the street has fewer.
    """
    grid, bits = street_grid(voxels), torch.Generator().manual_seed(seed)
    boxes, most = _obstacles(bits), 0
    parts: list[Tensor] = []
    for sweep in range(MOST_SWEEPS):
        ahead = STEP * (sweep // 2 + 1) * (1 if sweep % 2 else -1)
        parts.append(_sweep(boxes, ahead, bits))
        if sweep % EVERY != EVERY - 1:
            continue
        points = torch.cat(parts)
        points = points[grid.index_of(points[:, :3])[1]]
        seen = voxelize_batch([points], grid)
        most = len(seen.index)
        if most >= voxels:
            distance = grid.center_of(seen.index[:, 1:])[:, :2].norm(dim=1)
            kept = torch.zeros(len(distance), dtype=torch.bool)
            kept[distance.argsort(stable=True)[:voxels]] = True
            return grid, seen.points[kept[seen.row]]
    raise ValueError(f"{voxels} voxels asked of a street that has {most}; ask for fewer")


def _obstacles(bits: torch.Generator) -> Tensor:
    """Lower and upper corners [K, 2, 3] of parked vehicles, people and house fronts along the x axis."""
    place = torch.rand(OBSTACLES, 2, generator=bits)
    side = torch.where(torch.arange(OBSTACLES) % 2 == 0, 1.0, -1.0)
    house = torch.arange(OBSTACLES) % 3 == 0
    x = 90 * place[:, 0] - 45
    y = side * torch.where(house, 16 + 12 * place[:, 1], 3 + 9 * place[:, 1])
    size = torch.rand(OBSTACLES, 3, generator=bits)
    small = torch.tensor([0.6, 0.6, 1.2]) + size * torch.tensor([4.5, 1.5, 1.5])
    large = torch.tensor([6.0, 3.0, 4.0]) + size * torch.tensor([10.0, 4.0, 4.0])
    half = torch.where(house[:, None], large, small) / 2
    centre = torch.stack([x, y, half[:, 2]], dim=1)
    return torch.stack([centre - half, centre + half], dim=1)


def _sweep(boxes: Tensor, ahead: float, bits: torch.Generator) -> Tensor:
    """Points [N, 5] of one turn of a sensor `ahead` metres along the street."""
    elevation = torch.linspace(-30.7, 10.7, BEAMS) * (math.pi / 180)
    azimuth = torch.arange(AZIMUTHS) * (2 * math.pi / AZIMUTHS) + torch.rand((), generator=bits)
    flat = elevation.cos()[:, None]
    rays = torch.stack(
        [flat * azimuth.cos(), flat * azimuth.sin(), elevation.sin()[:, None].expand(-1, AZIMUTHS)], dim=-1
    ).reshape(-1, 3)  # [R, 3]
    origin = torch.tensor([ahead, 0.0, SENSOR_HEIGHT])
    slope = torch.where(rays.abs() < 1e-6, 1e-6, rays)
    near, far = ((boxes - origin)[None] / slope[:, None, None]).sort(dim=2).values.unbind(2)  # [R, K, 3]
    enter, leave = near.amax(-1), far.amin(-1)
    reach = torch.where((enter < leave) & (enter > 0.5), enter, torch.inf).amin(1)  # [R]
    ground = torch.where(rays[:, 2] < 0, -SENSOR_HEIGHT / slope[:, 2], torch.inf)
    reach = torch.minimum(reach, ground)
    hit = reach < 70
    points = origin + rays[hit] * reach[hit, None]
    points = points + 0.02 * torch.randn(points.shape, generator=bits)
    rest = torch.stack([torch.rand(len(points), generator=bits), torch.full((len(points),), 0.1)], dim=1)
    return torch.cat([points, rest], dim=1)
