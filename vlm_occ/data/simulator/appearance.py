"""Light and air of a world: time of day, sky, haze and how the cameras are exposed."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from vlm_occ.data.simulator.draws import Draws


@dataclass(frozen=True)
class Appearance:
    """Light and air, for the sensors."""

    sun_direction: Tensor  # float32 [3], unit, from the scene to the sun (world)
    sun_strength: float
    ambient: float
    exposure: float
    haze: float  # extinction per metre
    sky_colour: Tensor  # float32 [3]
    colour_cast: Tensor  # float32 [3], factor on the image


def draw_appearance(draws: Draws) -> Appearance:
    """A time of day and a sky."""
    high, around = math.radians(draws.uniform(15, 75)), draws.uniform(-math.pi, math.pi)
    sun = [math.cos(high) * math.cos(around), math.cos(high) * math.sin(around), math.sin(high)]
    overcast = draws.chance(0.35)
    strength = draws.uniform(0.05, 0.25) if overcast else draws.uniform(0.5, 0.9)
    sky = (
        (0.75, 0.77, 0.79)
        if overcast
        else (draws.uniform(0.42, 0.6), draws.uniform(0.6, 0.75), draws.uniform(0.82, 0.95))
    )
    warm = draws.normal(0, 0.05)
    return Appearance(
        sun_direction=torch.tensor(sun),
        sun_strength=strength,
        ambient=draws.uniform(0.6, 0.75) if overcast else draws.uniform(0.35, 0.5),
        exposure=draws.uniform(0.8, 1.25),
        haze=draws.uniform(0.0005, 0.008),
        sky_colour=torch.tensor(draws.shade(sky, 0.06)),
        colour_cast=torch.tensor([1 + warm, 1 + draws.normal(0, 0.015), 1 - warm]),
    )
