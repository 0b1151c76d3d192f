"""Pose tokens: what they depend on, and what they must not depend on."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from vlm_occ.encoders.pose import OCTAVES, PoseEncoder, PoseSourceName, pose_features, waves
from vlm_occ.geometry import rigid, rotation_z

IMAGE_SIZE = (256, 704)
FORWARD = torch.tensor([[0.0, 0, 1], [-1, 0, 0], [0, -1, 0]])  # camera axes in ego axes


def surround(yaws: Tensor) -> tuple[Tensor, Tensor]:
    """Poses [F, 4, 4] and intrinsics [F, 3, 3] of cameras around a vehicle."""
    position = torch.stack([yaws.cos(), yaws.sin() / 2, torch.full_like(yaws, 1.5)], dim=-1)
    intrinsics = torch.tensor([[560.0, 0, 352], [0, 560, 76], [0, 0, 1]]).expand(len(yaws), 3, 3)
    return rigid(rotation_z(yaws) @ FORWARD, position), intrinsics


def tokens(
    encoder: PoseEncoder, yaws: Tensor, *, age: Tensor | None = None, camera: Tensor | None = None
) -> Tensor:
    pose, intrinsics = surround(yaws)
    age = torch.zeros(len(yaws)) if age is None else age
    camera = torch.arange(len(yaws)) if camera is None else camera
    return encoder(pose, intrinsics, image_size=IMAGE_SIZE, age=age, camera=camera)


def make(source: PoseSourceName) -> PoseEncoder:
    torch.manual_seed(0)
    return PoseEncoder(24, source)


SIX = torch.arange(6) * (math.pi / 3)


@pytest.mark.parametrize("source", ["known", "learned"])
def test_each_camera_and_each_age_has_a_token_of_its_own(source: PoseSourceName) -> None:
    encoder = make(source)
    now = tokens(encoder, SIX)
    before = tokens(encoder, SIX, age=torch.full((6,), 0.5))
    distance = torch.cdist(torch.cat([now, before]), torch.cat([now, before]))
    distance.fill_diagonal_(1.0)
    assert now.shape == (6, 24) and distance.min() > 1e-3


@pytest.mark.parametrize("source", ["known", "learned"])
def test_a_token_depends_on_its_own_image_only(source: PoseSourceName) -> None:
    encoder, order = make(source), torch.tensor([3, 0, 5])
    expected = tokens(encoder, SIX)[order]
    torch.testing.assert_close(tokens(encoder, SIX[order], camera=order), expected)


def test_known_tokens_do_not_depend_on_resolution_or_camera_names() -> None:
    encoder = make("known")
    pose, intrinsics = surround(SIX)
    scale = torch.diag(torch.tensor([2.0, 2.0, 1.0]))
    age, camera = torch.zeros(6), torch.arange(6)
    one = encoder(pose, intrinsics, image_size=(256, 704), age=age, camera=camera)
    other = encoder(pose, scale @ intrinsics, image_size=(512, 1408), age=age, camera=camera.flip(0))
    torch.testing.assert_close(one, other)
    wider = encoder(pose, scale @ intrinsics, image_size=(256, 704), age=age, camera=camera)
    assert (one - wider).abs().max() > 1e-3


def test_known_tokens_are_continuous_where_angles_jump() -> None:
    encoder = make("known")
    around = tokens(encoder, torch.tensor([math.pi - 1e-4, -math.pi + 1e-4, 0.0]))
    assert (around[0] - around[1]).abs().max() < 1e-3 < (around[0] - around[2]).abs().max()


def test_pose_features_hold_the_rotation_the_position_and_the_field_of_view() -> None:
    pose, intrinsics = surround(torch.tensor([0.3]))
    features = pose_features(pose, intrinsics, image_size=IMAGE_SIZE, age=torch.tensor([0.5]))[0]
    columns = features[:6].reshape(3, 2)
    rebuilt = torch.cat([columns, torch.linalg.cross(columns[:, 0], columns[:, 1])[:, None]], dim=1)
    torch.testing.assert_close(rebuilt, pose[0, :3, :3])
    torch.testing.assert_close(features[6:9] * 4, pose[0, :3, 3])
    expected = torch.tensor([math.atan(352 / 560), math.atan(128 / 560), 0.0, 76 / 256 - 0.5, 0.5])
    torch.testing.assert_close(features[9:14], expected)


def test_waves_are_sines_and_cosines_of_doubling_frequency() -> None:
    values = torch.tensor([[0.3, -1.2], [0.0, 2.5]])
    expected = [
        [f(value * math.pi * 2**k) for value in row for f in (math.sin, math.cos) for k in range(OCTAVES)]
        for row in values.tolist()
    ]
    torch.testing.assert_close(waves(values), torch.tensor(expected), atol=1e-4, rtol=0)


def test_learned_tokens_ignore_calibration() -> None:
    encoder, camera = make("learned"), torch.arange(6)
    assert torch.equal(tokens(encoder, SIX, camera=camera), tokens(encoder, SIX.flip(0), camera=camera))
    unknown = tokens(encoder, SIX[:1], camera=torch.tensor([6]))
    assert (unknown - tokens(encoder, SIX)).norm(dim=1).min() > 1e-3


def test_none_gives_zeros_and_has_no_parameters() -> None:
    encoder = make("none")
    assert torch.equal(tokens(encoder, SIX), torch.zeros(6, 24)) and not list(encoder.parameters())


@pytest.mark.parametrize("source", ["known", "learned"])
def test_every_parameter_has_a_gradient_and_no_image_is_legal(source: PoseSourceName) -> None:
    encoder = make(source)
    tokens(encoder, SIX, age=torch.rand(6)).square().sum().backward()
    assert all(p.grad is not None and p.grad.any() for p in encoder.parameters())
    assert tokens(encoder, SIX[:0]).shape == (0, 24)


def test_an_unknown_source_is_an_error_that_names_the_known_ones() -> None:
    with pytest.raises(ValueError, match="'gps', expected 'known', 'learned', 'cut3r' or 'none'"):
        PoseEncoder(8, "gps")  # type: ignore[arg-type]
