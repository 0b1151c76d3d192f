"""Factors of a sentence: geometry of pairs against brute force, symmetries, ranks, examples."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from made_outputs import random_scores
from torch import Tensor, nn

from vlm_occ.heads.factors import KEYS, ROLES, SHAPES, FactorHead, Factors, footprint_gaps, pair_features
from vlm_occ.types import UNARY

WIDTH = 16


def some_boxes(count: int, seed: int = 0) -> Tensor:
    """Boxes [N, 7] all around, of any heading."""
    bits = torch.Generator().manual_seed(seed)
    places = 40 * torch.rand(count, 2, generator=bits) - 20
    sizes = 0.5 + 3 * torch.rand(count, 3, generator=bits)
    yaw = 6 * torch.rand(count, 1, generator=bits) - 3
    return torch.cat([places, torch.rand(count, 1, generator=bits), sizes, yaw], dim=-1)


def a_head() -> FactorHead:
    """A head whose every part says something."""
    torch.manual_seed(4)
    head = FactorHead(WIDTH, depth=8).eval()
    nn.init.normal_(head.order.weight, std=0.3)
    return head


def inputs(queries: int, words: int, tokens: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """What a head reads: words, their mask, tokens, boxes."""
    bits = torch.Generator().manual_seed(7)
    said, seen = (
        torch.randn(queries, words, WIDTH, generator=bits),
        torch.randn(tokens, WIDTH, generator=bits),
    )
    return said, torch.ones(queries, words).bool(), seen, some_boxes(tokens)


def parts_of(factors: Factors) -> tuple[Tensor, ...]:
    """Everything that has one value a token, queries first."""
    return factors.logits, factors.unary, factors.relation, factors.anchor, factors.order


# ------------------------------------------------------------------ geometry


def inside(point: Tensor, box: list[float]) -> Tensor:
    """Whether points [K, 2] lie over a box's footprint."""
    x, y, _, dx, dy, _, yaw = box
    u = (point[:, 0] - x) * math.cos(yaw) + (point[:, 1] - y) * math.sin(yaw)
    v = (point[:, 1] - y) * math.cos(yaw) - (point[:, 0] - x) * math.sin(yaw)
    return (u.abs() <= dx / 2) & (v.abs() <= dy / 2)


def test_gaps_are_what_of_the_line_between_two_centres_lies_outside_both_footprints() -> None:
    boxes = some_boxes(12)
    boxes[1, :3] = boxes[0, :3] + 0.3  # these overlap
    gaps = footprint_gaps(boxes)
    steps = (torch.arange(20000) + 0.5)[:, None] / 20000
    for n in range(12):
        for m in range(n):
            line = boxes[n, :2] + steps * (boxes[m, :2] - boxes[n, :2])
            free = ~inside(line, boxes[n].tolist()) & ~inside(line, boxes[m].tolist())
            expected = float(free.float().mean() * (boxes[m, :2] - boxes[n, :2]).norm())
            assert float(gaps[n, m]) == pytest.approx(expected, abs=5e-3), (n, m)
    torch.testing.assert_close(gaps, gaps.T, atol=1e-4, rtol=1e-4)
    assert not gaps.diag().any()


def test_gaps_of_boxes_in_a_row_are_the_distances_of_their_facing_sides() -> None:
    boxes = torch.tensor([[5.0, 0, 0, 4, 2, 1, 0], [12.0, 0, 0, 3, 1, 1, math.pi], [5.0, 6, 0, 1, 3, 1, 0]])
    gaps = footprint_gaps(boxes)
    assert float(gaps[0, 1]) == pytest.approx(7 - 2 - 1.5, abs=1e-3)
    assert float(gaps[0, 2]) == pytest.approx(6 - 1 - 1.5, abs=1e-3)


