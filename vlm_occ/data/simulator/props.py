"""Things without an engine: cones, barriers, debris and what people push."""

from __future__ import annotations

import math

from vlm_occ.data.simulator.assemblies import Assembly
from vlm_occ.data.simulator.draws import DARK_METAL, METAL, RGB, RUBBER, Draws
from vlm_occ.types import COLOURS


def traffic_cone(draws: Draws, *, tall: bool | None = None) -> Assembly:
    """A cone of stacked cylinders with reflective bands, or a slim delineator post."""
    colour, paint = draws.body_colour({"orange": 0.85, "red": 0.15})
    post = draws.chance(0.15) if tall is None else tall
    it = Assembly("traffic cone", "delineator" if post else "traffic cone", colour=colour)
    height = draws.uniform(0.95, 1.15) if post else draws.weighted({0.7: 0.3, 0.95: 0.45, 1.1: 0.25})
    base = 0.4 if height > 0.6 else 0.3
    it.box((0, 0, 0.03), (base, base, 0.06), RUBBER if draws.chance(0.5) else paint)
    band: RGB = (0.92, 0.92, 0.9)
    if post:
        it.rod((0, 0, 0.05), (0, 0, height), 0.06, paint)
        it.rod((0, 0, height * 0.6), (0, 0, height * 0.72), 0.066, band, reflectance=1.0)
        return it
    steps = 5
    for i in range(steps):  # a tapering stack; two of the steps are reflective bands
        z0, z1 = 0.05 + i * (height - 0.05) / steps, 0.05 + (i + 1) * (height - 0.05) / steps
        radius = base * (0.42 - 0.075 * i)
        banded = i in (1, 3)
        it.rod((0, 0, z0), (0, 0, z1), radius, band if banded else paint, reflectance=1.0 if banded else 0.4)
    return it


def barrier(draws: Draws, variant: str | None = None, *, paint: tuple[int, RGB] | None = None) -> Assembly:
    """A concrete or plastic barrier or a construction fence, along y: nuScenes has its depth in x."""
    variant = variant or draws.weighted(
        {"concrete barrier": 0.4, "plastic barrier": 0.4, "construction fence": 0.2}
    )
    it = Assembly("barrier", variant)
    length = draws.uniform(1.8, 2.6)
    if variant == "concrete barrier":
        it.colour, tint = paint or (COLOURS.index("grey"), draws.shade((0.58, 0.57, 0.54)))
        it.box((0, 0, 0.13), (0.58, length, 0.26), tint)
        it.box((0, 0, 0.4), (0.38, length, 0.3), tint)
        it.box((0, 0, 0.78), (0.22, length, 0.5), tint)
    elif variant == "plastic barrier":
        it.colour, tint = paint or draws.body_colour({"orange": 0.4, "red": 0.3, "white": 0.2, "yellow": 0.1})
        it.box((0, 0, 0.18), (0.5, length, 0.34), tint)
        it.box((0, 0, 0.66), (0.26, length, 0.62), tint)
        it.box((0, 0, 0.72), (0.3, length * 0.5, 0.2), (0.92, 0.92, 0.9), reflectance=0.9)
    else:
        it.colour, tint = paint or (COLOURS.index("grey"), draws.shade(METAL))
        for side in (-1, 1):
            y = side * (length / 2 - 0.04)
            it.rod((0, y, 0.05), (0, y, 1.1), 0.03, tint)
            it.box((0, y * 0.9, 0.04), (0.5, 0.2, 0.08), DARK_METAL)
        for z in (0.2, 1.08):
            it.rod((0, -length / 2, z), (0, length / 2, z), 0.03, tint)
        for i in range(7):
            y = (i - 3) * length / 7.5
            it.rod((0, y, 0.2), (0, y, 1.08), 0.018, tint)
    return it


