"""Scenes strewn at random for tests of the language, and an evaluator of meanings written another way."""

from __future__ import annotations

import math
import random
from dataclasses import replace
from functools import cache

from shapely.geometry import Polygon

from vlm_occ.data.simulator.grammar import compose
from vlm_occ.data.simulator.lexicon import Lexicon
from vlm_occ.data.simulator.meaning import Attribute, Meaning, Order, Relation, SceneView
from vlm_occ.data.simulator.objects import ObjectFacts
from vlm_occ.types import COLOURS, TALK2OCC_CLASSES, GroundingQuery, QueryKind

VARIANTS = {
    "car": ("sedan", "suv", "van", "hatchback", "pickup"),
    "truck": ("box truck", "tipper", "tanker", "flatbed truck"),
    "construction vehicle": ("excavator", "wheel loader", "dumper", "mobile crane", "an unheard-of machine"),
    "pedestrian": ("adult", "child", "worker"),
    "animal": ("dog", "deer", "cow"),
    "emergency vehicle": ("police car", "ambulance", "fire engine"),
    "movable object": ("wheelie bin", "pushchair", "skip"),
    "barrier": ("concrete barrier", "plastic barrier", "construction fence"),
}
SIZES = {
    "car": (4.5, 1.9, 1.6),
    "truck": (8.0, 2.5, 3.0),
    "bus": (11.0, 2.9, 3.2),
    "pedestrian": (0.6, 0.6, 1.7),
    "barrier": (0.5, 2.0, 1.0),
    "trailer": (10.0, 2.5, 3.5),
    "construction vehicle": (7.0, 2.6, 3.0),
}
MOVERS = ("car", "truck", "bus", "pedestrian", "bicycle", "motorcycle", "animal", "emergency vehicle")
HEADED = (
    "car",
    "truck",
    "bus",
    "construction vehicle",
    "emergency vehicle",
    "bicycle",
    "motorcycle",
    "trailer",
)
LEXICONS: tuple[Lexicon, ...] = ("train", "wide", "heldout")


def random_facts(seed: int, count: int = 45) -> list[ObjectFacts]:
    """Objects strewn at random, so that every threshold is met from both sides."""
    rng = random.Random(seed)
    common = ["car"] * 12 + ["pedestrian"] * 10 + ["traffic cone"] * 5 + ["barrier"] * 5 + ["truck"] * 4
    facts = []
    for _ in range(count):
        name = rng.choice([*common, *TALK2OCC_CLASSES])
        motion = rng.choice(("parked", "stopped", "moving")) if name in MOVERS else "parked"
        yaw = rng.uniform(-math.pi, math.pi)
        speed = rng.uniform(1.0, 9.0) if motion == "moving" else 0.0
        dx, dy, dz = (k * rng.uniform(0.8, 1.25) for k in SIZES.get(name, (1.0, 0.8, 1.0)))
        facts.append(
            ObjectFacts(
                label=TALK2OCC_CLASSES.index(name),
                variant=rng.choice(VARIANTS.get(name, (name,))),
                colour=rng.choice((-1, *range(len(COLOURS)))),
                size=rng.choice(("small", "medium", "large")),
                box=(rng.uniform(-38, 38), rng.uniform(-38, 38), 0.8, dx, dy, dz, yaw),
                velocity=(speed * math.cos(yaw), speed * math.sin(yaw)),
                motion=motion,
                place=rng.choice(("road", "kerb", "pavement", "terrain", "junction")),
                referable=rng.random() < 0.8,
            )
        )
    return facts


@cache
def sample(lexicon: Lexicon = "train") -> list[tuple[list[ObjectFacts], Meaning, GroundingQuery]]:
    """Sentences of many scenes with their meanings."""
    rows = []
    for seed in range(100):
        facts = random_facts(seed)
        view, rng = SceneView(facts), random.Random(seed)
        kinds: tuple[QueryKind, ...] = ("expression", "expression", "command", "command", "none", "many")
        for kind in kinds:
            composed = compose(view, rng, kind, lexicon)
            if composed is not None:
                rows.append((facts, *composed))
    return rows


