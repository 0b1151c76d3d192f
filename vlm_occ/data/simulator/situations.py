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
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial

from vlm_occ.data.simulator.lexicon import Lexicon
from vlm_occ.data.simulator.objects import ObjectFacts
from vlm_occ.data.simulator.standing import (
    Draft,
    Point,
    Surroundings,
    around,
    bearing,
    draft_parts,
    marked,
    unmarked,
)
from vlm_occ.situated import MentionRole, SituationParts, SituationQuery

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


def write_situations(
    facts: Sequence[ObjectFacts], *, seed: int, count: int, lexicon: Lexicon = "train"
) -> tuple[SituationQuery, ...]:
    """`count` described situations of a scene, about half of them exact; the same arguments give the same
    ones.

    An empty scene has only exact situations, described from the ego vehicle.
    """
    scene = Surroundings(facts, random.Random(f"situations {seed} {lexicon}"), lexicon)
    return tuple(_situation(scene, lexicon) for _ in range(count))


def _situation(scene: Surroundings, lexicon: Lexicon) -> SituationQuery:
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


def _query(scene: Surroundings, draft: Draft, kind: str, lexicon: Lexicon) -> SituationQuery:
    whole = f"{scene.say('start')} {draft.text}"
    whole += "." if scene.rng.random() < 0.5 else ""
    text, mentions = unmarked(whole)
    yaw = math.remainder(draft.yaw, 2 * math.pi)
    parts = replace(draft.parts, mentions=mentions)
    return SituationQuery(text, draft.position, yaw, "exact" if kind == "exact" else "vague", lexicon, parts)


def _beside_vehicle(scene: Surroundings) -> Draft | None:
    """`3 metres behind the red bus, facing the same way as it`."""
    found = scene.anchor(scene.headed())
    if found is None:
        return None
    amount = scene.rng.choice(_DISTANCES)
    return _beside(scene, *found, amount, f"{scene.metres(amount)} ")


def _beside_at_some_distance(scene: Surroundings) -> Draft | None:
    """`behind the red bus, facing the same way as it`: the distance stays open."""
    found = scene.anchor(scene.headed())
    return None if found is None else _beside(scene, *found, scene.rng.uniform(*NEAR), "")


def _beside(scene: Surroundings, index: int, words: str, amount: float, said: str) -> Draft | None:
    """So many metres from a face of an object; `said` is how the text tells them."""
    x, y, _, dx, dy, _, yaw = scene.view.facts[index].box
    side = scene.rng.choice(tuple(SIDES))
    ahead, aside = SIDES[side]
    direction = yaw + math.atan2(aside, ahead)
    reach = amount + (dx if ahead else dy) / 2
    position = (x + reach * math.cos(direction), y + reach * math.sin(direction))
    text = f"{said}{scene.say(side, a=marked('place', index, words))}"
    metres = (amount * ahead, amount * aside) if said else None
    made = partial(draft_parts, "object", metres=metres, share=(float(ahead), float(aside)))
    facing = scene.rng.choice(("same", "opposite", "it", "away", "towards"))
    if facing == "towards":
        return _towards_other(scene, text, position, frozenset({index}), made("to target"))
    inward = direction + math.pi
    heading = {"same": yaw, "opposite": yaw + math.pi, "it": inward, "away": direction}[facing]
    parts = made("place heading" if facing in ("same", "opposite") else "to place", _TURNS[facing])
    return Draft(f"{text}, {scene.say(facing)}", position, heading, parts)


def _towards_other(
    scene: Surroundings, text: str, position: Point, banned: frozenset[int], parts: SituationParts
) -> Draft | None:
    """The text with `, facing the van` and the heading that this means."""
    far = [i for i in scene.referable if math.dist(scene.center(i), position) > 3.0]
    found = scene.anchor(far, banned=banned)
    if found is None:
        return None
    words = marked("target", *found)
    yaw = bearing(position, scene.center(found[0]))
    return Draft(f"{text}, {scene.say('towards', b=words)}", position, yaw, parts)