def debris(draws: Draws, variant: str | None = None) -> Assembly:
    """A heap of soil with rubble, a pile of boards, or rubbish bags."""
    variant = variant or draws.weighted({"heap": 0.45, "boards": 0.25, "bags": 0.3})
    it = Assembly("debris", variant)
    size = draws.uniform(0.9, 2.6)
    {"heap": _heap, "boards": _boards, "bags": _bags}[variant](draws, it, size)
    return it


def _heap(draws: Draws, it: Assembly, size: float) -> None:
    it.colour = COLOURS.index("brown")
    soil = draws.shade((0.36, 0.27, 0.18))
    for i in range(3):
        x, y = (0.0, 0.0) if i == 0 else (draws.normal(0, size * 0.25), draws.normal(0, size * 0.25))
        wide = size * (1.0 if i == 0 else draws.uniform(0.4, 0.7))
        shade, high = draws.shade(soil), wide * draws.uniform(0.4, 0.55)
        it.rod(
            (x, y, 0), (x, y, high * 0.4), wide * 0.48, shade
        )  # a foot, so that the heap does not overhang
        it.ellipsoid((x, y, high / 2), (wide * 0.93, wide * 0.93, high), shade)
    for _ in range(4):
        x, y = draws.normal(0, size * 0.35), draws.normal(0, size * 0.35)
        it.box(
            (x, y, 0.1),
            (0.25, 0.18, 0.18),
            draws.shade((0.5, 0.48, 0.45)),
            yaw=draws.uniform(0, 3),
            pitch=0.3,
        )


def _boards(draws: Draws, it: Assembly, size: float) -> None:
    it.colour = COLOURS.index("brown")
    for i in range(draws.integer(4, 7)):
        yaw, tilt = draws.normal(0, 0.35), draws.normal(0, 0.06)
        board = draws.shade((0.5, 0.36, 0.2), 0.25)
        it.box(
            (draws.normal(0, 0.15), draws.normal(0, 0.25), 0.06 + 0.07 * i),
            (size * 1.2, 0.2, 0.06),
            board,
            yaw=yaw,
            pitch=tilt,
        )


def _bags(draws: Draws, it: Assembly, size: float) -> None:
    reach = 0.15 * size + 0.1
    colour, paint = draws.body_colour({"black": 0.5, "white": 0.3, "blue": 0.2})
    it.colour = colour
    for i in range(draws.integer(3, 6)):
        x, y = (0.0, 0.0) if i == 0 else (draws.normal(0, reach), draws.normal(0, reach))
        z = 0.24 if i < 4 else 0.55
        it.ellipsoid(
            (x, y, z), (draws.uniform(0.45, 0.65), 0.5, 0.48), draws.shade(paint), yaw=draws.uniform(0, 3)
        )


def movable_object(draws: Draws, variant: str | None = None) -> Assembly:
    """A wheelie bin, pushchair, trolley, hand truck or pallet with boxes."""
    variant = variant or draws.weighted(
        {"wheelie bin": 0.5, "pushchair": 0.15, "trolley": 0.15, "skip": 0.05, "pallet": 0.15}
    )
    builders = {
        "wheelie bin": _bin,
        "pushchair": _pushchair,
        "trolley": _trolley,
        "skip": _skip,
        "pallet": _pallet,
    }
    it = Assembly("movable object", variant)
    builders[variant](draws, it)
    return it


def _bin(draws: Draws, it: Assembly) -> None:
    it.colour, paint = draws.body_colour(
        {"green": 0.35, "blue": 0.25, "black": 0.2, "grey": 0.12, "yellow": 0.08}
    )
    k = draws.uniform(0.9, 1.1)
    it.box((0, 0, 0.5 * k), (0.5 * k, 0.5 * k, 0.86 * k), paint)
    it.box((0.02, 0, 0.97 * k), (0.6 * k, 0.56 * k, 0.1 * k), draws.shade(paint, 0.3), pitch=0.08)
    for side in (-1, 1):
        it.wheel((-0.22 * k, side * 0.22 * k, 0.1 * k), 0.1 * k, 0.06, RUBBER)
    it.rod((-0.34 * k, -0.2 * k, 0.98 * k), (-0.34 * k, 0.2 * k, 0.98 * k), 0.02, DARK_METAL)


