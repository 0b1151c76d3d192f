"""Finds meanings that denote exactly one object of a scene: a noun, then restrictions."""

from __future__ import annotations

import random
from dataclasses import replace

from vlm_occ.data.simulator.meaning import (
    ORDERS,
    VALUES,
    Attribute,
    Meaning,
    Order,
    Relation,
    SceneView,
    indices,
)
from vlm_occ.data.simulator.predicates import NOUN_OF, category
from vlm_occ.data.simulator.relations import RELATIONS
from vlm_occ.types import TALK2OCC_CLASSES

_KIND_WEIGHTS: dict[str, float] = {
    "colour": 3.0, "side": 3.0, "depth": 2.0, "motion": 2.0, "place": 1.0, "size": 1.0, "range": 0.7,
}  # fmt: skip
_MOTIONS = {
    "vehicle": (
        "parked",
        "stopped",
        "stationary",
        "moving",
        "oncoming",
        "leaving",
        "heading left",
        "heading right",
    ),
    "two-wheeler": ("parked", "moving", "oncoming", "leaving"),
    "person": ("walking", "standing", "oncoming", "leaving", "heading left", "heading right"),
    "animal": ("moving", "stationary", "oncoming", "leaving"),
    "thing": (),
}
RANGES = tuple(Attribute("range", "within", n) for n in (5, 8, 10, 15, 20, 25, 30)) + tuple(
    Attribute("range", "beyond", n) for n in (10, 15, 20, 25, 30)
)
SIMPLE = tuple(
    Attribute(kind, value) for kind, values in VALUES.items() if kind != "range" for value in values
)
_TRIES = 8


def unique_meaning(
    view: SceneView,
    rng: random.Random,
    target: int,
    *,
    nesting: int = 2,
    banned: frozenset[int] = frozenset(),
) -> Meaning | None:
    """A meaning that denotes exactly one object, as short as a few tries find it, sometimes with a word to
    spare.

    Relations nest `nesting` deep at most and never use `banned` objects as anchors.
    """
    for _ in range(_TRIES):
        meaning = Meaning(_choose_noun(view, rng, target))
        for _ in range(3):
            if view.only(meaning) == target:
                break
            narrowed = _narrow(view, rng, meaning, target, nesting, banned | {target})
            if narrowed is None:
                break
            meaning = narrowed
        if view.only(meaning) == target:
            spare = 0.6 if meaning == Meaning(meaning.noun) else 0.15
            if nesting == 2 and meaning.order is None and rng.random() < spare:
                return add_attribute(view, rng, meaning, target, shrink=False) or meaning
            return meaning
    return None


def _choose_noun(view: SceneView, rng: random.Random, target: int) -> str:
    """A noun that surely names the object: mostly its class or its kind, seldom a wider word."""
    item = view.facts[target]
    name = TALK2OCC_CLASSES[item.label]
    options = {name: 1.0, NOUN_OF.get(item.variant, name): 1.2, "vehicle": 0.25, "thing": 0.1}
    sure = {noun: weight for noun, weight in options.items() if view.noun(noun)[0] >> target & 1}
    return rng.choices(list(sure), list(sure.values()))[0] if sure else name


def _narrow(
    view: SceneView, rng: random.Random, meaning: Meaning, target: int, nesting: int, banned: frozenset[int]
) -> Meaning | None:
    """The meaning with one more restriction that is true of the target and excludes something else."""
    ways = ["attribute", "order", "relation"]
    weights = [0.6, 0.18, 0.22] if nesting == 2 else [0.75, 0.15, 0.1]
    first = rng.choices(ways, weights)[0]
    for way in (first, *(other for other in ways if other != first)):
        if way == "attribute":
            narrowed = add_attribute(view, rng, meaning, target, shrink=True)
        elif way == "order":
            narrowed = _add_order(view, rng, meaning, target, nesting, banned)
        else:
            narrowed = _add_relation(view, rng, meaning, target, nesting, banned)
        if narrowed is not None:
            return narrowed
    return None


def fitting(meaning: Meaning, item: Attribute) -> bool:
    """Whether an attribute can be said of a noun beside those that the meaning has."""
    kind = category(meaning.noun)
    if meaning.attribute(item.kind) is not None:
        return False
    if item.kind == "motion":
        return item.value in _MOTIONS[kind]
    if item.kind == "size":
        return kind not in ("person", "animal") and meaning.noun != "thing"
    if item.value == "straight":
        return meaning.attribute("side") is None
    depth = meaning.attribute("depth")
    return not (item.kind == "side" and depth is not None and depth.value == "straight")