def _between_two(scene: Surroundings) -> Draft | None:
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
    ends = {"a": marked("place", *first), "b": marked("far", *second)}
    if scene.rng.random() < 0.5:
        amount, text = length / 2, scene.say("halfway", **ends)
        parts = draft_parts("line", "to target", metres=(0.0, 0.0), share=(1.0, 0.0))
    else:
        amount = float(scene.rng.randint(2, max(2, min(10, int(length) - 2))))
        text = f"{scene.metres(amount)} {scene.say('line', **ends)}"
        parts = draft_parts("line", "to target", metres=(amount, 0.0))
    share = amount / length
    position = (start[0] + share * (end[0] - start[0]), start[1] + share * (end[1] - start[1]))
    if scene.rng.random() < 0.3:
        return _towards_other(scene, text, position, frozenset({first[0], second[0]}), parts)
    found = scene.rng.choice((first, second))
    facing = scene.say("towards", b=marked("target", *found))
    return Draft(f"{text}, {facing}", position, bearing(position, scene.center(found[0])), parts)


def _from_ego(scene: Surroundings) -> Draft:
    """`6 metres in front of your car and 3 metres to its left, facing the same way as it`."""
    ahead, aside = scene.rng.randint(3, 20), scene.rng.randint(1, 15)
    front, left = scene.rng.random() < 0.7, scene.rng.random() < 0.5
    x, y = float(ahead if front else -ahead), float(aside if left else -aside)
    first = f"{scene.metres(ahead)} {scene.say('ego front' if front else 'ego behind')}"
    text = f"{first} and {scene.metres(aside)} {scene.say('ego left' if left else 'ego right')}"
    facing = scene.rng.choice(("same", "opposite", "it", "away"))
    inward = bearing((x, y), (0.0, 0.0))
    heading = {"same": 0.0, "opposite": math.pi, "it": inward, "away": inward + math.pi}[facing]
    against = "car heading" if facing in ("same", "opposite") else "to car"
    parts = draft_parts("car", against, _TURNS[facing], metres=(x, y))
    return Draft(f"{text}, {scene.say(facing)}", (x, y), heading, parts)


def _near_one(scene: Surroundings) -> Draft | None:
    """`near the barrier with the bus on my right`: the distance and one or both angles stay open."""
    found = scene.anchor(scene.referable)
    if found is None:
        return None
    position = around(scene, scene.view.facts[found[0]].box, scene.rng.uniform(*NEAR))
    text = f"{scene.say('near')} {marked('place', *found)}"
    yaw, banned = scene.rng.uniform(-math.pi, math.pi), frozenset({found[0]})
    if scene.rng.random() < 0.25:
        return _towards_other(scene, text, position, banned, draft_parts("object", "to target"))
    seen = _seen(scene, position, yaw, "with", "target", banned)
    if seen is None:
        return None
    return Draft(f"{text} {seen[0]}", position, yaw, draft_parts("object", "to target", seen[1]))


def _between_views(scene: Surroundings) -> Draft | None:
    """Two things seen to the sides, no place named."""
    position = (scene.rng.uniform(-25.0, 25.0), scene.rng.uniform(-25.0, 25.0))
    yaw = scene.rng.uniform(-math.pi, math.pi)
    first = _seen(scene, position, yaw, "with", "place")
    second = None if first is None else _seen(scene, position, yaw, "and", "far", frozenset({first[2]}))
    if first is None or second is None:
        return None
    parts = draft_parts("line", "to place", first[1], share=(1.0, 0.0))
    return Draft(f"{first[0]} {second[0]}", position, yaw, parts)


def _seen(
    scene: Surroundings,
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
        angle = bearing(position, center) - yaw
        for name, (ahead, aside) in VIEWS.items():
            off = abs(math.remainder(angle - math.atan2(aside, ahead), 2 * math.pi))
            if off < QUARTER_HALF and 2.0 < math.dist(position, center) < 20.0:
                quarters[i] = name
    found = scene.anchor(sorted(quarters), banned=banned)
    if found is None:
        return None
    quarter = list(VIEWS).index(quarters[found[0]])
    text = scene.say(f"{how} {quarters[found[0]]}", b=marked(role, *found, quarter))
    return text, -quarter % 4, found[0]


_Form = Callable[[Surroundings], Draft | None]
_EXACT: tuple[tuple[_Form, float], ...] = ((_beside_vehicle, 0.55), (_between_two, 0.3), (_from_ego, 0.15))
_VAGUE: tuple[tuple[_Form, float], ...] = (
    (_near_one, 0.5),
    (_beside_at_some_distance, 0.3),
    (_between_views, 0.2),
)
