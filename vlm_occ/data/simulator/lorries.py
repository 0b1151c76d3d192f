"""Lorries, trailers and buses."""

from __future__ import annotations

from vlm_occ.data.simulator.assemblies import Assembly
from vlm_occ.data.simulator.draws import DARK_METAL, GLASS, METAL, RGB, Draws
from vlm_occ.data.simulator.vehicles import LAMP, TAIL, lamps, wheels
from vlm_occ.types import COLOURS

LORRY_COLOURS = {
    "white": 0.4,
    "blue": 0.15,
    "red": 0.12,
    "yellow": 0.1,
    "green": 0.1,
    "grey": 0.08,
    "orange": 0.05,
}


def lorry_cab(
    it: Assembly, front: float, width: float, height: float, depth: float, paint: RGB, floor: float
) -> None:
    """A cab over the engine: box, windscreen, side windows, bumper, mirrors, lamps."""
    it.box((front - depth / 2, 0, (floor + height) / 2), (depth, width, height - floor), paint)
    sight = floor + (height - floor) * 0.62
    it.box((front + 0.01, 0, sight), (0.06, width * 0.9, (height - floor) * 0.32), GLASS, reflectance=0.1)
    it.box(
        (front - depth * 0.42, 0, sight),
        (depth * 0.5, width + 0.03, (height - floor) * 0.28),
        GLASS,
        reflectance=0.1,
    )
    it.box((front, 0, floor + 0.12), (0.12, width, 0.42), DARK_METAL)
    for side in (-1, 1):
        it.box(
            (front + 0.03, side * (width / 2 - 0.3), floor + 0.3), (0.06, 0.3, 0.18), LAMP, reflectance=0.7
        )
        it.box((front - 0.05, side * (width / 2 + 0.03), sight), (0.1, 0.16, 0.5), DARK_METAL)


TRUCK_VARIANTS = {"box truck": 0.5, "flatbed truck": 0.17, "tanker": 0.1, "tipper": 0.13, "tow truck": 0.1}


def truck(draws: Draws, variant: str | None = None) -> Assembly:
    """A lorry: cab, chassis, wheels and a box, flat bed, tank or tipping body."""
    variant = variant or draws.weighted(TRUCK_VARIANTS)
    colour, paint = draws.body_colour(LORRY_COLOURS)
    light = variant == "box truck" and draws.chance(0.45)
    length = draws.uniform(5.4, 7.0) if light else draws.uniform(7.2, 10.0)
    width = draws.uniform(2.0, 2.3) if light else draws.uniform(2.4, 2.6)
    top = draws.uniform(2.6, 3.1) if light else draws.uniform(3.2, 3.8)
    depth, cab_top = (1.6, min(2.3, top)) if light else (draws.uniform(1.7, 2.2), draws.uniform(2.6, 3.1))
    floor = 0.55 if light else 0.7
    front, rear = length / 2, -length / 2
    it = Assembly("truck", variant, colour=colour)
    lorry_cab(it, front, width, cab_top, depth, paint, floor - 0.2)
    it.box(((rear + front) / 2, 0, floor), (length - 0.3, width * 0.45, 0.25), DARK_METAL)
    bed_front = front - depth - 0.15
    _load(draws, it, variant, (rear + 0.02, bed_front), width, floor + 0.15, top, paint)
    radius = 0.4 if light else draws.uniform(0.48, 0.53)
    rear_axles = (
        (rear + 0.24 * length,)
        if light or draws.chance(0.5)
        else (rear + 0.26 * length, rear + 0.26 * length - 1.25)
    )
    wheels(it, (front - depth * 0.62, *rear_axles), width / 2, radius, 0.3, steer=draws.normal(0, 0.1))
    for side in (-1, 1):
        it.box((rear, side * (width / 2 - 0.25), floor), (0.08, 0.3, 0.16), TAIL, reflectance=0.9)
    return it


def _load(
    draws: Draws,
    it: Assembly,
    variant: str,
    span: tuple[float, float],
    width: float,
    floor: float,
    top: float,
    paint: RGB,
) -> None:
    """What a lorry carries between x = span[0] and span[1], above `floor`."""
    x0, x1 = span
    middle, length = (x0 + x1) / 2, x1 - x0
    if variant == "box truck":
        _box_body(draws, it, span, width, (floor, top), paint)
    elif variant == "tanker":
        radius = width * 0.46
        tank = draws.shade(METAL) if draws.chance(0.4) else paint
        it.rod((x0, 0, floor + radius), (x1, 0, floor + radius), radius, tank)
        it.box((middle, 0, floor + 2 * radius + 0.06), (length * 0.8, 0.5, 0.14), DARK_METAL)
        if tank != paint:
            it.colour = COLOURS.index("grey")
    elif variant == "tipper":
        high = floor + draws.uniform(0.9, 1.4)
        raised = draws.uniform(0.0, 0.5) if draws.chance(0.25) else 0.0
        lift = 0.5 * length * raised
        it.box(
            (middle, 0, (floor + high) / 2 + lift * 0.9), (length, width, high - floor), paint, pitch=-raised
        )
        it.ellipsoid(
            (middle, 0, high + lift * 0.9),
            (length * 0.85, width * 0.8, 0.7),
            (0.33, 0.27, 0.2),
            pitch=-raised,
        )
    else:
        it.box((middle, 0, floor + 0.06), (length, width, 0.14), paint)
        it.box((x1 - 0.06, 0, floor + 0.5), (0.12, width, 0.9), paint)
        _bed_load(draws, it, variant, x0, x1, width, floor + 0.13)


