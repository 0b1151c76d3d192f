"""Spatial questions: their answers recomputed by plain loops over the facts, and their two lexicons."""

from __future__ import annotations

import math
import random
from collections import Counter
from dataclasses import replace
from functools import cache

import pytest
from random_facts import Naive, flipped, random_facts

from vlm_occ.data.augment_spatial import mirror_questions
from vlm_occ.data.simulator.asking import Asked
from vlm_occ.data.simulator.lexicon import Lexicon
from vlm_occ.data.simulator.objects import ObjectFacts
from vlm_occ.data.simulator.question_words import QUESTIONS
from vlm_occ.data.simulator.questions import CATEGORIES, ask_about, write_questions
from vlm_occ.situated import NO_SITUATION, SpatialQuestion
from vlm_occ.types import COLOURS

LEXICONS: tuple[Lexicon, ...] = ("train", "heldout")


def random_appearances(seed: int, count: int) -> list[tuple[int, int] | None]:
    """First and last frames in view, drawn at random; some objects are never clearly seen."""
    rng = random.Random(seed)
    return [None if rng.random() < 0.2 else (rng.randint(0, 3), rng.randint(4, 7)) for _ in range(count)]


@cache
def sample(lexicon: Lexicon = "train") -> list[tuple[list[ObjectFacts], list, Asked]]:
    """Questions of many scenes, with their facts and appearances."""
    rows = []
    for seed in range(24):
        facts = random_facts(seed, count=30)
        seen = random_appearances(seed, len(facts))
        rows += [
            (facts, seen, item)
            for item in ask_about(facts, seed=seed, count=14, lexicon=lexicon, appearances=seen)
        ]
    return rows


def of_form(*forms: str) -> list[tuple[list[ObjectFacts], list, Asked]]:
    found = [row for lexicon in LEXICONS for row in sample(lexicon) if row[2].form in forms]
    assert len(found) >= 5, forms
    return found


def place(facts: list[ObjectFacts], row: int) -> tuple[float, float]:
    return facts[row].box[0], facts[row].box[1]


def direction(origin: tuple[float, float], yaw: float, target: tuple[float, float]) -> str:
    """The quarter by the signs of the components along and across the view."""
    east, north = target[0] - origin[0], target[1] - origin[1]
    ahead = math.cos(yaw) * east + math.sin(yaw) * north
    left = -math.sin(yaw) * east + math.cos(yaw) * north
    if abs(ahead) > abs(left):
        return "in front" if ahead > 0 else "behind"
    return "left" if left > 0 else "right"


def viewpoint(question: SpatialQuestion) -> tuple[tuple[float, float], float]:
    assert question.position is not None and question.yaw is not None
    return (question.position[0], question.position[1]), question.yaw


def test_every_category_is_asked_about_equally_often() -> None:
    counts = Counter(item.question.category for _, _, item in sample())
    assert set(counts) == set(CATEGORIES)
    assert max(counts.values()) < 4 * min(counts.values()), counts


@pytest.mark.parametrize("k", [0.05, 0.5, 0.95])
def test_counts_and_existence_are_those_of_a_naive_evaluator_wherever_its_thresholds_lie(k: float) -> None:
    for facts, _, item in of_form("counting", "existence"):
        assert item.meaning is not None
        for own in (False, True):
            found = len(Naive(facts, k, own_reading=own).evaluate(item.meaning))
            answer = str(found) if item.form == "counting" else "yes" if found else "no"
            assert item.question.answers == (answer,), item.question.question


def test_yes_and_no_are_about_equally_frequent() -> None:
    answers = Counter(item.question.answers[0] for _, _, item in of_form("existence", "nearer to us"))
    assert 0.3 < answers["yes"] / (answers["yes"] + answers["no"]) < 0.7


def test_described_objects_have_the_asked_attribute_and_no_other_is_meant() -> None:
    for facts, _, item in of_form("colour", "motion", "place"):
        (row,) = item.rows
        assert item.meaning is not None
        assert Naive(facts, 0.5, own_reading=False).evaluate(item.meaning) == [facts[row]]
        assert not any(a.kind == item.form for a in item.meaning.attributes)
        (answer,) = item.question.answers
        if item.form == "colour":
            assert answer == COLOURS[facts[row].colour] and facts[row].colour >= 0
        elif item.form == "motion":
            assert answer == facts[row].motion
        else:
            assert answer.startswith(
                ("on the road", "on the pavement", "at the kerb", "on the grass", "at the j")
            )


def test_directions_are_the_signs_of_the_offset_and_lie_well_inside_their_quarter() -> None:
    for facts, _, item in of_form("direction from car", "direction from object", "situated direction"):
        if item.form == "situated direction":
            origin, yaw = viewpoint(item.question)
        elif item.form == "direction from car":
            origin, yaw = (0.0, 0.0), 0.0
        else:
            origin, aim = place(facts, item.rows[0]), place(facts, item.rows[1])
            yaw = math.atan2(aim[1] - origin[1], aim[0] - origin[0])
        target = place(facts, item.rows[-1])
        for off in (-9.0, 0.0, 9.0):
            found = direction(origin, yaw + math.radians(off), target)
            assert item.question.answers == (found,), item.question.question


