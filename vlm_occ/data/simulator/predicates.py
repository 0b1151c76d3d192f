"""What nouns, attributes and relations mean for the objects of one scene, each with a margin.

Every function returns two boolean arrays, `sure` and `possible`: an object between the two lies too near a
threshold, or its name is a matter of taste, and no sentence may hang on it. Frame: ego (x forward, y left),
metres.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from vlm_occ.data.simulator.objects import ObjectFacts
from vlm_occ.types import COLOURS, TALK2OCC_CLASSES

Flags = NDArray[np.bool_]
Category = Literal["vehicle", "two-wheeler", "person", "animal", "thing"]

NARROW: dict[str, dict[str, tuple[str, ...]]] = {
    "car": {name: (name,) for name in ("sedan", "hatchback", "estate", "suv", "van", "pickup")},
    "truck": {
        name: (name,) for name in ("box truck", "flatbed truck", "tanker", "tow truck", "tractor unit")
    },
    "bus": {"double-decker": ("double-decker",), "articulated bus": ("articulated bus",)},
    "construction vehicle": {
        "excavator": ("excavator",),
        "loader": ("wheel loader",),
        "dumper": ("dumper", "tipper"),
        "crane": ("mobile crane",),
    },
    "emergency vehicle": {name: (name,) for name in ("police car", "ambulance", "fire engine")},
    "pedestrian": {name: (name,) for name in ("adult", "child", "worker")},
    "bicycle": {"cyclist": ("cyclist",)},
    "animal": {name: (name,) for name in ("dog", "deer", "cow")},
    "movable object": {
        "bin": ("wheelie bin",),
        "pushchair": ("pushchair",),
        "trolley": ("trolley",),
        "skip": ("skip",),
        "pallet": ("pallet",),
    },
    "debris": {name: (name,) for name in ("heap", "boards", "bags")},
    "barrier": {
        "concrete barrier": ("concrete barrier",),
        "plastic barrier": ("plastic barrier",),
        "fence": ("construction fence",),
    },
    "traffic cone": {"delineator": ("delineator",)},
}
"""Narrow nouns by class, with the variants that each names."""
CLASS_OF: dict[str, str] = {noun: name for name, nouns in NARROW.items() for noun in nouns}
VARIANTS: dict[str, tuple[str, ...]] = {noun: v for nouns in NARROW.values() for noun, v in nouns.items()}
NOUN_OF: dict[str, str] = {variant: noun for noun, variants in VARIANTS.items() for variant in variants}
VEHICLES = ("car", "truck", "bus", "construction vehicle", "emergency vehicle")
TWO_WHEELERS = ("bicycle", "motorcycle")
HEADED = (*VEHICLES, *TWO_WHEELERS, "trailer")
"""Classes with a front of their own, so that `behind` may mean their back."""

_PLAIN = {"city bus", "semi-trailer", "container trailer", "car trailer", "scooter", *TALK2OCC_CLASSES}
_DOUBTFUL: dict[str, tuple[str, ...]] = {
    "car": ("van", "pickup", "police car"),
    "truck": ("pickup", "fire engine", "dumper"),
    "van": ("ambulance",),
    "construction vehicle": ("tipper", "tow truck"),
    "emergency vehicle": ("tow truck",),
    "pedestrian": ("cyclist",),
    "adult": ("worker", "cyclist"),
    "estate": ("suv", "hatchback"),
    "hatchback": ("estate",),
    "sedan": ("estate",),
    "crane": ("tow truck",),
    "traffic cone": ("delineator",),
    "barrier": ("construction fence",),
    "bin": ("skip",),
    "debris": ("pallet", "skip"),
}
"""Variants that a noun may or may not fit: never described by it, never excluded by it."""


def category(noun: str) -> Category:
    """Which attributes make sense for a noun."""
    name = CLASS_OF.get(noun, noun)
    if name in VEHICLES or name == "vehicle":
        return "vehicle"
    if name in TWO_WHEELERS:
        return "two-wheeler"
    if name == "pedestrian":
        return "person"
    return "animal" if name == "animal" else "thing"


def fits_noun(noun: str, item: ObjectFacts) -> tuple[bool, bool]:
    """Whether the noun surely, and possibly, names the object."""
    name = TALK2OCC_CLASSES[item.label]
    doubtful = item.variant in _DOUBTFUL.get(noun, ())
    if noun == "thing":
        return name not in ("pedestrian", "animal"), True
    if noun == "vehicle":
        return name in VEHICLES, name in HEADED
    if noun in VARIANTS:
        unknown = name == CLASS_OF[noun] and item.variant not in NOUN_OF and item.variant not in _PLAIN
        sure = item.variant in VARIANTS[noun]
        return sure, sure or unknown or doubtful
    rider = noun == "pedestrian" and name in TWO_WHEELERS and item.motion != "parked"
    return name == noun and not doubtful, name == noun or doubtful or rider


class Geometry:
    """Positions, headings and velocities of the facts as arrays."""

    def __init__(self, facts: Sequence[ObjectFacts]) -> None:
        boxes = np.array([item.box for item in facts], dtype=np.float64).reshape(-1, 7)
        self.position: NDArray[np.float64] = boxes[:, :2]  # [M, 2]
        self.size = boxes[:, 3:6]  # [M, 3]
        self.yaw = boxes[:, 6]  # [M]
        self.heading = np.stack([np.cos(self.yaw), np.sin(self.yaw)], -1)  # [M, 2]
        self.velocity = np.array([item.velocity for item in facts], dtype=np.float64).reshape(-1, 2)
        self.distance = np.hypot(self.position[:, 0], self.position[:, 1])  # [M] from the ego origin
        self.bearing = np.abs(np.arctan2(self.position[:, 1], self.position[:, 0]))  # [M] from straight ahead


def side(geometry: Geometry, value: str) -> tuple[Flags, Flags]:
    """left, right: surely beyond 2 m of the x axis and 4.6 degrees of it, never within 1 m."""
    y = geometry.position[:, 1] * (1.0 if value == "left" else -1.0)
    return (y >= 2.0) & (y >= 0.08 * np.abs(geometry.position[:, 0])), y > 1.0


def depth(geometry: Geometry, value: str) -> tuple[Flags, Flags]:
    """ahead and behind (a sector), straight (within a lane of the x axis), beside."""
    x, y = geometry.position[:, 0], np.abs(geometry.position[:, 1])
    if value == "straight":
        return (x >= 3.0) & (y <= 1.0), (x > 0.0) & (y < 2.2)
    if value == "beside":
        angle = np.abs(geometry.bearing - np.pi / 2)
        return (angle <= 0.3) & (y <= 12.0), (angle < 0.8) & (y < 18.0)
    angle = geometry.bearing if value == "ahead" else np.pi - geometry.bearing
    return (angle <= 1.0) & (np.abs(x) >= 3.0), angle < 1.4


def metres(geometry: Geometry, value: str, amount: int) -> tuple[Flags, Flags]:
    """within, beyond (1 m margin), about (a tenth, at least 1 m) so many metres from the viewer."""
    distance = geometry.distance
    if value == "within":
        return distance <= amount - 1.0, distance < amount + 1.0
    if value == "beyond":
        return distance >= amount + 1.0, distance > amount - 1.0
    off = np.abs(distance - amount)
    return off <= max(1.0, 0.1 * amount), off < max(4.0, 0.3 * amount)


def motion(geometry: Geometry, facts: Sequence[ObjectFacts], value: str) -> tuple[Flags, Flags]:
    """State of motion over ground; directions are those of the velocity, not of the box."""
    state = np.array([item.motion for item in facts], dtype=object)
    speed = np.hypot(geometry.velocity[:, 0], geometry.velocity[:, 1])  # [M]
    if value in ("parked", "stopped"):
        return (state == value) & (speed < 0.3), (state != "moving") | (speed < 0.5)
    if value in ("stationary", "standing"):
        return (state != "moving") & (speed < 0.2), (state != "moving") | (speed < 0.5)
    sure, possible = (state == "moving") & (speed >= 0.5), (state == "moving") | (speed > 0.2)
    if value in ("moving", "walking"):
        return sure, possible
    directions = {"oncoming": -geometry.position, "leaving": geometry.position}
    axis = directions.get(value)
    if axis is None:  # heading left or right, as seen by a viewer who looks ahead
        axis = np.zeros_like(geometry.position) + np.array([0.0, 1.0 if value == "heading left" else -1.0])
    norm = np.maximum(np.hypot(axis[:, 0], axis[:, 1]) * np.maximum(speed, 1e-6), 1e-6)
    cosine = (geometry.velocity * axis).sum(-1) / norm  # [M]
    return sure & (cosine >= 0.85), possible & (cosine > 0.5)


def place(facts: Sequence[ObjectFacts], value: str) -> tuple[Flags, Flags]:
    """The surface that an object stands on; its neighbours at the edge of the road are borderline."""
    where = np.array([item.place for item in facts], dtype=object)
    edges = {
        "road": ("junction", "kerb"),
        "pavement": ("kerb",),
        "terrain": (),
        "kerb": ("pavement",),
        "junction": (),
    }
    return where == value, np.isin(where, (value, *edges[value]))


def colour(facts: Sequence[ObjectFacts], value: str) -> tuple[Flags, Flags]:
    """The dominant colour; an object without one might pass for any."""
    index = np.array([item.colour for item in facts], dtype=np.int64)
    return index == COLOURS.index(value), (index == COLOURS.index(value)) | (index < 0)


def size(facts: Sequence[ObjectFacts], value: str) -> tuple[Flags, Flags]:
    """The size within its class; medium ones are borderline."""
    word = np.array([item.size for item in facts], dtype=object)
    return word == value, (word == value) | (word == "medium")
