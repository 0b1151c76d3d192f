"""Puts meanings into words: noun phrases, sentences and answers; a generator draws every choice."""

from __future__ import annotations

import math
import random
import re
from dataclasses import dataclass

from vlm_occ.data.simulator.lexicon import NOUNS, Lexicon, Table, plural, with_article
from vlm_occ.data.simulator.meaning import Attribute, Meaning, Order, Relation
from vlm_occ.data.simulator.objects import ObjectFacts
from vlm_occ.data.simulator.predicates import NOUN_OF, category
from vlm_occ.data.simulator.wordings import ADJECTIVES, DETERMINERS, FRAMES, NUMBERS, ORDINALS, PHRASES
from vlm_occ.types import COLOURS, TALK2OCC_CLASSES

AGREEMENT = (
    (r"\bthat is\b", "that are"), (r"\bwhich is\b", "which are"), (r"\bwho is\b", "who are"),
    (r"\bhas\b", "have"), (r"\bitself\b", "themselves"), (r"\bin it\b", "in them"), (r"\bstays\b", "stay"),
)  # fmt: skip


_CLAUSE = re.compile(r"^(?:that|which|who) (?:is )?")
_VERBS = ("has ", "came ", "stays ")


@dataclass(frozen=True)
class Speaker:
    """Chooses wordings of one lexicon with one generator."""

    rng: random.Random
    lexicon: Lexicon

    def pick(self, tables: dict[Lexicon, Table], key: str) -> str:
        """One wording of a key."""
        return self.rng.choice(tables[self.lexicon][key])

    def definite(self, meaning: Meaning, *, nested: bool = False) -> str:
        """`the red car on the left`."""
        group = self.group(meaning, nested=nested)
        plain = nested or meaning.order is not None
        return f"{'the' if plain else self.pick(DETERMINERS, 'one')} {group}"

    def indefinite(self, meaning: Meaning) -> str:
        """`a red car on the left`; an order keeps its definite article."""
        group = self.group(meaning)
        return f"the {group}" if meaning.order is not None else with_article(group)

    def several(self, meaning: Meaning, count: int) -> str:
        """`all the red cars on the left`, `both ...`, `the three ...`, `every ...`."""
        if count < len(NUMBERS) and self.rng.random() < 0.25:
            number = self.rng.choice(("both", "the two")) if count == 2 else f"the {NUMBERS[count]}"
            return f"{number} {self.group(meaning, many=True)}"
        determiner = self.pick(DETERMINERS, "all")
        return f"{determiner} {self.group(meaning, many=determiner not in ('every', 'each'))}"

    def group(self, meaning: Meaning, *, many: bool = False, nested: bool = False) -> str:
        """The noun phrase without its article: order, adjectives, noun, then phrases, the relation last."""
        kind = category(meaning.noun)
        noun = self.pick(NOUNS, meaning.noun)
        before: list[str] = []
        after: list[str] = []
        for item in meaning.attributes:
            if item.kind == "size":
                before.insert(0, self.pick(ADJECTIVES, item.value))
            elif item.kind == "colour" and kind != "person":
                before.append(self.pick(ADJECTIVES, item.value))
            elif item.kind == "colour":
                after.insert(0, self.pick(PHRASES, "clothes").format(c=self.pick(ADJECTIVES, item.value)))
            elif item.kind == "motion":
                self._motion(item, before, after)
            elif item.kind == "place":
                after.append(self.pick(PHRASES, item.value))
            elif item.kind == "range":
                after.append(self.pick(PHRASES, item.value).format(n=item.amount))
        head = " ".join([*before, plural(noun) if many else noun])
        region = self._region(meaning)
        if region:
            after.append(region)
        if nested and after:
            after = [_CLAUSE.sub("", phrase) for phrase in after]
            after[0] = f"that {after[0]}" if after[0].startswith(_VERBS) else f"that is {after[0]}"
        if meaning.order is not None:
            head, tail = self._ordered(meaning.order, head)
            after = [*tail, *after] if meaning.order.key != "closest_to" else [*after, *tail]
        if many:
            after = [_agree(phrase) for phrase in after]
        if meaning.relation is not None:
            after.append(self._relation(meaning.relation))
        return " ".join([head, *after])

    def _motion(self, item: Attribute, before: list[str], after: list[str]) -> None:
        adjective = item.value in ADJECTIVES[self.lexicon]
        phrase = item.value in PHRASES[self.lexicon]
        if adjective and not (phrase and self.rng.random() < 0.3):
            before.insert(0, self.pick(ADJECTIVES, item.value))
        else:
            after.append(self.pick(PHRASES, item.value))

    def _region(self, meaning: Meaning) -> str:
        """The words for where an object is seen from the vehicle: depth and side in one phrase."""
        parts = [item.value for kind in ("depth", "side") if (item := meaning.attribute(kind)) is not None]
        return self.pick(PHRASES, " ".join(parts)) if parts else ""

    def _ordered(self, order: Order, head: str) -> tuple[str, list[str]]:
        """The noun group with its order in front and the phrase that follows it."""
        if order.key == "closest_to":
            assert order.anchor is not None
            return head, [f"{self.pick(PHRASES, 'closest_to')} {self.definite(order.anchor, nested=True)}"]
        if order.key in ("leftmost", "rightmost") and self.lexicon != "heldout" and order.rank > 1:
            return f"{_RANKS[order.rank]} {head}", [self.pick(PHRASES, f"from {order.key[: -len('most')]}")]
        adjective = self.pick(ADJECTIVES, order.key)
        if order.rank == 1:
            return f"{adjective} {head}", []
        return self.pick(ORDINALS, str(order.rank)).format(a=adjective, n=head), []

    def _relation(self, relation: Relation) -> str:
        anchor = self.group(relation.anchor, many=relation.plural, nested=True)
        if relation.second is not None:
            second = self.definite(relation.second, nested=True)
            return self.pick(PHRASES, relation.name).format(a=f"the {anchor}", b=second)
        clause = "that is " if self.rng.random() < 0.15 else ""
        return f"{clause}{self.pick(PHRASES, relation.name)} the {anchor}"

    def sentence(self, frame: str, phrase: str) -> str:
        """A sentence of a frame around a noun phrase; some are written with a capital and a full stop."""
        text = self.pick(FRAMES, frame).format(the=phrase, a=phrase)
        text = text.replace("where are every", "where is every")
        if self.rng.random() < 0.25:
            text = text[0].upper() + text[1:]
            text += "" if text.endswith("?") else "."
        return text