def test_distances_are_those_between_centres_in_whole_metres() -> None:
    for facts, _, item in of_form("distance", "situated distance"):
        origin = (0.0, 0.0) if item.form == "distance" else viewpoint(item.question)[0]
        x, y = place(facts, item.rows[0])
        number, unit = item.question.answers[0].split()
        assert abs(int(number) - math.hypot(x - origin[0], y - origin[1])) <= 0.5
        assert unit == ("metre" if number == "1" else "metres")


def test_the_nearer_of_two_is_nearer_by_a_margin() -> None:
    for facts, _, item in of_form("nearer object", "nearer to us", "situated nearer"):
        *_, first, second = item.rows
        if item.form == "nearer object":
            naive = Naive(facts, 0.5, own_reading=False)
            anchor = naive.shape(facts[item.rows[0]])
            near, far = (anchor.distance(naive.shape(facts[row])) for row in (first, second))
        else:
            origin = (0.0, 0.0) if item.form == "nearer to us" else viewpoint(item.question)[0]
            near, far = (math.dist(origin, place(facts, row)) for row in (first, second))
        assert abs(near - far) >= 1.5 - 1e-6
        (answer,) = item.question.answers
        if item.form == "nearer to us":
            assert answer == ("yes" if near < far else "no")
        else:
            text = item.question.question.lower()
            assert answer.lower() in text
            # The answer is the words of one of the two; the other's follow or precede it.
            assert (text.rindex(answer.lower()) >= 0) and answer in spoken(item, near < far)


def spoken(item: Asked, first: bool) -> str:
    """The part of a question that names the first or the second of two objects."""
    text = item.question.question
    for middle in (" or to ", " or ", " and "):
        head, found, tail = text.rpartition(middle)
        if found:
            return head if first else tail
    raise AssertionError(text)


@pytest.mark.parametrize("off", [-0.9, 0.0, 0.9])
def test_objects_within_a_radius_are_counted_whatever_the_radius_is_within_a_metre(off: float) -> None:
    for facts, _, item in of_form("situated counting"):
        assert item.meaning is not None
        origin, _ = viewpoint(item.question)
        named = Naive(facts, 0.5, own_reading=False).evaluate(item.meaning)
        near = [f for f in named if math.dist(origin, f.box[:2]) < item.amount + off]
        assert item.question.answers == (str(len(near)),)


def test_the_first_to_appear_or_to_leave_is_the_one_with_the_earlier_frame() -> None:
    for _, seen, item in of_form("appears", "leaves"):
        first, second = (seen[row][item.form == "leaves"] for row in item.rows)
        assert first != second
        assert item.question.answers[0] in spoken(item, first < second)


def test_questions_from_a_situation_carry_it_and_the_others_stand_in_the_room() -> None:
    for _, _, item in (*sample(), *sample("heldout")):
        question = item.question
        if question.category.startswith("situated"):
            assert question.position is not None and question.yaw is not None
            assert question.situation.startswith(("I stand", "I am", "I'm", "I find", "I have"))
        else:
            assert question.situation == NO_SITUATION and question.position is None and question.yaw is None


def test_nothing_hidden_is_named() -> None:
    for facts, _, item in (*sample(), *sample("heldout")):
        assert all(facts[row].referable for row in item.rows)


def test_the_same_seed_asks_the_same_and_no_question_comes_twice() -> None:
    facts = random_facts(3, count=30)
    first, second, other = (write_questions(facts, seed=seed, count=25) for seed in (1, 1, 2))
    assert first == second != other
    assert len({(q.situation, q.question) for q in first}) == len(first)
    assert len({q.identifier for q in first}) == len(first)
    assert not any(q.category == "appearance order" for q in first)  # nothing is known of the frames


def test_an_empty_scene_affords_counts_of_nothing_or_no_question() -> None:
    questions = write_questions([], seed=0, count=5)
    assert all(q.answers in (("0",), ("no",)) for q in questions)


def test_held_out_wordings_are_no_training_wordings() -> None:
    for key, wordings in QUESTIONS["train"].items():
        assert not set(wordings) & set(QUESTIONS["heldout"][key])
        assert len(wordings) >= 2


def test_the_mirrored_question_is_true_of_the_mirrored_scene() -> None:
    for facts, _, item in of_form("direction from car", "situated direction"):
        (mirrored,) = mirror_questions((item.question,))
        other = [flipped(fact) for fact in facts]
        origin, yaw = ((0.0, 0.0), 0.0) if item.form == "direction from car" else viewpoint(mirrored)
        assert mirrored.answers == (direction(origin, yaw, place(other, item.rows[-1])),)
        assert mirror_questions((mirrored,)) == (replace(item.question),)
