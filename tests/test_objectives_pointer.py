"""Losses of the pointer and of the factors: each against a loop written from its definition."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import cast

import pytest
import torch
from made_outputs import entropy, grounding, labels, random_scores
from torch import Tensor

from vlm_occ.heads.factors import Factors
from vlm_occ.models.batch import Batch, GroundingOutput
from vlm_occ.objectives_pointer import (
    factor_losses,
    pointer_losses,
    pointer_terms,
    scene_truth,
    several_loss,
)
from vlm_occ.types import UNARY, GroundingQuery, QueryPart, SceneLabels


def focal(logit: float, target: float) -> float:
    """Focal loss with gamma 2 and equal weights of a half."""
    p = 1 / (1 + math.exp(-logit))
    return 0.5 * (1 - (p if target else 1 - p)) ** 2 * entropy(logit, target)


def three_sentences() -> tuple[SceneLabels, Tensor, GroundingOutput, Batch]:
    """Labels, logits [3, 5] and output of sentences that mean one object, two and none."""
    item = labels(8)
    logits = torch.randn(3, 5, generator=torch.Generator().manual_seed(1))
    queries = [
        GroundingQuery("a", (0,), True),
        GroundingQuery("b", (1, 2), False),
        GroundingQuery("c", (), False),
    ]
    result, batch = grounding(item, logits, queries)
    return item, logits, result, batch


def test_the_pointer_learns_every_token_of_every_sentence() -> None:
    item, logits, result, batch = three_sentences()
    wanted = [{2}, {1, 0}, set()]  # tokens that stand for the targets
    total = sum(focal(float(logits[q, n]), float(n in wanted[q])) for q in range(3) for n in range(5))
    found = float(pointer_terms(result, batch, [item])["pointer"].total)
    assert found == pytest.approx(total / 3, rel=1e-4)


def test_no_object_is_ranked_like_a_token_of_logit_zero() -> None:
    item, logits, result, batch = three_sentences()
    total = 0.0
    for q, meant in enumerate(([2], [1, 0], None)):
        share = [math.exp(float(value)) for value in logits[q]]
        chance = sum(share[n] for n in meant) if meant else 1.0
        total -= math.log(chance / (1 + sum(share)))
    found = float(pointer_terms(result, batch, [item])["ranking"].total)
    assert found == pytest.approx(total / 3, rel=1e-4)


def test_a_second_token_over_the_target_is_neither_right_nor_wrong() -> None:
    item = labels(8)
    logits = torch.zeros(1, 5, requires_grad=True)
    result, batch = grounding(item, logits, [GroundingQuery("a", (0,), True)])
    tokens = result.perception.tokens[0]
    box = tokens.candidates.box.clone()
    box[4] = box[2]  # the last candidate stands over the target too
    moved = replace(tokens, candidates=replace(tokens.candidates, box=box))
    result = replace(result, perception=replace(result.perception, tokens=(moved,)))
    pointer_terms(result, batch, [item])["pointer"].total.backward()
    gradient = cast(Tensor, logits.grad)[0]
    assert gradient[4] == 0 and gradient[2] < 0 and (gradient[[0, 1, 3]] > 0).all()


def test_a_sentence_whose_object_has_no_token_is_left_out() -> None:
    item = labels(8)
    logits = torch.randn(2, 5, generator=torch.Generator().manual_seed(2))
    queries = [GroundingQuery("a", (0,), True), GroundingQuery("b", (1,), True)]
    result, batch = grounding(item, logits, queries)
    result = replace(result, matches=(torch.tensor([2, -1, 0]),))
    only, one = grounding(item, logits[:1], queries[:1])
    found = pointer_terms(result, batch, [item])["pointer"]
    assert float(found.total) == pytest.approx(float(pointer_terms(only, one, [item])["pointer"].total))


def test_ignored_tokens_are_in_no_loss_and_no_target_is_a_logit_of_zero() -> None:
    bits = torch.Generator().manual_seed(4)
    logits = 2 * torch.randn(4, 6, generator=bits)
    target = torch.tensor([[0, 1, 0, 0, 0, 0], [1, 0, 0, 1, 0, 0], [0] * 6, [0, 0, 0, 0, 0, 1]]).float()
    ignore = torch.zeros(4, 6).bool()
    ignore[0, 2] = ignore[1, 5] = ignore[2, 0] = True
    pointer, ranking = pointer_losses(logits, target, ignore)
    for q in range(4):
        seen = [(float(logits[q, n]), bool(target[q, n])) for n in range(6) if not ignore[q, n]]
        assert float(pointer[q]) == pytest.approx(sum(focal(x, t) for x, t in seen), rel=1e-4)
        meant = sum(math.exp(x) for x, t in seen if t) or 1.0
        total = 1 + sum(math.exp(x) for x, _ in seen)
        assert float(ranking[q]) == pytest.approx(math.log(total / meant), rel=1e-4)


def test_a_batch_is_the_mean_of_its_scenes() -> None:
    item, logits, result, batch = three_sentences()
    queries = [GroundingQuery("d", (2,), True)]
    second, other = grounding(item, logits[1:2] + 1, queries)
    perception = replace(result.perception, tokens=result.perception.tokens + second.perception.tokens)
    matches, scores = result.matches + second.matches, result.scores + second.scores
    both = GroundingOutput(perception, scores, ((), ()), matches, ())
    found = pointer_terms(both, replace(batch, queries=batch.queries + other.queries), [item, item])
    apart = pointer_terms(result, batch, [item]), pointer_terms(second, other, [item])
    for name, value in found.items():
        expected = (apart[0][name].total + apart[1][name].total) / 2
        assert float(value.total / value.count) == pytest.approx(float(expected), rel=1e-4), name


# ------------------------------------------------------------------ factors

MATCH = [2, 1, 0]
"""The token of each box; tokens 3 and 4 stand for none."""
TOLD = (
    GroundingQuery(
        "the red car on the left",
        (0,),
        True,
        parts=(
            QueryPart("noun", 0b011, 0b111),
            QueryPart("colour", 0b001, 0b001),
            QueryPart("side", 0b101, 0b101),
        ),
    ),
    GroundingQuery(
        "the second car behind the blue truck",
        (1,),
        False,
        parts=(
            QueryPart("noun", 0b110, 0b110),
            QueryPart("relation", 0b010, 0b011),
            QueryPart("filter", 0b110, 0b110),
            QueryPart("order", 0b010, 0b010),
            QueryPart("anchor", 0b001, 0b101),
            QueryPart("anchor noun", 0b001, 0b101),
            QueryPart("anchor colour", 0b101, 0b101),
        ),
    ),
    GroundingQuery("someone else's words", (2,), True),
)


def truths(query: GroundingQuery, kind: str, doubled: int | None) -> list[int] | None:
    """1, 0 or 2 (borderline) for each of 5 tokens, None where not stated; `doubled` stands over a target."""
    for part in query.parts:
        if part.kind == kind:
            nothing = (
                "noun",
                "anchor noun",
                "anchor",
                "filter",
                "order",
            )  # what a token of nothing surely lacks
            values = [0 if kind in nothing else 2] * 5
            for box, token in enumerate(MATCH):
                sure, possible = part.sure >> box & 1, part.possible >> box & 1
                values[token] = 1 if sure else 2 if possible else 0
            if doubled is not None:
                values[doubled] = 2
            return values
    return None


def factors_by_loops(scores: Factors, queries: list[GroundingQuery], doubled: dict[int, int]) -> float:
    """The loss of factors from its definition."""
    kinds = [*UNARY, *(f"anchor {kind}" for kind in UNARY), "relation"]
    total = 0.0
    for place, kind in enumerate(kinds):
        losses: dict[int, list[float]] = {0: [], 1: [], 2: []}
        for q, query in enumerate(queries):
            logits = scores.relation[q] if place == 16 else scores.unary[q, place // 8, place % 8]
            for n, value in enumerate(truths(query, kind, doubled.get(q)) or ()):
                losses[value].append(entropy(float(logits[n]), value))
        total += sum(sum(losses[value]) / len(losses[value]) for value in (0, 1) if losses[value])
    for logits, right, among, allowed in (
        (scores.anchor, "anchor", "anchor", (0, 1)),
        (scores.order, "order", "filter", (1,)),
    ):
        losses_of = []
        for q, query in enumerate(queries):
            chosen, field = truths(query, right, doubled.get(q)), truths(query, among, doubled.get(q))
            if chosen and field:
                share = [math.exp(float(x)) for x in logits[q]]
                meant = sum(
                    x for x, c, f in zip(share, chosen, field, strict=True) if c == 1 and f in allowed
                )
                losses_of.append(
                    math.log(sum(x for x, f in zip(share, field, strict=True) if f in allowed) / meant)
                )
        total += sum(losses_of) / len(losses_of)
    return total / 8


def losses_of(
    queries: list[GroundingQuery], match: list[int], over: Tensor
) -> tuple[Factors, Tensor, Tensor]:
    """Random scores of queries and what `factor_losses` gives of them."""
    scores = random_scores(torch.zeros(3, 5))
    truth = scene_truth(torch.tensor(match), queries, over)
    return scores, *factor_losses(scores, torch.tensor(match), queries, truth)


def over_footprints(*more: tuple[int, int]) -> Tensor:
    """Tokens over boxes: those matched, and pairs of (box, token)."""
    over = torch.zeros(3, 5).bool()
    for box, token in (*enumerate(MATCH), *more):
        over[box, token] = True
    return over


@pytest.mark.parametrize("doubled", [{}, {0: 4}])
def test_factors_are_learned_from_what_each_sentence_states(doubled: dict[int, int]) -> None:
    over = over_footprints(*doubled.items())  # a second token over the first query's target, box 0
    scores, found, spoken = losses_of(list(TOLD), MATCH, over)
    assert float(found) == pytest.approx(factors_by_loops(scores, list(TOLD), doubled), rel=1e-4)
    losses = []
    for q in (0, 1):  # what the third states is not known
        said = {part.kind for part in TOLD[q].parts}
        kinds = [*UNARY, *(f"anchor {kind}" for kind in UNARY), "relation", "order"]
        losses += [entropy(float(x), kind in said) for x, kind in zip(scores.stated[q], kinds, strict=True)]
    assert float(spoken) == pytest.approx(sum(losses) / 36, rel=1e-4)


def test_a_borderline_object_teaches_its_factor_nothing() -> None:
    queries = list(TOLD[:1])
    result, batch = grounding(labels(8), torch.zeros(1, 5), queries)
    unary = result.scores[0].unary.requires_grad_()
    pointer_terms(result, batch, [labels(8)])["factors"].total.backward()
    slope = cast(Tensor, unary.grad)[0, 0, UNARY.index("noun")]
    assert slope[MATCH[2]] == 0 and slope[MATCH[0]] < 0 and slope[MATCH[1]] < 0 and (slope[3:] > 0).all()
    assert not cast(Tensor, unary.grad)[0, 1].any()  # it relates to nothing


def test_factors_of_a_sentence_whose_object_has_no_token_are_left_out() -> None:
    match = [2, -1, 0]
    _, *both = losses_of(list(TOLD[:2]), match, over_footprints())
    _, *alone = losses_of(list(TOLD[:1]), match, over_footprints())
    torch.testing.assert_close(both, alone)
    _, *whole = losses_of(list(TOLD[:2]), MATCH, over_footprints())
    assert abs(float(whole[0]) - float(both[0])) > 1e-2


def test_sentences_without_parts_and_scenes_without_tokens_cost_nothing_and_have_gradients() -> None:
    plain = [replace(query, parts=()) for query in TOLD]
    result, batch = grounding(labels(8), torch.zeros(3, 5, requires_grad=True), plain)
    terms = pointer_terms(result, batch, [labels(8)])
    assert not terms["factors"].total and not terms["stated"].total and terms["pointer"].total > 0
    terms["factors"].total.backward()
    empty = torch.zeros(3, 0, requires_grad=True)
    truth = scene_truth(torch.tensor([-1, -1, -1]), TOLD, torch.zeros(3, 0).bool())
    scores = replace(result.scores[0], logits=empty, unary=torch.zeros(3, 2, 8, 0))
    losses = factor_losses(scores, torch.tensor([-1, -1, -1]), TOLD, truth)
    assert not any(losses) and losses[0].requires_grad


def test_whether_a_sentence_means_several_is_learned_from_those_that_mean_any() -> None:
    scores = random_scores(torch.zeros(3, 5))
    queries = [replace(TOLD[0], targets=found) for found in ((0,), (), (1, 2))]
    expected = (entropy(float(scores.several[0]), 0.0) + entropy(float(scores.several[2]), 1.0)) / 2
    assert float(several_loss(scores, queries)) == pytest.approx(expected, rel=1e-4)
    assert float(several_loss(scores, queries[1:2])) == 0
