"""Construction vehicles: jointed machines whose boxes are mostly empty."""

from __future__ import annotations

import math

from vlm_occ.data.simulator.assemblies import Assembly, Point
from vlm_occ.data.simulator.draws import DARK_METAL, GLASS, METAL, RGB, RUBBER, Draws
from vlm_occ.data.simulator.vehicles import wheels

MACHINE_COLOURS = {"yellow": 0.6, "orange": 0.22, "green": 0.06, "red": 0.06, "white": 0.06}
MACHINE_VARIANTS = {"excavator": 0.45, "wheel loader": 0.25, "dumper": 0.15, "mobile crane": 0.15}


def construction_vehicle(draws: Draws, variant: str | None = None) -> Assembly:
    """An excavator, a wheel loader, a dumper or a mobile crane with its joints at any angle."""
    variant = variant or draws.weighted(MACHINE_VARIANTS)
    colour, paint = draws.body_colour(MACHINE_COLOURS)
    it = Assembly("construction vehicle", variant, colour=colour)
    builders = {"excavator": _excavator, "wheel loader": _loader, "dumper": _dumper, "mobile crane": _crane}
    builders[variant](draws, it, paint)
    return it


def _cab(
    it: Assembly, x: float, y: float, floor: float, top: float, size: tuple[float, float], paint: RGB
) -> None:
    """A glazed cab with a painted roof and corner posts."""
    length, width = size
    it.box((x, y, (floor + top) / 2), (length * 0.94, width * 0.94, top - floor), GLASS, reflectance=0.1)
    it.box((x, y, top), (length * 1.05, width * 1.05, 0.12), paint)
    it.box((x, y, floor + 0.2), (length, width, 0.45), paint)
    for side in (-1, 1):
        it.box(
            (x - length * 0.45, y + side * width * 0.46, (floor + top) / 2), (0.12, 0.12, top - floor), paint
        )


def _excavator(draws: Draws, it: Assembly, paint: RGB) -> None:
    """Tracks, a slewing house with cab and counterweight, a bent boom, an arm and a bucket."""
    k = draws.choice((0.5, 0.65, 0.8, 0.9, 1.05))
    for side in (-1, 1):
        y = side * 1.1 * k
        it.box((0, y, 0.42 * k), (2.9 * k, 0.5 * k, 0.7 * k), RUBBER)
        for end in (-1, 1):
            it.wheel((end * 1.45 * k, y, 0.42 * k), 0.4 * k, 0.5 * k, RUBBER)
    it.rod((0, 0, 0.4 * k), (0, 0, 1.05 * k), 0.6 * k, DARK_METAL)
    house = Assembly("construction vehicle", "house")
    house.box((-0.55 * k, 0, 1.45 * k), (2.5 * k, 2.3 * k, 0.85 * k), paint)
    house.box((-1.75 * k, 0, 1.4 * k), (0.6 * k, 2.2 * k, 1.0 * k), DARK_METAL)
    _cab(house, 0.85 * k, 0.7 * k, 1.05 * k, 2.85 * k, (1.3 * k, 0.95 * k), paint)
    root: Point = (0.9 * k, -0.2 * k, 1.5 * k)
    lift = math.radians(draws.uniform(35, 62))
    knee = _reach(root, 2.3 * k, lift)
    house.beam(root, knee, 0.38 * k, 0.5 * k, paint)
    bent = lift - math.radians(draws.uniform(28, 50))
    tip = _reach(knee, 2.6 * k, bent)
    house.beam(knee, tip, 0.34 * k, 0.42 * k, paint)
    drop = math.radians(draws.uniform(-115, -55))
    hand = _reach(tip, 2.4 * k, drop)
    if hand[2] < 0.55 * k:  # the bucket stays above the ground
        drop = -math.asin(min(0.99, max(0.1, (tip[2] - 0.6 * k) / (2.4 * k))))
        hand = _reach(tip, 2.4 * k, drop)
    house.beam(tip, hand, 0.28 * k, 0.34 * k, paint)
    house.rod((root[0], root[1], root[2] - 0.2 * k), _reach(root, 1.9 * k, lift - 0.22), 0.09 * k, METAL)
    house.rod(
        (knee[0] + 0.4 * k, knee[1], knee[2] + 0.35 * k), _reach(tip, 0.3 * k, bent + 1.2), 0.08 * k, METAL
    )
    curl = draws.uniform(-0.7, 0.7)
    house.box(
        (hand[0] - 0.15 * k, hand[1], hand[2] - 0.2 * k),
        (0.75 * k, 0.95 * k, 0.6 * k),
        DARK_METAL,
        pitch=curl,
    )
    it.merge(house, yaw=draws.normal(0, 0.9, limit=2.5))


def _reach(start: Point, length: float, elevation: float) -> Point:
    """The point `length` metres from `start` in the x-z plane."""
    return (start[0] + length * math.cos(elevation), start[1], start[2] + length * math.sin(elevation))


