"""LiDAR features against naive loops, and what moving or shuffling points must not change."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from vlm_occ.encoders.lidar import (
    LidarEncoder,
    PointEncoder,
    flatten_height,
    merge_sweeps,
    pool_max,
    pool_mean,
    voxelize_batch,
)
from vlm_occ.encoders.sparse import SparseTensor
from vlm_occ.geometry import rigid, rotation_z, transform_points
from vlm_occ.types import CameraRig, Frame, Scene, VoxelGrid

GRID = VoxelGrid(origin=(-4.0, -4.0, -1.0), voxel_size=0.5, shape=(16, 16, 8))


def random_points(count: int, *, seed: int = 0, outside: bool = False) -> Tensor:
    """Points [N, 5] in GRID (and some around it)."""
    generator = torch.Generator().manual_seed(seed)
    values = torch.rand(count, 5, generator=generator)
    spread = 1.3 if outside else 0.999
    values[:, :3] = (values[:, :3] - 0.5) * spread * torch.tensor([8.0, 8.0, 4.0]) + torch.tensor([0, 0, 1.0])
    return values


def scene(frames: list[Frame]) -> Scene:
    rig = CameraRig((), torch.zeros(0, 3, 3), torch.zeros(0, 4, 4), (1, 1))
    return Scene(rig, tuple(frames))


def frame(time: float, world_from_ego: Tensor, points: Tensor | None) -> Frame:
    return Frame(time, torch.zeros(0, 3, 1, 1, dtype=torch.uint8), world_from_ego, points)


def ego_pose(yaw: float, x: float, y: float) -> Tensor:
    angle = torch.tensor(yaw, dtype=torch.float64)
    return rigid(rotation_z(angle), torch.tensor([x, y, 0.0], dtype=torch.float64))


def test_merged_sweeps_of_a_standing_wall_lie_on_one_another() -> None:
    """World coordinates of nuScenes' size: float32 would be off by centimetres."""
    generator = torch.Generator().manual_seed(1)
    wall = torch.rand(200, 3, generator=generator, dtype=torch.float64) * torch.tensor([10.0, 8.0, 3.0])
    wall = wall + torch.tensor([41_103.0, 118_090.0, 0.2])
    frames = []
    for step in range(3):
        pose = ego_pose(0.4 + 0.2 * step, 41_095.0 + 2 * step, 118_085.0 + step)
        local = transform_points(torch.linalg.inv(pose), wall).float()
        frames.append(frame(10.0 + step / 2, pose, torch.cat([local, torch.full((200, 1), 0.25)], dim=1)))
    merged = merge_sweeps(scene(frames), max_frames=3)
    assert merged.shape == (600, 5) and merged.dtype == torch.float32
    for step, age in enumerate((1.0, 0.5, 0.0)):
        sweep = merged[200 * step : 200 * (step + 1)]
        torch.testing.assert_close(sweep[:, :3], frames[2].points[:, :3], atol=1e-4, rtol=0)  # type: ignore[index]
        assert (sweep[:, 3] == 0.25).all() and (sweep[:, 4] == age).all()


def test_merging_takes_the_latest_frames_and_drops_points_outside_the_grid() -> None:
    pose = torch.eye(4, dtype=torch.float64)
    inside, outside = [1.0, 2.0, 0.0, 0.5], [50.0, 0.0, 0.0, 0.5]
    points = torch.tensor([inside, outside])
    frames = [frame(0.0, pose, points), frame(0.5, pose, None), frame(1.0, pose, points)]
    assert merge_sweeps(scene(frames), max_frames=3)[:, 4].tolist() == [1.0, 0.0]
    assert merge_sweeps(scene(frames), max_frames=2)[:, 4].tolist() == [0.0]
    assert merge_sweeps(scene(frames[1:2]), max_frames=2).shape == (0, 5)


def test_voxels_are_those_of_a_loop_over_points() -> None:
    batch = [random_points(60, seed=2, outside=True), torch.zeros(0, 5), random_points(40, seed=3)]
    voxels = voxelize_batch(batch, GRID)
    expected: dict[tuple[int, ...], list[list[float]]] = {}
    for number, points in enumerate(batch):
        for point in points.tolist():
            cell = [math.floor((point[i] - GRID.origin[i]) / GRID.voxel_size) for i in range(3)]
            if all(0 <= c < s for c, s in zip(cell, GRID.shape, strict=True)):
                expected.setdefault((number, *cell), []).append(point)
    assert [tuple(v) for v in voxels.index.tolist()] == sorted(expected)
    for row, cell in enumerate(sorted(expected)):
        assert voxels.points[voxels.row == row].tolist() == expected[cell]
        assert voxels.count[row] == len(expected[cell])


def test_pooling_and_its_gradients_equal_a_loop_over_voxels() -> None:
    generator = torch.Generator().manual_seed(4)
    row = torch.tensor([0, 2, 2, 1, 0, 2, 4])
    values = torch.randn(7, 3, generator=generator, dtype=torch.float64)
    values[2] = values[1]  # equal maxima share the gradient
    values.requires_grad_()
    groups = [values[row == r] for r in range(5)]
    zero = torch.zeros(3, dtype=torch.float64)
    largest = torch.stack([g.amax(0) if len(g) else zero for g in groups])
    means = torch.stack([g.mean(0) if len(g) else zero for g in groups])
    target = torch.randn(5, 3, generator=generator, dtype=torch.float64)
    count = torch.bincount(row, minlength=5).clamp(min=1)
    for found, expected in ((pool_max(values, row, 5), largest), (pool_mean(values, row, count), means)):
        torch.testing.assert_close(found, expected)
        gradients = [
            torch.autograd.grad((v * target).sum(), values, retain_graph=True)[0] for v in (found, expected)
        ]
        torch.testing.assert_close(gradients[0], gradients[1])


