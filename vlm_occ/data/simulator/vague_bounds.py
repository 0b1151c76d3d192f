"""What a vague situation leaves open: the poses that its sentence allows, as the generator draws them.

A model can't know more than the sentence says, so the spread of these poses is the least that an honest
uncertainty may be. The choice of the objects that are named is not modelled: given a pose, every object in a
quarter is as likely named as any other, which would weigh poses with few of them a little more.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vlm_occ.data.simulator import situations
from vlm_occ.data.simulator.lexicon import Lexicon
from vlm_occ.data.simulator.objects import ObjectFacts
from vlm_occ.types import SituationQuery

_DRAWS = 20_000
_LEAST = 50
"""Poses that must fit a sentence for their spread to be told."""
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Allowed:
    """Poses that fit a sentence."""

    position: Floats  # [K, 2] metres, reference ego frame
    yaw: Floats  # [K] radians


class _Recorder(situations._Scene):
    """A scene that remembers which objects it named, and in which part of a sentence."""

    def __init__(self, facts: Sequence[ObjectFacts], rng: random.Random, lexicon: Lexicon) -> None:
        super().__init__(facts, rng, lexicon)
        self.named: dict[str, int] = {}
        self.said: list[tuple[str, str, str]] = []

    def anchor(
        self, candidates: Sequence[int], *, banned: frozenset[int] = frozenset()
    ) -> tuple[int, str] | None:
        found = super().anchor(candidates, banned=banned)
        if found is not None:
            self.named[found[1]] = found[0]
        return found

    def say(self, key: str, **parts: str) -> str:
        text = super().say(key, **parts)
        self.said.append((key, text, parts.get("b", "")))
        return text


def allowed_poses(
    facts: Sequence[ObjectFacts], *, seed: int, count: int, lexicon: Lexicon = "train"
) -> tuple[tuple[SituationQuery, Allowed | None], ...]:
    """The situations of `write_situations` with the same arguments, each vague one with what it allows.

    None for exact situations, and where fewer than 50 of 20,000 draws fit.
    """
    scene = _Recorder(facts, random.Random(f"situations {seed} {lexicon}"), lexicon)
    generator = np.random.default_rng(seed)
    result = []
    for _ in range(count):
        scene.named, scene.said = {}, []
        query = situations._situation(scene, lexicon)
        result.append((query, _allowed(scene, query, generator) if query.kind == "vague" else None))
    return tuple(result)


def _allowed(scene: _Recorder, query: SituationQuery, generator: np.random.Generator) -> Allowed | None:
    """Poses drawn as the sentence's form draws them, of which those stay that fit its words."""
    parts = [(key, scene.named.get(b, -1)) for key, text, b in scene.said if text in query.text]
    seen = {(key.split()[1], index) for key, index in parts if key.startswith(("with ", "and "))}
    towards = [index for key, index in parts if key == "towards"]
    position = generator.uniform(-25.0, 25.0, (_DRAWS, 2))
    if any(key == "near" for key, _ in parts):
        others = {index for _, index in seen} | set(towards)
        near = [i for words, i in scene.named.items() if words in query.text and i not in others]
        if not near:
            return None
        position = _around(scene.view.facts[near[-1]].box, generator)
    yaw = generator.uniform(-math.pi, math.pi, _DRAWS)
    fits = _free(scene, position)
    if towards:
        offset = np.array(scene.center(towards[-1])) - position
        yaw = np.arctan2(offset[:, 1], offset[:, 0])
        fits &= np.hypot(offset[:, 0], offset[:, 1]) > 3.0
    for quarter, index in seen:
        offset = np.array(scene.center(index)) - position
        angle = np.arctan2(offset[:, 1], offset[:, 0]) - yaw - situations._QUARTERS[quarter]
        off = np.abs(np.remainder(angle + math.pi, 2 * math.pi) - math.pi)
        away = np.hypot(offset[:, 0], offset[:, 1])
        fits &= (off < situations._QUARTER_HALF) & (away > 2.0) & (away < 20.0)
    return Allowed(position[fits], yaw[fits]) if fits.sum() >= _LEAST else None


def _around(box: tuple[float, ...], generator: np.random.Generator) -> Floats:
    """Points [K, 2] 0.6 to 4 m before random places of a box's faces."""
    x, y, _, dx, dy, _, yaw = box
    along, across = (generator.uniform(-size / 2, size / 2, _DRAWS) for size in (dx, dy))
    gap, sign = generator.uniform(0.6, 4.0, _DRAWS), generator.choice((-1.0, 1.0), _DRAWS)
    long_side = generator.random(_DRAWS) < dx / (dx + dy)
    across = np.where(long_side, sign * (dy / 2 + gap), across)
    along = np.where(long_side, along, sign * (dx / 2 + gap))
    c, s = math.cos(yaw), math.sin(yaw)
    return np.stack([x + c * along - s * across, y + s * along + c * across], axis=-1)


def _free(scene: _Recorder, position: Floats) -> NDArray[np.bool_]:
    """Whether somebody can stand at each of the positions [K, 2]; as `is_free`, for all at once."""
    fits = np.hypot(position[:, 0], position[:, 1]) <= situations._REACH
    (x, y), (half_x, half_y) = situations._EGO
    fits &= (np.abs(position[:, 0] - x) >= half_x) | (np.abs(position[:, 1] - y) >= half_y)
    for item in scene.view.facts:
        bx, by, _, dx, dy, _, yaw = item.box
        east, north = position[:, 0] - bx, position[:, 1] - by
        along = np.cos(yaw) * east + np.sin(yaw) * north
        across = -np.sin(yaw) * east + np.cos(yaw) * north
        fits &= (np.abs(along) >= dx / 2 + situations._ROOM) | (np.abs(across) >= dy / 2 + situations._ROOM)
    return fits
