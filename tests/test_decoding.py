"""Which voxels of an object are given: against the best of all sets."""

from __future__ import annotations

from itertools import product

import pytest
import torch

from vlm_occ.models.decoding import best_overlap


def expected_overlap(chosen: tuple[bool, ...], odds: list[float]) -> float:
    """Expected intersection over expected union of a set of voxels with the object."""
    inside = sum(p for p, yes in zip(odds, chosen, strict=True) if yes)
    missed = sum(p for p, yes in zip(odds, chosen, strict=True) if not yes)
    return inside / (sum(chosen) + missed)


@pytest.mark.parametrize("seed", range(6))
def test_no_set_of_voxels_is_expected_to_overlap_the_object_better(seed: int) -> None:
    logits = 2 * torch.randn(9, generator=torch.Generator().manual_seed(seed)) - 0.5 * seed
    odds = logits.sigmoid().tolist()
    best = max(expected_overlap(s, odds) for s in product((False, True), repeat=9) if any(s))
    found = best_overlap(logits)
    assert expected_overlap(tuple(found.tolist()), odds) == pytest.approx(best, abs=1e-6)


def test_an_unsure_object_is_given_below_one_half_and_a_sure_one_at_it() -> None:
    unsure, sure = torch.full((40,), -0.4), torch.tensor([9.0, 8.0, -9.0, 7.0, -8.0])
    assert best_overlap(unsure).all()
    assert torch.equal(best_overlap(sure), sure > 0)


def test_no_voxel_near_the_object_gives_none() -> None:
    assert best_overlap(torch.zeros(0)).shape == (0,) and best_overlap(torch.zeros(0)).dtype == torch.bool
