"""Somebody on foot among the objects of a scene: what can be named, where there is room, marked mentions."""

from __future__ import annotations

import math
import random
import re
from collections.abc import Sequence
from dataclasses import dataclass

from vlm_occ.data.simulator.descriptions import Describer
from vlm_occ.data.simulator.lexicon import Lexicon
from vlm_occ.data.simulator.meaning import SceneView, indices
from vlm_occ.data.simulator.objects import ObjectFacts
from vlm_occ.data.simulator.phrases import Speaker
from vlm_occ.data.simulator.predicates import TWO_WHEELERS, VEHICLES
from vlm_occ.data.simulator.wordings import NUMBERS, SITUATIONS
from vlm_occ.situated import Facing, Mention, MentionRole, PlaceFrame, SituationParts
from vlm_occ.types import TALK2OCC_CLASSES

Point = tuple[float, float]
REACH = 30.0
"""Metres from the ego origin within which people stand."""
ROOM = 0.3
"""Metres that a person keeps from every box."""
EGO = ((1.5, 0.0), (3.2, 1.3))
"""Centre and half size of the ego vehicle, metres."""


@dataclass(frozen=True)
class Draft:
    """The end of a sentence that starts with `I am standing`, and the pose that it describes."""

    text: str  # mentions are marked, see `marked`
    position: Point
    yaw: float
    parts: SituationParts  # without mentions


class Surroundings:
    """Descriptions of the anchors of a scene, and free places to stand."""

    def __init__(self, facts: Sequence[ObjectFacts], rng: random.Random, lexicon: Lexicon) -> None:
        self.view = SceneView(facts)
        self.rng = rng
        self.speaker = Speaker(rng, lexicon)
        self.describer = Describer(self.view, rng, free=True)
        self.referable = indices(self.view.referable)

    def anchor(
        self, candidates: Sequence[int], *, banned: frozenset[int] = frozenset()
    ) -> tuple[int, str] | None:
        """One of the candidates with a definite description that fits nothing else, not yet marked."""
        others = [i for i in candidates if i not in banned]
        for _ in range(3 if others else 0):
            index = self.rng.choice(others)
            meaning = self.describer.unique(index, nesting=int(self.rng.random() < 0.3))
            if meaning is not None:
                return index, self.speaker.definite(meaning, nested=True)
        return None

    def center(self, index: int) -> Point:
        """Centre of an object on the ground plane."""
        return self.view.facts[index].box[0], self.view.facts[index].box[1]

    def headed(self) -> list[int]:
        """Referable objects long enough to have a visible front."""
        names = (*VEHICLES, *TWO_WHEELERS)
        return [i for i in self.referable if TALK2OCC_CLASSES[self.view.facts[i].label] in names]

    def say(self, key: str, **parts: str) -> str:
        """A wording of a part of the sentence, filled in."""
        return self.speaker.pick(SITUATIONS, key).format(**parts)

    def metres(self, amount: float) -> str:
        """`three metres`, `2.5 m`: always the amount that is meant."""
        unit = self.rng.choice(("metres", "metres", "meters", "m"))
        if amount == 1.0:
            return self.rng.choice(("1 metre", "one metre", "1 m"))
        if amount in range(len(NUMBERS)) and unit != "m" and self.rng.random() < 0.35:
            return f"{NUMBERS[int(amount)]} {unit}"
        return f"{amount:g} {unit}"

    def is_free(self, position: Point) -> bool:
        """Whether somebody can stand there: in reach, outside every box and outside the ego vehicle."""
        if math.hypot(*position) > REACH:
            return False
        (x, y), (dx, dy) = EGO
        if abs(position[0] - x) < dx and abs(position[1] - y) < dy:
            return False
        return all(not _inside(position, item.box) for item in self.view.facts)


def marked(role: MentionRole, index: int, words: str, seen: int | None = None) -> str:
    """The words of a mention with its role, object and quarter of the view written around them."""
    return f"<{role} {index} {'' if seen is None else seen}>{words}</>"


def unmarked(marked: str) -> tuple[str, tuple[Mention, ...]]:
    """A text without its marks, and its mentions."""
    text, mentions = "", []
    for piece in re.split(r"(<[a-z]+ \d+ \d?>[^<]*</>)", marked):
        found = re.fullmatch(r"<([a-z]+) (\d+) (\d?)>([^<]*)</>", piece)
        words = found[4] if found else piece
        if found:
            role: MentionRole = found[1]  # type: ignore[assignment]
            seen = int(found[3]) if found[3] else None
            mentions.append(Mention(role, len(text), len(text) + len(words), int(found[2]), seen))
        text += words
    return text, tuple(mentions)


def draft_parts(
    frame: PlaceFrame,
    facing: Facing,
    turn: int = 0,
    *,
    metres: Point | None = None,
    share: Point = (0.0, 0.0),
) -> SituationParts:
    """The parts of a draft, whose mentions are marked in its text."""
    return SituationParts((), frame, metres, share, facing, turn)


def around(scene: Surroundings, box: tuple[float, ...], gap: float) -> Point:
    """A point at a distance from a box's footprint: before a random place of a random face."""
    x, y, _, dx, dy, _, yaw = box
    along, across = scene.rng.uniform(-dx / 2, dx / 2), scene.rng.uniform(-dy / 2, dy / 2)
    if scene.rng.random() < dx / (dx + dy):
        across = scene.rng.choice((-1, 1)) * (dy / 2 + gap)
    else:
        along = scene.rng.choice((-1, 1)) * (dx / 2 + gap)
    c, s = math.cos(yaw), math.sin(yaw)
    return x + c * along - s * across, y + s * along + c * across


def _inside(position: Point, box: tuple[float, ...]) -> bool:
    """Whether a point lies in a box's footprint widened by the room that a person takes."""
    x, y, _, dx, dy, _, yaw = box
    east, north = position[0] - x, position[1] - y
    along = math.cos(yaw) * east + math.sin(yaw) * north
    across = -math.sin(yaw) * east + math.cos(yaw) * north
    return abs(along) < dx / 2 + ROOM and abs(across) < dy / 2 + ROOM


def bearing(position: Point, target: Point) -> float:
    return math.atan2(target[1] - position[1], target[0] - position[0])