def _loader(draws: Draws, it: Assembly, paint: RGB) -> None:
    """A wheel loader: two bodies on a joint, big wheels, lift arms and a wide bucket."""
    k = draws.uniform(0.65, 1.0)
    radius = 0.72 * k
    it.box((-1.6 * k, 0, 1.35 * k), (2.5 * k, 1.7 * k, 1.1 * k), paint)
    it.box((-2.9 * k, 0, 1.1 * k), (0.35 * k, 2.1 * k, 0.8 * k), DARK_METAL)
    _cab(it, -0.1 * k, 0, 1.3 * k, 3.2 * k, (1.3 * k, 1.4 * k), paint)
    fore = Assembly("construction vehicle", "fore")
    fore.box((1.1 * k, 0, 0.95 * k), (1.5 * k, 1.1 * k, 0.7 * k), paint)
    wheels(fore, (1.2 * k,), 1.25 * k, radius, 0.55 * k)
    lift = math.radians(draws.uniform(-22, 42))
    for side in (-1, 1):
        root = (0.9 * k, side * 0.5 * k, 1.5 * k)
        fore.beam(root, _reach(root, 2.3 * k, lift), 0.18 * k, 0.35 * k, paint)
    end = _reach((0.9 * k, 0, 1.5 * k), 2.35 * k, lift)
    z = max(end[2], 0.55 * k)
    curl = draws.uniform(-0.6, 0.2)
    fore.box((end[0] + 0.1 * k, 0, z - 0.2 * k), (0.12 * k, 2.6 * k, 0.9 * k), DARK_METAL, pitch=curl)
    fore.box((end[0] + 0.55 * k, 0, z - 0.52 * k), (1.0 * k, 2.6 * k, 0.14 * k), DARK_METAL, pitch=curl * 0.4)
    for side in (-1, 1):
        fore.box((end[0] + 0.5 * k, side * 1.27 * k, z - 0.3 * k), (0.7 * k, 0.07, 0.5 * k), DARK_METAL)
    it.merge(fore, yaw=draws.normal(0, 0.2))
    wheels(it, (-1.7 * k,), 1.25 * k, radius, 0.55 * k)


def _dumper(draws: Draws, it: Assembly, paint: RGB) -> None:
    """A site dumper: a skip in front that may be tipped, a seat with a roll bar behind."""
    k = draws.uniform(0.8, 1.15)
    tip = draws.uniform(0.2, 0.8) if draws.chance(0.35) else 0.0
    skip = (1.0 * k, 0.0, 1.25 * k + 0.2 * tip)
    it.box(skip, (1.9 * k, 1.9 * k, 0.85 * k), paint, pitch=tip)
    it.box((1.75 * k, 0, skip[2] + 0.25 * k - 0.8 * tip), (0.7 * k, 1.8 * k, 0.5 * k), paint, pitch=tip + 0.5)
    if tip == 0.0 and draws.chance(0.6):
        it.ellipsoid((1.0 * k, 0, 1.68 * k), (1.6 * k, 1.6 * k, 0.7 * k), (0.34, 0.27, 0.2))
    it.box((0.0, 0, 0.7 * k), (3.0 * k, 0.9 * k, 0.4 * k), DARK_METAL)
    it.box((-1.2 * k, 0, 1.1 * k), (1.3 * k, 1.3 * k, 0.6 * k), paint)
    it.box((-0.55 * k, 0, 1.4 * k), (0.5 * k, 0.5 * k, 0.4 * k), (0.06, 0.06, 0.06))
    for side in (-1, 1):
        it.rod((-0.9 * k, side * 0.6 * k, 1.3 * k), (-0.9 * k, side * 0.6 * k, 2.6 * k), 0.06, DARK_METAL)
    it.rod((-0.9 * k, -0.6 * k, 2.6 * k), (-0.9 * k, 0.6 * k, 2.6 * k), 0.06, DARK_METAL)
    wheels(it, (0.9 * k, -1.2 * k), 1.05 * k, 0.52 * k, 0.45 * k)


def _crane(draws: Draws, it: Assembly, paint: RGB) -> None:
    """A mobile crane: a long carrier, a slewing cab and a telescopic boom raised over it."""
    length, width = draws.uniform(8.0, 10.5), 2.6
    front, rear = length / 2, -length / 2
    it.box((0, 0, 1.05), (length, width, 0.5), paint)
    it.box((front - 0.9, 0, 1.75), (1.8, width, 1.1), paint)
    it.box((front - 0.6, 0, 2.0), (1.3, width + 0.03, 0.5), GLASS, reflectance=0.1)
    wheels(it, (front - 1.4, front - 3.0, rear + 3.0, rear + 1.5), width / 2, 0.55, 0.4)
    top = Assembly("construction vehicle", "top")
    top.box((-0.9, 0, 1.9), (2.6, 2.1, 1.1), paint)
    _cab(top, 0.3, 0.85, 1.4, 2.8, (1.4, 0.8), paint)
    root: Point = (-1.2, -0.25, 2.4)
    lift = math.radians(draws.uniform(4, 22))
    reach = draws.uniform(5.5, 8.5)
    middle = _reach(root, reach * 0.6, lift)
    top.beam(root, middle, 0.6, 0.7, paint)
    end = _reach(root, reach, lift)
    top.beam(middle, end, 0.45, 0.5, paint)
    hook = (end[0] - 0.1, end[1], max(end[2] - draws.uniform(0.8, 1.8), 2.2))
    top.rod(end, hook, 0.03, DARK_METAL)
    top.box(hook, (0.3, 0.2, 0.4), DARK_METAL)
    it.merge(top, x=rear + 3.4, yaw=draws.normal(0, 0.2))