def test_point_features_depend_on_position_inside_the_voxel_but_not_on_the_order_of_points() -> None:
    torch.manual_seed(5)
    encoder = PointEncoder(8, GRID)
    points = random_points(80, seed=5)
    before = encoder(voxelize_batch([points], GRID))
    order = torch.randperm(80, generator=torch.Generator().manual_seed(6))
    torch.testing.assert_close(encoder(voxelize_batch([points[order]], GRID)), before, atol=1e-5, rtol=0)
    for column, change in ((0, 0.01), (2, 0.01), (3, 0.3), (4, 0.3)):
        other = points.clone()
        other[0, column] += change
        voxels = voxelize_batch([other], GRID)
        moved = (encoder(voxels) - before).abs().amax(1) > 1e-5
        assert moved.nonzero()[:, 0].tolist() == [int(voxels.row[0])]


def test_the_birds_eye_view_is_the_maximum_over_height_and_the_occupied_heights() -> None:
    index = voxelize_batch([random_points(60, seed=7), random_points(30, seed=8)], GRID).index
    features = torch.randn(len(index), 3, generator=torch.Generator().manual_seed(9)) - 2  # mostly negative
    bev = flatten_height(SparseTensor(index, features, GRID.shape, 2))
    expected = torch.zeros(2, 3 + 8, 16, 16)
    expected[:, :3] = -math.inf
    for (batch, x, y, z), row in zip(index.tolist(), features, strict=True):
        expected[batch, :3, x, y] = torch.maximum(expected[batch, :3, x, y], row)
        expected[batch, 3 + z, x, y] = 1
    expected[expected == -math.inf] = 0
    torch.testing.assert_close(bev, expected)


def test_features_lie_where_points_are_and_scenes_do_not_mix() -> None:
    torch.manual_seed(10)
    encoder = LidarEncoder(8, 6, GRID)
    first, second = random_points(50, seed=10), random_points(20, seed=11)
    output = encoder([first, second])
    assert output.volume.shape == (2, 6, 8, 8, 4) and output.bev.shape == (2, 16, 16, 16)
    occupied = torch.zeros(2, 16, 16, 8, dtype=torch.bool)
    for batch, points in enumerate((first, second)):
        cell = ((points[:, :3] - torch.tensor(GRID.origin)) / GRID.voxel_size).floor().long()
        occupied[batch, cell[:, 0], cell[:, 1], cell[:, 2]] = True
    assert torch.equal(output.fine.index, occupied.nonzero())
    assert torch.equal(output.bev[:, 8:].bool(), occupied.movedim(3, 1))
    reach = torch.nn.functional.max_pool3d(occupied[:, None].float(), 2)[:, 0] > 0
    assert torch.equal(output.volume.ne(0).any(1), reach)
    alone = encoder([second])
    torch.testing.assert_close(output.volume[1:], alone.volume, atol=1e-5, rtol=0)
    torch.testing.assert_close(output.bev[1:], alone.bev, atol=1e-5, rtol=0)


def test_moving_points_by_whole_voxels_moves_the_features_but_for_the_distance() -> None:
    torch.manual_seed(11)
    encoder = LidarEncoder(8, 6, GRID)
    with torch.no_grad():
        encoder.points.mix.weight[:, -1] = 0  # the distance from the vehicle
    points = random_points(40, seed=12)
    points[:, :2] = points[:, :2] * 0.4
    moved = points + torch.tensor([1.0, -1.0, 0, 0, 0])  # one coarse voxel
    before, after = encoder([points]).volume, encoder([moved]).volume
    torch.testing.assert_close(before.roll((1, -1), dims=(2, 3)), after, atol=1e-4, rtol=0)


def test_no_point_at_all_gives_zeros_and_gradients_that_are_zero() -> None:
    encoder = LidarEncoder(8, 6, GRID)
    output = encoder([torch.zeros(0, 5), torch.zeros(0, 5)])
    assert output.volume.shape == (2, 6, 8, 8, 4) and not output.volume.any()
    assert output.bev.shape == (2, 16, 16, 16) and not output.bev.any()
    (output.volume.sum() + output.bev.sum()).backward()
    assert all(p.grad is not None and not p.grad.any() for p in encoder.parameters())


def test_every_parameter_has_a_gradient_and_two_runs_agree_exactly() -> None:
    torch.manual_seed(12)
    encoder, points = LidarEncoder(8, 6, GRID), random_points(200, seed=13)
    gradients = []
    for _ in range(2):
        encoder.zero_grad()
        output = encoder([points])
        (output.volume.square().sum() + output.bev.square().sum()).backward()
        gradients.append([p.grad.clone() for p in encoder.parameters() if p.grad is not None])
    assert len(gradients[0]) == len(list(encoder.parameters())) and all(g.any() for g in gradients[0])
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))