def test_pairs_say_where_one_lies_seen_by_the_viewer_and_by_the_other() -> None:
    boxes = some_boxes(6)
    pairs = pair_features(boxes, footprint_gaps(boxes))
    for n in range(6):
        for m in range(6):
            to_n = complex(*boxes[n, :2].tolist()) - complex(*boxes[m, :2].tolist())
            place = complex(*boxes[m, :2].tolist())
            by_viewer = to_n / (place / abs(place))  # real: beyond it, imaginary: to its left
            by_other = to_n / complex(math.cos(boxes[m, 6]), math.sin(boxes[m, 6]))
            further = abs(complex(*boxes[n, :2].tolist())) - abs(place)
            lengths = [by_viewer.real, by_viewer.imag, by_other.real, by_other.imag, further]
            lengths += [to_n.real, to_n.imag]
            expected = [math.tanh(v / 2) for v in lengths] + [math.tanh(v / 10) for v in lengths]
            torch.testing.assert_close(pairs[n, m, :14], torch.tensor(expected), atol=1e-5, rtol=1e-4)
            angles = [math.cos(math.atan2(v.imag, v.real)) if n != m else 0.0 for v in (by_viewer, by_other)]
            torch.testing.assert_close(pairs[n, m, [19, 21]], torch.tensor(angles), atol=1e-5, rtol=1e-4)
            assert float(pairs[n, m, 23]) == float(n == m)


def test_a_mirrored_scene_has_mirrored_pairs() -> None:
    boxes = some_boxes(8)
    mirrored = boxes * torch.tensor([1.0, -1, 1, 1, 1, 1, -1])
    straight, turned = (pair_features(b, footprint_gaps(b)) for b in (boxes, mirrored))
    left = [1, 3, 6, 8, 10, 13, 20, 22]  # what tells left from right
    signs = torch.ones(straight.shape[-1]).index_fill(0, torch.tensor(left), -1.0)
    torch.testing.assert_close(turned, straight * signs, atol=1e-4, rtol=1e-4)
    assert straight[..., left].abs().max() > 0.5


# ------------------------------------------------------------------ symmetries


