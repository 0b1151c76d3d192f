"""A sentence with words that training never saw, in words that it knows: `the digger` as `the excavator`.

Noun phrases are reworded: what follows `the`, `a`, `all`, ... up to a word that can't be part of it. Of their
unknown words those that rather stand before a noun become known adjectives each, and from the first of the
others on all that is left of the phrase becomes one known noun. So are colours behind `in`. Function words,
frames (`pinpoint`) and relations stay.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from vlm_occ.language.colour_names import is_shade
from vlm_occ.language.known_words import Kind, KnownWords, Meaning, Role
from vlm_occ.types import NUMBER_WORDS, WORD, Wording

if TYPE_CHECKING:
    from vlm_occ.language.backbones import Backbone

READINGS = 6
"""Wordings of one sentence that are tried: the scene decides among them."""
_TOKEN = re.compile(rf"\d+(?:\.\d+)?|{WORD}|[^\w\s]")
_MANY = {*NUMBER_WORDS[2:], "all", "both", "these", "those"}
_FUNCTION = frozenset(
    re.findall(
        r"[a-z]+",
        """
    aboard about above across after against ahead along alongside amid among around aside astride at atop away
    before behind below beneath beside besides between beyond by despite down for from in inside into near of
    off on onto opposite out outside over past per round since through throughout till to together toward
    towards under underneath until up upon via with within without
    am are be been being can could did do does done had has have is may might must shall should was were will
    would he her hers him his i it its me mine our ours she their theirs them they us we who whom whose which
    you your yours and but nor or so than then though although as if when where while whereas because not also
    just only very too quite rather almost nearly here there somewhere anywhere
    everywhere now soon still yet again once
    """,
    )
)
"""Prepositions, auxiliaries, pronouns, conjunctions and adverbs of place, time and degree: a closed class, of
which no word names a thing."""
_TOP = {"small": "smallest", "large": "largest"}
_OPPOSITE = {"nearest": "farthest", "largest": "smallest", "leftmost": "rightmost", "large": "small"}
_OPPOSITE |= {other: word for word, other in _OPPOSITE.items()}
_DEGREES = {"most": _TOP, "least": {**_OPPOSITE, **{word: _TOP[_OPPOSITE[word]] for word in _TOP}}}
"""What adverbs of degree make of adjectives: the most bulky is the largest, the least distant the nearest."""
_ROLES: dict[str, Role] = {
    **dict.fromkeys(("on", "along", "across"), "place"),
    **dict.fromkeys(("at", "in", "off", "to", "by", "from"), "either"),
}
"""What a noun group may stand for behind a preposition; a thing behind all other words."""
_INDEFINITE = {"a", "an", "any", "some"}
_DETERMINERS = _MANY | _INDEFINITE | {"the", "this", "that", "every", "each"}


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


def plain(known: KnownWords | None, backbone: Backbone, text: str) -> str:
    """The likeliest wording of a sentence in known words; itself where these are not kept."""
    return text if known is None else readings(known, backbone, text)[0].text


def _articles(text: str) -> str:
    """`a` and `an` as the words behind them want it."""
    text = re.sub(r"\b([Aa])n (?=[bcdfghj-np-tv-z])", r"\1 ", text)
    return re.sub(r"\b([Aa]) (?=[aeio])", r"\1n ", text)


def _gaps(known: KnownWords, backbone: Backbone, text: str) -> list[_Gap]:
    """Where a sentence's noun groups have unknown words."""
    tokens = list(_TOKEN.finditer(text))
    words = [token.group().lower() for token in tokens]
    fixed = _FUNCTION | _DETERMINERS
    parts = (known.nouns.parts | known.adjectives.parts) - fixed
    unknown = [word[0].isalpha() and word not in known and word not in fixed for word in words]
    gaps: list[_Gap] = []
    place = 0
    while place < len(words):
        place += 1
        if words[place - 1] == "in" and place < len(words) and unknown[place]:
            gaps += _colour_gap(known, tokens[place])
        if words[place - 1] not in _DETERMINERS:
            continue
        if words[place - 1] == "that" and place > 1 and _describes(known, words[place - 2], parts):
            continue
        end = place
        while end < len(words) and (
            unknown[end]
            or words[end] in parts
            or re.match("left|right", words[end])
            or (words[end] == "of" and unknown[end - 1] and end + 1 < len(words) and unknown[end + 1])
        ):
            if unknown[end] and words[end].endswith("ing") and words[end - 1] in known.nouns.parts:
                break  # `the bus bearing down on us`
            end += 1
        sides = [i for i in range(place, end) if re.match("left|right", words[i])]
        start = sides[-1] + 1 if sides else place  # `the outermost left-hand` stays
        relates = end + 1 < len(words) and words[end] == "of" and words[end + 1] in fixed
        if any(unknown[start:end]) and not relates:  # not `in the vicinity of the`
            before = words[place - 2] if place > 1 else ""
            many = words[place - 1] in _MANY or before in _MANY
            role = _ROLES.get(before, "thing")
            group = slice(start, end)
            sure = role != "place" and words[place - 1] not in _INDEFINITE
            gaps += _group_gaps(
                known, backbone, text, tokens[group], unknown[group], many=many, role=role, sure=sure
            )
        place = end + (end < len(words) and words[end] == "that")  # `that` behind a noun is no determiner
    return gaps


