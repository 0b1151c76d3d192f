"""Depth bins, predictor and loss: closed forms, naive loops, a distribution that is learnt."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn import functional

from vlm_occ.heads.depth import DepthBins, DepthPredictor, expected_depth
from vlm_occ.losses.depth import depth_focal, nearest_depth


@pytest.mark.parametrize("bins", [DepthBins(), DepthBins(2.0, 58.0, 112, "equal"), DepthBins(0.0, 1.0, 1)])
def test_bins_cover_the_range_and_their_centres_fall_into_them(bins: DepthBins) -> None:
    edges = bins.edges()
    assert edges[0] == bins.nearest and edges[-1].item() == pytest.approx(bins.farthest, rel=1e-6)
    assert (edges[1:] > edges[:-1]).all()
    index, valid = bins.index_of(bins.centres())
    assert index.tolist() == list(range(bins.number)) and valid.all()


def test_growing_bins_grow_by_the_width_of_the_first() -> None:
    width = DepthBins(1.0, 58.0, 80).edges().diff()
    torch.testing.assert_close(width, width[0] * torch.arange(1, 81), atol=1e-4, rtol=0)
    assert width[0].item() == pytest.approx(57 * 2 / (80 * 81), rel=1e-3)


def test_depths_outside_the_range_are_not_valid() -> None:
    bins = DepthBins(1.0, 11.0, 10, "equal")
    depth = torch.tensor([0.0, 0.99, 1.0, 1.99, 2.0, 10.99, 11.0, math.inf, math.nan, -1.0])
    index, valid = bins.index_of(depth)
    assert valid.tolist() == [False, False, True, True, True, True, False, False, False, False]
    assert index[valid].tolist() == [0, 0, 1, 9]


def test_impossible_bins_are_refused() -> None:
    with pytest.raises(ValueError, match="nearest < farthest"):
        DepthBins(5.0, 5.0, 10)


def test_expected_depth_of_a_certain_bin_is_its_centre_and_of_all_alike_their_mean() -> None:
    bins = DepthBins(2.0, 10.0, 4, "equal")
    logits = torch.zeros(1, 4, 1, 2)
    logits[0, 2, 0, 0] = 50.0
    torch.testing.assert_close(expected_depth(logits, bins), torch.tensor([[[7.0, 6.0]]]))


def test_focal_equals_a_naive_loop() -> None:
    torch.manual_seed(0)
    logits, target = torch.randn(2, 5, 3, 4), torch.randint(0, 5, (2, 3, 4))
    valid = torch.rand(2, 3, 4) > 0.3
    total, count = depth_focal(logits, target, valid, gamma=1.5, alpha=0.4)
    expected = 0.0
    for f, i, j in valid.nonzero().tolist():
        p = torch.softmax(logits[f, :, i, j], 0)[target[f, i, j]].item()
        expected += -0.4 * (1 - p) ** 1.5 * math.log(p)
    assert total.item() == pytest.approx(expected, rel=1e-5)
    assert count == valid.sum()


def test_focal_without_focus_is_the_cross_entropy() -> None:
    torch.manual_seed(0)
    logits, target = torch.randn(2, 5, 3, 4), torch.randint(0, 5, (2, 3, 4))
    total, _ = depth_focal(logits, target, torch.ones(2, 3, 4, dtype=torch.bool), gamma=0.0, alpha=1.0)
    torch.testing.assert_close(total, functional.cross_entropy(logits, target, reduction="sum"))


def test_a_sure_prediction_and_a_masked_cell_have_finite_gradients() -> None:
    logits = torch.tensor([[200.0, -200.0], [-200.0, 200.0]]).reshape(1, 2, 1, 2).requires_grad_()
    depth_focal(logits, torch.zeros(1, 1, 2, dtype=torch.long), torch.tensor([[[True, False]]]))[0].backward()
    assert logits.grad is not None and torch.isfinite(logits.grad).all()
    assert (logits.grad[..., 1] == 0).all()


def test_the_nearest_valid_depth_of_each_cell_is_kept() -> None:
    depth = torch.tensor([[[0.0, 3, 9, 8], [5, 4, math.nan, 7], [0, 0, 1, -2], [0, math.inf, 2, 3]]])
    assert nearest_depth(depth, (2, 2)).tolist() == [[[3.0, 7.0], [0.0, 1.0]]]
    with pytest.raises(ValueError, match="4x4 pixels"):
        nearest_depth(depth, (3, 2))


def test_shapes_that_do_not_fit_are_named() -> None:
    with pytest.raises(ValueError, match=r"logits \[1, 5, 2, 2\]"):
        depth_focal(torch.zeros(1, 5, 2, 2), torch.zeros(1, 2, 3).long(), torch.ones(1, 2, 3).bool())


def test_the_predictor_learns_depth_from_a_feature() -> None:
    torch.manual_seed(0)
    bins = DepthBins(1.0, 11.0, 10, "equal")
    head = DepthPredictor(8, hidden=16, bins=bins)
    depth = torch.rand(2, 6, 6) * 9 + 1.5
    features = torch.stack([torch.sin(depth * (k + 1) / 4) for k in range(8)], dim=1)
    target, valid = bins.index_of(depth)
    optimizer = torch.optim.Adam(head.parameters(), lr=0.02)
    for _ in range(150):
        optimizer.zero_grad()
        total, count = depth_focal(head(features), target, valid)
        (total / count).backward()
        optimizer.step()
    assert (expected_depth(head(features), bins) - depth).abs().median() < 0.8
