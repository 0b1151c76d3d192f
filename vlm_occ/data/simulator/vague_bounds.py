"""What a vague situation leaves open: the poses that its sentence allows, as the generator draws them.

A model can't know more than the sentence says, so the spread of these poses is the least that an honest
uncertainty may be. The choice of the objects that are named is not modelled: given a pose, every object in a
quarter is as likely named as any other, which would weigh poses with few of them a little more.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vlm_occ.data.simulator import situations, standing
from vlm_occ.data.simulator.lexicon import Lexicon
from vlm_occ.data.simulator.objects import ObjectFacts
from vlm_occ.situated import SituationParts, SituationQuery

_DRAWS = 20_000
_LEAST = 50
"""Poses that must fit a sentence for their spread to be told."""
Floats = NDArray[np.float64]
Box = tuple[float, ...]


@dataclass(frozen=True)
class Allowed:
    """Poses that fit a sentence."""

    position: Floats  # [K, 2] metres, reference ego frame
    yaw: Floats  # [K] radians


def allowed_poses(
    facts: Sequence[ObjectFacts], *, seed: int, count: int, lexicon: Lexicon = "train"
) -> tuple[tuple[SituationQuery, Allowed | None], ...]:
    """The situations of `write_situations` with the same arguments, each vague one with what it allows.

    None for exact situations, and where fewer than 50 of 20,000 draws fit.
    """
    generator = np.random.default_rng(seed)
    return tuple(
        (query, _allowed(facts, query.parts, generator) if query.kind == "vague" and query.parts else None)
        for query in situations.write_situations(facts, seed=seed, count=count, lexicon=lexicon)
    )


def _allowed(
    facts: Sequence[ObjectFacts], parts: SituationParts, generator: np.random.Generator
) -> Allowed | None:
    """Poses drawn as the sentence's form draws them, of which those stay that fit its words."""
    named = {mention.role: facts[mention.row].box for mention in parts.mentions}
    seen = [(mention.seen, named[mention.role]) for mention in parts.mentions if mention.seen is not None]
    if parts.frame == "line":
        position = generator.uniform(-25.0, 25.0, (_DRAWS, 2))
    elif parts.share == (0.0, 0.0):
        position = _around(named["place"], generator)
    else:
        position = _beside(named["place"], parts.share, generator)
    fits = _free(facts, position)
    if seen:
        yaw = generator.uniform(-math.pi, math.pi, _DRAWS)
    elif parts.facing == "place heading":
        yaw = np.full(_DRAWS, named["place"][6] + parts.turn * math.pi / 2)
    else:
        bearing, away = _bearing(position, named["place" if parts.facing == "to place" else "target"])
        yaw = bearing + parts.turn * math.pi / 2
        fits &= (away > 3.0) | (parts.facing == "to place")
    for quarter, box in seen:
        bearing, away = _bearing(position, box)
        angle = bearing - yaw - quarter * math.pi / 2
        off = np.abs(np.remainder(angle + math.pi, 2 * math.pi) - math.pi)
        fits &= (off < situations.QUARTER_HALF) & (away > 2.0) & (away < 20.0)
    return Allowed(position[fits], yaw[fits]) if fits.sum() >= _LEAST else None


def _bearing(position: Floats, box: Box) -> tuple[Floats, Floats]:
    """Angles [K] at which a box's centre lies from positions [K, 2], and its distances."""
    offset = np.array(box[:2]) - position
    return np.arctan2(offset[:, 1], offset[:, 0]), np.hypot(offset[:, 0], offset[:, 1])


def _beside(box: Box, face: tuple[float, float], generator: np.random.Generator) -> Floats:
    """Points [K, 2] 0.6 to 4 m before the middle of a face of a box."""
    x, y, _, dx, dy, _, yaw = box
    angle = yaw + math.atan2(face[1], face[0])
    reach = (dx if face[0] else dy) / 2 + generator.uniform(*situations.NEAR, _DRAWS)
    return np.stack([x + reach * math.cos(angle), y + reach * math.sin(angle)], axis=-1)


def _around(box: Box, generator: np.random.Generator) -> Floats:
    """Points [K, 2] 0.6 to 4 m before random places of a box's faces."""
    x, y, _, dx, dy, _, yaw = box
    along, across = (generator.uniform(-size / 2, size / 2, _DRAWS) for size in (dx, dy))
    gap, sign = generator.uniform(*situations.NEAR, _DRAWS), generator.choice((-1.0, 1.0), _DRAWS)
    long_side = generator.random(_DRAWS) < dx / (dx + dy)
    across = np.where(long_side, sign * (dy / 2 + gap), across)
    along = np.where(long_side, along, sign * (dx / 2 + gap))
    c, s = math.cos(yaw), math.sin(yaw)
    return np.stack([x + c * along - s * across, y + s * along + c * across], axis=-1)


def _free(facts: Sequence[ObjectFacts], position: Floats) -> NDArray[np.bool_]:
    """Whether somebody can stand at each of the positions [K, 2]; as `is_free`, for all at once."""
    fits = np.hypot(position[:, 0], position[:, 1]) <= standing.REACH
    (x, y), (half_x, half_y) = standing.EGO
    fits &= (np.abs(position[:, 0] - x) >= half_x) | (np.abs(position[:, 1] - y) >= half_y)
    for item in facts:
        bx, by, _, dx, dy, _, yaw = item.box
        east, north = position[:, 0] - bx, position[:, 1] - by
        along = np.cos(yaw) * east + np.sin(yaw) * north
        across = -np.sin(yaw) * east + np.cos(yaw) * north
        fits &= (np.abs(along) >= dx / 2 + standing.ROOM) | (np.abs(across) >= dy / 2 + standing.ROOM)
    return fits