def _about(view: SceneView, target: int) -> tuple[Attribute, ...]:
    distance = float(view.geometry.distance[target])
    return (Attribute("range", "about", round(distance)),) if distance >= 5.0 else ()


def add_attribute(
    view: SceneView, rng: random.Random, meaning: Meaning, target: int, *, shrink: bool
) -> Meaning | None:
    possible = view.evaluate(meaning)[1]
    options: list[Attribute] = []
    for item in (*SIMPLE, *RANGES, *_about(view, target)):
        masks = view.attribute(item)
        if masks[0] >> target & 1 and fitting(meaning, item) and (not shrink or possible & ~masks[1]):
            options.append(item)
    kinds = sorted({item.kind for item in options})
    if not kinds:
        return None
    kind = rng.choices(kinds, [_KIND_WEIGHTS[k] for k in kinds])[0]
    return meaning.plus(rng.choice([item for item in options if item.kind == kind]))


def _add_order(
    view: SceneView, rng: random.Random, meaning: Meaning, target: int, nesting: int, banned: frozenset[int]
) -> Meaning | None:
    if meaning.order is not None:
        return None
    sized = category(meaning.noun) not in ("person", "animal")
    keys = [key for key in ORDERS if sized or key not in ("largest", "smallest")]
    rng.shuffle(keys)
    for key in keys:
        anchor = anchor_meaning(view, rng, target, nesting, banned) if key == "closest_to" else None
        if key == "closest_to" and anchor is None:
            continue
        for rank in (1,) if key in ("largest", "smallest", "closest_to", "farthest") else (1, 2, 3):
            ordered = replace(meaning, order=Order(key, rank, anchor))
            if view.only(ordered) == target:
                return ordered
    return None


def anchor_meaning(
    view: SceneView,
    rng: random.Random,
    target: int,
    nesting: int,
    banned: frozenset[int],
    mask: int | None = None,
) -> Meaning | None:
    """The description of some other object of a mask (default: the six nearest), unless nesting is used up."""
    others = [
        i for i in indices(view.referable & (view.everything if mask is None else mask)) if i not in banned
    ]
    if nesting == 0 or not others:
        return None
    if mask is None:
        others = sorted(others, key=lambda i: float(view.gaps[target, i]))[:6]
    return unique_meaning(view, rng, rng.choice(others), nesting=nesting - 1, banned=banned)


def _add_relation(
    view: SceneView, rng: random.Random, meaning: Meaning, target: int, nesting: int, banned: frozenset[int]
) -> Meaning | None:
    if meaning.relation is not None or meaning.order is not None or nesting == 0:
        return None
    if rng.random() < 0.3:
        found = _plural_relation(view, rng, meaning, target) or _between(
            view, rng, meaning, target, nesting, banned
        )
        if found is not None:
            return found
    bit = 1 << target
    names = list(RELATIONS)
    rng.shuffle(names)
    for name in names:
        mask = sum(1 << j for j, sure in enumerate(view.relations[name][0]) if sure & bit)
        anchor = anchor_meaning(view, rng, target, nesting, banned, mask) if mask else None
        if anchor is not None:
            related = replace(meaning, relation=Relation(name, anchor))
            if view.evaluate(related) != view.evaluate(meaning) and view.evaluate(related)[0] & bit:
                return related
    return None


def _plural_relation(view: SceneView, rng: random.Random, meaning: Meaning, target: int) -> Meaning | None:
    """`next to the barriers`: a class of which several are there, not the target's own."""
    nouns = sorted({TALK2OCC_CLASSES[view.facts[i].label] for i in indices(view.referable & ~(1 << target))})
    rng.shuffle(nouns)
    for noun in nouns:
        if view.noun(noun)[0].bit_count() < 2 or view.noun(noun)[1] >> target & 1:
            continue
        related = replace(
            meaning, relation=Relation(rng.choice(("next_to", "near")), Meaning(noun), plural=True)
        )
        if view.evaluate(related)[0] >> target & 1 and view.evaluate(related) != view.evaluate(meaning):
            return related
    return None


def _between(
    view: SceneView, rng: random.Random, meaning: Meaning, target: int, nesting: int, banned: frozenset[int]
) -> Meaning | None:
    """`between the bus and the barrier`: two of the nearest objects, the target in their middle."""
    first = anchor_meaning(view, rng, target, min(nesting, 1), banned)
    second = anchor_meaning(view, rng, target, min(nesting, 1), banned)
    if first is None or second is None:
        return None
    related = replace(meaning, relation=Relation("between", first, second))
    return related if view.evaluate(related)[0] >> target & 1 else None
