"""Meanings of descriptions, evaluated exactly against a scene.

A meaning is a filter over objects: a noun, attributes, at most one relation (whose anchor is a meaning
again) and at most one order, applied last. Every test knows three answers, kept as two bit masks over the
facts: `sure` objects satisfy it with a margin, `possible` ones may (borderline values, doubtful names,
objects that are not referable). A description is used only where both agree, so its truth never hangs on a
threshold or on an object that is not seen.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Literal

import numpy as np

from vlm_occ.data.simulator.lexicon import flip_text
from vlm_occ.data.simulator.objects import ObjectFacts
from vlm_occ.data.simulator.predicates import (
    HEADED,
    Flags,
    Geometry,
    colour,
    depth,
    fits_noun,
    metres,
    motion,
    place,
    side,
    size,
)
from vlm_occ.data.simulator.relations import RELATIONS, between, footprint_gaps, relation_tables
from vlm_occ.types import COLOURS, TALK2OCC_CLASSES

AttributeKind = Literal["colour", "size", "side", "depth", "range", "motion", "place"]
Masks = tuple[int, int]  # (sure, possible): bit i stands for object i

VALUES: dict[AttributeKind, tuple[str, ...]] = {
    "colour": COLOURS,
    "size": ("small", "large"),
    "side": ("left", "right"),
    "depth": ("ahead", "straight", "behind", "beside"),
    "range": ("within", "beyond", "about"),
    "motion": (
        "parked", "stopped", "stationary", "moving", "walking", "standing", "oncoming", "leaving",
        "heading left", "heading right",
    ),
    "place": ("road", "pavement", "kerb", "terrain", "junction"),
}  # fmt: skip
ORDERS = ("nearest", "farthest", "leftmost", "rightmost", "largest", "smallest", "closest_to")
_MARGIN = 1.5  # metres between consecutive distances


@dataclass(frozen=True)
class Attribute:
    """A property of one object; `amount` is the number of metres of a range."""

    kind: AttributeKind
    value: str
    amount: int = 0


@dataclass(frozen=True)
class Relation:
    """A relation to the object that `anchor` means, to any of several (`plural`), or to two."""

    name: str
    anchor: Meaning
    second: Meaning | None = None
    plural: bool = False


@dataclass(frozen=True)
class Order:
    """The rank-th by distance to the viewer, from one side, by volume, or by distance to an anchor."""

    key: str
    rank: int = 1
    anchor: Meaning | None = None


@dataclass(frozen=True)
class Meaning:
    """What a noun phrase says."""

    noun: str
    attributes: tuple[Attribute, ...] = ()
    relation: Relation | None = None
    order: Order | None = None

    def plus(self, attribute: Attribute) -> Meaning:
        """The same meaning with one more attribute."""
        return replace(self, attributes=(*self.attributes, attribute))

    def attribute(self, kind: AttributeKind) -> Attribute | None:
        """Its attribute of a kind, if it has one."""
        for item in self.attributes:
            if item.kind == kind:
                return item
        return None


def mirror(meaning: Meaning) -> Meaning:
    """The meaning of the mirrored sentence: left and right exchanged everywhere."""
    relation, order = meaning.relation, meaning.order
    if relation is not None:
        second = None if relation.second is None else mirror(relation.second)
        name = _flip_key(relation.name)
        relation = replace(relation, name=name, anchor=mirror(relation.anchor), second=second)
    if order is not None:
        anchor = None if order.anchor is None else mirror(order.anchor)
        order = replace(order, key=_flip_key(order.key), anchor=anchor)
    attributes = tuple(replace(item, value=flip_text(item.value)) for item in meaning.attributes)
    return replace(meaning, attributes=attributes, relation=relation, order=order)


def _flip_key(key: str) -> str:
    return flip_text(key.replace("_", " ")).replace(" ", "_")


def indices(mask: int) -> tuple[int, ...]:
    """The objects of a bit mask, in order."""
    return tuple(i for i in range(mask.bit_length()) if mask >> i & 1)


def _mask(flags: Flags) -> int:
    """The bit mask of a boolean array."""
    return int.from_bytes(np.packbits(flags, bitorder="little").tobytes(), "little")


class SceneView:
    """The facts of one scene, with every test evaluated at most once."""

    def __init__(self, facts: Sequence[ObjectFacts]) -> None:
        self.facts = tuple(facts)
        self.geometry = Geometry(self.facts)
        self.everything = (1 << len(self.facts)) - 1
        self.referable = sum(1 << i for i, item in enumerate(self.facts) if item.referable)
        self._nouns: dict[str, Masks] = {}
        self._attributes: dict[Attribute, Masks] = {}
        self._meanings: dict[Meaning, Masks] = {}
        has_front = np.array([TALK2OCC_CLASSES[item.label] in HEADED for item in self.facts], dtype=bool)
        self.gaps = footprint_gaps(self.geometry)  # [M, M]
        tables = relation_tables(self.geometry, has_front, self.gaps)
        self.relations: dict[str, tuple[list[int], list[int]]] = {
            name: (
                [_mask(column) for column in tables[name][0].T],
                [_mask(column) for column in tables[name][1].T],
            )
            for name in RELATIONS
        }  # relation -> (sure, possible) masks of the objects, by anchor

    def anchors(self, relation: str, index: int) -> int:
        """The objects to which an object surely stands in a relation."""
        return sum(1 << j for j, sure in enumerate(self.relations[relation][0]) if sure >> index & 1)

    def noun(self, noun: str) -> Masks:
        """The objects that a noun names."""
        if noun not in self._nouns:
            fits = [fits_noun(noun, item) for item in self.facts]
            sure = sum(1 << i for i, fit in enumerate(fits) if fit[0])
            possible = sum(1 << i for i, fit in enumerate(fits) if fit[1])
            self._nouns[noun] = (sure & self.referable, possible)
        return self._nouns[noun]

    def attribute(self, item: Attribute) -> Masks:
        """The objects that have an attribute."""
        if item not in self._attributes:
            sure, possible = self._flags(item)
            self._attributes[item] = (_mask(sure), _mask(possible))
        return self._attributes[item]

    def _flags(self, item: Attribute) -> tuple[Flags, Flags]:
        if item.kind == "colour":
            return colour(self.facts, item.value)
        if item.kind == "size":
            return size(self.facts, item.value)
        if item.kind == "side":
            return side(self.geometry, item.value)
        if item.kind == "depth":
            return depth(self.geometry, item.value)
        if item.kind == "range":
            return metres(self.geometry, item.value, item.amount)
        if item.kind == "motion":
            return motion(self.geometry, self.facts, item.value)
        return place(self.facts, item.value)

    def evaluate(self, meaning: Meaning) -> Masks:
        """The objects that a meaning surely and possibly denotes."""
        if meaning not in self._meanings:
            sure, possible = self.noun(meaning.noun)
            for item in meaning.attributes:
                masks = self.attribute(item)
                sure, possible = sure & masks[0], possible & masks[1]
            if meaning.relation is not None:
                masks = self.related(meaning.relation)
                sure, possible = sure & masks[0], possible & masks[1]
            if meaning.order is not None:
                sure, possible = self._ordered(meaning.order, sure, possible)
            self._meanings[meaning] = (sure, possible)
        return self._meanings[meaning]

    def only(self, meaning: Meaning) -> int | None:
        """The one object that a meaning denotes beyond doubt, or None."""
        sure, possible = self.evaluate(meaning)
        return sure.bit_length() - 1 if sure == possible and sure.bit_count() == 1 else None

    def related(self, relation: Relation) -> Masks:
        """The objects that stand in a relation."""
        unknown = (0, self.everything)
        if relation.plural:
            anchors = self.evaluate(relation.anchor)
            if anchors[0].bit_count() < 2:
                return unknown
            sure = possible = 0
            for j in indices(anchors[0]):
                sure |= self.relations[relation.name][0][j]
            for j in indices(anchors[1]):
                possible |= self.relations[relation.name][1][j]
            return sure & ~anchors[1], possible
        anchor = self.only(relation.anchor)
        if anchor is None:
            return unknown
        if relation.second is None:
            return self.relations[relation.name][0][anchor], self.relations[relation.name][1][anchor]
        second = self.only(relation.second)
        if second is None or second == anchor:
            return unknown
        flags = between(self.geometry, anchor, second)
        return _mask(flags[0]), _mask(flags[1])

    def _ordered(self, order: Order, sure: int, possible: int) -> Masks:
        """The rank-th candidate if the ranking is beyond doubt; nothing if there are fewer candidates."""
        unknown = (0, possible)
        candidates = indices(possible)
        if len(candidates) < order.rank:
            return (0, 0) if order.anchor is None or self.only(order.anchor) is not None else unknown
        keys = self._keys(order, candidates)
        if keys is None:
            return unknown
        ranked = sorted(zip(keys, candidates, strict=True))
        first = ranked[: order.rank]
        if any(not sure >> index & 1 for _, index in first):
            return unknown
        gaps = [b[0] - a[0] for a, b in pairwise(ranked[: order.rank + 1])]
        if any(gap < 1.0 for gap in gaps):
            return unknown
        return 1 << first[-1][1], 1 << first[-1][1]

    def _keys(self, order: Order, candidates: tuple[int, ...]) -> list[float] | None:
        """Sorting keys in units of their margin, smallest first; None where the order is not defined."""
        chosen = list(candidates)
        geometry = self.geometry
        if order.key in ("nearest", "farthest"):
            sign = 1.0 if order.key == "nearest" else -1.0
            return [sign * float(v) / _MARGIN for v in geometry.distance[chosen]]
        if order.key in ("largest", "smallest"):
            sign = 1.0 if order.key == "smallest" else -1.0
            volume = np.log(geometry.size[chosen].prod(-1)) / np.log(1.4)
            return [sign * float(v) for v in volume]
        if order.key == "closest_to":
            anchor = None if order.anchor is None else self.only(order.anchor)
            if anchor is None or anchor in chosen:
                return None
            return [float(v) / _MARGIN for v in self.gaps[chosen, anchor]]
        return self._lateral_keys(chosen, 1.0 if order.key == "rightmost" else -1.0)

    def _lateral_keys(self, chosen: list[int], sign: float) -> list[float] | None:
        """Ranks from one side, for candidates that all lie ahead, ranked alike by bearing and by offset."""
        position = self.geometry.position[chosen]  # [N, 2]
        if _bits(chosen) & ~self.attribute(Attribute("depth", "ahead"))[0]:
            return None
        bearing = sign * np.degrees(np.arctan2(position[:, 1], position[:, 0])) / 3.0
        offset = sign * position[:, 1] / 1.0
        order = np.argsort(bearing)
        steps = np.minimum(np.diff(bearing[order]), np.diff(offset[order]))
        keys = np.zeros(len(chosen))
        keys[order[1:]] = np.cumsum(np.maximum(steps, 0.0))
        return [float(v) for v in keys]


def _bits(chosen: list[int]) -> int:
    return sum(1 << i for i in chosen)
