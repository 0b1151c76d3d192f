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
_HEADING = ("heading left", "heading right")
_MOTIONS = {
    "vehicle": ("parked", "stopped", "stationary", "moving", "oncoming", "leaving", *_HEADING),
    "two-wheeler": ("parked", "moving", "oncoming", "leaving"),
    "person": ("walking", "standing", "oncoming", "leaving", *_HEADING),
    "animal": ("moving", "stationary", "oncoming", "leaving"),
    "thing": (),
}  # fmt: skip
RANGES = tuple(Attribute("range", "within", n) for n in (5, 8, 10, 15, 20, 25, 30)) + tuple(
    Attribute("range", "beyond", n) for n in (10, 15, 20, 25, 30)
)
SIMPLE = tuple(
    Attribute(kind, value) for kind, values in VALUES.items() if kind != "range" for value in values
)
_FREE_KINDS = ("colour", "size", "motion", "place")
_FREE_MOTIONS = ("parked", "stopped", "stationary", "moving", "walking", "standing")
FREE_RELATIONS = ("next_to", "near", "between")
FREE_ORDERS = ("largest", "smallest", "closest_to")
_TRIES = (2, 3, 6)  # by the nesting that is left, since an anchor is searched within each try
_ANCHORS = 3  # anchors tried for one relation
_BUDGET = (
    40  # restrictions tried for one description with all its anchors, so that a crowded scene stays fast
)


def viewer_free(meaning: Meaning) -> bool:
    """Whether a meaning does not depend on where the viewer stands and looks."""
    if any(item.kind not in _FREE_KINDS for item in meaning.attributes):
        return False
    motion, relation, order = meaning.attribute("motion"), meaning.relation, meaning.order
    if motion is not None and motion.value not in _FREE_MOTIONS:
        return False
    if relation is not None and relation.name not in FREE_RELATIONS:
        return False
    if order is not None and order.key not in FREE_ORDERS:
        return False
    anchors = [relation and relation.anchor, relation and relation.second, order and order.anchor]
    return all(viewer_free(anchor) for anchor in anchors if anchor is not None)


def fitting(meaning: Meaning, item: Attribute) -> bool:
    """Whether an attribute can be said of a noun beside those that the meaning has."""
    kind = category(meaning.noun)
    if meaning.attribute(item.kind) is not None:
        return False
    if item.kind == "motion" and item.value not in _MOTIONS[kind]:
        return False
    if item.kind == "size":
        return kind not in ("person", "animal") and meaning.noun != "thing"
    if item.value in ("straight", *_HEADING):
        return meaning.attribute("side") is None
    others = {other.value for other in meaning.attributes}
    return item.kind != "side" or not others & {"straight", *_HEADING}  # "going left on the right" confuses


