"""The cut of the scores: hand-made sentences whose best cut is known."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from vlm_occ.eval.calibration import Scored, choose_cut, measure_cut


def one(scores: list[float], *wanted: int, complete: bool = True) -> Scored:
    return Scored(torch.tensor(scores), frozenset(wanted), complete)


SENTENCES = [
    one([0.9, 0.5, 0.1], 0),  # a second token is half as sure: only a ratio leaves it out
    one([0.9, 0.8, 0.1], 0, 1),  # two are meant
    one([0.32, 0.05, 0.1], 0),
    one([0.28, 0.2, 0.1]),  # nothing is meant
    one([0.04, 0.02, 0.01]),
]


def test_a_cut_is_measured_as_counted_by_hand() -> None:
    cut = measure_cut(SENTENCES, 0.3, 0.0)
    assert (cut.exact, cut.rejected, cut.false_rejected) == (4 / 5, 1.0, 0.0)
    low = measure_cut(SENTENCES, 0.15, 0.7)
    assert (low.exact, low.rejected, low.false_rejected) == (4 / 5, 1 / 2, 0.0)
    high = measure_cut(SENTENCES, 0.6, 0.7)
    assert (high.exact, high.rejected) == (4 / 5, 1.0)
    assert high.false_rejected == pytest.approx(1 / 3)


def test_the_chosen_cut_answers_all_and_rejects_all_where_both_can_be_had() -> None:
    cut = choose_cut(SENTENCES)
    assert (cut.exact, cut.rejected, cut.false_rejected) == (1.0, 1.0, 0.0)
    assert cut.threshold == 0.3 and 0.56 < cut.ratio < 0.88


def test_what_is_only_asked_for_has_a_threshold_of_its_own() -> None:
    asked = replace(
        one([0.5, 0.1, 0.1]), presupposes=False
    )  # nothing, where `the ...` at 0.32 means something
    sentences = [*SENTENCES, asked, replace(one([0.1, 0.1, 0.9], 2), presupposes=False)]
    cut = choose_cut(sentences)
    assert cut.threshold == 0.3 and cut.existence == 0.5 and cut.exact == 1.0
    assert measure_cut(sentences, 0.3, 0.7, 0.5).exact == 1.0
    assert measure_cut(sentences, 0.3, 0.7).exact == pytest.approx(6 / 7)
    assert measure_cut(sentences, 0.5, 0.7).false_rejected == pytest.approx(1 / 4)


def test_a_sentence_whose_object_has_no_token_is_never_exact() -> None:
    assert measure_cut([one([0.9], complete=False)], 0.5, 0.0).exact == 0
    assert measure_cut([one([0.1], complete=False)], 0.5, 0.0).false_rejected == 1.0


def test_the_fewest_wrong_rejections_win_where_none_are_few() -> None:
    hopeless = [one([0.01], 0), one([0.5], 0)]
    assert choose_cut(hopeless).false_rejected == 0.5
    with pytest.raises(ValueError, match="at least one scene"):
        choose_cut([])
