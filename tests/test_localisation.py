"""Localisation accuracy and honesty of uncertainties: hand-computed cases, symmetries."""

from __future__ import annotations

import math

import pytest
import torch

from vlm_occ.eval.localisation import (
    coverage,
    error_correlation,
    localisation_errors,
    localisation_score,
)


def test_localisation_takes_the_best_of_three_for_position_and_yaw_each() -> None:
    positions = [torch.tensor([[0.0, 0, 9], [0, 2, 0], [3, 0, 0]]), torch.tensor([[5.0, 0.6, 0]])]
    yaws = [torch.deg2rad(torch.tensor([90.0, 170, 20])), torch.deg2rad(torch.tensor([-170.0]))]
    score = localisation_score(
        positions, yaws, torch.tensor([[0.0, 0.4, 0], [5, 0, 0]]), torch.deg2rad(torch.tensor([40.0, 170.0]))
    )
    assert score.as_dict() == {"n": 2, "acc_0.5m": 0.5, "acc_1m": 1.0, "acc_15deg": 0.0, "acc_30deg": 1.0}


def test_localisation_bounds_are_strict() -> None:
    truth, yaw = torch.zeros(1, 3).double(), torch.zeros(1).double()
    at_bound = [torch.tensor([[0.3, 0.4, 0.0]], dtype=torch.float64)]
    score = localisation_score(at_bound, [torch.deg2rad(torch.tensor([15.0]).double())], truth, yaw)
    assert (score.position_half_metre, score.position_metre) == (0.0, 1.0)
    assert (score.yaw_15_degrees, score.yaw_30_degrees) == (0.0, 1.0)


def test_more_than_three_predictions_are_refused() -> None:
    with pytest.raises(ValueError, match="4 positions"):
        localisation_score([torch.zeros(4, 2)], [torch.zeros(4)], torch.zeros(1, 2), torch.zeros(1))


def test_localisation_errors_do_not_change_with_the_world_frame() -> None:
    generator = torch.Generator().manual_seed(0)
    position, truth = torch.randn(20, 2, generator=generator), torch.randn(20, 2, generator=generator)
    yaw, true_yaw = torch.randn(20, generator=generator) * 3, torch.randn(20, generator=generator) * 3
    turn = torch.tensor([[math.cos(2.0), -math.sin(2.0)], [math.sin(2.0), math.cos(2.0)]])
    distance, degrees = localisation_errors(position, yaw, truth, true_yaw)
    moved = localisation_errors(position @ turn.T + 5, yaw + 2, truth @ turn.T + 5, true_yaw + 2)
    torch.testing.assert_close(moved[0], distance, atol=1e-5, rtol=0)
    torch.testing.assert_close(moved[1], degrees, atol=1e-4, rtol=0)


def test_coverage_of_true_gaussians_is_the_level_and_of_half_the_spread_is_less() -> None:
    torch.manual_seed(0)
    std = torch.rand(20_000, 2) + 0.5
    truth = torch.randn(20_000, 2) * std
    assert coverage(torch.zeros(20_000, 2), std, truth, [0.5, 0.9]) == pytest.approx([0.5, 0.9], abs=0.015)
    # With half the spread the 90 % ellipse holds 1 - 0.1^(1/4) of them.
    assert coverage(torch.zeros(20_000, 2), std / 2, truth, [0.9]) == pytest.approx(
        [1 - 0.1**0.25], abs=0.015
    )


def test_error_correlation_is_one_for_the_same_order() -> None:
    std = torch.tensor([0.1, 0.5, 2.0, 3.0])
    assert error_correlation(std, std.square()) == pytest.approx(1.0)
    assert error_correlation(std, -std) == pytest.approx(-1.0)
