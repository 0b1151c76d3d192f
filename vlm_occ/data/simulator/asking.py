"""Draws what spatial questions are about: objects, their descriptions, and the margins of answers."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass, replace

from vlm_occ.data.simulator.descriptions import Describer
from vlm_occ.data.simulator.lexicon import Lexicon
from vlm_occ.data.simulator.meaning import Meaning, SceneView, indices
from vlm_occ.data.simulator.objects import ObjectFacts
from vlm_occ.data.simulator.phrases import Speaker
from vlm_occ.data.simulator.predicates import NOUN_OF
from vlm_occ.data.simulator.question_words import QUESTIONS
from vlm_occ.data.simulator.situations import write_situations
from vlm_occ.situated import SituationQuery, SpatialQuestion
from vlm_occ.types import TALK2OCC_CLASSES

Point = tuple[float, float]
Appearances = Sequence[tuple[int, int] | None]
_QUARTERS = {"ahead": 0.0, "left": math.pi / 2, "behind": math.pi, "right": -math.pi / 2}
QUARTER_HALF = math.radians(35)
MARGIN = 1.5
"""Metres between two distances of which one is the answer."""
MOST = 9  # objects that anybody would count
TRIES = 8


@dataclass(frozen=True)
class Asked:
    """A question, and what its answer hangs on."""

    question: SpatialQuestion
    form: str  # the key of its wording
    rows: tuple[int, ...] = ()  # of the objects that are named, {a}, {b}, {c} in order
    meaning: Meaning | None = None  # of what is counted, looked for, or described
    amount: int = 0  # metres of a radius


class Asker:
    """Draws questions about one scene."""

    def __init__(
        self, facts: Sequence[ObjectFacts], rng: random.Random, lexicon: Lexicon, appearances: Appearances
    ) -> None:
        self.view, self.rng = SceneView(facts), rng
        self.lexicon: Lexicon = lexicon
        self.speaker = Speaker(rng, lexicon)
        self.describer = Describer(self.view, rng, free=True)
        self.referable = indices(self.view.referable)
        self.appearances = appearances
        told = write_situations(facts, seed=rng.getrandbits(32), count=8, lexicon=lexicon)
        self.situations = [item for item in told if item.kind == "exact"]

    def things(self, count: int, *, among: Sequence[int] | None = None) -> list[tuple[int, str]]:
        """So many different objects with descriptions that don't depend on the viewer; [] if not found."""
        found: list[tuple[int, str]] = []
        for index in self.rng.sample(list(among or self.referable), k=len(among or self.referable)):
            meaning = self.describer.unique(index, nesting=int(self.rng.random() < 0.2))
            words = "" if meaning is None else self.speaker.definite(meaning, nested=True)
            if words and words not in [other for _, other in found]:
                found.append((index, words))
            if len(found) == count:
                return found
        return []

    def center(self, index: int) -> Point:
        """Centre of an object on the ground."""
        return self.view.facts[index].box[0], self.view.facts[index].box[1]

    def asked(
        self,
        form: str,
        answer: str,
        category: str,
        parts: dict[str, str],
        *,
        rows: Sequence[int] = (),
        meaning: Meaning | None = None,
        amount: int = 0,
        place: SituationQuery | None = None,
    ) -> Asked:
        """A worded question."""
        text = self.speaker.pick(QUESTIONS, form).format(**parts)
        text = text[0].upper() + text[1:] if self.rng.random() < 0.5 else text
        question = SpatialQuestion("", "", text, (answer,), category, lexicon=self.lexicon)
        if place is not None:
            position = (*place.position, 0.0)
            question = replace(question, situation=place.text, position=position, yaw=place.yaw)
        return Asked(question, form, tuple(rows), meaning, amount)


def some_kind(asker: Asker, *, attributes: int) -> Meaning | None:
    """A noun that is there (or seldom one that is not) with some attributes of such an object."""
    if not asker.referable:
        return None
    if asker.rng.random() < 0.12:
        return Meaning(asker.rng.choice(TALK2OCC_CLASSES))
    index = asker.rng.choice(asker.referable)
    item = asker.view.facts[index]
    name = TALK2OCC_CLASSES[item.label]
    noun = asker.rng.choices((name, NOUN_OF.get(item.variant, name), "vehicle"), (0.7, 0.2, 0.1))[0]
    if not asker.view.noun(noun)[0] >> index & 1:
        return None
    meaning = Meaning(noun)
    for _ in range(attributes):
        meaning = Describer(asker.view, asker.rng).attributed(meaning, index, shrink=True) or meaning
    return meaning


def quarter(origin: Point, yaw: float, target: Point) -> str | None:
    """The quarter of the view in which a target lies, None near the border of two or nearer than 2 m."""
    angle = math.atan2(target[1] - origin[1], target[0] - origin[0]) - yaw
    for name, middle in _QUARTERS.items():
        if abs(math.remainder(angle - middle, 2 * math.pi)) < QUARTER_HALF:
            return name if math.dist(origin, target) > 2.0 else None
    return None


def in_metres(distance: float) -> str:
    """`12 metres`: VSI-Bench reads the first word as a number."""
    amount = max(round(distance), 1)
    return f"{amount} metre{'s' if amount > 1 else ''}"
