"""The simulator's sentences are true and mean what they are said to mean."""

from __future__ import annotations

import json
import math
import random
import re
from collections import Counter
from dataclasses import replace

import pytest
from conftest import real_data
from random_facts import LEXICONS, Naive, flipped, random_facts, sample

from vlm_occ.data.simulator.descriptions import viewer_free
from vlm_occ.data.simulator.grammar import write_queries
from vlm_occ.data.simulator.lexicon import Lexicon, flip_text
from vlm_occ.data.simulator.meaning import Attribute, Meaning, Order, Relation, SceneView, mirror
from vlm_occ.data.simulator.objects import ObjectFacts
from vlm_occ.data.simulator.phrases import Speaker, answer_one
from vlm_occ.data.simulator.predicates import CLASS_OF
from vlm_occ.data.simulator.situations import write_situations
from vlm_occ.types import COLOURS, TALK2OCC_CLASSES


@pytest.mark.parametrize("k", [0.05, 0.45, 0.95])
@pytest.mark.parametrize("own_reading", [False, True])
def test_a_naive_evaluator_finds_the_same_targets_wherever_it_puts_its_thresholds(
    k: float, own_reading: bool
) -> None:
    for facts, meaning, query in sample():
        found = Naive(facts, k, own_reading=own_reading).evaluate(meaning)
        assert [i for i, item in enumerate(facts) if any(item is o for o in found)] == list(query.targets), (
            query
        )


def test_every_kind_of_meaning_occurs_in_the_sample() -> None:
    rows = [meaning for _, meaning, _ in sample()]
    kinds = Counter(item.kind for meaning in rows for item in meaning.attributes)
    assert set(kinds) == {"colour", "size", "side", "depth", "range", "motion", "place"}
    assert len({meaning.relation.name for meaning in rows if meaning.relation}) >= 8
    assert {meaning.order.key for meaning in rows if meaning.order} >= {"nearest", "farthest", "closest_to"}
    assert any(m.relation and (m.relation.anchor.relation or m.relation.anchor.order) for m in rows)


def test_targets_are_referable_and_as_many_as_the_kind_says() -> None:
    for seed in range(30):
        facts = random_facts(seed)
        for query in write_queries(facts, seed=seed, count=10):
            assert all(facts[i].referable for i in query.targets)
            low, high = {"none": (0, 0), "many": (2, 8)}.get(query.kind, (1, 1))
            assert low <= len(query.targets) <= high
            if len(query.targets) == 1:
                label = facts[query.targets[0]].label
                assert query.unique == (sum(o.referable and o.label == label for o in facts) == 1)
            else:
                assert not query.unique


def test_about_seventy_percent_mean_one_object_and_fifteen_none_and_fifteen_several() -> None:
    rows = [q for seed in range(60) for q in write_queries(random_facts(seed), seed=seed, count=10)]
    shares = {kind: count / len(rows) for kind, count in Counter(q.kind for q in rows).items()}
    assert len(rows) == 600
    assert 0.62 < shares["expression"] + shares["command"] < 0.78
    assert 0.10 < shares["none"] < 0.20 and 0.10 < shares["many"] < 0.20
    assert 0.2 < shares["command"] < 0.4
    misses = [q for q in rows if q.kind == "none"]
    assert sum(q.near_miss for q in misses) >= len(misses) / 2


def test_a_near_miss_has_its_class_in_the_scene() -> None:
    for facts, meaning, query in sample():
        name = CLASS_OF.get(meaning.noun, meaning.noun)
        if query.near_miss:
            names = (name, "truck") if meaning.noun == "dumper" else (name,)  # a tipper is a dumper, too
            assert any(o.referable and TALK2OCC_CLASSES[o.label] in names for o in facts), query


def test_most_descriptions_of_multiple_objects_need_more_than_the_class() -> None:
    rows = [(m, q) for _, m, q in sample() if q.kind in ("expression", "command") and not q.unique]
    assert sum(bool(m.attributes or m.relation or m.order) for m, _ in rows) > 0.7 * len(rows)