def _pushchair(draws: Draws, it: Assembly) -> None:
    it.colour, paint = draws.body_colour({"black": 0.3, "grey": 0.2, "red": 0.2, "blue": 0.2, "green": 0.1})
    for side in (-1, 1):
        it.wheel((0.35, side * 0.24, 0.1), 0.1, 0.05, RUBBER)
        it.wheel((-0.25, side * 0.27, 0.13), 0.13, 0.05, RUBBER)
        it.rod((0.35, side * 0.24, 0.1), (-0.5, side * 0.24, 1.02), 0.018, DARK_METAL)
        it.rod((-0.25, side * 0.25, 0.13), (0.0, side * 0.24, 0.55), 0.018, DARK_METAL)
    it.rod((-0.5, -0.24, 1.02), (-0.5, 0.24, 1.02), 0.022, DARK_METAL)
    it.box((0.08, 0, 0.5), (0.45, 0.4, 0.22), paint)
    it.box((-0.17, 0, 0.72), (0.14, 0.4, 0.5), paint, pitch=-0.35)
    it.ellipsoid((-0.12, 0, 0.92), (0.5, 0.42, 0.36), paint)


def _trolley(draws: Draws, it: Assembly) -> None:
    it.colour, paint = draws.body_colour({"grey": 0.7, "red": 0.15, "blue": 0.15})
    for x in (-0.35, 0.35):
        for y in (-0.22, 0.22):
            it.wheel((x, y, 0.07), 0.07, 0.04, RUBBER)
            it.rod((x, y, 0.1), (x * 1.1, y, 0.92), 0.016, paint)
    it.box((0, 0, 0.35), (0.85, 0.5, 0.03), paint)
    for side in (-1, 1):
        it.box((0, side * 0.26, 0.7), (0.85, 0.02, 0.4), paint)
    it.box((0.42, 0, 0.7), (0.02, 0.52, 0.4), paint)
    it.rod((-0.52, -0.26, 1.0), (-0.52, 0.26, 1.0), 0.025, DARK_METAL)
    if draws.chance(0.5):
        it.box((0, 0, 0.55), (0.5, 0.4, 0.35), draws.shade((0.5, 0.38, 0.24)))


def _skip(draws: Draws, it: Assembly) -> None:
    it.colour, paint = draws.body_colour({"yellow": 0.4, "blue": 0.3, "green": 0.3})
    length = draws.uniform(1.4, 2.2)
    it.box((0, 0, 0.6), (length, 1.2, 0.9), paint)
    it.box((0, 0, 1.02), (length * 0.9, 1.08, 0.1), (0.25, 0.22, 0.18))
    for x in (-0.4, 0.4):
        for y in (-0.45, 0.45):
            it.wheel((x * length, y, 0.08), 0.08, 0.07, RUBBER)


def _pallet(draws: Draws, it: Assembly) -> None:
    it.colour, wood = COLOURS.index("brown"), draws.shade((0.5, 0.36, 0.2))
    for y in (-0.35, 0.0, 0.35):
        it.box((0, y, 0.05), (1.15, 0.1, 0.1), wood)
    it.box((0, 0, 0.12), (1.2, 0.8, 0.04), wood)
    for level in range(draws.integer(1, 3)):
        for x in (-0.3, 0.3):
            size = draws.uniform(0.3, 0.38)
            it.box(
                (x, draws.uniform(-0.05, 0.05), 0.14 + size * (level + 0.5)),
                (0.54, 0.66, size),
                draws.shade((0.52, 0.38, 0.22)),
            )
    it.rod((-0.6, 0, 0.1), (-0.95, 0, 1.05 + 0.1 * math.sin(draws.uniform(0, 3))), 0.03, DARK_METAL)
