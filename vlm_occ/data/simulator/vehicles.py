"""Cars and what passenger vehicles share: paints, wheels, lamps and glass."""

from __future__ import annotations

from vlm_occ.data.simulator.assemblies import Assembly
from vlm_occ.data.simulator.draws import DARK_METAL, GLASS, RGB, RUBBER, Draws

CAR_COLOURS = {
    "white": 0.26,
    "black": 0.2,
    "grey": 0.22,
    "red": 0.1,
    "blue": 0.1,
    "green": 0.04,
    "yellow": 0.03,
    "orange": 0.02,
    "brown": 0.03,
}
LAMP: RGB = (0.92, 0.9, 0.8)
TAIL: RGB = (0.7, 0.04, 0.04)

_CARS = {  # length, width, height, belt, bonnet, boot (lengths of the parts before and behind the cabin)
    "sedan": (4.75, 1.86, 1.46, 0.92, 1.15, 0.85),
    "hatchback": (4.1, 1.78, 1.5, 0.93, 0.95, 0.12),
    "suv": (4.7, 1.95, 1.74, 1.06, 1.1, 0.15),
    "estate": (4.75, 1.86, 1.5, 0.93, 1.15, 0.15),
    "van": (5.1, 1.97, 2.0, 1.12, 0.75, 0.08),
    "pickup": (5.35, 1.95, 1.8, 1.08, 1.2, 1.6),
}
CAR_VARIANTS = {"sedan": 0.36, "hatchback": 0.22, "suv": 0.22, "estate": 0.07, "van": 0.09, "pickup": 0.04}


def wheels(
    body: Assembly, axles: tuple[float, ...], track: float, radius: float, width: float, *, steer: float = 0.0
) -> None:
    """Add a pair of wheels at each axle's x; the first pair is steered."""
    for i, x in enumerate(axles):
        for side in (-1, 1):
            y = side * (track - width / 2)
            yaw = steer if i == 0 else 0.0
            body.wheel((x, y, radius), radius, width, RUBBER, yaw=yaw)


def lamps(body: Assembly, front: float, rear: float, half_width: float, z: float, size: float = 0.22) -> None:
    """Add head lamps and tail lamps at the ends of a vehicle."""
    for side in (-1, 1):
        y = side * (half_width - size * 0.75)
        body.box((front, y, z), (0.06, size * 1.4, size * 0.75), LAMP, reflectance=0.6)
        body.box((rear, y, z + 0.08), (0.06, size, size), TAIL, reflectance=0.8)


def car(draws: Draws, variant: str | None = None, *, paint: tuple[int, RGB] | None = None) -> Assembly:
    """A car: body, bonnet, glass with a body-coloured roof, wheels, lamps."""
    variant = variant or draws.weighted(CAR_VARIANTS)
    colour, body_paint = paint or draws.body_colour(
        CAR_COLOURS if variant != "van" else {"white": 0.5, **CAR_COLOURS}
    )
    k = draws.normal(1.0, 0.035)
    length, width, height, belt, bonnet, boot = (v * k for v in _CARS[variant])
    height *= draws.normal(1.0, 0.025)
    it = Assembly("car", variant, colour=colour)
    sill, half = 0.24, width / 2
    front, rear = length / 2, -length / 2
    nose = belt - draws.uniform(0.04, 0.16)
    it.box((0, 0, (sill + belt * 0.86) / 2), (length - 0.12, width, belt * 0.86 - sill), body_paint)
    deck = rear + boot  # the cabin's rear end at the belt
    screen = front - bonnet  # the windscreen's foot
    it.box(((front + screen) / 2 - 0.04, 0, nose - 0.1), (bonnet + 0.1, width * 0.94, 0.2), body_paint)
    it.box(((screen + deck) / 2, 0, belt * 0.93), (screen - deck, width * 0.985, belt * 0.14), body_paint)
    if boot > 0.3:
        it.box(((rear + deck) / 2 + 0.03, 0, belt - 0.1), (boot, width * 0.94, 0.2), body_paint)
    rake = (0.62 if variant in ("sedan", "hatchback", "estate") else 0.42) * (height - belt) / 0.55
    tail = 0.5 * rake if variant == "sedan" else 0.2 * rake
    spans = ((deck, screen), (deck + tail, screen - rake))
    _glasshouse(it, *spans, (belt, height), width * 0.84, body_paint, closed=variant == "van")
    if variant == "pickup":
        it.box((rear + boot / 2, 0, belt - 0.02), (boot * 0.9, width * 0.8, 0.06), DARK_METAL)
    it.box((0, 0, sill + 0.06), (length, width * 0.96, 0.22), (0.1, 0.1, 0.1))
    lamps(it, front - 0.06, rear + 0.06, half, belt * 0.74)
    it.box((rear + 0.01, 0, belt * 0.6), (0.05, 0.52, 0.12), (0.8, 0.8, 0.7), reflectance=0.9)
    radius = draws.uniform(0.31, 0.35) * (1.1 if variant in ("suv", "pickup") else 1.0)
    steer = draws.normal(0.0, 0.15)
    wheels(it, (front - 0.18 * length, rear + 0.19 * length), half + 0.02, radius, 0.22, steer=steer)
    if draws.chance(0.7):
        for side in (-1, 1):
            it.box((screen - 0.1, side * half, belt + 0.03), (0.12, 0.14, 0.13), body_paint)
    return it


def _glasshouse(
    it: Assembly,
    belt_span: tuple[float, float],
    roof_span: tuple[float, float],
    heights: tuple[float, float],
    cabin: float,
    paint: RGB,
    *,
    closed: bool,
) -> None:
    """The upper body: slanting windscreen and rear window, dark side glass, pillar and roof."""
    (deck, screen), (roof_rear, roof_front), (belt, height) = belt_span, roof_span, heights
    top = height - 0.07
    middle, length = (roof_front + roof_rear) / 2, roof_front - roof_rear
    it.box((middle, 0, (belt + top) / 2), (length, cabin, top - belt), GLASS)
    it.box((middle, 0, height - 0.04), (length + 0.06, cabin + 0.02, 0.08), paint)
    for roof, foot in ((roof_front - 0.12, screen - 0.06), (roof_rear + 0.12, deck + 0.06)):
        it.beam((roof, 0, top - 0.04), (foot, 0, belt - 0.05), cabin, 0.2, GLASS, reflectance=0.1)
    if closed:  # a panel van: no windows behind the front doors
        split = roof_front - 0.75
        it.box(
            ((split + deck) / 2, 0, (belt + top) / 2),
            (split - deck - 0.05, cabin + 0.06, top - belt + 0.05),
            paint,
        )
    else:
        pillar = roof_front * 0.45 + roof_rear * 0.55
        it.box((pillar, 0, (belt + top) / 2), (0.12, cabin + 0.03, top - belt), paint)