@pytest.mark.parametrize("lexicon", LEXICONS)
def test_the_same_seed_writes_the_same_sentences_and_another_seed_others(lexicon: Lexicon) -> None:
    facts = random_facts(5)
    first = write_queries(facts, seed=7, count=10, lexicon=lexicon)
    assert first == write_queries(facts, seed=7, count=10, lexicon=lexicon)
    assert len({query.text for query in first}) == 10
    assert {q.text for q in first} != {
        q.text for q in write_queries(facts, seed=8, count=10, lexicon=lexicon)
    }
    assert all(query.lexicon == lexicon for query in first)
    situations = write_situations(facts, seed=7, count=10, lexicon=lexicon)
    assert situations == write_situations(facts, seed=7, count=10, lexicon=lexicon)


def test_without_referable_objects_every_sentence_means_nothing() -> None:
    queries = write_queries([], seed=1, count=10)
    hidden = write_queries([replace(o, referable=False) for o in random_facts(1)], seed=1, count=10)
    assert len(queries) == 10
    assert all(query.kind == "none" and query.targets == () for query in (*queries, *hidden))
    assert len(write_situations([], seed=1, count=5)) == 5


def test_a_sentence_is_not_used_where_a_hidden_or_a_borderline_object_might_be_meant() -> None:
    car = ObjectFacts(0, "sedan", 3, "medium", (10, 5, 1, 4, 2, 1.5, 0), (0, 0), "parked", "kerb", True)
    left_car = Meaning("car", (Attribute("side", "left"),))
    for other, certain in (
        (replace(car, box=(20, -5, *car.box[2:])), True),  # on the right: excluded for sure
        (replace(car, box=(20, -5, *car.box[2:]), referable=False), True),
        (replace(car, box=(20, 9, *car.box[2:]), referable=False), False),  # hidden, but it would fit
        (replace(car, box=(20, 1.5, *car.box[2:])), False),  # neither left nor not
        (replace(car, box=(20, 9, *car.box[2:]), variant="van"), False),  # some would call it a car
    ):
        assert (SceneView([car, other]).only(left_car) == 0) is certain
    nearest = Meaning("car", order=Order("nearest"))
    assert SceneView([car, replace(car, box=(11, 6, *car.box[2:]))]).only(nearest) is None  # 1.4 m apart


@pytest.mark.parametrize("lexicon", LEXICONS)
def test_the_mirrored_sentence_means_the_mirrored_objects(lexicon: Lexicon) -> None:
    views: dict[int, SceneView] = {}
    for facts, meaning, query in sample(lexicon):
        if id(facts) not in views:
            views[id(facts)] = SceneView([flipped(item) for item in facts])
        masks = views[id(facts)].evaluate(mirror(meaning))
        assert masks[0] == masks[1] == sum(1 << i for i in query.targets)
        words = [Speaker(random.Random(3), lexicon).definite(m) for m in (meaning, mirror(meaning))]
        assert words[1] == flip_text(words[0])
        assert flip_text(flip_text(query.text)) == query.text
        if len(query.targets) == 1:
            assert answer_one(flipped(facts[query.targets[0]])) == flip_text(query.answer)


def test_flipping_swaps_sides_and_leaves_idioms_alone() -> None:
    pairs = {
        "the leftmost car on the left-hand side": "the rightmost car on the right-hand side",
        "Turn left after the bus at the front right.": "Turn right after the bus at the front left.",
        "LEFT of the cone, moving rightwards": "RIGHT of the cone, moving leftwards",
        "park right behind the car that has left": "park right behind the car that has left",
        "the van on the right behind us": "the van on the left behind us",
        "alright, a bright leftover": "alright, a bright leftover",
    }
    assert {text: flip_text(text) for text in pairs} == pairs
    assert {flip_text(text): text for text in pairs} == {value: key for key, value in pairs.items()}


