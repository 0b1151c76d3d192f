"""Where somebody on foot stands and looks, described by what is around: Loc3R-VLM's situations (section 3.3).

`exact` descriptions determine position and heading, `vague` ones do not. Anchors are described uniquely, in
words that do not depend on the viewer (colour, kind, place, neighbours), since the speaker is not in the
vehicle. Conventions:
- `3 metres behind the bus`: along the bus's own axis, 3 m from its rear face, whoever looks; `off its left
  side`: 3 m from its left face, in the middle of its length, left as its driver sees it;
- `4 metres from the middle of the cone on the straight line to the bus`: between the centres of the two
  boxes;
- `in front of your car`, `behind your car`, and the offset to its left or right: from the ego origin, along
  its axes. Positions are in the reference ego frame in metres, yaw is the agent's heading in radians,
  counter-clockwise from +x.
"""

from __future__ import annotations

import math
import random
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial

from vlm_occ.data.simulator.descriptions import Describer
from vlm_occ.data.simulator.lexicon import Lexicon
from vlm_occ.data.simulator.meaning import SceneView, indices
from vlm_occ.data.simulator.objects import ObjectFacts
from vlm_occ.data.simulator.phrases import Speaker
from vlm_occ.data.simulator.predicates import TWO_WHEELERS, VEHICLES
from vlm_occ.data.simulator.wordings import NUMBERS, SITUATIONS
from vlm_occ.types import (
    TALK2OCC_CLASSES,
    Facing,
    Mention,
    MentionRole,
    PlaceFrame,
    SituationParts,
    SituationQuery,
)

Point = tuple[float, float]
_REACH = 30.0  # metres from the ego origin within which people stand
_ROOM = 0.3  # metres that a person keeps from every box
_EGO = ((1.5, 0.0), (3.2, 1.3))  # centre and half size of the ego vehicle, metres
_ATTEMPTS = 25
_DISTANCES = (1.0, 1.5, 2.0, 2.5, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0)
NEAR = (0.6, 4.0)
"""Metres from a face of what one is near."""
_TURNS = {"same": 0, "opposite": 2, "it": 0, "away": 2}
SIDES = {"behind": (-1, 0), "front": (1, 0), "left": (0, 1), "right": (0, -1)}
"""Faces of an object by their direction along and to the left of its heading."""
VIEWS = {"ahead": (1, 0), "left": (0, 1), "behind": (-1, 0), "right": (0, -1)}
"""Quarters of somebody's view, counter-clockwise."""
QUARTER_HALF = math.radians(35)


@dataclass(frozen=True)
class _Draft:
    """The end of a sentence that starts with `I am standing`, and the pose that it describes."""

    text: str  # mentions are marked, see `_marked`
    position: Point
    yaw: float
    parts: SituationParts  # without mentions


class _Scene:
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
        if math.hypot(*position) > _REACH:
            return False
        (x, y), (dx, dy) = _EGO
        if abs(position[0] - x) < dx and abs(position[1] - y) < dy:
            return False
        return all(not _inside(position, item.box) for item in self.view.facts)


def write_situations(
    facts: Sequence[ObjectFacts], *, seed: int, count: int, lexicon: Lexicon = "train"
) -> tuple[SituationQuery, ...]:
    """`count` described situations of a scene, about half of them exact; the same arguments give the same
    ones.

    An empty scene has only exact situations, described from the ego vehicle.
    """
    scene = _Scene(facts, random.Random(f"situations {seed} {lexicon}"), lexicon)
    return tuple(_situation(scene, lexicon) for _ in range(count))


def _situation(scene: _Scene, lexicon: Lexicon) -> SituationQuery:
    exact = scene.rng.random() < 0.5
    for _ in range(_ATTEMPTS):
        form = scene.rng.choices(*zip(*(_EXACT if exact else _VAGUE), strict=True))[0]
        draft = form(scene)
        if draft is not None and scene.is_free(draft.position):
            return _query(scene, draft, "exact" if exact else "vague", lexicon)
    while True:  # beside the ego vehicle there is always room somewhere within reach
        draft = _from_ego(scene)
        if scene.is_free(draft.position):
            return _query(scene, draft, "exact", lexicon)


def _query(scene: _Scene, draft: _Draft, kind: str, lexicon: Lexicon) -> SituationQuery:
    marked = f"{scene.say('start')} {draft.text}"
    marked += "." if scene.rng.random() < 0.5 else ""
    text, mentions = _unmarked(marked)
    yaw = math.remainder(draft.yaw, 2 * math.pi)
    parts = replace(draft.parts, mentions=mentions)
    return SituationQuery(text, draft.position, yaw, "exact" if kind == "exact" else "vague", lexicon, parts)