class Naive:
    """A crisp evaluator in plain loops; `k` in (0, 1) puts each threshold between sure and possible."""

    def __init__(self, facts: list[ObjectFacts], k: float, *, own_reading: bool) -> None:
        self.facts, self.k, self.own = facts, k, own_reading

    def lerp(self, sure: float, possible: float) -> float:
        return sure + self.k * (possible - sure)

    def shape(self, item: ObjectFacts) -> Polygon:
        x, y, _, dx, dy, _, yaw = item.box
        c, s = math.cos(yaw), math.sin(yaw)
        corners = ((dx / 2, dy / 2), (dx / 2, -dy / 2), (-dx / 2, -dy / 2), (-dx / 2, dy / 2))
        return Polygon([(x + c * a - s * b, y + s * a + c * b) for a, b in corners])

    def evaluate(self, meaning: Meaning) -> list[ObjectFacts]:
        found = [item for item in self.facts if self.is_named(item, meaning.noun)]
        for attribute in meaning.attributes:
            found = [item for item in found if self.has(item, attribute)]
        if meaning.relation is not None:
            found = self.related(found, meaning.relation)
        return found if meaning.order is None else self.ordered(found, meaning.order)

    def is_named(self, item: ObjectFacts, noun: str) -> bool:
        name = TALK2OCC_CLASSES[item.label]
        if noun == "thing":
            return self.k > 0.5 or name not in ("pedestrian", "animal")
        if noun == "vehicle":
            names = ("car", "truck", "bus", "construction vehicle", "emergency vehicle")
            return name in (*names, "trailer", "bicycle", "motorcycle") if self.k > 0.5 else name in names
        if noun in TALK2OCC_CLASSES:
            if item.variant in ("van", "pickup") and noun == "car":
                return self.k > 0.5
            return name == noun
        names = {"loader": ("wheel loader",), "crane": ("mobile crane",), "bin": ("wheelie bin",)}
        names |= {"fence": ("construction fence",), "dumper": ("dumper", "tipper")}
        return item.variant in names.get(noun, (noun,))

    def has(self, item: ObjectFacts, attribute: Attribute) -> bool:
        x, y = item.box[:2]
        value, kind, k = attribute.value, attribute.kind, self.k
        distance, angle = math.hypot(x, y), abs(math.degrees(math.atan2(y, x)))
        if kind == "colour":
            return (item.colour < 0 and k > 0.5) or (item.colour >= 0 and COLOURS[item.colour] == value)
        if kind == "size":
            return item.size == value or (item.size == "medium" and k > 0.5)
        if kind == "place":
            soft = {"road": ("kerb", "junction"), "pavement": ("kerb",), "kerb": ("pavement",)}
            return item.place == value or (k > 0.5 and item.place in soft.get(value, ()))
        if kind == "side":
            return (y if value == "left" else -y) > self.lerp(2.0, 1.0)
        if kind == "range":
            n = attribute.amount
            limits = {"within": distance < n - 1 + 2 * k, "beyond": distance > n + 1 - 2 * k}
            limits["about"] = abs(distance - n) < self.lerp(max(1.0, 0.1 * n), max(4.0, 0.3 * n))
            return limits[value]
        if kind == "depth":
            ahead = {"ahead": angle < self.lerp(58, 80), "behind": angle > self.lerp(122, 100)}
            ahead["straight"] = x > 0 and abs(y) < self.lerp(1.0, 2.2)
            ahead["beside"] = abs(angle - 90) < self.lerp(18, 45) and abs(y) < self.lerp(12, 18)
            return ahead[value]
        return self.moves(item, value)

    def moves(self, item: ObjectFacts, value: str) -> bool:
        x, y = item.box[:2]
        (vx, vy), speed = item.velocity, math.hypot(*item.velocity)
        if value in ("parked", "stopped"):
            return item.motion == value or (self.k > 0.5 and item.motion != "moving")
        if value in ("stationary", "standing"):
            return speed < 0.3
        if value in ("moving", "walking") or speed < 0.3:
            return speed > 0.3
        goal = {"oncoming": (-x, -y), "leaving": (x, y), "heading left": (0, 1), "heading right": (0, -1)}[
            value
        ]
        cosine = (vx * goal[0] + vy * goal[1]) / speed / math.hypot(*goal)
        return cosine > self.lerp(0.85, 0.5)

    def related(self, found: list[ObjectFacts], relation: Relation) -> list[ObjectFacts]:
        anchors = self.evaluate(relation.anchor)
        assert len(anchors) >= 2 if relation.plural else len(anchors) == 1
        if relation.second is None:
            return [i for i in found if any(self.stands(i, a, relation.name) for a in anchors if a is not i)]
        (first,), (second,) = anchors, self.evaluate(relation.second)
        assert first is not second
        return [i for i in found if i is not first and i is not second and self.between(i, first, second)]

    def between(self, item: ObjectFacts, first: ObjectFacts, second: ObjectFacts) -> bool:
        a, b, p = (complex(*o.box[:2]) for o in (first, second, item))
        along = (p - a) / (b - a)  # in units of the segment, its imaginary part is sideways
        length, share = abs(b - a), self.lerp(0.2, 0.0)
        sideways = abs(along.imag) * length < self.lerp(min(1.5, 0.25 * length), 3.5)
        return share < along.real < 1 - share and sideways and length < self.lerp(20, 30)

    def stands(self, item: ObjectFacts, anchor: ObjectFacts, name: str) -> bool:
        gap = self.shape(item).distance(self.shape(anchor))
        if name in ("next_to", "near"):
            return gap < (self.lerp(2.5, 5.0) if name == "next_to" else self.lerp(6.0, 10.0))
        a, p = complex(*anchor.box[:2]), complex(*item.box[:2])
        viewer = a / abs(a)  # the direction of "beyond" on the viewer's ray
        facing = complex(math.cos(anchor.box[6]), math.sin(anchor.box[6]))
        own = self.own and TALK2OCC_CLASSES[anchor.label] in HEADED
        turns = {
            "behind_it": -facing,
            "in_front_of": facing,
            "left_of": facing * 1j,
            "right_of": -facing * 1j,
        }
        axes = {"behind_it": viewer, "in_front_of": -viewer, "left_of": viewer * 1j, "right_of": -viewer * 1j}
        axis = {"beyond_it": viewer, "nearer_than": -viewer, **(turns if own else axes)}[name]
        local = (p - a) / axis
        wide = abs(local.imag) < self.lerp(0.67, 2.0) * local.real
        return local.real > self.lerp(1.5, 0.5) and wide and gap < self.lerp(8, 14)

    def ordered(self, found: list[ObjectFacts], order: Order) -> list[ObjectFacts]:
        keys = {
            "nearest": lambda o: math.hypot(*o.box[:2]),
            "farthest": lambda o: -math.hypot(*o.box[:2]),
            "largest": lambda o: -math.prod(o.box[3:6]),
            "smallest": lambda o: math.prod(o.box[3:6]),
            "leftmost": lambda o: -math.atan2(o.box[1], o.box[0]),
            "rightmost": lambda o: math.atan2(o.box[1], o.box[0]),
        }
        if order.anchor is not None:
            (anchor,) = self.evaluate(order.anchor)
            keys["closest_to"] = lambda o: self.shape(o).distance(self.shape(anchor))
        return sorted(found, key=keys[order.key])[order.rank - 1 : order.rank]


def flipped(item: ObjectFacts) -> ObjectFacts:
    x, y, z, dx, dy, dz, yaw = item.box
    return replace(item, box=(x, -y, z, dx, dy, dz, -yaw), velocity=(item.velocity[0], -item.velocity[1]))
