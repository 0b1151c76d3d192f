"""A sentence with words that training never saw, in words that it knows: `the digger` as `the excavator`.

Noun groups are reworded. Of their unknown words those that rather stand before a noun become known adjectives
each, and from the first of the others on all that is left of the group becomes one known noun. So are colours
behind `in`. Function words and relations stay; what asks for a thing (`pinpoint`) is put in known words.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import TYPE_CHECKING

from vlm_occ.language.colour_names import is_shade
from vlm_occ.language.function_words import plain_quantities
from vlm_occ.language.known_words import Kind, KnownWords
from vlm_occ.language.noun_groups import NounGroup, noun_groups, request, sentence_words, words_behind_in
from vlm_occ.language.phrase_spans import PhraseSpan, unknown_phrases
from vlm_occ.language.word_bank import Meaning
from vlm_occ.types import Wording

if TYPE_CHECKING:
    from vlm_occ.language.backbones import Backbone

SURE = 0.8
"""Share of the belief from which a word that relates, `the rear of the bus`, is put in a known one."""
READINGS = 6
"""Wordings of one sentence that are tried: the scene decides among them."""
_TOP = {"small": "smallest", "large": "largest"}
_OPPOSITE = {"nearest": "farthest", "largest": "smallest", "leftmost": "rightmost", "large": "small"}
_OPPOSITE |= {other: word for word, other in _OPPOSITE.items()}
_DEGREES = {"most": _TOP, "least": {**_OPPOSITE, **{word: _TOP[_OPPOSITE[word]] for word in _TOP}}}
"""What adverbs of degree make of adjectives: the most bulky is the largest, the least distant the nearest."""


@dataclass(frozen=True)
class Reading:
    """A sentence in known words, and its share of the belief."""

    text: str
    share: float


@dataclass(frozen=True)
class _Gap:
    """Characters of a sentence whose words are unknown, and what may stand for them."""

    start: int
    end: int
    options: tuple[tuple[str, float], ...]


def readings(known: KnownWords, backbone: Backbone, text: str, *, most: int = READINGS) -> list[Reading]:
    """The likeliest wordings of a sentence in known words, likeliest first; itself if it has no other."""
    text = plain_quantities(known, text)
    gaps = _gaps(known, backbone, text)
    if not gaps:
        return [Reading(text, 1.0)]
    ways, place = [Reading("", 1.0)], 0
    for gap in gaps:
        between, place = text[place : gap.start], gap.end
        longer = [
            Reading(way.text + between + option, way.share * share)
            for way in ways
            for option, share in gap.options
        ]
        ways = sorted(longer, key=lambda reading: -reading.share)[:most]
    return [Reading(_articles(way.text + text[place:]), way.share) for way in ways]


def asked_plainly(known: KnownWords, backbone: Backbone, text: str) -> str:
    """A sentence that asks for things in unknown words, asking in known ones; what it describes stays.

    `kindly indicate the digger` becomes `find the digger`.
    """
    found = request(known, text, lambda noun: known.names_nothing(backbone, noun))
    if found is None:
        return text
    start, indefinite = found
    return f"{'is there' if indefinite else 'find'} {text[start:]}"


def plain(known: KnownWords | None, backbone: Backbone, text: str) -> str:
    """The likeliest wording of a sentence in known words; itself where these are not kept."""
    return text if known is None else readings(known, backbone, text)[0].text


def _articles(text: str) -> str:
    """`a` and `an` as the words behind them want it."""
    text = re.sub(r"\b([Aa])n (?=[bcdfghj-np-tv-z])", r"\1 ", text)
    return re.sub(r"\b([Aa]) (?=[aeio])", r"\1n ", text)


def _gaps(known: KnownWords, backbone: Backbone, text: str) -> list[_Gap]:
    """Where a sentence has unknown words that may be known ones."""
    row = sentence_words(known, text)
    dressed = [(token, known.colours(token.group())) for token in words_behind_in(row)]
    gaps = [_gap([token], text, colours, many=False) for token, colours in dressed if colours]
    for group in noun_groups(row):
        gaps += _group_gaps(known, backbone, text, group)
    phrases = _phrase_gaps(known, backbone, text, unknown_phrases(row), gaps)
    gaps = [gap for gap in gaps if not any(p.start <= gap.start < p.end for p in phrases)]
    return sorted([*gaps, *phrases], key=lambda gap: gap.start)


def _phrase_gaps(
    known: KnownWords, backbone: Backbone, text: str, spans: Sequence[PhraseSpan], gaps: Sequence[_Gap]
) -> list[_Gap]:
    """What may stand for phrases behind nouns: `behind us` for `in our rear-view mirror`.

    What is left of the belief is for the words that do, with the likeliest of each of their `gaps`.
    """
    meanings = known.rephrase(backbone, [(span.text, span.bare) for span in spans])
    found = []
    for span, options in zip(spans, meanings, strict=True):
        rows = [(span.filled(option.wording.singular), option.share) for option in options]
        own, inner = text, [gap for gap in gaps if span.start <= gap.start < span.end]
        for gap in sorted(inner, key=lambda gap: -gap.start):
            own = own[: gap.start] + gap.options[0][0] + own[gap.end :]
        rest = own[span.start : span.end + len(own) - len(text)], 1 - sum(share for _, share in rows)
        if rows:
            found.append(_Gap(span.start, span.end, (*rows, rest)))
    return found


def _group_gaps(known: KnownWords, backbone: Backbone, text: str, group: NounGroup) -> list[_Gap]:
    """What may stand for the unknown words of one noun group: adjectives each, and the noun as a whole."""
    if group.relates:
        return _relation_gaps(known, backbone, text, group)
    pairs = _pairs(known, backbone, group)
    taken = {i + step for i in pairs for step in (0, 1)}
    odd = [i for i, strange in enumerate(group.unknown) if strange and i not in taken]
    adjectives, noun = _parsed(known, backbone, group, odd, pairs)
    gaps = [_gap(group.tokens[i : i + 2], text, options, many=False) for i, options in pairs.items()]
    meanings = known.describe(backbone, [group.words[i] for i in adjectives]) if adjectives else []
    for place, options in zip(adjectives, meanings, strict=True):
        gaps.append(_gap(group.tokens[place : place + 1], text, options, many=False))
    if noun is not None:
        tokens = group.tokens[noun]
        phrase = text[tokens[0].start() : tokens[-1].end()]
        single = _singular(phrase)
        options = known.name(backbone, [single], role=group.role)[0]
        if group.sure:
            options = known.or_anything(options)
        gaps.append(_gap(tokens, text, options, many=group.many or single != phrase))
    return gaps


def _relation_gaps(known: KnownWords, backbone: Backbone, text: str, group: NounGroup) -> list[_Gap]:
    """What surely stands for a noun that only relates to what follows: `the back of` for `the rear of`."""
    if not all(group.unknown):
        return []
    start, end = group.tokens[0].start(), group.tokens[-1].end()
    options = known.name(backbone, [text[start:end]], role="place")[0]
    return [_gap(group.tokens, text, options[:1], many=False)] if options[0].share >= SURE else []


def _pairs(known: KnownWords, backbone: Backbone, group: NounGroup) -> dict[int, list[Meaning]]:
    """Meanings of adjectives of two words, `light blue` and `least distant`, by the place of the first."""
    found: dict[int, list[Meaning]] = {}
    for i, (word, following) in enumerate(pairwise(group.words)):
        if not group.unknown[i] or i - 1 in found:
            continue
        if is_shade(word, following) and known.colours(following):
            found[i] = known.colours(following)
        elif word.lower() in _DEGREES and group.unknown[i + 1]:
            found[i] = _graded(known.describe(backbone, [following], graded=True)[0], word.lower())
    return found


def _parsed(
    known: KnownWords, backbone: Backbone, group: NounGroup, odd: list[int], pairs: Collection[int]
) -> tuple[list[int], slice | None]:
    """Which of the unknown words `odd` of a group are adjectives, and the words that are its noun, if any."""
    words = group.words
    kinds = dict(zip(odd, known.kinds_of(backbone, [_singular(words[i]) for i in odd]), strict=True))
    named = [i for i in odd if i + 1 < len(words) and known.colours(words[i])]
    kinds.update(dict.fromkeys(named, "adjective"))  # `the teal van`; `the teal` alone is a bird
    end = next((i for i in odd if kinds[i] == "other" and _ends_before(known, words, kinds, i)), len(words))
    if group.to and end > 1 and end == len(words) and kinds.get(end - 1) == "adjective":
        end -= 1  # `the lorry adjacent to`: what is followed by its own phrase stands behind the noun
    odd = [i for i in odd if i < end]
    if not odd:
        return [], None
    first = next((i for i in odd if kinds[i] != "adjective"), None)  # `cop car` is one noun
    if first is not None:
        end = min([end, *(i for i in pairs if i > first)])
    while first is not None and end - 1 > first and kinds.get(end - 1) == "adjective":
        end -= 1  # `the gent clad in black`: what stands behind the noun describes it, in ways of its own
    if first is None and odd[-1] == end - 1:
        if end > 1 and words[end - 2].lower() in known.nouns.parts:
            odd = odd[:-1]
        else:
            first = odd[-1]
    adjectives = [i for i in odd if i < end and (first is None or i < first)]
    return adjectives, None if first is None else slice(first, end)


def _graded(meanings: Sequence[Meaning], degree: str) -> list[Meaning]:
    """An adjective's meanings behind `most` or `least`, which turn it into a superlative or that around."""
    graded = [_DEGREES[degree].get(meaning.wording.singular) for meaning in meanings]
    return [
        replace(meaning, wording=Wording(word, word)) if word else meaning
        for meaning, word in zip(meanings, graded, strict=True)
    ]


