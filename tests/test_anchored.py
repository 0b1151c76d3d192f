"""Poses from words and named objects: against the simulator's own geometry, brute force, and moved scenes."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import combinations_with_replacement, pairwise

import pytest
import torch
from random_facts import random_facts
from torch import Tensor

from vlm_occ.data.augment_spatial import mirror_situations
from vlm_occ.data.simulator.lexicon import flip_text
from vlm_occ.data.simulator.objects import ObjectFacts
from vlm_occ.data.simulator.situations import write_situations
from vlm_occ.heads.anchored import (
    REACH,
    STEP,
    ReadSituation,
    SituationReader,
    amounts,
    anchored_pose,
    mention_spans,
)
from vlm_occ.heads.situation import circular_mean
from vlm_occ.situated import FACINGS, MENTIONS, PLACE_FRAMES, SituationQuery

SURE = 60.0


def one_hot(index: int, count: int) -> Tensor:
    return SURE * torch.nn.functional.one_hot(torch.tensor(index), count).float()


def oracle(told: list[SituationQuery], count: int) -> tuple[ReadSituation, Tensor]:
    """What a perfect reader makes of situations in a scene of `count` objects."""
    parts = [query.parts for query in told]
    objects = torch.zeros(len(told), len(MENTIONS), count)
    metres = []
    for row, part in enumerate(parts):
        assert part is not None
        for mention in part.mentions:
            objects[row, MENTIONS.index(mention.role), mention.row] = SURE
        places = [round((value + REACH) / STEP) for value in part.metres or (0.0, 0.0)]
        metres.append(torch.stack([one_hot(place, len(amounts())) for place in places]))
    known = [part for part in parts if part is not None]
    read = ReadSituation(
        roles=torch.zeros(len(told), 1, 4),
        frame=torch.stack([one_hot(PLACE_FRAMES.index(p.frame), 3) for p in known]),
        metres=torch.stack(metres),
        share=torch.tensor([p.share for p in known]),
        facing=torch.stack([one_hot(FACINGS.index(p.facing), len(FACINGS)) for p in known]),
        turn=torch.stack([one_hot(p.turn, 4) for p in known]),
        spread=torch.full((len(told), 2, 2), -6.0),
        sharpness=torch.full((len(told),), 30.0),
        certainty=torch.tensor(1.0),
    )
    return read, objects


def boxes_of(facts: list[ObjectFacts]) -> Tensor:
    return torch.tensor([item.box for item in facts])


@pytest.mark.parametrize("lexicon", ["train", "heldout"])
def test_a_perfect_reader_stands_where_the_simulator_does(lexicon: str) -> None:
    forms = set()
    for seed in range(12):
        facts = random_facts(seed)
        told = write_situations(facts, seed=seed, count=12, lexicon=lexicon)  # type: ignore[arg-type]
        exact = [query for query in told if query.kind == "exact"]
        estimate, logits = anchored_pose(*oracle(exact, len(facts)), boxes_of(facts), torch.zeros(3))
        yaw = circular_mean(logits.softmax(-1))
        for row, query in enumerate(exact):
            assert query.parts is not None
            forms.add((query.parts.frame, query.parts.facing, query.parts.turn))
            assert math.dist(estimate.mean[row].tolist(), query.position) < 1e-3, query.text
            assert math.cos(float(yaw[row]) - query.yaw) > math.cos(math.radians(1.5)), query.text
    assert {frame for frame, *_ in forms} == set(PLACE_FRAMES) and len(forms) >= 8


def test_a_vague_situation_looks_where_it_says() -> None:
    # Seen within 35 degrees of a quarter: the reader's heading is the middle of that.
    for seed in range(12):
        facts = random_facts(seed)
        for query in write_situations(facts, seed=seed, count=12):
            assert query.parts is not None
            for mention in query.parts.mentions:
                if mention.seen is not None:
                    x, y = facts[mention.row].box[:2]
                    bearing = math.atan2(y - query.position[1], x - query.position[0])
                    off = math.remainder(bearing - query.yaw - mention.seen * math.pi / 2, 2 * math.pi)
                    assert abs(off) < math.radians(35), query.text


def test_mentions_are_the_words_that_name_the_objects() -> None:
    for seed in range(10):
        facts = random_facts(seed)
        for query in write_situations(facts, seed=seed, count=10):
            assert query.parts is not None and "<" not in query.text
            for mention in query.parts.mentions:
                words = query.text[mention.start : mention.end]
                assert words.startswith(("the ", "that ")) and words == words.strip(), query.text
                assert 0 <= mention.row < len(facts)
            spans = sorted((m.start, m.end) for m in query.parts.mentions)
            assert all(a[1] <= b[0] for a, b in pairwise(spans))


def test_poses_move_with_the_scene() -> None:
    facts = random_facts(3)
    told = list(write_situations(facts, seed=3, count=8))
    boxes = boxes_of(facts)
    read, objects = oracle(told, len(facts))
    objects, read = (
        objects * 0.05,
        replace(read, frame=read.frame * 0.03, facing=read.facing * 0.03),
    )  # doubts
    still, logits = anchored_pose(read, objects, boxes, torch.zeros(3))
    turn, shift = 5 * 2 * math.pi / 36, torch.tensor([12.0, -7.0])
    rotation = torch.tensor([[math.cos(turn), -math.sin(turn)], [math.sin(turn), math.cos(turn)]])
    moved = boxes.clone()
    moved[:, :2] = boxes[:, :2] @ rotation.T + shift
    moved[:, 6] += turn
    car = torch.tensor([*shift.tolist(), turn])
    found, turned = anchored_pose(read, objects, moved, car)
    torch.testing.assert_close(found.mean, still.mean @ rotation.T + shift, atol=1e-3, rtol=1e-4)
    torch.testing.assert_close(turned.softmax(-1), logits.softmax(-1).roll(5, -1), atol=1e-3, rtol=1e-3)
    trace = [estimate.log_variance.exp().sum(-1) for estimate in (still, found)]
    torch.testing.assert_close(trace[0], trace[1], atol=1e-2, rtol=1e-3)


def test_a_heading_s_likelihood_adds_up_every_direction_and_object() -> None:
    bits = torch.Generator().manual_seed(6)
    facts = random_facts(4)[:3]
    told = list(write_situations(random_facts(4), seed=4, count=1))
    boxes, car = boxes_of(facts), torch.tensor([1.0, -2.0, 0.4])
    read, _ = oracle(told, len(random_facts(4)))
    facing, turn = torch.randn(1, len(FACINGS), generator=bits), torch.randn(1, 4, generator=bits)
    objects = torch.randn(1, len(MENTIONS), 3, generator=bits)
    estimate, logits = anchored_pose(replace(read, facing=facing, turn=turn), objects, boxes, car)
    x, y = estimate.mean[0].tolist()
    chance, says, quarter = objects[0].softmax(-1), facing[0].softmax(-1), turn[0].softmax(-1)
    rows = [("car heading", 1.0, 0.4, 1.0), ("to car", 1.0, math.atan2(-2.0 - y, 1.0 - x), 1.0)]
    for i, box in enumerate(boxes.tolist()):
        rows.append(("place heading", float(chance[0, i]), box[6], 1.0))
        bearing, away = math.atan2(box[1] - y, box[0] - x), math.dist(box[:2], (x, y))
        rows += [
            (f"to {role}", float(chance[m, i]), bearing, min(away, 1.0)) for m, role in enumerate(MENTIONS)
        ]
    for k in range(36):
        centre = -math.pi + (k + 0.5) * math.pi / 18
        total = sum(
            float(says[FACINGS.index(name)])  # type: ignore[arg-type]
            * share
            * float(quarter[t])
            * math.exp(30.0 * sure * (math.cos(angle + t * math.pi / 2 - centre) - 1))
            for name, share, angle, sure in rows
            for t in range(4)
        )
        assert float(logits[0, k].exp()) == pytest.approx(total, rel=1e-3)


def test_doubt_about_an_object_is_as_wide_as_the_objects_are_apart() -> None:
    facts = random_facts(1)[:1] * 2
    query = SituationQuery("", (0.0, 0.0), 0.0)
    parts = write_situations(random_facts(2), seed=0, count=1)[0].parts
    assert parts is not None
    near = replace(parts, mentions=(), frame="object", metres=(0.0, 0.0), share=(0.0, 0.0))
    read, objects = oracle([replace(query, parts=near)], 2)
    boxes = boxes_of(facts)
    boxes[0, :2], boxes[1, :2] = torch.tensor([4.0, 1.0]), torch.tensor([10.0, 1.0])
    objects[0, 0] = torch.tensor([0.3, 0.1])
    chance = objects[0, 0].softmax(-1)
    estimate, _ = anchored_pose(read, objects, boxes, torch.zeros(3))
    assert estimate.mean[0].tolist() == [4.0, 1.0]
    own = math.exp(-6.0) * (1 + boxes[0, 3:5].square() / 4)
    turned = boxes[0, 6].cos().square() * own + boxes[0, 6].sin().square() * own.flip(0)
    expected = turned + torch.tensor([float(chance[1]) * 36.0, 0.0]) + 1e-3
    torch.testing.assert_close(estimate.log_variance[0].exp(), expected, atol=1e-4, rtol=1e-4)


def test_spans_are_the_best_of_all_runs_of_words() -> None:
    bits = torch.Generator().manual_seed(0)
    for _ in range(40):
        roles = torch.randn(7, 4, generator=bits)
        for column, span in enumerate(mention_spans(roles), start=1):
            others = torch.cat([roles[:, :column], roles[:, column + 1 :]], dim=1).logsumexp(1)
            gains = (roles[:, column] - others).clamp(-6, 6)
            runs = [(a, b + 1) for a, b in combinations_with_replacement(range(7), 2)]
            best = max(runs, key=lambda run: float(gains[slice(*run)].sum()))
            if float(gains[slice(*best)].sum()) <= 0:
                assert span is None
            else:
                assert span is not None
                assert float(gains[slice(*span)].sum()) == pytest.approx(float(gains[slice(*best)].sum()))


def test_the_reader_does_not_look_at_padding() -> None:
    torch.manual_seed(0)
    reader = SituationReader(16)
    words, valid = torch.randn(2, 6, 16), torch.ones(2, 6, dtype=torch.bool)
    valid[0, 4:] = False
    other = words.clone()
    other[0, 4:] = 9.0
    first, second = reader(words, valid), reader(other, valid)
    for name in ("frame", "metres", "share", "facing", "turn", "spread", "sharpness"):
        torch.testing.assert_close(getattr(first, name), getattr(second, name))
    assert first.offset().shape == (2, 2) and first.offset().abs().max() <= REACH


def test_a_mirrored_situation_is_made_of_mirrored_parts() -> None:
    for seed in range(8):
        facts = random_facts(seed)
        told = [q for q in write_situations(facts, seed=seed, count=10) if q.kind == "exact"]
        mirrored = list(mirror_situations(tuple(told)))
        boxes = boxes_of(facts) * torch.tensor([1.0, -1, 1, 1, 1, 1, -1])
        estimate, logits = anchored_pose(*oracle(mirrored, len(facts)), boxes, torch.zeros(3))
        yaw = circular_mean(logits.softmax(-1))
        for row, (query, other) in enumerate(zip(told, mirrored, strict=True)):
            assert other.position == (query.position[0], -query.position[1])
            assert math.dist(estimate.mean[row].tolist(), other.position) < 1e-3, other.text
            assert math.cos(float(yaw[row]) - other.yaw) > math.cos(math.radians(1.5)), other.text
            assert query.parts is not None and other.parts is not None
            for before, after in zip(query.parts.mentions, other.parts.mentions, strict=True):
                said = other.text[after.start : after.end]
                assert said == flip_text(query.text[before.start : before.end])