def _marked(role: MentionRole, index: int, words: str, seen: int | None = None) -> str:
    """The words of a mention with its role, object and quarter of the view written around them."""
    return f"<{role} {index} {'' if seen is None else seen}>{words}</>"


def _unmarked(marked: str) -> tuple[str, tuple[Mention, ...]]:
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


def _parts(
    frame: PlaceFrame,
    facing: Facing,
    turn: int = 0,
    *,
    metres: Point | None = None,
    share: Point = (0.0, 0.0),
) -> SituationParts:
    """The parts of a draft, whose mentions are marked in its text."""
    return SituationParts((), frame, metres, share, facing, turn)


def _beside_vehicle(scene: _Scene) -> _Draft | None:
    """`3 metres behind the red bus, facing the same way as it`."""
    found = scene.anchor(scene.headed())
    if found is None:
        return None
    amount = scene.rng.choice(_DISTANCES)
    return _beside(scene, *found, amount, f"{scene.metres(amount)} ")


def _beside_at_some_distance(scene: _Scene) -> _Draft | None:
    """`behind the red bus, facing the same way as it`: the distance stays open."""
    found = scene.anchor(scene.headed())
    return None if found is None else _beside(scene, *found, scene.rng.uniform(*NEAR), "")


def _beside(scene: _Scene, index: int, words: str, amount: float, said: str) -> _Draft | None:
    """So many metres from a face of an object; `said` is how the text tells them."""
    x, y, _, dx, dy, _, yaw = scene.view.facts[index].box
    side = scene.rng.choice(tuple(SIDES))
    ahead, aside = SIDES[side]
    direction = yaw + math.atan2(aside, ahead)
    reach = amount + (dx if ahead else dy) / 2
    position = (x + reach * math.cos(direction), y + reach * math.sin(direction))
    text = f"{said}{scene.say(side, a=_marked('place', index, words))}"
    metres = (amount * ahead, amount * aside) if said else None
    made = partial(_parts, "object", metres=metres, share=(float(ahead), float(aside)))
    facing = scene.rng.choice(("same", "opposite", "it", "away", "towards"))
    if facing == "towards":
        return _towards_other(scene, text, position, frozenset({index}), made("to target"))
    inward = direction + math.pi
    heading = {"same": yaw, "opposite": yaw + math.pi, "it": inward, "away": direction}[facing]
    parts = made("place heading" if facing in ("same", "opposite") else "to place", _TURNS[facing])
    return _Draft(f"{text}, {scene.say(facing)}", position, heading, parts)


def _towards_other(
    scene: _Scene, text: str, position: Point, banned: frozenset[int], parts: SituationParts
) -> _Draft | None:
    """The text with `, facing the van` and the heading that this means."""
    far = [i for i in scene.referable if math.dist(scene.center(i), position) > 3.0]
    found = scene.anchor(far, banned=banned)
    if found is None:
        return None
    words = _marked("target", *found)
    bearing = _bearing(position, scene.center(found[0]))
    return _Draft(f"{text}, {scene.say('towards', b=words)}", position, bearing, parts)


def _between_two(scene: _Scene) -> _Draft | None:
    """`halfway between the cone and the bus`, or some metres from one towards the other."""
    first = scene.anchor(scene.referable)
    if first is None:
        return None
    start = scene.center(first[0])
    near = [i for i in scene.referable if 4.0 < math.dist(start, scene.center(i)) < 20.0]
    second = scene.anchor(near, banned=frozenset({first[0]}))
    if second is None:
        return None
    end = scene.center(second[0])
    length = math.dist(start, end)
    ends = {"a": _marked("place", *first), "b": _marked("far", *second)}
    if scene.rng.random() < 0.5:
        amount, text = length / 2, scene.say("halfway", **ends)
        parts = _parts("line", "to target", metres=(0.0, 0.0), share=(1.0, 0.0))
    else:
        amount = float(scene.rng.randint(2, max(2, min(10, int(length) - 2))))
        text = f"{scene.metres(amount)} {scene.say('line', **ends)}"
        parts = _parts("line", "to target", metres=(amount, 0.0))
    share = amount / length
    position = (start[0] + share * (end[0] - start[0]), start[1] + share * (end[1] - start[1]))
    if scene.rng.random() < 0.3:
        return _towards_other(scene, text, position, frozenset({first[0], second[0]}), parts)
    found = scene.rng.choice((first, second))
    facing = scene.say("towards", b=_marked("target", *found))
    return _Draft(f"{text}, {facing}", position, _bearing(position, scene.center(found[0])), parts)


