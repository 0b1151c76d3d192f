"""Losses against formulas written another way, brute force and other libraries."""

import itertools
import math

import pytest
import torch
from shapely.geometry import box as rectangle
from torch.nn import functional

from vlm_occ.losses.box import box_l1, draw_heatmap, generalized_iou
from vlm_occ.losses.language import next_token_cross_entropy
from vlm_occ.losses.matching import inside_footprint, match_boxes
from vlm_occ.losses.occupancy import (
    affinities_of_sentences,
    dice,
    heatmap_focal,
    lovasz_gradient,
    lovasz_of_sentences,
    sigmoid_focal,
)
from vlm_occ.types import VoxelGrid


def randn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_focal_without_focus_is_half_the_cross_entropy():
    logits, targets = randn(200), (randn(200, seed=1) > 0).float()
    expected = 0.5 * functional.binary_cross_entropy_with_logits(logits, targets, reduction="none")
    torch.testing.assert_close(sigmoid_focal(logits, targets, gamma=0.0, alpha=0.5), expected)


def test_focal_agrees_with_its_definition_element_by_element():
    for logit, target in itertools.product((-3.0, 0.2, 4.0), (0.0, 1.0)):
        p = 1 / (1 + math.exp(-logit))
        p_t, alpha_t = (p, 0.25) if target else (1 - p, 0.75)
        expected = -alpha_t * (1 - p_t) ** 2 * math.log(p_t)
        value = sigmoid_focal(torch.tensor(logit), torch.tensor(target)).item()
        assert value == pytest.approx(expected, rel=1e-4)


def test_heatmap_focal_agrees_with_a_loop():
    logits, targets = randn(30), torch.rand(30, generator=torch.Generator().manual_seed(2))
    targets[3] = 1.0
    for logit, target, value in zip(
        logits.tolist(), targets.tolist(), heatmap_focal(logits, targets).tolist(), strict=True
    ):
        p = 1 / (1 + math.exp(-logit))
        at_centre = (1 - p) ** 2 * math.log(p)
        elsewhere = (1 - target) ** 4 * p**2 * math.log(1 - p)
        assert value == pytest.approx(-(at_centre if target == 1 else elsewhere), rel=1e-4)


def test_dice_of_a_perfect_mask_is_zero_and_of_a_wrong_one_near_one():
    target = (randn(500) > 0).float()
    assert dice((target * 2 - 1) * 50, target).item() == pytest.approx(0, abs=1e-6)
    assert dice((1 - 2 * target) * 50, target).item() > 0.99


def test_lovasz_of_hard_errors_is_the_jaccard_loss():
    # On 0/1 errors the Lovasz extension equals the set function: 1 - IoU of the mistaken prediction.
    target = torch.tensor([1.0, 1, 1, 0, 0, 0, 0])
    for wrong in itertools.product((0.0, 1.0), repeat=7):
        errors = torch.tensor(wrong)
        ordered, order = errors.sort(descending=True)
        value = (ordered @ lovasz_gradient(target[order])).item()
        predicted = (target - errors).abs()
        union = ((target + predicted) > 0).sum()
        assert value == pytest.approx(1 - ((target * predicted).sum() / union).item(), abs=1e-6)


def test_lovasz_agrees_with_brute_force_over_thresholds():
    # The Lovasz extension is the integral over thresholds of the set function of {errors >= threshold}.
    probabilities = randn(40, 3).softmax(-1)
    labels = torch.randint(0, 3, (40,), generator=torch.Generator().manual_seed(3))
    total = 0.0
    for c in range(3):
        target = (labels == c).float()
        errors = (target - probabilities[:, c]).abs()
        levels = torch.cat([torch.zeros(1), errors.sort().values])
        for low, high in itertools.pairwise(levels.tolist()):
            mistaken = errors >= high
            missed, added = (mistaken & (target == 1)).sum(), (mistaken & (target == 0)).sum()
            jaccard = 1 - (target.sum() - missed) / (target.sum() + added)
            total += (high - low) * jaccard.item()
    every = torch.ones(1, 40, dtype=torch.bool)
    result = lovasz_of_sentences(probabilities[None], labels[None], every)
    assert result.item() == pytest.approx(total / 3, abs=1e-4)
    kept = labels != 2
    some = lovasz_of_sentences(probabilities[None], labels[None], kept[None])
    torch.testing.assert_close(
        some, lovasz_of_sentences(probabilities[None, kept], labels[None, kept], every[:, kept])
    )