def _box_body(
    draws: Draws,
    it: Assembly,
    span: tuple[float, float],
    width: float,
    heights: tuple[float, float],
    paint: RGB,
) -> None:
    """A closed body in the cab's colour or white, with a rear door and perhaps its owner's band."""
    (x0, x1), (floor, top) = span, heights
    middle, length = (x0 + x1) / 2, x1 - x0
    body = paint if draws.chance(0.55) or COLOURS[it.colour] == "white" else draws.paint("white")
    if body != paint:
        it.colour = COLOURS.index("white")
    it.box((middle, 0, (floor + top) / 2), (length, width, top - floor), body)
    it.box((x0, 0, (floor + top) / 2), (0.05, width * 0.9, (top - floor) * 0.92), draws.shade(METAL))
    if draws.chance(0.4):  # a painted band with the owner's name
        it.box(
            (middle, 0, floor + 0.6 * (top - floor)),
            (length * 0.7, width + 0.03, 0.35),
            draws.paint("blue"),
        )


def _bed_load(
    draws: Draws, it: Assembly, variant: str, x0: float, x1: float, width: float, floor: float
) -> None:
    """Crates, pipes or a crane on a flat bed."""
    length = x1 - x0
    if variant == "tow truck":
        it.beam((x1 - 0.8, 0, floor), (x0 + 0.3, 0, floor + 1.5), 0.25, 0.3, draws.paint("yellow"))
        it.rod((x0 + 0.3, 0, floor + 1.5), (x0 + 0.3, 0, floor + 0.3), 0.04, DARK_METAL)
        it.box((x1 - 0.4, 0, floor + 1.0), (0.3, width * 0.8, 0.14), (0.95, 0.55, 0.05), reflectance=0.9)
    elif draws.chance(0.5):
        for i in range(draws.integer(1, 3)):
            size = draws.uniform(0.8, 1.3)
            x = x0 + length * (i + 0.7) / 3.6
            y = draws.uniform(-0.25, 0.25)
            it.box((x, y, floor + size / 2), (size * 1.1, size * 1.2, size), draws.shade((0.5, 0.38, 0.22)))
    else:
        for i in range(draws.integer(2, 4)):
            y = (i - 1.5) * 0.4
            it.rod((x0 + 0.3, y, floor + 0.2), (x1 - 0.4, y, floor + 0.2), 0.18, draws.shade(METAL))


TRAILER_VARIANTS = {"semi-trailer": 0.55, "container trailer": 0.33, "car trailer": 0.12}


def trailer(draws: Draws, variant: str | None = None, *, coupled: bool = False) -> Assembly:
    """A semi-trailer (on its legs where not `coupled`), a container on a chassis, or a small car trailer."""
    variant = variant or draws.weighted(TRAILER_VARIANTS)
    colour, paint = draws.body_colour({**LORRY_COLOURS, "grey": 0.2})
    it = Assembly("trailer", variant, colour=colour)
    if variant == "car trailer":
        length, width, floor = draws.uniform(2.2, 3.6), draws.uniform(1.5, 1.9), 0.55
        high = floor + draws.uniform(0.3, 1.4)
        it.box((0, 0, (floor + high) / 2), (length, width, high - floor), paint)
        it.beam((length / 2, 0, floor - 0.05), (length / 2 + 1.1, 0, floor - 0.1), 0.1, 0.1, DARK_METAL)
        it.rod((length / 2 + 0.9, 0, floor - 0.1), (length / 2 + 0.9, 0, 0.02), 0.04, DARK_METAL)
        wheels(it, (-0.1,), width / 2 + 0.14, 0.3, 0.18)
        return it
    length, width, floor = draws.uniform(11.0, 13.8), draws.uniform(2.48, 2.6), draws.uniform(1.05, 1.25)
    top = draws.uniform(3.6, 4.05)
    front, rear = length / 2, -length / 2
    if variant == "container trailer":
        it.box((0.3, 0, (floor + top) / 2), (length - 1.0, width - 0.06, top - floor - 0.1), paint)
        for i in range(6):  # ribs
            x = rear + 1.2 + i * (length - 2.0) / 5.5
            it.box((x, 0, (floor + top) / 2), (0.2, width, top - floor - 0.2), draws.shade(paint))
    else:
        it.box((0, 0, (floor + top) / 2), (length, width, top - floor), paint)
        it.box((rear, 0, (floor + top) / 2), (0.06, width * 0.94, (top - floor) * 0.94), draws.shade(METAL))
    it.box((0, 0, floor - 0.12), (length - 0.4, 1.0, 0.3), DARK_METAL)
    wheels(it, tuple(rear + 1.6 + 1.3 * i for i in range(3)), width / 2, 0.5, 0.36)
    if not coupled:
        for side in (-1, 1):
            it.rod((front - 2.6, side * 0.8, floor), (front - 2.6, side * 0.8, 0.06), 0.08, DARK_METAL)
            it.box((front - 2.6, side * 0.8, 0.04), (0.35, 0.3, 0.08), DARK_METAL)
    else:  # the tractor's rear axle, which lies under the trailer
        wheels(it, (front - 0.9,), width / 2, 0.5, 0.4)
        it.box((front - 0.8, 0, 0.8), (2.2, 0.9, 0.25), DARK_METAL)
    it.box((rear - 0.02, 0, 0.75), (0.1, width * 0.9, 0.14), (0.75, 0.1, 0.1), reflectance=0.95)
    return it