_RANKS = {1: "first", 2: "second", 3: "third"}


def _agree(phrase: str) -> str:
    """A phrase behind a singular noun, made to agree with a plural one."""
    for pattern, replacement in AGREEMENT:
        phrase = re.sub(pattern, replacement, phrase)
    return phrase


def command_frame(meaning: Meaning, item: ObjectFacts | None, rng: random.Random) -> str:
    """A family of commands that suits what is described and how it moves."""
    kind = category(meaning.noun)
    if kind == "person":
        return "person" if rng.random() < 0.65 else "any"
    if kind not in ("vehicle", "two-wheeler") or rng.random() < 0.3:
        return "any"
    moving = item.motion == "moving" if item is not None else rng.random() < 0.3
    if moving:
        return "moving vehicle"
    return "vehicle" if kind == "vehicle" else "any"


def answer_one(item: ObjectFacts) -> str:
    """`It is the red car on the left, 12 m ahead.`: kind, colour, side, distance, sector of 120 degrees."""
    name = TALK2OCC_CLASSES[item.label]
    key = NOUN_OF.get(item.variant, name)
    noun = NOUNS["train"][name if key == "adult" else key][0]
    colour = COLOURS[item.colour] if item.colour >= 0 else ""
    if category(name) == "person":
        named = f"{noun} in {colour}" if colour else noun
    else:
        named = f"{colour} {noun}".strip()
    x, y = item.box[0], item.box[1]
    side = " on the left" if y >= 1.5 else " on the right" if y <= -1.5 else ""
    angle = abs(math.atan2(y, x))
    where = "ahead" if angle < math.pi / 3 else "behind us" if angle > math.pi * 2 / 3 else "beside us"
    return f"It is the {named}{side}, {round(math.hypot(x, y))} m {where}."


def answer_many(count: int) -> str:
    """`There are 3 of them.`"""
    return f"There are {count} of them."


NO_SUCH_OBJECT = "There is no such object."