def test_affinities_are_precision_recall_and_specificity():
    probability = torch.rand(2, 100, 3, generator=torch.Generator().manual_seed(4))
    target = (randn(2, 100, 3, seed=5) > 0).float()
    values = affinities_of_sentences(probability, target)
    for n, c in itertools.product(range(2), range(3)):
        p, t = probability[n, :, c], target[n, :, c]
        shares = (p @ t / p.sum(), p @ t / t.sum(), (1 - p) @ (1 - t) / (1 - t).sum())
        expected = functional.binary_cross_entropy(torch.stack(shares), torch.ones(3), reduction="sum")
        torch.testing.assert_close(values[n, c], expected)


def test_generalized_iou_agrees_with_polygons():
    values = torch.rand(50, 8, generator=torch.Generator().manual_seed(8)) * 5
    a = torch.cat([values[:, :2], values[:, :2] + values[:, 2:4] + 0.1], dim=-1)
    b = torch.cat([values[:, 4:6], values[:, 4:6] + values[:, 6:] + 0.1], dim=-1)
    for first, second, value in zip(a.tolist(), b.tolist(), generalized_iou(a, b).tolist(), strict=True):
        p, q = rectangle(*first), rectangle(*second)
        union = p.union(q).area
        hull = p.union(q).envelope.area
        assert value == pytest.approx(p.intersection(q).area / union - (hull - union) / hull, abs=1e-4)


def test_box_loss_is_zero_for_equal_boxes_and_for_a_full_turn():
    box = torch.tensor([[3.0, 2, 0, 4, 2, 1.5, 0.4]])
    turned = box.clone()
    turned[0, 6] += 2 * math.pi
    assert box_l1(box, turned).item() == pytest.approx(0, abs=1e-6)
    moved = box.clone()
    moved[0, 0] += 1.0
    assert box_l1(box, moved).item() == pytest.approx(0.95, abs=1e-5)  # |1| - beta / 2


def test_heatmap_has_its_ones_at_the_centres_and_falls_off():
    grid = VoxelGrid()
    boxes = torch.tensor(
        [[10.1, -3.3, 0, 4, 2, 1.5, 0.2], [10.1, -2.1, 0, 0.6, 0.6, 1.7, 0], [90.0, 0, 0, 4, 2, 2, 0]]
    )
    heat = draw_heatmap(boxes, torch.tensor([0, 1, 0]), grid)
    assert (heat == 1).nonzero().tolist() == [[0, 125, 91], [1, 125, 94]]
    assert heat[0, 125, 91] > heat[0, 126, 91] > heat[0, 127, 91] > 0
    assert heat[2:].sum() == 0


def test_matching_is_the_best_assignment_within_reach():
    boxes = torch.tensor([[0.0, 0, 0, 4, 2, 1.5, 0], [1.0, 0, 0, 0.5, 0.5, 1, 0], [20.0, 0, 0, 4, 2, 1.5, 0]])
    candidates = torch.zeros(3, 7)
    candidates[:, 0] = torch.tensor([0.6, 0.4, 25.0])
    assert match_boxes(candidates, boxes).tolist() == [1, 0, -1]
    assert match_boxes(candidates[:0], boxes).tolist() == [-1, -1, -1]
    assert inside_footprint(candidates, boxes).tolist()[0] == [True, True, False]


def test_language_loss_is_the_mean_negative_log_likelihood():
    logits, targets = randn(5, 11, seed=9), torch.tensor([1, 3, 0, 10, 4])
    expected = -torch.log_softmax(logits, -1)[torch.arange(5), targets].sum()
    result = next_token_cross_entropy(logits, targets)
    torch.testing.assert_close(result.total, expected)
    assert result.count == 5
