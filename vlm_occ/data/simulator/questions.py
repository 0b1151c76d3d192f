"""Spatial questions about a simulated scene, with answers computed from the facts of its objects.

Kinds: counting, existence, attribute, relative direction and distance, distance in metres, the same from a
situation, order of appearance. As for grounding sentences, every description is beyond doubt and every
answer keeps a margin to the next one; a question that no margin allows is not asked. Positions are centres of
boxes on the ground in the reference ego frame, metres; directions are quarters of 90 degrees around front,
left, behind and right, asked only within 35 degrees of their middles.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from dataclasses import replace

from vlm_occ.data.simulator.asking import (
    MARGIN,
    MOST,
    TRIES,
    Appearances,
    Asked,
    Asker,
    in_metres,
    quarter,
    some_kind,
)
from vlm_occ.data.simulator.descriptions import Describer
from vlm_occ.data.simulator.grammar import compose
from vlm_occ.data.simulator.lexicon import Lexicon
from vlm_occ.data.simulator.meaning import Attribute, SceneView
from vlm_occ.data.simulator.objects import ObjectFacts
from vlm_occ.data.simulator.predicates import category
from vlm_occ.data.simulator.question_words import DIRECTIONS
from vlm_occ.data.simulator.questions_situated import (
    appearance_order,
    situated_counting,
    situated_direction,
    situated_distance,
)
from vlm_occ.data.simulator.wordings import PHRASES
from vlm_occ.situated import SpatialQuestion
from vlm_occ.types import COLOURS, TALK2OCC_CLASSES

CATEGORIES = (
    "counting", "existence", "attribute", "relative direction", "relative distance", "distance",
    "situated direction", "situated distance", "situated counting", "appearance order",
)  # fmt: skip


def write_questions(
    facts: Sequence[ObjectFacts],
    *,
    seed: int,
    count: int,
    lexicon: Lexicon = "train",
    scene: str = "",
    appearances: Appearances = (),
) -> tuple[SpatialQuestion, ...]:
    """`count` different questions about a scene (fewer if it affords no more), kinds about equally often.

    `appearances`: first and last frame of each object in the front camera's view, where known (views.py).
    Same arguments, same questions.
    """
    asked = ask_about(facts, seed=seed, count=count, lexicon=lexicon, appearances=appearances)
    return tuple(
        replace(item.question, identifier=f"{scene}:{seed}:{number}", scene=scene)
        for number, item in enumerate(asked)
    )


def ask_about(
    facts: Sequence[ObjectFacts],
    *,
    seed: int,
    count: int,
    lexicon: Lexicon = "train",
    appearances: Appearances = (),
) -> tuple[Asked, ...]:
    """As `write_questions`, with what each answer hangs on."""
    if not count:
        return ()
    rng = random.Random(f"questions {seed} {lexicon}")
    asker = Asker(facts, rng, lexicon, appearances)
    found: list[Asked] = []
    seen: set[tuple[str, str]] = set()
    for _ in range(count):
        order = rng.sample(CATEGORIES, len(CATEGORIES))
        for kind in (order[0], *order):
            item = FORMS[kind](asker)
            if item is not None and (key := (item.question.situation, item.question.question)) not in seen:
                found.append(item)
                seen.add(key)
                break
    return tuple(found)


def _counting(asker: Asker) -> Asked | None:
    for _ in range(TRIES):
        meaning = some_kind(asker, attributes=asker.rng.choice((0, 0, 1, 1, 2)))
        sure, possible = (0, 1) if meaning is None else asker.view.evaluate(meaning)
        if meaning is not None and sure == possible and sure.bit_count() <= MOST:
            parts = {"many": asker.speaker.group(meaning, many=True)}
            return asker.asked("counting", str(sure.bit_count()), "counting", parts, meaning=meaning)
    return None


def _existence(asker: Asker) -> Asked | None:
    present = asker.rng.random() < 0.5
    for _ in range(TRIES):
        kind = asker.rng.choice(("expression", "many")) if present else "none"
        made = compose(asker.view, asker.rng, kind, asker.lexicon)
        if made is not None:
            answer = "yes" if present else "no"
            parts = {"a": asker.speaker.indefinite(made[0])}
            return asker.asked("existence", answer, "existence", parts, meaning=made[0])
    return None


def _attribute(asker: Asker) -> Asked | None:
    for index in asker.rng.sample(list(asker.referable), len(asker.referable)):
        values = _values(asker.view, index)
        if not values:
            continue
        kind, answer = asker.rng.choice(values)
        meaning = Describer(asker.view, asker.rng).unique(index)
        if meaning is not None and not any(item.kind == kind for item in meaning.attributes):
            parts = {"the": asker.speaker.definite(meaning)}
            return asker.asked(kind, answer, "attribute", parts, rows=(index,), meaning=meaning)
    return None


def _values(view: SceneView, index: int) -> list[tuple[str, str]]:
    """What can be asked of an object, with the answer: its colour, motion and place, where beyond doubt."""
    item = view.facts[index]
    goes = category(TALK2OCC_CLASSES[item.label]) in ("vehicle", "two-wheeler")
    values = [("colour", COLOURS[item.colour])] if item.colour >= 0 else []
    for kind, names in (
        ("motion", ("moving", "stopped", "parked")),
        ("place", ("road", "pavement", "kerb", "terrain", "junction")),
    ):
        masks = [view.attribute(Attribute(kind, name)) for name in names]  # type: ignore[arg-type]
        sure = [name for name, mask in zip(names, masks, strict=True) if mask[0] >> index & 1]
        others = sum(mask[1] >> index & 1 for mask in masks)
        # The two ways of standing still are told apart by whether somebody is in it: both are possible.
        if len(sure) == 1 and (others == 1 or (kind == "motion" and goes)):
            values.append((kind, PHRASES["train"][sure[0]][0] if kind == "place" else sure[0]))
    return values


def _relative_direction(asker: Asker) -> Asked | None:
    for _ in range(TRIES):
        from_car = asker.rng.random() < 0.4
        things = asker.things(1 if from_car else 3)
        if not things:
            return None
        centers = [asker.center(index) for index, _ in things]
        origin, yaw = (0.0, 0.0), 0.0
        if not from_car:
            origin = centers[0]
            yaw = math.atan2(centers[1][1] - origin[1], centers[1][0] - origin[0])
            if math.dist(origin, centers[1]) < 3.0:
                continue
        found = quarter(origin, yaw, centers[-1])
        if found is not None:
            form = "direction from car" if from_car else "direction from object"
            names = "b" if from_car else "abc"
            parts = dict(zip(names, [words for _, words in things], strict=True))
            rows = [index for index, _ in things]
            return asker.asked(form, DIRECTIONS[found], "relative direction", parts, rows=rows)
    return None


def _relative_distance(asker: Asker) -> Asked | None:
    for _ in range(TRIES):
        among_us = asker.rng.random() < 0.4
        things = asker.things(2 if among_us else 3)
        if not things:
            return None
        rows = [index for index, _ in things]
        if among_us:
            near, far = (float(asker.view.geometry.distance[row]) for row in rows)
        else:
            near, far = (float(asker.view.gaps[rows[0], row]) for row in rows[1:])
        if abs(near - far) < MARGIN:
            continue
        parts = dict(zip("bc" if among_us else "abc", [words for _, words in things], strict=True))
        answer = parts["b"] if near < far else parts["c"]
        if among_us:
            answer = "yes" if near < far else "no"
        form = "nearer to us" if among_us else "nearer object"
        return asker.asked(form, answer, "relative distance", parts, rows=rows)
    return None


def _distance(asker: Asker) -> Asked | None:
    things = asker.things(1)
    if not things or asker.view.geometry.distance[things[0][0]] < 1.0:
        return None
    answer = in_metres(float(asker.view.geometry.distance[things[0][0]]))
    return asker.asked("distance", answer, "distance", {"b": things[0][1]}, rows=(things[0][0],))


FORMS: dict[str, Callable[[Asker], Asked | None]] = {
    "counting": _counting,
    "existence": _existence,
    "attribute": _attribute,
    "relative direction": _relative_direction,
    "relative distance": _relative_distance,
    "distance": _distance,
    "situated direction": situated_direction,
    "situated distance": situated_distance,
    "situated counting": situated_counting,
    "appearance order": appearance_order,
}
