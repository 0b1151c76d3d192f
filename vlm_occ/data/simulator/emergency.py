"""Police cars, ambulances and fire engines."""

from __future__ import annotations

from vlm_occ.data.simulator.assemblies import Assembly
from vlm_occ.data.simulator.draws import GLASS, METAL, Draws
from vlm_occ.data.simulator.lorries import lorry_cab
from vlm_occ.data.simulator.vehicles import car, wheels
from vlm_occ.types import COLOURS, TALK2OCC_CLASSES


def emergency(draws: Draws, variant: str | None = None) -> Assembly:
    """A police car, an ambulance or a fire engine with its light bar."""
    variant = variant or draws.weighted({"police car": 0.62, "ambulance": 0.24, "fire engine": 0.14})
    return {"police car": _police_car, "ambulance": _ambulance, "fire engine": _fire_engine}[variant](draws)


def _police_car(draws: Draws) -> Assembly:
    name = draws.weighted({"white": 0.6, "black": 0.2, "blue": 0.2})
    it = car(draws, draws.choice(("sedan", "suv")), paint=(COLOURS.index(name), draws.paint(name)))
    stripe = draws.paint(
        "black" if name == "white" and draws.chance(0.4) else "blue" if name == "white" else "white"
    )
    low, high = it.extent()
    it.box((0, 0, 0.66), (0.45 * (high[0] - low[0]), high[1] - low[1] - 0.33, 0.3), stripe, reflectance=0.8)
    _light_bar(it, -0.15, high[2] + 0.06, 1.1)
    it.label, it.variant = TALK2OCC_CLASSES.index("emergency vehicle"), "police car"
    return it


def _ambulance(draws: Draws) -> Assembly:
    name = draws.weighted({"white": 0.65, "yellow": 0.35})
    paint = draws.paint(name)
    length, width, top = draws.uniform(5.6, 6.6), draws.uniform(2.0, 2.3), draws.uniform(2.6, 2.85)
    it = Assembly("emergency vehicle", "ambulance", colour=COLOURS.index(name))
    lorry_cab(it, length / 2, width * 0.93, 2.15, 1.9, paint, 0.45)
    it.box((-0.95, 0, (0.5 + top) / 2), (length - 1.95, width, top - 0.5), paint)
    band = draws.paint("red" if draws.chance(0.6) else "green")
    it.box((-0.95, 0, 1.25), (length - 1.9, width + 0.03, 0.35), band, reflectance=0.85)
    it.box((-length / 2, 0, 1.6), (0.06, width * 0.7, 0.7), GLASS, reflectance=0.1)
    wheels(it, (length / 2 - 1.1, -length / 2 + 1.4), width / 2, 0.37, 0.24)
    _light_bar(it, length / 2 - 1.3, 2.23, 1.3)
    return it


def _fire_engine(draws: Draws) -> Assembly:
    it = Assembly("emergency vehicle", "fire engine", colour=COLOURS.index("red"))
    paint = draws.paint("red")
    length, width, top = draws.uniform(7.5, 9.5), 2.5, draws.uniform(3.0, 3.3)
    lorry_cab(it, length / 2, width, 2.9, 2.3, paint, 0.5)
    it.box((-1.2, 0, (0.6 + top) / 2), (length - 2.4, width, top - 0.6), paint)
    it.box((-1.2, 0, 1.75), (length - 3.2, width + 0.03, 1.1), draws.shade(METAL))
    it.box((-1.2, 0, 1.02), (length - 2.4, width + 0.04, 0.16), (0.95, 0.9, 0.3), reflectance=0.95)
    wheels(it, (length / 2 - 1.5, -length / 2 + 2.2), width / 2, 0.52, 0.32)
    for side in (-1, 1):  # the ladder's rails on the roof
        it.beam(
            (length / 2 - 2.0, side * 0.3, top + 0.15),
            (-length / 2, side * 0.3, top + 0.15),
            0.1,
            0.2,
            METAL,
        )
    _light_bar(it, length / 2 - 0.7, 2.98, 1.8)
    return it


def _light_bar(it: Assembly, x: float, z: float, width: float) -> None:
    """Blue and red lights across a roof."""
    it.box((x, width / 4, z), (0.28, width / 2, 0.14), (0.05, 0.15, 0.9), reflectance=0.9)
    it.box((x, -width / 4, z), (0.28, width / 2, 0.14), (0.85, 0.06, 0.08), reflectance=0.9)
