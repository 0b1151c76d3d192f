"""Questions from where somebody stands, and about what a drive's front camera saw when."""

from __future__ import annotations

import math

from vlm_occ.data.simulator.asking import MARGIN, MOST, TRIES, Asked, Asker, in_metres, quarter, some_kind
from vlm_occ.data.simulator.meaning import indices
from vlm_occ.data.simulator.question_words import DIRECTIONS


def situated_direction(asker: Asker) -> Asked | None:
    """Which quarter of an agent's view an object lies in."""
    if not asker.situations:
        return None
    place = asker.rng.choice(asker.situations)
    quarters = {i: quarter(place.position, place.yaw, asker.center(i)) for i in asker.referable}
    things = (
        asker.things(1, among=[i for i, found in quarters.items() if found]) if any(quarters.values()) else []
    )
    if not things:
        return None
    (index, words), form = things[0], "situated direction"
    answer = DIRECTIONS[quarters[index] or ""]
    return asker.asked(form, answer, form, {"b": words}, rows=(index,), place=place)


def situated_distance(asker: Asker) -> Asked | None:
    """How far an object is from an agent, or which of two is nearer."""
    if not asker.situations:
        return None
    place = asker.rng.choice(asker.situations)
    for _ in range(TRIES):
        alone = asker.rng.random() < 0.5
        things = asker.things(1 if alone else 2)
        if not things:
            return None
        away = [math.dist(place.position, asker.center(index)) for index, _ in things]
        rows = [index for index, _ in things]
        parts = dict(zip("bc", [words for _, words in things], strict=False))
        if alone and away[0] >= 1.0:
            answer, form = in_metres(away[0]), "situated distance"
            return asker.asked(form, answer, "situated distance", parts, rows=rows, place=place)
        if not alone and abs(away[0] - away[1]) >= MARGIN:
            answer = parts["b"] if away[0] < away[1] else parts["c"]
            return asker.asked("situated nearer", answer, "situated distance", parts, rows=rows, place=place)
    return None


def situated_counting(asker: Asker) -> Asked | None:
    """How many objects of a kind lie within some metres of an agent."""
    for _ in range(TRIES if asker.situations else 0):
        place, amount = asker.rng.choice(asker.situations), asker.rng.choice((5, 8, 10, 15, 20))
        meaning = some_kind(asker, attributes=0)
        if meaning is None:
            continue
        away = [math.dist(place.position, asker.center(i)) for i in range(len(asker.view.facts))]
        sure, possible = asker.view.evaluate(meaning)
        inside = [i for i in indices(sure) if away[i] <= amount - 1.0]
        maybe = [i for i in indices(possible) if away[i] < amount + 1.0]
        if inside == maybe and len(inside) <= MOST:
            parts = {"many": asker.speaker.group(meaning, many=True), "n": str(amount)}
            form, answer = "situated counting", str(len(inside))
            return asker.asked(form, answer, form, parts, meaning=meaning, amount=amount, place=place)
    return None


def appearance_order(asker: Asker) -> Asked | None:
    """Which of two objects comes into the front camera's view, or leaves it, first."""
    known = [i for i in asker.referable if i < len(asker.appearances) and asker.appearances[i] is not None]
    for _ in range(TRIES if len(known) > 1 else 0):
        things = asker.things(2, among=known)
        if not things:
            return None
        rows = [index for index, _ in things]
        form = asker.rng.choice(("appears", "leaves"))
        first, second = ((asker.appearances[row] or (0, 0))[form == "leaves"] for row in rows)
        if first != second:
            parts = dict(zip("bc", [words for _, words in things], strict=True))
            answer = parts["b"] if first < second else parts["c"]
            return asker.asked(form, answer, "appearance order", parts, rows=rows)
    return None