def _describes(known: KnownWords, word: str, parts: frozenset[str]) -> bool:
    """Whether `that` behind a word begins a clause, as in `clad in grey that stays put`."""
    return word in parts or bool(known.colours(word))


def _group_gaps(
    known: KnownWords,
    backbone: Backbone,
    text: str,
    tokens: list[re.Match[str]],
    unknown: list[bool],
    *,
    many: bool,
    role: Role,
    sure: bool,
) -> list[_Gap]:
    """What may stand for the unknown words of one noun group."""
    words = [token.group() for token in tokens]
    odd = [i for i, strange in enumerate(unknown) if strange]
    before = [i for i in odd if i + 1 < len(words)]
    shades = [i for i in before if is_shade(words[i], words[i + 1]) and known.colours(words[i + 1])]
    gaps = [
        _gap(tokens[i].start(), tokens[i + 1].end(), words[i], known.colours(words[i + 1]), many=False)
        for i in shades
    ]
    odd = [i for i in odd if i not in shades]
    for i in (i for i in before if words[i].lower() in _DEGREES and i + 1 in odd):
        options = _graded(known.describe(backbone, [words[i + 1]])[0], words[i].lower())
        gaps.append(_gap(tokens[i].start(), tokens[i + 1].end(), words[i], options, many=False))
        odd = [j for j in odd if j not in (i, i + 1)]
    single_words = [_singular(words[i]) for i in odd]
    kinds = dict(zip(odd, known.kinds_of(backbone, single_words), strict=True))
    named = [i for i in before if i in odd and known.colours(words[i])]
    kinds.update(dict.fromkeys(named, "adjective"))  # `the teal van`; `the teal` alone is a bird
    end = next((i for i in odd if kinds[i] == "other" and _ends_before(known, words, kinds, i)), len(words))
    odd = [i for i in odd if i < end]
    if not odd:
        return gaps
    first = next((i for i in odd if kinds[i] != "adjective"), None)  # `cop car` is one noun
    if first is not None:
        end = min([end, *(i for i in shades if i > first)])
    while first is not None and end - 1 > first and kinds.get(end - 1) == "adjective":
        end -= 1  # `the gent clad in black`: what stands behind the noun describes it, in ways of its own
    if first is None and odd[-1] == end - 1:
        if end > 1 and words[end - 2].lower() in known.nouns.parts:
            odd = odd[:-1]
        else:
            first = odd[-1]
    odd = [i for i in odd if i < end]
    leading = [i for i in odd if first is None or i < first]
    if leading:
        meanings = known.describe(backbone, [words[i] for i in leading])
        for place, options in zip(leading, meanings, strict=True):
            gaps.append(_gap(tokens[place].start(), tokens[place].end(), words[place], options, many=False))
    if first is not None:
        start, end = tokens[first].start(), tokens[end - 1].end()
        phrase = text[start:end]
        single = _singular(phrase)
        options = known.name(backbone, [single], role=role)[0]
        if sure:
            options = known.or_anything(options)
        gaps.append(_gap(start, end, phrase, options, many=many or single != phrase))
    return sorted(gaps, key=lambda gap: gap.start)


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


def _colour_gap(known: KnownWords, token: re.Match[str]) -> list[_Gap]:
    """The gap at a word behind `in` that names a colour: `dressed in crimson`."""
    options = known.colours(token.group())
    return [_gap(token.start(), token.end(), token.group(), options, many=False)] if options else []


def _gap(start: int, end: int, own: str, options: Sequence[Meaning], *, many: bool) -> _Gap:
    """A gap with its options in words; `own` stays where a meaning has none."""
    total = sum(option.share for option in options)
    rows = []
    for option in options:
        wording = option.wording
        text = wording.plural if many and wording.plural else wording.singular
        rows.append((text or own, option.share / total))
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
