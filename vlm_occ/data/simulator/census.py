"""How many objects of each class a world gets: as in the paper's Table I, or balanced over classes."""

from __future__ import annotations

from vlm_occ.data.simulator.draws import Draws
from vlm_occ.types import TALK2OCC_CLASSES

TABLE_I = (4515, 2603, 981, 246, 11, 240, 254, 28, 83, 124, 24, 60, 166, 246, 344)
"""Referent objects a class in Table I of Talk2Occ (arXiv 2508.01197), in the order of TALK2OCC_CLASSES."""

_FOUND_ROOM: dict[str, float] = {name: 1.0 for name in TALK2OCC_CLASSES}
"""Share of the objects asked for that found room (measured); the requests are divided by it."""

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
        counts["car"], counts["pedestrian"] = draws.integer(0, 5), draws.integer(0, 5)
        rare = list(_BALANCED)
        for _ in range(6):
            name = rare.pop(draws.integer(0, len(rare) - 1))
            counts[name] = draws.integer(*_BALANCED[name])
        return counts
    total = draws.uniform(40, 46) if draws.chance(0.1) else draws.uniform(17, 34)
    site = draws.chance(0.16)
    for name, share in zip(TALK2OCC_CLASSES, TABLE_I, strict=True):
        mean = total * share / sum(TABLE_I) / _FOUND_ROOM[name]
        if name in ("traffic cone", "barrier"):  # they come together, at sites
            counts[name] = draws.poisson(mean / 0.16) if site else 0
        elif name in ("car", "pedestrian"):  # steadier than Poisson: most scenes have several
            counts[name] = round(mean * draws.uniform(0.6, 1.4))
        else:
            counts[name] = draws.poisson(mean)
    return counts