def test_tokens_in_another_order_have_the_same_scores_in_that_order() -> None:
    head, (words, valid, tokens, boxes) = a_head(), inputs(3, 4, 7)
    order = torch.tensor([4, 0, 6, 2, 1, 5, 3])
    straight, turned = head(words, valid, tokens, boxes), head(words, valid, tokens[order], boxes[order])
    for one, other in zip(parts_of(straight), parts_of(turned), strict=True):
        torch.testing.assert_close(other, one[..., order], atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(turned.stated, straight.stated)


def test_a_query_alone_and_padded_beside_others_has_the_same_scores() -> None:
    head, (words, valid, tokens, boxes) = a_head(), inputs(3, 5, 6)
    valid[1, 3:] = False
    together, alone = head(words, valid, tokens, boxes), head(words[1:2, :3], valid[1:2, :3], tokens, boxes)
    for one, other in zip(parts_of(together), parts_of(alone), strict=True):
        torch.testing.assert_close(other[0], one[1], atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(alone.stated[0], together.stated[1])


@pytest.mark.parametrize(("queries", "tokens"), [(2, 0), (2, 1), (0, 5), (0, 0), (3, 4)])
def test_any_number_of_queries_and_tokens_has_finite_scores_and_gradients(queries: int, tokens: int) -> None:
    head = a_head()
    factors = head(*inputs(queries, 3, tokens))
    for part in (factors.logits, factors.relation, factors.anchor, factors.order):
        assert part.shape == (queries, tokens) and part.isfinite().all()
    assert factors.unary.shape == (queries, ROLES, len(UNARY), tokens)
    assert factors.stated.shape == (queries, ROLES * len(UNARY) + 2)
    (factors.logits.sum() + factors.stated.sum()).backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in head.parameters())


def test_only_pairs_and_orders_look_at_places() -> None:
    head, (words, valid, tokens, boxes) = a_head(), inputs(2, 3, 5)
    one, other = head(words, valid, tokens, boxes), head(words, valid, tokens, some_boxes(5, seed=3))
    assert torch.equal(one.unary, other.unary) and torch.equal(one.anchor, other.anchor)
    assert (one.relation - other.relation).abs().max() > 1e-3
    assert (one.order - other.order).abs().max() > 1e-3


# ------------------------------------------------------------------ ranks


class Told(FactorHead):
    """A head that is told which tokens are meant, related to and in the relation, and what order is asked."""

    def __init__(
        self, meant: list[bool], anchor: list[bool], related: list[bool], key: int, way: int, shape: int
    ) -> None:
        super().__init__(WIDTH, depth=8)
        self.roles, self.related = torch.tensor([meant, anchor]), torch.tensor(related)
        for weight in (self.order.weight, self.order.bias, self.stated):
            nn.init.zeros_(weight)
        nn.init.constant_(self.stated_bias, 20.0)  # everything is stated
        with torch.no_grad():
            self.order.bias.view(KEYS, 2, SHAPES)[key, way, shape] = 1.0

    def _unary(self, read: Tensor, tokens: Tensor) -> Tensor:
        logits = torch.where(self.roles, 20.0, -20.0)[None, :, None]  # [1, ROLES, 1, N]
        return logits.expand(len(read), -1, len(UNARY), -1)

    def _relation(self, read: Tensor, to_anchor: Tensor, features: Tensor) -> Tensor:
        return torch.where(self.related, 20.0, -20.0).expand(len(read), -1)


def told(meant: list[bool], related: list[bool], key: int, way: int, shape: int) -> Factors:
    """Scores of the tokens of SPREAD, the last of which is related to."""
    head = Told(meant, [False] * 5 + [True], related, key, way, shape).eval()
    return head(torch.zeros(1, 2, WIDTH), torch.ones(1, 2).bool(), torch.zeros(6, WIDTH), SPREAD)


MEASURES: tuple[Callable[[list[float]], float], ...] = (
    lambda b: math.hypot(b[0], b[1]),
    lambda b: b[1],
    lambda b: math.atan2(b[1], b[0]),
    lambda b: b[3] * b[4] * b[5],
    lambda b: b[2],
    lambda b: math.hypot(b[0] - 30.0, b[1]),  # to the last box, which is alike in every direction
)
SPREAD = torch.tensor(
    [
        [8.0, 9, 3, 1, 1, 1, 0],
        [14.0, -6, 0, 2, 2, 2, 0],
        [24.0, 4, 9, 1, 1, 4, 0],
        [4.0, -1, 6, 3, 3, 3, 0],
        [2.0, 16, 12, 6, 6, 6, 0],
        [30.0, 0, 15, 0.1, 0.1, 0.1, 0],
    ]
)
"""Far apart by every measure, each in an order of its own; the last is what the others are related to."""


@pytest.mark.parametrize("key", range(KEYS))
@pytest.mark.parametrize("way", [0, 1])
def test_an_order_finds_the_first_the_second_and_the_third_of_those_that_are_meant(
    key: int, way: int
) -> None:
    meant = [True, True, True, True, False, False]
    ranked = sorted(range(4), key=lambda n: MEASURES[key](SPREAD[n].tolist()), reverse=way == 1)
    for shape in range(SHAPES):
        scores = told(meant, [True] * 6, key, way, shape)
        assert scores.logits[0, 4:].max() < -50  # the nearest, highest, largest of all is not meant
        if shape < 3:
            assert int(scores.logits[0].argmax()) == ranked[shape]
        else:
            assert scores.order[0, :4].argsort(descending=True).tolist() == ranked


def test_an_order_counts_only_those_that_stand_in_the_relation() -> None:
    ranked = sorted(range(4), key=lambda n: MEASURES[0](SPREAD[n].tolist()))
    related = [n != ranked[0] for n in range(6)]  # the nearest that is meant does not
    scores = told([True, True, True, True, False, False], related, 0, 0, 0)
    assert int(scores.logits[0].argmax()) == ranked[1]
    assert scores.order[0, ranked[1]].item() == pytest.approx(1.0, abs=0.05)  # nobody is before it


def test_the_orders_of_the_hand_made_scene_differ() -> None:
    orders = {tuple(sorted(range(4), key=lambda n: f(SPREAD[n].tolist()))) for f in MEASURES}
    assert len(orders) >= 5


# ------------------------------------------------------------------ learning

NOUNS = 3
NEAREST, LEFT = NOUNS, NOUNS + 1
"""Words beside the nouns."""


def lesson(bits: torch.Generator, book: Tensor, kinds: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Sentences [2, 3, W], tokens and boxes of a random scene, and the token each sentence means.

    "nearest A" and "A left of B" among four A, one B and three C; one A stands 3 m to the viewer's left of B.
    """
    a, b, c = torch.randperm(NOUNS, generator=bits).tolist()
    kind = torch.tensor([a, a, a, a, b, c, c, c])[torch.randperm(8, generator=bits)]
    boxes = torch.cat([torch.zeros(8, 3), torch.ones(8, 3), torch.zeros(8, 1)], dim=-1)
    boxes[:, 0] = 6 + 3 * torch.randperm(8, generator=bits)
    boxes[:, 1] = 12 * torch.rand(8, generator=bits) - 6
    mine, other = (kind == a).nonzero()[:, 0], int((kind == b).nonzero()[0, 0])
    beside = mine[int(torch.randint(4, (), generator=bits))]
    boxes[beside, :2] = boxes[other, :2] + torch.tensor([0.0, 3.0])
    sentences = torch.stack([book[[NEAREST, a, a]], book[[a, LEFT, b]]])
    tokens = kinds[kind] + 0.1 * torch.randn(8, WIDTH, generator=bits)
    nearest = mine[boxes[mine, :2].norm(dim=-1).argmin()]
    return sentences, tokens, boxes, torch.stack([nearest, beside])


def test_nearest_and_left_of_are_learnt_from_examples_and_hold_in_unseen_scenes() -> None:
    bits = torch.Generator().manual_seed(0)
    torch.manual_seed(0)
    book, kinds = torch.randn(NOUNS + 2, WIDTH), torch.randn(NOUNS, WIDTH)
    head, valid = FactorHead(WIDTH, depth=16), torch.ones(2, 3).bool()
    optimizer = torch.optim.Adam(head.parameters(), lr=1e-2)
    for _ in range(100):
        losses = []
        for _ in range(4):
            words, tokens, boxes, target = lesson(bits, book, kinds)
            losses.append(nn.functional.cross_entropy(head(words, valid, tokens, boxes).logits, target))
        optimizer.zero_grad()
        torch.stack(losses).mean().backward()
        optimizer.step()
    right = torch.zeros(2)
    for _ in range(100):
        words, tokens, boxes, target = lesson(bits, book, kinds)
        right += head(words, valid, tokens, boxes).logits.argmax(-1) == target
    assert (right > 90).all(), right  # by chance 25 of 100 among those of the kind


def test_a_sentence_about_one_object_means_its_likeliest_token_only() -> None:
    logits = torch.tensor([[3.0, 2.0, -4.0], [3.0, 2.0, -4.0], [-1.0, -2.0, -3.0]])
    several = torch.tensor([-20.0, 20.0, 0.0])
    factors = replace(random_scores(logits), several=several)
    one, many, unsure = factors.scores()
    torch.testing.assert_close(one, torch.tensor([logits[0, 0].sigmoid(), 0.0, 0.0]), atol=1e-6, rtol=0)
    torch.testing.assert_close(many, logits[1].sigmoid())
    expected = logits[2].sigmoid() * torch.tensor([1.0, 0.5, 0.5])
    torch.testing.assert_close(unsure, expected)
    assert replace(factors, logits=logits[:, :0]).scores().shape == (3, 0)