def tractor(draws: Draws) -> Assembly:
    """The tractor of an articulated lorry, as far as its cab; its rear axle is the trailer's."""
    colour, paint = draws.body_colour(LORRY_COLOURS)
    it = Assembly("truck", "tractor unit", colour=colour)
    depth, width, top = draws.uniform(2.3, 2.9), 2.5, draws.uniform(3.2, 3.9)
    lorry_cab(it, depth / 2, width, top, depth, paint, 0.55)
    it.box((-depth / 2 + 0.35, 0, 0.55), (0.7, width * 0.9, 0.5), DARK_METAL)
    wheels(it, (depth / 2 - 1.3,), width / 2, 0.5, 0.32)
    return it


BUS_VARIANTS = {"city bus": 0.7, "articulated bus": 0.12, "double-decker": 0.18}
_BUS_COLOURS = {"white": 0.3, "red": 0.25, "blue": 0.15, "green": 0.12, "yellow": 0.1, "grey": 0.08}


def bus(draws: Draws, variant: str | None = None) -> Assembly:
    """A city bus of one or two floors, or an articulated one with a bend in the bellows."""
    variant = variant or draws.weighted(BUS_VARIANTS)
    colour, paint = draws.body_colour(_BUS_COLOURS)
    it = Assembly("bus", variant, colour=colour)
    width = draws.uniform(2.5, 2.85)
    height = draws.uniform(4.1, 4.4) if variant == "double-decker" else draws.uniform(3.05, 3.45)
    length = draws.uniform(8.8, 10.0) if variant == "articulated bus" else draws.uniform(10.2, 12.4)
    floors = (1.95, 3.55) if variant == "double-decker" else (1.85,)
    _coach(it, length, width, height, paint, floors)
    front, rear = length / 2, -length / 2
    lamps(it, front, rear, width / 2, 0.75, 0.3)
    it.box((front + 0.02, 0, 1.7), (0.06, width * 0.92, 1.3), GLASS, reflectance=0.1)
    it.box((front + 0.03, 0, height - 0.3), (0.06, width * 0.55, 0.26), (0.75, 0.5, 0.08))
    wheels(it, (front - 2.5, rear + 2.6), width / 2 + 0.01, 0.5, 0.3, steer=draws.normal(0, 0.1))
    if variant == "articulated bus":
        second = Assembly("bus", variant)
        back = draws.uniform(5.5, 7.0)
        _coach(second, back, width, height, paint, floors)
        wheels(second, (-back / 2 + 2.4,), width / 2 + 0.01, 0.5, 0.3)
        bend = draws.normal(0, 0.12)
        joint = Assembly("bus", variant)
        joint.merge(second, x=-back / 2 - 0.5)
        it.merge(joint, x=rear - 0.5, yaw=bend)
        it.rod((rear - 0.5, 0, 0.5), (rear - 0.5, 0, height - 0.1), width * 0.47, (0.1, 0.1, 0.1))
    elif draws.chance(0.5):
        it.box(
            (0.1 * length, 0, height + 0.1), (length * 0.35, width * 0.6, 0.24), draws.shade((0.7, 0.7, 0.7))
        )
    return it


def _coach(
    it: Assembly, length: float, width: float, height: float, paint: RGB, floors: tuple[float, ...]
) -> None:
    """A bus body with a band of windows a floor."""
    it.box((0, 0, (0.35 + height) / 2), (length, width, height - 0.35), paint)
    for z in floors:
        it.box((0.02 * length, 0, z), (length * 0.9, width + 0.04, 0.8), GLASS, reflectance=0.1)
        it.box((-length / 2, 0, z), (0.05, width * 0.8, 0.7), GLASS, reflectance=0.1)
        for i in range(3):
            it.box(((i - 1) * length * 0.27, 0, z), (0.16, width + 0.06, 0.82), paint)
