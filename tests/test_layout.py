"""Layout head and targets: closed forms, symmetries, and real posed depth images."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from vlm_occ.geometry import invert_rigid, project, rigid, rotation_z
from vlm_occ.heads.layout import (
    BirdsEyeEstimate,
    LayoutHead,
    first_view_frame,
    layout_targets,
    split_estimate,
    to_reference_frame,
)
from vlm_occ.losses.situation import gaussian_nll

DATA = Path(os.environ.get("VLM_OCC_REAL_DATA", Path(__file__).parents[2] / "shared" / "data"))
LOOKING_ALONG_X = torch.tensor([[0.0, 0, 1], [-1, 0, 0], [0, -1, 0]])  # ego from camera axes
INTRINSICS = torch.tensor([[40.0, 0, 23.5], [0, 40, 15.5], [0, 0, 1]])


def _transform(yaw: float, x: float, y: float, z: float) -> Tensor:
    return rigid(rotation_z(torch.tensor(yaw)), torch.tensor([x, y, z]))


def _wall(distance: float) -> Tensor:
    return torch.full((1, 32, 48), distance)


def test_a_wall_ahead_gives_its_distance_and_the_bearing_of_each_token() -> None:
    camera = rigid(LOOKING_ALONG_X, torch.zeros(3))
    targets = layout_targets(_wall(5.0), INTRINSICS[None], camera[None], (4, 6))
    position = targets.position.reshape(4, 6, 2)
    assert targets.valid.all()
    torch.testing.assert_close(position[..., 0], torch.full((4, 6), 5.0))
    for column in range(6):  # the pixel is one of the token's own eight columns
        left, right = (5.0 * (23.5 - edge) / 40 for edge in (8 * column, 8 * column + 8))
        assert ((position[:, column, 1] <= left + 1e-5) & (position[:, column, 1] >= right - 1e-5)).all()


def test_median_depth_equals_a_naive_loop_for_grids_that_do_not_divide_the_image() -> None:
    generator = torch.Generator().manual_seed(0)
    depth = torch.rand(2, 31, 47, generator=generator) * 9 + 1
    depth[torch.rand(2, 31, 47, generator=generator) < 0.4] = 0
    camera = torch.eye(4).expand(2, 4, 4)  # position = camera x, y
    targets = layout_targets(depth, INTRINSICS.expand(2, 3, 3), camera, (5, 7), min_valid=0.0)
    for frame in range(2):
        for row in range(5):
            for column in range(7):
                pixels = [
                    (depth[frame, v, u].item(), u, v)
                    for v in range(31)
                    for u in range(47)
                    if v * 5 // 31 == row and u * 7 // 47 == column and depth[frame, v, u] > 0
                ]
                value, u, v = sorted(pixels)[(len(pixels) - 1) // 2]
                expected = torch.tensor([(u + 0.5 - 23.5) / 40 * value, (v + 0.5 - 15.5) / 40 * value])
                torch.testing.assert_close(targets.position[frame, row * 7 + column], expected)


def test_tokens_without_depth_are_masked() -> None:
    depth = _wall(5.0)
    depth[:, :8, :8], depth[:, :8, 8:16], depth[:, :8, 16:24] = 0.0, math.nan, math.inf
    depth[:, 8:16, :8] = -1.0
    depth[:, 8, :5] = 5.0  # 5 of 64 pixels
    targets = layout_targets(depth, INTRINSICS[None], torch.eye(4)[None], (4, 6))
    expected = torch.ones(4, 6, dtype=torch.bool)
    expected[0, :3] = False
    expected[1, 0] = False
    assert torch.equal(targets.valid.reshape(4, 6), expected)
    assert torch.isfinite(targets.position).all()


def test_more_tokens_than_pixels_are_refused() -> None:
    with pytest.raises(ValueError, match="64x6 tokens"):
        layout_targets(_wall(5.0), INTRINSICS[None], torch.eye(4)[None], (64, 6))


def test_the_first_view_frame_is_level_and_looks_forward() -> None:
    pitch = torch.tensor(0.4)
    tilt = torch.stack(
        [
            torch.stack([pitch.cos(), torch.tensor(0.0), pitch.sin()]),
            torch.tensor([0.0, 1.0, 0.0]),
            torch.stack([-pitch.sin(), torch.tensor(0.0), pitch.cos()]),
        ]
    )
    world_from_camera = _transform(2.0, 7.0, -3.0, 1.5) @ rigid(tilt @ LOOKING_ALONG_X, torch.zeros(3))
    first_from_world = first_view_frame(world_from_camera)
    torch.testing.assert_close(
        first_from_world, invert_rigid(_transform(2.0, 7.0, -3.0, 1.5)), atol=1e-5, rtol=0
    )


def test_a_camera_that_looks_straight_down_uses_the_top_of_its_picture_as_forward() -> None:
    down = torch.tensor([[0.0, -1, 0], [-1, 0, 0], [0, 0, -1]])  # picture's top towards world +x
    frame = first_view_frame(rigid(down, torch.tensor([1.0, 2.0, 3.0])))
    torch.testing.assert_close(frame, _transform(0.0, -1.0, -2.0, -3.0))


def test_moving_the_world_leaves_the_targets_unchanged() -> None:
    generator = torch.Generator().manual_seed(1)
    depth = torch.rand(2, 32, 48, generator=generator) * 5 + 2
    poses = torch.stack(
        [
            _transform(yaw, x, 1.0, 0.5) @ rigid(LOOKING_ALONG_X, torch.zeros(3))
            for yaw, x in ((0.0, 0.0), (0.3, 2.0))
        ]
    )
    results = []
    for world in (torch.eye(4), _transform(1.1, 30.0, -20.0, 4.0)):
        moved = world @ poses
        frame = first_view_frame(moved[0]) @ moved
        results.append(layout_targets(depth, INTRINSICS.expand(2, 3, 3), frame, (4, 6)).position)
    torch.testing.assert_close(results[0], results[1], atol=1e-4, rtol=0)


def test_the_reference_frame_gets_the_same_points_as_a_direct_computation() -> None:
    generator = torch.Generator().manual_seed(2)
    depth = torch.rand(1, 32, 48, generator=generator) * 5 + 2
    world_from_camera = _transform(0.7, 3.0, 4.0, 1.6) @ rigid(LOOKING_ALONG_X, torch.zeros(3))
    ego_from_world = _transform(-1.9, 5.0, 6.0, -0.2)
    first = first_view_frame(world_from_camera)
    in_first = layout_targets(depth, INTRINSICS[None], (first @ world_from_camera)[None], (4, 6)).position
    direct = layout_targets(
        depth, INTRINSICS[None], (ego_from_world @ world_from_camera)[None], (4, 6)
    ).position
    estimate = BirdsEyeEstimate(mean=in_first, log_variance=torch.zeros_like(in_first))
    moved = to_reference_frame(estimate, ego_from_world @ invert_rigid(first))
    torch.testing.assert_close(moved.mean, direct, atol=1e-5, rtol=0)
    torch.testing.assert_close(moved.std, torch.ones_like(moved.std))  # a circle stays a circle


def test_a_quarter_turn_exchanges_the_uncertainties() -> None:
    estimate = BirdsEyeEstimate(mean=torch.tensor([1.0, 2.0]), log_variance=torch.tensor([0.0, 2.0]))
    moved = to_reference_frame(estimate, _transform(math.pi / 2, 10.0, 0.0, 0.0))
    torch.testing.assert_close(moved.mean, torch.tensor([8.0, 1.0]))
    torch.testing.assert_close(moved.log_variance, torch.tensor([2.0, 0.0]), atol=1e-5, rtol=0)


def test_nll_equals_torchs_normal_distribution_and_its_half_log_two_pi() -> None:
    torch.manual_seed(0)
    mean, log_variance, target = torch.randn(3, 5, 2), torch.randn(3, 5, 2), torch.randn(3, 5, 2)
    valid = torch.rand(3, 5) > 0.4
    target[~valid] = math.nan
    total, count = gaussian_nll(mean, log_variance, target, valid)
    normal = torch.distributions.Normal(mean[valid], (log_variance[valid] / 2).exp())
    expected = -normal.log_prob(target[valid]).sum() - valid.sum() * math.log(2 * math.pi)
    torch.testing.assert_close(total, expected)
    assert count == valid.sum()


def test_a_masked_token_has_no_gradient_even_with_a_nan_target() -> None:
    mean, log_variance = torch.zeros(2, 2, requires_grad=True), torch.zeros(2, 2, requires_grad=True)
    target = torch.tensor([[1.0, 1.0], [math.nan, 1.0]])
    gaussian_nll(mean, log_variance, target, torch.tensor([True, False]))[0].backward()
    assert mean.grad is not None and log_variance.grad is not None
    assert mean.grad.tolist() == [[-1.0, -1.0], [0.0, 0.0]]
    assert log_variance.grad.tolist() == [[0.0, 0.0], [0.0, 0.0]]  # at its optimum, and masked


def test_scale_changes_units_and_nothing_else() -> None:
    raw = torch.tensor([0.5, -1.0, 0.2, -0.3])
    one, ten = split_estimate(raw, scale=1.0), split_estimate(raw, scale=10.0)
    torch.testing.assert_close(ten.mean, 10 * one.mean)
    torch.testing.assert_close(ten.std, 10 * one.std)


def test_extreme_outputs_stay_finite_and_keep_a_gradient() -> None:
    raw = torch.tensor([0.0, 0.0, -40.0, 25.0], requires_grad=True)
    estimate = split_estimate(raw, scale=1.0)
    total, _ = gaussian_nll(estimate.mean, estimate.log_variance, torch.tensor([3.0, 3.0]))
    total.backward()
    assert raw.grad is not None and torch.isfinite(total)
    assert raw.grad[2] < 0 and raw.grad[3] > 0  # widen the too sure one, narrow the too unsure one


def test_the_head_learns_position_and_noise_level() -> None:
    torch.manual_seed(0)
    states = torch.randn(4000, 2)
    target = torch.stack([3 * states[:, 0] + 1, -states[:, 1]], -1) + torch.randn(4000, 2) * torch.tensor(
        [0.5, 2.0]
    )
    head = LayoutHead(2)
    optimizer = torch.optim.LBFGS(head.parameters(), max_iter=60, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        estimate = head(states)
        total, count = gaussian_nll(estimate.mean, estimate.log_variance, target)
        (total / count).backward()
        return total / count

    optimizer.step(closure)
    torch.testing.assert_close(head(states).std.mean(0), torch.tensor([0.5, 2.0]), atol=0.1, rtol=0)


def _hololens() -> tuple[Tensor, Tensor, Tensor]:
    folder = DATA / "rgbd_hololens"
    if not folder.is_dir():
        pytest.skip(f"{folder} is absent (set VLM_OCC_REAL_DATA)")
    poses = json.loads((folder / "poses.json").read_text())
    depth = [np.asarray(Image.open(folder / "depth" / name)).astype(np.float32) / 1000 for name in poses]
    intrinsics = torch.from_numpy(np.loadtxt(folder / "K.txt")).float()
    matrices = torch.tensor(list(poses.values()), dtype=torch.float64)
    return torch.from_numpy(np.stack(depth)), intrinsics, matrices


def test_two_real_views_of_one_point_get_the_same_target() -> None:
    depth, intrinsics, poses = _hololens()
    frames, height, width = depth.shape
    first = first_view_frame(poses[0], up=(0.0, 1.0, 0.0))  # the HoloLens world has y up
    frame_from_camera = (first @ poses).float()
    every = layout_targets(
        depth, intrinsics.expand(frames, 3, 3), frame_from_camera, (height // 4, width // 4)
    )
    world_points = _world_points(depth, intrinsics, poses)  # [F, H, W, 3]
    distances = []
    for a in range(frames):
        points = world_points[a, 2::4, 2::4].reshape(-1, 3)
        seen = depth[a, 2::4, 2::4].flatten() > 0
        pixels, expected_depth = project(points, intrinsics.expand(frames, 3, 3), poses.float())
        for b in range(frames):
            cell = (pixels[b] / 4).long()
            inside = seen & (cell >= 0).all(-1) & (cell[:, 0] < width // 4) & (cell[:, 1] < height // 4)
            index = cell[inside, 1] * (width // 4) + cell[inside, 0]
            measured = depth[b, 2::4, 2::4].flatten()[index]
            same = every.valid[b][index] & ((measured - expected_depth[b][inside]).abs() < 0.1) & (a != b)
            own = _planar(first, points[inside])
            distances.append((every.position[b][index] - own)[same].norm(dim=-1))
    distance = torch.cat(distances)
    assert len(distance) > 10_000
    assert distance.median() < 0.04


def _world_points(depth: Tensor, intrinsics: Tensor, poses: Tensor) -> Tensor:
    v, u = torch.meshgrid(torch.arange(depth.shape[1]), torch.arange(depth.shape[2]), indexing="ij")
    v, u = v + 0.5, u + 0.5
    rays = torch.stack(
        [(u - intrinsics[0, 2]) / intrinsics[0, 0], (v - intrinsics[1, 2]) / intrinsics[1, 1]], -1
    )
    local = torch.cat([rays, torch.ones_like(rays[..., :1])], -1) * depth[..., None]
    return (
        torch.einsum("fij,fhwj->fhwi", poses[:, :3, :3].float(), local) + poses[:, None, None, :3, 3].float()
    )


def _planar(first: Tensor, points: Tensor) -> Tensor:
    return (points @ first[:3, :3].float().T + first[:3, 3].float())[:, :2]
