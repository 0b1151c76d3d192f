"""How many objects of each class a world gets, as in Table I or balanced, and what is small or large."""

from __future__ import annotations

from typing import Literal

from vlm_occ.data.simulator.draws import Draws
from vlm_occ.types import TALK2OCC_CLASSES

ObjectSize = Literal["small", "medium", "large"]

TABLE_I = (4515, 2603, 981, 246, 11, 240, 254, 28, 83, 124, 24, 60, 166, 246, 344)
"""Referent objects a class in Table I of Talk2Occ (arXiv 2508.01197), in the order of TALK2OCC_CLASSES."""

_CAR_ROOM = 0.93
"""Share of the cars asked for that find room (measured); the others' is at least 0.96."""

_BALANCED = {  # fewest and most objects where a class is drawn in balanced worlds
    "truck": (1, 3),
    "bicycle": (1, 4),
    "animal": (1, 3),
    "movable object": (1, 4),
    "traffic cone": (2, 5),
    "debris": (1, 3),
    "construction vehicle": (1, 3),
    "trailer": (1, 3),
    "emergency vehicle": (1, 3),
    "bicycle rack": (1, 3),
    "barrier": (2, 5),
    "motorcycle": (1, 4),
    "bus": (1, 3),
}


def draw_counts(draws: Draws, *, balanced: bool) -> dict[str, int]:
    """The number of objects of each class to place."""
    counts: dict[str, int] = {name: 0 for name in TALK2OCC_CLASSES}
    if balanced:
        counts["car"], counts["pedestrian"] = draws.integer(0, 4), draws.integer(0, 4)
        rare = list(_BALANCED)
        for _ in range(7):
            name = rare.pop(draws.integer(0, len(rare) - 1))
            counts[name] = draws.integer(*_BALANCED[name])
        return counts
    total = draws.uniform(35, 40) if draws.chance(0.1) else draws.uniform(18, 33)
    site = draws.chance(0.16)
    for name, share in zip(TALK2OCC_CLASSES, TABLE_I, strict=True):
        mean = total * share / sum(TABLE_I)
        if name in ("traffic cone", "barrier"):  # they come together, at sites
            counts[name] = draws.poisson(mean / 0.16) if site else 0
        elif name in ("car", "pedestrian"):  # steadier than Poisson: most scenes have several
            counts[name] = round(mean / (_CAR_ROOM if name == "car" else 1.0) * draws.uniform(0.6, 1.4))
        else:
            counts[name] = draws.poisson(mean)
    return counts


_HEIGHT_LIMITS = {"pedestrian": (1.45, 1.87), "traffic cone": (0.8, 1.03)}
"""Height in metres below which one is small, above which it is large."""

_BULK_LIMITS = {
    "car": (2.33, 2.66),
    "truck": (3.3, 4.25),
    "bicycle": (0.9, 1.4),
    "animal": (0.6, 1.0),
    "movable object": (0.7, 1.1),
    "debris": (0.9, 1.6),
    "construction vehicle": (2.5, 4.4),
    "trailer": (3.2, 5.1),
    "emergency vehicle": (2.9, 4.0),
    "bicycle rack": (2.0, 2.5),
    "barrier": (0.9, 1.3),
    "motorcycle": (1.1, 1.5),
    "bus": (4.6, 5.15),
}
"""The same for the cube root of the box's volume, metres."""


def size_of(label: int, size: tuple[float, float, float]) -> ObjectSize:
    """How large an object of a class (index in TALK2OCC_CLASSES) is among its kind; full sizes in metres."""
    name = TALK2OCC_CLASSES[label]
    if name in _HEIGHT_LIMITS:
        measure, (low, high) = size[2], _HEIGHT_LIMITS[name]
    else:
        measure, (low, high) = (size[0] * size[1] * size[2]) ** (1 / 3), _BULK_LIMITS[name]
    return "small" if measure < low else "large" if measure > high else "medium"
