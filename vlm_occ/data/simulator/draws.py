"""A stream of random numbers for building worlds, and paints around the colour names."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TypeVar

import torch

from vlm_occ.types import COLOURS

T = TypeVar("T")
RGB = tuple[float, float, float]

_BLOCK = 4096

PAINTS: dict[str, RGB] = {
    "white": (0.88, 0.88, 0.86),
    "black": (0.05, 0.05, 0.055),
    "grey": (0.44, 0.45, 0.46),
    "red": (0.66, 0.07, 0.07),
    "blue": (0.07, 0.18, 0.58),
    "green": (0.09, 0.40, 0.15),
    "yellow": (0.90, 0.76, 0.10),
    "orange": (0.93, 0.42, 0.05),
    "brown": (0.36, 0.21, 0.11),
}
"""Typical albedo of each name of COLOURS."""

GLASS: RGB = (0.07, 0.09, 0.11)
RUBBER: RGB = (0.04, 0.04, 0.045)
METAL: RGB = (0.55, 0.56, 0.58)
DARK_METAL: RGB = (0.16, 0.16, 0.17)


class Draws:
    """Random numbers from one seed, drawn in blocks so that a Python draw costs well under a microsecond."""

    def __init__(self, seed: int) -> None:
        self.generator = torch.Generator().manual_seed(seed)
        self._values: list[float] = []

    def unit(self) -> float:
        """A number in [0, 1)."""
        if not self._values:
            self._values = torch.rand(_BLOCK, generator=self.generator, dtype=torch.float64).tolist()
        return self._values.pop()

    def uniform(self, low: float, high: float) -> float:
        """A number in [low, high)."""
        return low + (high - low) * self.unit()

    def normal(self, mean: float, deviation: float, *, limit: float = 2.0) -> float:
        """A Gaussian number cut at `limit` deviations on both sides (Box-Muller)."""
        value = math.sqrt(-2 * math.log(1 - self.unit())) * math.cos(2 * math.pi * self.unit())
        return mean + deviation * max(-limit, min(limit, value))

    def integer(self, low: int, high: int) -> int:
        """A whole number from low to high, both included."""
        return low + int(self.unit() * (high - low + 1))

    def chance(self, probability: float) -> bool:
        """True with this probability."""
        return self.unit() < probability

    def sign(self) -> int:
        """-1 or 1."""
        return 1 if self.unit() < 0.5 else -1

    def choice(self, options: Sequence[T]) -> T:
        """One of the options, each equally likely."""
        return options[int(self.unit() * len(options))]

    def weighted(self, options: dict[T, float]) -> T:
        """One of the keys, with probabilities proportional to the values."""
        mark = self.unit() * sum(options.values())
        for option, weight in options.items():
            mark -= weight
            if mark < 0:
                return option
        return next(reversed(options))

    def poisson(self, mean: float) -> int:
        """A Poisson count."""
        count, product, limit = 0, self.unit(), math.exp(-mean)
        while product > limit:
            count, product = count + 1, product * self.unit()
        return count

    def paint(self, name: str) -> RGB:
        """A shade of a named colour; shades of different names stay apart."""
        brightness = self.uniform(0.78, 1.14) if name != "grey" else self.uniform(0.72, 1.25)
        tint = 0.03 if name in ("white", "black", "grey") else 0.05
        r, g, b = (
            min(0.97, max(0.02, c * brightness + self.uniform(-tint, tint) * (c + 0.2))) for c in PAINTS[name]
        )
        return (r, g, b)

    def shade(self, colour: RGB, spread: float = 0.12) -> RGB:
        """A colour made a little lighter or darker."""
        k = 1 + self.uniform(-spread, spread)
        return (min(1.0, colour[0] * k), min(1.0, colour[1] * k), min(1.0, colour[2] * k))

    def body_colour(self, weights: dict[str, float]) -> tuple[int, RGB]:
        """A colour name's index and a shade of it."""
        name = self.weighted(weights)
        return COLOURS.index(name), self.paint(name)