def _from_ego(scene: _Scene) -> _Draft:
    """`6 metres in front of your car and 3 metres to its left, facing the same way as it`."""
    ahead, aside = scene.rng.randint(3, 20), scene.rng.randint(1, 15)
    front, left = scene.rng.random() < 0.7, scene.rng.random() < 0.5
    x, y = float(ahead if front else -ahead), float(aside if left else -aside)
    first = f"{scene.metres(ahead)} {scene.say('ego front' if front else 'ego behind')}"
    text = f"{first} and {scene.metres(aside)} {scene.say('ego left' if left else 'ego right')}"
    facing = scene.rng.choice(("same", "opposite", "it", "away"))
    inward = _bearing((x, y), (0.0, 0.0))
    heading = {"same": 0.0, "opposite": math.pi, "it": inward, "away": inward + math.pi}[facing]
    against = "car heading" if facing in ("same", "opposite") else "to car"
    parts = _parts("car", against, _TURNS[facing], metres=(x, y))
    return _Draft(f"{text}, {scene.say(facing)}", (x, y), heading, parts)


def _near_one(scene: _Scene) -> _Draft | None:
    """`near the barrier with the bus on my right`: the distance and one or both angles stay open."""
    found = scene.anchor(scene.referable)
    if found is None:
        return None
    position = _around(scene, scene.view.facts[found[0]].box, scene.rng.uniform(*NEAR))
    text = f"{scene.say('near')} {_marked('place', *found)}"
    yaw, banned = scene.rng.uniform(-math.pi, math.pi), frozenset({found[0]})
    if scene.rng.random() < 0.25:
        return _towards_other(scene, text, position, banned, _parts("object", "to target"))
    seen = _seen(scene, position, yaw, "with", "target", banned)
    if seen is None:
        return None
    return _Draft(f"{text} {seen[0]}", position, yaw, _parts("object", "to target", seen[1]))


def _between_views(scene: _Scene) -> _Draft | None:
    """Two things seen to the sides, no place named."""
    position = (scene.rng.uniform(-25.0, 25.0), scene.rng.uniform(-25.0, 25.0))
    yaw = scene.rng.uniform(-math.pi, math.pi)
    first = _seen(scene, position, yaw, "with", "place")
    second = None if first is None else _seen(scene, position, yaw, "and", "far", frozenset({first[2]}))
    if first is None or second is None:
        return None
    parts = _parts("line", "to place", first[1], share=(1.0, 0.0))
    return _Draft(f"{first[0]} {second[0]}", position, yaw, parts)


def _seen(
    scene: _Scene,
    position: Point,
    yaw: float,
    how: str,
    role: MentionRole,
    banned: frozenset[int] = frozenset(),
) -> tuple[str, int, int] | None:
    """`with a bus on my right`, the quarters from it to the heading, and the object.

    Something within 20 m and 35 degrees of a quarter of the agent's view.
    """
    quarters: dict[int, str] = {}
    for i in scene.referable:
        center = scene.center(i)
        angle = _bearing(position, center) - yaw
        for name, (ahead, aside) in VIEWS.items():
            off = abs(math.remainder(angle - math.atan2(aside, ahead), 2 * math.pi))
            if off < QUARTER_HALF and 2.0 < math.dist(position, center) < 20.0:
                quarters[i] = name
    found = scene.anchor(sorted(quarters), banned=banned)
    if found is None:
        return None
    quarter = list(VIEWS).index(quarters[found[0]])
    text = scene.say(f"{how} {quarters[found[0]]}", b=_marked(role, *found, quarter))
    return text, -quarter % 4, found[0]


def _around(scene: _Scene, box: tuple[float, ...], gap: float) -> Point:
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
    return abs(along) < dx / 2 + _ROOM and abs(across) < dy / 2 + _ROOM


def _bearing(position: Point, target: Point) -> float:
    return math.atan2(target[1] - position[1], target[0] - position[0])


_Form = Callable[[_Scene], _Draft | None]
_EXACT: tuple[tuple[_Form, float], ...] = ((_beside_vehicle, 0.55), (_between_two, 0.3), (_from_ego, 0.15))
_VAGUE: tuple[tuple[_Form, float], ...] = (
    (_near_one, 0.5),
    (_beside_at_some_distance, 0.3),
    (_between_views, 0.2),
)
