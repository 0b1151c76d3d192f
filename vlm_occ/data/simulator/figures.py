"""People and animals with jointed limbs."""

from __future__ import annotations

import math

from vlm_occ.data.simulator.assemblies import Assembly, Point
from vlm_occ.data.simulator.draws import RGB, Draws
from vlm_occ.types import COLOURS

SKINS: tuple[RGB, ...] = ((0.85, 0.66, 0.54), (0.72, 0.52, 0.38), (0.5, 0.34, 0.23), (0.3, 0.2, 0.14))
CLOTHES = {
    "white": 0.16,
    "black": 0.22,
    "grey": 0.14,
    "red": 0.11,
    "blue": 0.15,
    "green": 0.07,
    "yellow": 0.06,
    "orange": 0.03,
    "brown": 0.06,
}
_HI_VIS = {"orange": 0.55, "yellow": 0.45}


def pedestrian(draws: Draws, variant: str | None = None, *, walking: bool = False) -> Assembly:
    """A person (adult, child or worker) facing +x, standing or in mid-step."""
    variant = variant or draws.weighted({"adult": 0.84, "child": 0.11, "worker": 0.05})
    worker = variant == "worker"
    colour, shirt = draws.body_colour(_HI_VIS if worker else CLOTHES)
    tall = draws.normal(1.2, 0.12) if variant == "child" else draws.normal(1.73, 0.085)
    trousers = draws.paint(draws.weighted({"black": 0.4, "grey": 0.25, "blue": 0.25, "brown": 0.1}))
    it = Assembly("pedestrian", variant, colour=colour)
    k, stout = tall / 1.75, draws.uniform(0.9, 1.2)
    swing = draws.uniform(0.25, 0.5) * draws.sign() if walking else draws.uniform(-0.06, 0.06)
    glow = 0.75 if worker else 0.3
    for side in (-1, 1):
        hip = (0.0, side * 0.1 * k, 0.86 * k)
        foot = (side * 0.8 * swing * k, side * 0.11 * k, 0.05)
        it.rod(hip, foot, 0.075 * k * stout, trousers)
        it.box((foot[0] + 0.06 * k, foot[1], 0.045), (0.26 * k, 0.1 * k, 0.09), (0.08, 0.07, 0.07))
        _arm(draws, it, side, k, swing, shirt, glow)
    it.ellipsoid((0, 0, 1.14 * k), (0.3 * k * stout, 0.46 * k * stout, 0.74 * k), shirt, reflectance=glow)
    it.box((0, 0, 1.2 * k), (0.22 * k, 0.38 * k * stout, 0.46 * k), shirt, reflectance=glow)
    skin = draws.choice(SKINS)
    it.ellipsoid((0.01, 0, 1.62 * k), (0.21 * k, 0.18 * k, 0.26 * k), skin)
    hair = draws.paint("yellow" if draws.chance(0.1) else draws.choice(("black", "brown")))
    hat = draws.paint(draws.choice(("yellow", "white", "orange"))) if worker else hair
    it.ellipsoid((-0.02, 0, 1.67 * k), (0.24 * k, 0.2 * k, 0.2 * k), hat)
    if not worker and draws.chance(0.2):
        it.box((-0.2 * k, 0, 1.2 * k), (0.18 * k, 0.3 * k, 0.42 * k), draws.paint(draws.weighted(CLOTHES)))
    if worker:
        it.box(
            (0, 0, 1.12 * k), (0.32 * k * stout, 0.48 * k * stout, 0.07), (0.9, 0.9, 0.85), reflectance=1.0
        )
    return it


def _arm(draws: Draws, it: Assembly, side: int, k: float, swing: float, shirt: RGB, glow: float) -> None:
    """An arm that swings against the leg of its side, or hangs, or is bent to a telephone."""
    shoulder: Point = (0.0, side * 0.23 * k, 1.4 * k)
    reach = -side * 0.6 * swing * k
    elbow: Point = (reach * 0.5, side * 0.28 * k, 1.13 * k)
    hand: Point = (reach + 0.06, side * 0.27 * k, 0.88 * k)
    if abs(swing) < 0.1 and draws.chance(0.25):
        hand = (0.25 * k, side * 0.16 * k, draws.uniform(1.15, 1.5) * k)
    it.rod(shoulder, elbow, 0.055 * k, shirt, reflectance=glow)
    it.rod(elbow, hand, 0.048 * k, shirt if draws.chance(0.6) else SKINS[1], reflectance=glow)


