"""Bicycles, motorcycles and bicycle racks."""

from __future__ import annotations

from vlm_occ.data.simulator.assemblies import Assembly
from vlm_occ.data.simulator.draws import DARK_METAL, METAL, RUBBER, Draws
from vlm_occ.data.simulator.figures import rider
from vlm_occ.types import COLOURS

_FRAME_COLOURS = {
    "black": 0.3,
    "grey": 0.15,
    "red": 0.15,
    "blue": 0.15,
    "green": 0.1,
    "white": 0.1,
    "yellow": 0.05,
}


def bicycle(draws: Draws, *, ridden: bool = False, light: bool = False) -> Assembly:
    """A bicycle facing +x, with or without its rider; `light` has fewer parts, for racks."""
    colour, paint = draws.body_colour(_FRAME_COLOURS)
    it = Assembly("bicycle", "cyclist" if ridden else "bicycle", colour=-1 if ridden else colour)
    radius, base = draws.uniform(0.31, 0.35), draws.uniform(0.98, 1.08)
    front, rear = (base / 2, 0.0, radius), (-base / 2, 0.0, radius)
    for wheel in (front, rear):
        it.wheel(wheel, radius, 0.045, RUBBER)
        if not light:
            it.wheel(wheel, radius * 0.8, 0.055, (0.5, 0.5, 0.5))
    crank, saddle, stem = (-0.05, 0.0, 0.28), (-0.25, 0.0, 0.93), (base / 2 - 0.16, 0.0, 0.9)
    bars = ((stem, front), (saddle, crank), (stem, crank), (stem, (saddle[0] + 0.05, 0.0, 0.8)))
    for start, end in (*bars, (crank, rear), ((-0.22, 0.0, 0.75), rear)):
        it.rod(start, end, 0.024, paint)
    grip = (stem[0] + 0.04, 0.0, 1.03)
    it.rod((grip[0], -0.29, grip[2]), (grip[0], 0.29, grip[2]), 0.018, DARK_METAL)
    it.rod(stem, grip, 0.02, DARK_METAL)
    it.box((saddle[0] - 0.02, 0, saddle[2] + 0.02), (0.26, 0.14, 0.06), DARK_METAL)
    if not ridden and not light and draws.chance(0.4):
        it.box((front[0], 0, 0.82), (0.32, 0.38, 0.26), draws.shade((0.4, 0.3, 0.2)))
    if ridden:
        rider(draws, it, (saddle[0], 0.0, saddle[2] + 0.1), grip, (crank[0], 0.0, crank[2]), 0.5)
    return it


def motorcycle(draws: Draws, *, ridden: bool = False) -> Assembly:
    """A motorcycle or a scooter facing +x, with or without its rider."""
    colour, paint = draws.body_colour(
        {"black": 0.3, "red": 0.2, "blue": 0.15, "white": 0.15, "yellow": 0.1, "green": 0.1}
    )
    scooter = draws.chance(0.4)
    it = Assembly("motorcycle", "scooter" if scooter else "motorcycle", colour=colour)
    radius = 0.24 if scooter else 0.31
    base = 1.28 if scooter else draws.uniform(1.38, 1.55)
    front, rear = base / 2, -base / 2
    for x in (front, rear):
        it.wheel((x, 0, radius), radius, 0.13, RUBBER)
        it.wheel((x, 0, radius), radius * 0.6, 0.15, METAL)
    grip = (front - 0.3, 0.0, 1.03)
    it.rod((front, 0, radius), (grip[0], 0, grip[2]), 0.05, DARK_METAL)
    it.rod((grip[0], -0.36, grip[2]), (grip[0], 0.36, grip[2]), 0.025, DARK_METAL)
    seat = (-0.28, 0.0, 0.82)
    if scooter:
        it.box((-0.38, 0, 0.52), (0.85, 0.34, 0.42), paint)
        it.beam((front - 0.22, 0, 0.35), (front - 0.34, 0, 0.95), 0.4, 0.1, paint)
        it.box((0.12, 0, 0.3), (0.5, 0.32, 0.1), paint)
    else:
        it.box((-0.02, 0, 0.45), (0.55, 0.3, 0.38), DARK_METAL)
        it.ellipsoid((0.1, 0, 0.84), (0.62, 0.36, 0.36), paint)
        it.box((-0.55, 0, 0.78), (0.5, 0.24, 0.16), paint)
        it.rod((-0.1, -0.2, 0.34), (-0.8, -0.22, 0.42), 0.06, METAL)
    it.box((seat[0], 0, seat[2]), (0.62, 0.28, 0.1), (0.05, 0.05, 0.05))
    it.ellipsoid((front - 0.12, 0, 0.9), (0.24, 0.22, 0.24), paint if scooter else (0.85, 0.84, 0.75))
    it.box((rear - 0.12, 0, 0.66), (0.06, 0.18, 0.12), (0.7, 0.04, 0.04), reflectance=0.9)
    if scooter and draws.chance(0.35):
        it.box((-0.78, 0, 1.02), (0.42, 0.42, 0.4), draws.paint(draws.choice(("green", "black", "orange"))))
    if ridden:
        rider(draws, it, (seat[0], 0.0, seat[2] + 0.12), grip, (0.05, 0.0, 0.3), 0.66)
    return it


def bicycle_rack(draws: Draws) -> Assembly:
    """A row of hoops with some bicycles in it; the row runs along x."""
    it = Assembly("bicycle rack", "bicycle rack", colour=-1)
    count, gap = draws.integer(5, 11), draws.uniform(0.75, 0.95)
    steel = draws.shade(METAL)
    full = draws.uniform(0.3, 0.8)
    for i in range(count):
        x = (i - (count - 1) / 2) * gap
        for y in (-0.35, 0.35):
            it.rod((x, y, 0), (x, y, 0.78), 0.03, steel)
        it.rod((x, -0.38, 0.78), (x, 0.38, 0.78), 0.03, steel)
        if draws.chance(full):
            bike = bicycle(draws, light=True)
            it.merge(bike, x=x + 0.3, y=draws.uniform(-0.15, 0.15), yaw=1.5708 * draws.sign())
    if all(part[0] for part in it.parts):  # no bicycle yet (only a saddle is a box)
        it.merge(bicycle(draws, light=True), x=0.3, yaw=1.5708)
    it.colour = COLOURS.index("grey") if full < 0.35 else -1
    return it
