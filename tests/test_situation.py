"""Situation heads and losses: closed forms, rotations by bins, the border at 180 degrees."""

from __future__ import annotations

import math

import pytest
import torch

from vlm_occ.geometry import rigid, rotation_z, wrap_angle
from vlm_occ.heads.layout import BirdsEyeEstimate
from vlm_occ.heads.situation import (
    OrientationHead,
    PositionHead,
    circular_mean,
    decode_situation,
    orientation_bins,
    situation_to_reference,
)
from vlm_occ.losses.situation import ORIENTATION_STD, gaussian_nll, orientation_kl, orientation_targets

BINS = orientation_bins()


def test_bins_are_36_steps_of_ten_degrees_around_the_circle() -> None:
    degrees = torch.rad2deg(BINS)
    torch.testing.assert_close(degrees, torch.arange(-175.0, 180.0, 10.0))


def test_targets_equal_the_formula_in_a_loop() -> None:
    for yaw in (-math.pi, -1.0, 0.0, 2.5, 3.1):
        weights = []
        for centre in BINS.tolist():
            difference = min(abs(centre - yaw + turn) for turn in (-2 * math.pi, 0.0, 2 * math.pi))
            weights.append(math.exp(-0.5 * (difference / ORIENTATION_STD) ** 2))
        expected = torch.tensor(weights) / sum(weights)
        torch.testing.assert_close(
            orientation_targets(torch.tensor(yaw), BINS), expected, atol=1e-6, rtol=1e-4
        )


def test_turning_the_angle_by_bins_rolls_the_targets() -> None:
    yaw = torch.tensor(3.0)
    for steps in (1, 5, 30):
        turned = orientation_targets(yaw + steps * 2 * math.pi / 36, BINS)
        torch.testing.assert_close(turned, orientation_targets(yaw, BINS).roll(steps), atol=1e-5, rtol=0)


def test_soft_argmax_of_a_target_gives_its_angle_everywhere() -> None:
    yaw = torch.linspace(-math.pi, math.pi, 721)
    error = wrap_angle(circular_mean(orientation_targets(yaw, BINS)) - yaw)
    assert error.abs().max() < 1e-3


def test_soft_argmax_across_the_border_does_not_average_to_zero() -> None:
    probabilities = torch.zeros(36)
    probabilities[0] = probabilities[-1] = 0.5  # -175 and 175 degrees
    assert abs(abs(circular_mean(probabilities).item()) - math.pi) < 1e-6


def test_kl_equals_torchs_and_vanishes_for_the_target_itself() -> None:
    torch.manual_seed(0)
    logits, yaw = torch.randn(4, 36), torch.tensor([-3.1, 0.0, 1.0, 3.1])
    target = orientation_targets(yaw, BINS)
    total, count = orientation_kl(logits, yaw, BINS)
    expected = torch.nn.functional.kl_div(logits.log_softmax(-1), target, reduction="sum")
    torch.testing.assert_close(total, expected)
    assert count == 4
    assert orientation_kl(target.clamp(min=1e-30).log(), yaw, BINS)[0].abs() < 1e-5


def test_the_gradient_is_the_difference_of_the_distributions_and_smooth_at_the_border() -> None:
    gradients = []
    for yaw in (math.pi - 1e-3, -math.pi + 1e-3):
        logits = torch.zeros(1, 36, requires_grad=True)
        orientation_kl(logits, torch.tensor([yaw]), BINS)[0].backward()
        assert logits.grad is not None
        expected = torch.full((36,), 1 / 36) - orientation_targets(torch.tensor(yaw), BINS)
        torch.testing.assert_close(logits.grad[0], expected, atol=1e-6, rtol=0)
        gradients.append(logits.grad[0])
    assert (gradients[0] - gradients[1]).abs().max() < 0.01


def test_masked_situations_do_not_count() -> None:
    logits, yaw = torch.randn(3, 36), torch.tensor([0.3, math.nan, 1.0])
    valid = torch.tensor([True, False, True])
    total, count = orientation_kl(logits, yaw, BINS, valid)
    alone = orientation_kl(logits[valid], yaw[valid], BINS)[0]
    torch.testing.assert_close(total, alone)
    assert count == 2


def test_heads_learn_a_direction_and_where_it_is_unsure() -> None:
    torch.manual_seed(0)
    yaw = torch.rand(256) * 2 * math.pi - math.pi
    states = torch.stack([yaw.sin(), yaw.cos()], -1)
    position = torch.stack([yaw.cos(), yaw.sin()], -1) * 5
    head, place = OrientationHead(2, hidden=64), PositionHead(2, hidden=64, scale=5.0)
    optimizer = torch.optim.Adam([*head.parameters(), *place.parameters()], lr=0.01)
    for _ in range(250):
        optimizer.zero_grad()
        estimate = place(states)
        loss = orientation_kl(head(states), yaw, BINS)[0]
        loss = loss + gaussian_nll(estimate.mean, estimate.log_variance, position)[0]
        (loss / 256).backward()
        optimizer.step()
    found = circular_mean(head(states).softmax(-1))
    assert wrap_angle(found - yaw).abs().max() < math.radians(5)
    assert (place(states).mean - position).norm(dim=-1).mean() < 0.2


def test_decoding_gives_position_uncertainty_and_yaw() -> None:
    estimate = BirdsEyeEstimate(
        mean=torch.tensor([1.0, -2.0]), log_variance=torch.tensor([0.0, math.log(4.0)])
    )
    situation = decode_situation(estimate, orientation_targets(torch.tensor(2.0), BINS).log())
    assert situation.position.tolist() == [1.0, -2.0]
    torch.testing.assert_close(situation.position_std, torch.tensor([1.0, 2.0]))
    assert situation.yaw == pytest.approx(2.0, abs=1e-3)
    with pytest.raises(ValueError, match="one situation"):
        decode_situation(estimate, torch.zeros(2, 36))


@pytest.mark.parametrize("turn", [0.0, math.radians(20), -3.0, 2.2])
def test_a_situation_turns_with_its_frame(turn: float) -> None:
    estimate = BirdsEyeEstimate(mean=torch.tensor([2.0, 0.0]), log_variance=torch.zeros(2))
    situation = decode_situation(estimate, orientation_targets(torch.tensor(1.0), BINS).log())
    transform = rigid(rotation_z(torch.tensor(turn)), torch.tensor([5.0, 1.0, 0.3]))
    moved = situation_to_reference(situation, transform)
    expected = torch.tensor([5 + 2 * math.cos(turn), 1 + 2 * math.sin(turn)])
    torch.testing.assert_close(moved.position, expected)
    assert abs(math.remainder(moved.yaw - 1.0 - turn, 2 * math.pi)) < 1e-3
    shifted = circular_mean(moved.yaw_probabilities)
    assert abs(math.remainder(shifted.item() - moved.yaw, 2 * math.pi)) < 5e-3
    assert moved.yaw_probabilities.sum().item() == pytest.approx(1.0, abs=1e-5)