def rider(draws: Draws, it: Assembly, seat: Point, grip: Point, pedal: Point, width: float) -> None:
    """Add a person who sits at `seat`, holds `grip` and has the feet at `pedal`."""
    shirt = draws.paint(draws.weighted(CLOTHES))
    trousers = draws.paint(draws.choice(("black", "grey", "blue")))
    shoulder = (seat[0] + 0.6 * (grip[0] - seat[0]) * 0.7, 0.0, seat[2] + 0.55)
    it.rod((seat[0], 0, seat[2]), shoulder, 0.16, shirt)
    for side in (-1, 1):
        knee = (seat[0] + 0.38, side * 0.14, seat[2] - 0.12 + side * 0.06)
        it.rod((seat[0], side * 0.1, seat[2]), knee, 0.08, trousers)
        it.rod(knee, (pedal[0], side * 0.13, pedal[2] + side * 0.1), 0.065, trousers)
        it.rod(
            (shoulder[0], side * 0.2, shoulder[2] - 0.04), (grip[0], side * width / 2, grip[2]), 0.05, shirt
        )
    head = (shoulder[0] + 0.08, 0.0, shoulder[2] + 0.22)
    it.ellipsoid(head, (0.22, 0.19, 0.27), draws.choice(SKINS))
    helmet = draws.paint(draws.choice(("black", "white", "red", "blue")))
    it.ellipsoid((head[0] - 0.01, 0, head[2] + 0.06), (0.28, 0.23, 0.22), helmet)


_ANIMALS = {  # length of the trunk, height of the back, thickness, neck length, head length, colours
    "dog": (0.65, 0.55, 0.24, 0.16, 0.26, {"brown": 0.4, "black": 0.25, "white": 0.2, "grey": 0.15}),
    "deer": (1.25, 1.0, 0.4, 0.5, 0.32, {"brown": 1.0}),
    "cow": (1.5, 1.35, 0.68, 0.3, 0.45, {"brown": 0.4, "black": 0.3, "white": 0.3}),
}


def animal(draws: Draws, variant: str | None = None, *, walking: bool = False) -> Assembly:
    """A dog, a deer or a cow facing +x."""
    variant = variant or draws.weighted({"dog": 0.6, "deer": 0.2, "cow": 0.2})
    length, back, thick, neck, head, colours = _ANIMALS[variant]
    k = draws.uniform(0.65, 1.35) if variant == "dog" else draws.normal(1.0, 0.1)
    length, back, thick, neck, head = (v * k for v in (length, back, thick, neck, head))
    colour, fur = draws.body_colour(colours)
    it = Assembly("animal", variant, colour=colour)
    it.ellipsoid((0, 0, back - thick / 2), (length * 1.1, thick * 0.8, thick), fur)
    it.box((0, 0, back - thick / 2), (length * 0.75, thick * 0.6, thick * 0.7), fur)
    swing = draws.uniform(0.1, 0.22) * length if walking else 0.0
    for end in (-1, 1):
        for side in (-1, 1):
            hip = (end * length * 0.38, side * thick * 0.26, back - thick * 0.6)
            foot = (hip[0] + end * side * swing, hip[1], 0.02)
            it.rod(hip, foot, 0.07 * thick + 0.02, fur)
    rise = math.radians(draws.uniform(20, 60)) if variant != "cow" else math.radians(draws.uniform(-35, 25))
    chest = (length * 0.42, 0.0, back - thick * 0.3)
    nape = (chest[0] + neck * math.cos(rise), 0.0, chest[2] + neck * math.sin(rise))
    it.rod(chest, nape, thick * 0.22, fur)
    it.ellipsoid((nape[0] + head * 0.3, 0, nape[2]), (head, head * 0.5, head * 0.55), fur)
    it.rod(
        (-length * 0.5, 0, back - thick * 0.2),
        (-length * 0.65, 0, back - thick * draws.uniform(0.0, 1.1)),
        0.03,
        fur,
    )
    for side in (-1, 1):
        ear = (nape[0] + head * 0.1, side * head * 0.22, nape[2] + head * 0.35)
        it.ellipsoid(ear, (head * 0.2, head * 0.2, head * 0.3), fur)
        if variant == "deer" and colour == COLOURS.index("brown") and back > 1.0:
            it.rod(ear, (ear[0] - 0.1, ear[1] * 3.5, ear[2] + 0.45), 0.025, (0.5, 0.4, 0.28))
    return it