def turned(item: ObjectFacts, angle: float) -> ObjectFacts:
    """The object in a world that is turned about the vehicle."""
    (x, y, z, dx, dy, dz, yaw), (vx, vy) = item.box, item.velocity
    c, s = math.cos(angle), math.sin(angle)
    box = (c * x - s * y, s * x + c * y, z, dx, dy, dz, yaw + angle)
    return replace(item, box=box, velocity=(c * vx - s * vy, s * vx + c * vy))


def test_viewer_free_sentences_stay_true_when_the_world_turns() -> None:
    views: dict[int, SceneView] = {}
    related = 0
    for facts, meaning, query in sample():
        if not viewer_free(meaning) or query.kind == "none":
            continue
        if id(facts) not in views:
            views[id(facts)] = SceneView([turned(item, 1.234) for item in facts])
        masks = views[id(facts)].evaluate(meaning)
        assert masks[0] == masks[1] == sum(1 << i for i in query.targets)
        related += meaning.relation is not None or meaning.order is not None
    assert related > 5


def test_colours_and_sides_in_a_sentence_are_those_of_its_target() -> None:
    checked = 0
    for facts, meaning, query in sample():
        if query.kind not in ("expression", "many") or meaning.relation or meaning.order:
            continue
        words = set(re.findall(r"[a-z]+", query.text.lower()))
        for i in query.targets:
            for colour in words & set(COLOURS):
                assert COLOURS[facts[i].colour] == colour
                checked += 1
            if meaning.attribute("motion") is None and len(words & {"left", "right"}) == 1:
                assert (facts[i].box[1] > 0) == ("left" in words), query.text
                checked += 1
    assert checked > 50


def test_answers_tell_side_distance_and_number() -> None:
    for facts, _, query in sample():
        if query.kind == "none":
            assert query.answer == "There is no such object."
        elif query.kind == "many":
            assert query.answer == f"There are {len(query.targets)} of them."
        else:
            x, y = facts[query.targets[0]].box[:2]
            match = re.fullmatch(r"It is the .*?( on the left| on the right|), (\d+) m (.*)\.", query.answer)
            assert match is not None, query.answer
            assert abs(float(match[2]) - math.hypot(x, y)) <= 0.5
            assert match[1] == ("" if abs(y) < 1.5 else f" on the {'left' if y > 0 else 'right'}")
            assert match[3] == {1: "ahead", -1: "behind us"}.get(round(x / math.hypot(x, y)), "beside us")


def test_what_people_say_about_the_real_keyframe_means_the_boxes_that_they_meant() -> None:
    """The spatial ones of the ten sentences that come with the keyframe, as meanings, against their boxes."""
    facts = []
    boxes = json.loads((real_data() / "nuscenes_keyframe" / "keyframe.json").read_text())["boxes"]
    for box in boxes:
        name = str(box["name"]).replace("pushable_pullable", "movable object").replace("_", " ")
        label = TALK2OCC_CLASSES.index(name) if name in TALK2OCC_CLASSES else TALK2OCC_CLASSES.index("debris")
        place = (*box["center_ego"], *box["size_lwh"], box["yaw_ego"])
        seen = max(map(abs, place[:2])) < 40 and box["points_inside"] >= 3
        facts.append(ObjectFacts(label, name, -1, "medium", place, (0, 0), "stopped", "road", seen))
    view = SceneView(facts)
    ahead, behind = Attribute("depth", "ahead"), Attribute("depth", "behind")
    left, right = Attribute("side", "left"), Attribute("side", "right")
    truck = Meaning("truck", (ahead, left))
    near = Relation("near", Meaning("barrier"), plural=True)
    assert view.only(truck) == 18
    assert view.only(Meaning("traffic cone", (ahead,), near)) == 24
    assert view.only(Meaning("car", (behind, right))) == 7
    assert view.evaluate(Meaning("barrier", (behind, right))) == (1 << 10 | 1 << 60,) * 2
    assert view.evaluate(Meaning("pedestrian", (), Relation("next_to", truck)))[0] == 1 << 58
    for seed in range(3):
        for query in write_queries(facts, seed=seed, count=10):
            assert all(boxes[i]["points_inside"] >= 3 for i in query.targets)