def _ends_before(known: KnownWords, words: list[str], kinds: dict[int, Kind], i: int) -> bool:
    """Whether a noun stands before word i, where its group may end: `the lorry` of `the lorry alongside`."""
    nouns = (kinds.get(j) == "noun" or words[j].lower() in known.nouns.parts for j in range(i))
    return any(nouns) and words[i - 1] != "of"


def _gap(tokens: list[re.Match[str]], text: str, options: Sequence[Meaning], *, many: bool) -> _Gap:
    """The gap of some words with its options; the words stay where a meaning has no wording."""
    start, end = tokens[0].start(), tokens[-1].end()
    total = sum(option.share for option in options)
    rows = []
    for option in options:
        wording = option.wording
        said = wording.plural if many and wording.plural else wording.singular
        rows.append((said or text[start:end], option.share / total))
    return _Gap(start, end, tuple(rows))


def _singular(phrase: str) -> str:
    """A noun phrase in the singular, by the endings of its head; what has no such ending stays."""
    head, rest = phrase, ""
    cut = re.search(r" of ", phrase)
    if cut is not None:
        head, rest = phrase[: cut.start()], phrase[cut.start() :]
    if len(head) > 3 and head.endswith("ies"):
        head = head[:-3] + "y"
    elif head.endswith(("ches", "shes", "sses", "xes")):
        head = head[:-2]
    elif head.endswith("s") and not head.endswith(("ss", "us", "is")):
        head = head[:-1]
    return head + rest
