"""The dense LiDAR volume: empty cells are zero, each cell sees its points, no point is legal."""

from __future__ import annotations

import torch

from vlm_occ.encoders.lidar_volume import LidarVolume
from vlm_occ.types import VoxelGrid

GRID = VoxelGrid(origin=(-4.0, -4.0, -1.0), shape=(20, 20, 4))


def _volume() -> LidarVolume:
    torch.manual_seed(0)
    return LidarVolume(8, 16, (5, 5, 4), grid=GRID)


def test_cells_without_a_point_are_zero_and_others_are_not() -> None:
    points = torch.tensor([[0.1, 0.1, 0.0, 0.5, 0.0], [0.3, 0.2, 0.1, 0.5, 0.0], [-3.9, 3.9, -0.9, 0.1, 0.0]])
    dense = _volume()([points, points[:0]])
    assert dense.shape == (2, 16, 5, 5, 4)
    busy = (dense.abs().sum(1) > 0).nonzero().tolist()
    # 4.1 m / 1.6 m = cell 2, 1.0 m / 0.4 m = cell 2; 0.1 m and 7.9 m are cells 0 and 4
    assert busy == [[0, 0, 4, 0], [0, 2, 2, 2]]


def test_scenes_of_a_batch_do_not_mix() -> None:
    torch.manual_seed(1)
    volume = _volume()
    one, two = (
        torch.rand(200, 5) * torch.tensor([8.0, 8, 1.6, 1, 0]) + torch.tensor([-4.0, -4, -1, 0, 0])
        for _ in range(2)
    )
    together = volume([one, two])
    torch.testing.assert_close(together[:1], volume([one]), atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(together[1:], volume([two]), atol=1e-5, rtol=1e-4)
    assert not torch.allclose(together[0], together[1], atol=1e-3)


def test_points_teach_every_parameter() -> None:
    torch.manual_seed(1)
    volume = _volume()
    points = torch.rand(300, 5) * torch.tensor([8.0, 8, 1.6, 1, 1]) + torch.tensor([-4.0, -4, -1, 0, 0])
    out = volume([points])
    (out * torch.randn_like(out)).sum().backward()
    dead = [n for n, p in volume.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert not dead