class Describer:
    """Searches descriptions in one scene; `free` ones do not depend on the viewer."""

    def __init__(self, view: SceneView, rng: random.Random, *, free: bool = False) -> None:
        self.view, self.rng, self.free = view, rng, free
        self._budget = _BUDGET
        self.words = tuple(
            item for item in (*SIMPLE, *RANGES) if not free or viewer_free(Meaning("", (item,)))
        )

    def unique(
        self, target: int, *, nesting: int = 2, banned: frozenset[int] = frozenset()
    ) -> Meaning | None:
        """A meaning that denotes exactly the target, short or with a word to spare; None if none is found.

        Relations nest `nesting` deep at most and never use `banned` objects as anchors.
        """
        self._budget = _BUDGET
        return self._unique(target, nesting, banned)

    def _unique(self, target: int, nesting: int, banned: frozenset[int]) -> Meaning | None:
        banned = banned | {target}
        for _ in range(_TRIES[nesting]):
            meaning = Meaning(self.noun(target))
            for _ in range(3):
                if self.view.only(meaning) == target:
                    break
                narrowed = self._narrow(meaning, target, nesting, banned)
                if narrowed is None:
                    break
                meaning = narrowed
            if self.view.only(meaning) == target:
                spare = 0.6 if meaning == Meaning(meaning.noun) else 0.15
                if nesting == 2 and meaning.order is None and self.rng.random() < spare:
                    return self.attributed(meaning, target, shrink=False) or meaning
                return meaning
        return None

    def noun(self, target: int) -> str:
        """A noun that surely names the object: mostly its class or its kind, seldom a wider word."""
        item = self.view.facts[target]
        name = TALK2OCC_CLASSES[item.label]
        options = {name: 1.0, "vehicle": 0.25, "thing": 0.1}
        options[NOUN_OF.get(item.variant, name)] = 1.2
        sure = {noun: weight for noun, weight in options.items() if self.view.noun(noun)[0] >> target & 1}
        return self.rng.choices(list(sure), list(sure.values()))[0] if sure else name

    def _narrow(self, meaning: Meaning, target: int, nesting: int, banned: frozenset[int]) -> Meaning | None:
        """The meaning with one more restriction that is true of the target and excludes something else."""
        self._budget -= 1
        if self._budget < 0:
            return None
        ways = ["attribute", "order", "relation"]
        weights = [0.6, 0.18, 0.22] if nesting == 2 else [0.75, 0.15, 0.1]
        first = self.rng.choices(ways, weights)[0]
        for way in (first, *(other for other in ways if other != first)):
            if way == "attribute":
                narrowed = self.attributed(meaning, target, shrink=True)
            elif way == "order":
                narrowed = self._ordered(meaning, target, nesting, banned)
            else:
                narrowed = self._related(meaning, target, nesting, banned)
            if narrowed is not None:
                return narrowed
        return None

    def attributed(self, meaning: Meaning, target: int, *, shrink: bool) -> Meaning | None:
        """The meaning with an attribute that the target surely has; to `shrink` is to exclude others."""
        possible = self.view.evaluate(meaning)[1]
        distance = float(self.view.geometry.distance[target])
        about = () if self.free or distance < 5.0 else (Attribute("range", "about", round(distance)),)
        options: list[Attribute] = []
        for item in (*self.words, *about):
            masks = self.view.attribute(item)
            if masks[0] >> target & 1 and fitting(meaning, item) and (not shrink or possible & ~masks[1]):
                options.append(item)
        kinds = sorted({item.kind for item in options})
        if not kinds:
            return None
        kind = self.rng.choices(kinds, [_KIND_WEIGHTS[k] for k in kinds])[0]
        return meaning.plus(self.rng.choice([item for item in options if item.kind == kind]))

    def _ordered(self, meaning: Meaning, target: int, nesting: int, banned: frozenset[int]) -> Meaning | None:
        if meaning.order is not None:
            return None
        sized = category(meaning.noun) not in ("person", "animal")
        barred = () if sized else ("largest", "smallest")
        if meaning.attribute("side") is not None:
            barred = (*barred, "leftmost", "rightmost")
        keys = [key for key in (FREE_ORDERS if self.free else ORDERS) if key not in barred]
        self.rng.shuffle(keys)
        for key in keys:
            anchor = self.anchor(target, nesting, banned) if key == "closest_to" else None
            if key == "closest_to" and anchor is None:
                continue
            for rank in (1, 2, 3) if key in ("nearest", "leftmost", "rightmost") else (1,):
                ordered = replace(meaning, order=Order(key, rank, anchor))
                if self.view.only(ordered) == target:
                    return ordered
        return None

    def anchor(
        self, target: int, nesting: int, banned: frozenset[int], mask: int | None = None
    ) -> Meaning | None:
        """The description of another object of a mask (default: the six nearest), if nesting allows one."""
        mask = self.view.everything if mask is None else mask
        others = [i for i in indices(self.view.referable & mask) if i not in banned]
        if nesting == 0 or not others:
            return None
        if mask == self.view.everything:
            others = sorted(others, key=lambda i: float(self.view.gaps[target, i]))[:6]
        return self._unique(self.rng.choice(others), nesting - 1, banned)

    def _related(self, meaning: Meaning, target: int, nesting: int, banned: frozenset[int]) -> Meaning | None:
        if meaning.relation is not None or meaning.order is not None or nesting == 0:
            return None
        if self.rng.random() < 0.3:
            found = self._near_several(meaning, target) or self._between(meaning, target, nesting, banned)
            if found is not None:
                return found
        names = [name for name in RELATIONS if not self.free or name in FREE_RELATIONS]
        self.rng.shuffle(names)
        masks = {name: self.view.anchors(name, target) for name in names}
        for name in [name for name in names if masks[name]][:_ANCHORS]:
            anchor = self.anchor(target, nesting, banned, masks[name])
            if anchor is not None:
                related = replace(meaning, relation=Relation(name, anchor))
                if self._narrows(related, meaning, target):
                    return related
        return None

    def _narrows(self, related: Meaning, meaning: Meaning, target: int) -> bool:
        masks = self.view.evaluate(related)
        return masks != self.view.evaluate(meaning) and bool(masks[0] >> target & 1)

    def _near_several(self, meaning: Meaning, target: int) -> Meaning | None:
        """`next to the barriers`: a class of which several are there, not the target's own."""
        others = indices(self.view.referable & ~(1 << target))
        nouns = sorted({TALK2OCC_CLASSES[self.view.facts[i].label] for i in others})
        self.rng.shuffle(nouns)
        for noun in nouns:
            if self.view.noun(noun)[0].bit_count() < 2 or self.view.noun(noun)[1] >> target & 1:
                continue
            relation = Relation(self.rng.choice(("next_to", "near")), Meaning(noun), plural=True)
            related = replace(meaning, relation=relation)
            if self._narrows(related, meaning, target):
                return related
        return None

    def _between(self, meaning: Meaning, target: int, nesting: int, banned: frozenset[int]) -> Meaning | None:
        """`between the bus and the barrier`: two of the nearest objects around the target."""
        first = self.anchor(target, min(nesting, 1), banned)
        second = self.anchor(target, min(nesting, 1), banned)
        if first is None or second is None:
            return None
        related = replace(meaning, relation=Relation("between", first, second))
        return related if self._narrows(related, meaning, target) else None
