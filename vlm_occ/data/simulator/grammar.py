"""Sentences about a scene, each generated from a meaning that is evaluated against it.

`write_queries` is the entrance; `compose` makes one sentence and returns its meaning beside it. About 70 %
of the sentences denote one object, 15 % none (half of them or more near misses) and 15 % several (2 to 8).
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

from vlm_occ.data.simulator.descriptions import RANGES, SIMPLE, Describer, fitting
from vlm_occ.data.simulator.lexicon import Lexicon
from vlm_occ.data.simulator.meaning import Attribute, Meaning, Order, Relation, SceneView, indices
from vlm_occ.data.simulator.objects import ObjectFacts
from vlm_occ.data.simulator.parts import query_parts
from vlm_occ.data.simulator.phrases import NO_SUCH_OBJECT, Speaker, answer_many, answer_one, command_frame
from vlm_occ.data.simulator.predicates import CLASS_OF, NOUN_OF
from vlm_occ.data.simulator.relations import RELATIONS
from vlm_occ.types import TALK2OCC_CLASSES, GroundingQuery, QueryKind

_SHARES: dict[QueryKind, float] = {"expression": 0.41, "command": 0.27, "none": 0.15, "many": 0.17}
_MANY = (2, 8)  # fewest and most targets of a plural
_TRIES = 12
_MOST_WORDS = 25  # the longest of one sentence; Talk2Car has 11 on average


def write_queries(
    facts: Sequence[ObjectFacts], *, seed: int, count: int, lexicon: Lexicon = "train"
) -> tuple[GroundingQuery, ...]:
    """`count` different sentences about a scene (fewer only if it affords no more); targets index `facts`.

    Objects that are not referable are never targets, and no sentence depends on one or on a borderline
    value. A kind that the scene does not afford (no plural to speak of, no object at all) gives way to
    another. Same arguments, same sentences.
    """
    rng = random.Random(f"queries {seed} {lexicon}")
    view = SceneView(facts)
    queries: list[GroundingQuery] = []
    seen: set[str] = set()
    told: Counter[int] = Counter()
    for _ in range(count):
        wanted = rng.choices(list(_SHARES), list(_SHARES.values()))[0]
        for kind in (wanted, wanted, "expression", "expression", "expression", "none", "none", "none"):
            composed = compose(view, rng, kind, lexicon, told=told)
            if composed is not None and composed[1].text.lower() not in seen:
                queries.append(composed[1])
                seen.add(composed[1].text.lower())
                told.update(composed[1].targets)
                break
    return tuple(queries)


def compose(
    view: SceneView,
    rng: random.Random,
    kind: QueryKind,
    lexicon: Lexicon,
    *,
    told: Counter[int] | None = None,
) -> tuple[Meaning, GroundingQuery] | None:
    """One sentence of a kind with its meaning, None if the scene affords none; `told` counts targets."""
    if kind == "many":
        return _compose_many(view, rng, lexicon)
    if kind == "none":
        return _compose_none(view, rng, lexicon)
    target = _choose_target(view, rng, told or Counter())
    meaning = None if target is None else Describer(view, rng).unique(target)
    if target is None or meaning is None:
        return None
    speaker, item = Speaker(rng, lexicon), view.facts[target]
    frame = "expression" if kind == "expression" else command_frame(meaning, item, rng)
    if frame == "expression" and rng.random() < 0.1:
        text = speaker.sentence("existence", speaker.indefinite(meaning))
    else:
        text = speaker.sentence(frame, speaker.definite(meaning))
    if len(text.split()) > _MOST_WORDS:
        return None
    same = sum(other.referable and other.label == item.label for other in view.facts)
    query = GroundingQuery(text, (target,), same == 1, lexicon, kind, answer=answer_one(item))
    return meaning, replace(query, parts=query_parts(view, meaning))


def _choose_target(view: SceneView, rng: random.Random, told: Counter[int]) -> int | None:
    """A referable object: rare classes more often than their share, and rather one not yet spoken of."""
    chosen = indices(view.referable)
    if not chosen:
        return None
    labels = Counter(view.facts[i].label for i in chosen)
    weights = [labels[view.facts[i].label] ** -0.5 / (1 + 3 * told[i]) for i in chosen]
    return rng.choices(chosen, weights)[0]


def _compose_many(
    view: SceneView, rng: random.Random, lexicon: Lexicon
) -> tuple[Meaning, GroundingQuery] | None:
    chosen = indices(view.referable)
    for _ in range(_TRIES if chosen else 0):
        seed = rng.choice(chosen)
        item = view.facts[seed]
        name = TALK2OCC_CLASSES[item.label]
        noun = rng.choices((name, NOUN_OF.get(item.variant, name), "vehicle"), (0.7, 0.2, 0.1))[0]
        meaning = Meaning(noun)
        if not view.noun(noun)[0] >> seed & 1:
            continue
        for _ in range(rng.choice((0, 1, 1, 2, 2))):
            meaning = Describer(view, rng).attributed(meaning, seed, shrink=True) or meaning
        if rng.random() < 0.2:
            anchor = Describer(view, rng).anchor(seed, 1, frozenset({seed}))
            if anchor is not None:
                meaning = replace(meaning, relation=Relation(rng.choice(("next_to", "near")), anchor))
        sure, possible = view.evaluate(meaning)
        count = sure.bit_count()
        if sure == possible and _MANY[0] <= count <= _MANY[1]:
            speaker = Speaker(rng, lexicon)
            frame = "many" if rng.random() < 0.75 else "many command"
            text = speaker.sentence(frame, speaker.several(meaning, count))
            answer, parts = answer_many(count), query_parts(view, meaning)
            return meaning, GroundingQuery(
                text, indices(sure), False, lexicon, "many", answer=answer, parts=parts
            )
    return None


def _compose_none(
    view: SceneView, rng: random.Random, lexicon: Lexicon
) -> tuple[Meaning, GroundingQuery] | None:
    near = view.referable != 0 and rng.random() < 0.65
    for _ in range(_TRIES):
        meaning = _near_miss(view, rng) if near else _absent(view, rng)
        if meaning is None or view.evaluate(meaning) != (0, 0):
            continue
        speaker = Speaker(rng, lexicon)
        way = rng.random()
        if way < 0.3:
            text = speaker.sentence("existence", speaker.indefinite(meaning))
        elif way < 0.65:
            text = speaker.sentence("expression", speaker.definite(meaning))
        else:
            text = speaker.sentence(command_frame(meaning, None, rng), speaker.definite(meaning))
        near_miss = near or bool(view.noun(CLASS_OF.get(meaning.noun, meaning.noun))[0])
        query = GroundingQuery(text, (), False, lexicon, "none", near_miss, NO_SUCH_OBJECT)
        return meaning, replace(query, parts=query_parts(view, meaning))
    return None


def _absent(view: SceneView, rng: random.Random) -> Meaning | None:
    """A class or kind that is not there, often with attributes such as present things have."""
    noun = rng.choice(TALK2OCC_CLASSES if rng.random() < 0.7 else tuple(CLASS_OF))
    if view.noun(noun)[1]:
        return None
    return _with_any_attributes(rng, Meaning(noun), rng.choice((0, 1, 1, 2)))


def _with_any_attributes(rng: random.Random, meaning: Meaning, count: int) -> Meaning:
    for item in rng.sample((*SIMPLE, *RANGES), 12):
        if count > len(meaning.attributes) and fitting(meaning, item):
            meaning = meaning.plus(item)
    return meaning


def _near_miss(view: SceneView, rng: random.Random) -> Meaning | None:
    """What fits some object but for one thing: colour, side, motion, place, order or relation."""
    seed = rng.choice(indices(view.referable))
    item = view.facts[seed]
    name = TALK2OCC_CLASSES[item.label]
    meaning = Meaning(rng.choice((name, NOUN_OF.get(item.variant, name))))
    if not view.noun(meaning.noun)[0]:
        return None
    if rng.random() < 0.5:
        meaning = Describer(view, rng).attributed(meaning, seed, shrink=False) or meaning
    way = rng.random()
    if way < 0.12:
        rank = view.evaluate(meaning)[1].bit_count() + 1
        key = rng.choice(("nearest", "leftmost", "rightmost"))
        return replace(meaning, order=Order(key, rank)) if rank in (2, 3) else None
    if way < 0.37:
        anchor = Describer(view, rng).anchor(seed, 1, frozenset({seed}))
        return None if anchor is None else replace(meaning, relation=Relation(rng.choice(RELATIONS), anchor))
    wrong = [
        other for other in (*SIMPLE, *RANGES) if fitting(meaning, other) and _excludes(view, meaning, other)
    ]
    kinds = sorted({other.kind for other in wrong})
    if not kinds:
        return None
    kind = rng.choice(kinds)
    return meaning.plus(rng.choice([other for other in wrong if other.kind == kind]))


def _excludes(view: SceneView, meaning: Meaning, item: Attribute) -> bool:
    """Whether an attribute surely holds of none of the objects that a meaning may denote."""
    return not view.evaluate(meaning)[1] & view.attribute(item)[1]
