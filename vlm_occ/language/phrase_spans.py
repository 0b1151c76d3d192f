"""Where a sentence says, behind a noun, in which place or motion a thing is: its phrases with unknown words.

`the van | off to our left-hand flank | that stays put | in the vicinity of | the bus` has three. What stands
between two things, or behind the last one, is cut where a preposition or `that` begins a phrase of its own.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from vlm_occ.language.noun_groups import DETERMINERS, SentenceWords, is_side

_PREPOSITIONS = frozenset(
    re.findall(
        r"[a-z]+",
        """
    about above across after against ahead along alongside amid among around aside astride at away before
    behind below beneath beside besides between beyond by down for from in inside into near of off on onto
    opposite out outside over past round through till to toward towards under underneath until up upon with
    within without than
    """,
    )
)
_RELATIVE = frozenset(["that", "who", "which"])
_JOINED = frozenset(["of", "from", "to", "than", "with"])
"""Prepositions behind which what was said goes on: `away from us`, `level with our doors`."""
_LINKS = frozenset(["is", "are"])


@dataclass(frozen=True)
class PhraseSpan:
    """A phrase with unknown words: its characters, and its words with `{n}` for a number and a final `{a}`
    where a thing follows; `bare` is without the `that is` in front.
    """

    start: int
    end: int
    text: str
    bare: str
    number: str = ""

    def filled(self, phrase: str) -> str:
        """Another phrase with the same slots, as it stands in this one's place."""
        return phrase.replace(" {a}", "").replace("{n}", self.number)


def unknown_phrases(row: SentenceWords) -> list[PhraseSpan]:
    """The phrases of a sentence that have unknown words, in their order."""
    spans, things = list[PhraseSpan](), _things(row)
    for i, (_, start) in enumerate(things):
        last = things[i + 1][0] if i + 1 < len(things) else len(row.words)
        parts = _cut(row, start, last)
        for j, (first, end) in enumerate(parts):
            before_thing = j == len(parts) - 1 and end == last and i + 1 < len(things)
            span = _span(row, first, end, before_thing=before_thing)
            if span is not None:
                spans.append(span)
    return spans


def _things(row: SentenceWords) -> list[tuple[int, int]]:
    """Each noun group that stands for a thing: the place of its determiner and the place behind it."""
    return [
        (place, end)
        for place, end in row.groups()
        if end > place + 1 and not row.relates(place + 1, end) and _is_thing(row, place + 1, end)
    ]


def _is_thing(row: SentenceWords, start: int, end: int) -> bool:
    """Whether words [start, end) behind a determiner name a thing and no place."""
    if any(is_side(word) for word in row.words[start:end]) and row.words[end - 1] in ("side", "end"):
        return False
    role = row.role(start - 2)
    noun = row.known.nouns.by_phrase.get(row.words[end - 1])
    if noun is not None:
        return bool(noun.plural) and role != "place"
    return role == "thing" or (role == "either" and row.words[start - 2] in ("by", "to", "from"))


def _cut(row: SentenceWords, start: int, end: int) -> list[tuple[int, int]]:
    """Words [start, end) in phrases, by where each begins and ends; punctuation is in none."""
    parts, first = list[tuple[int, int]](), start
    for i in range(start, end + 1):
        over = i == end or not row.words[i][0].isalnum()
        if (over or (i > first and _begins(row, first, i))) and i > first:
            parts.append((first, i))
            first = i
        if over:
            first = i + 1
    return parts


def _begins(row: SentenceWords, first: int, i: int) -> bool:
    """Whether word i begins a phrase of its own behind words [first, i)."""
    word, before, behind = row.words[i], row.words[i - 1], row.words[i + 1 : i + 2]
    if word in _RELATIVE:
        return before not in _PREPOSITIONS
    if i == first + 1 or before in _PREPOSITIONS | _RELATIVE | _LINKS | DETERMINERS:
        return False
    if word == "in" and behind and (behind[0] == "it" or _is_colour(row, behind[0])):
        return False  # `with nobody in it`, `clad in navy`
    starts = word in _PREPOSITIONS and word not in _JOINED
    adjective = behind == ["to"] and row.words[i + 2 : i + 3] != ["our"]  # `adjacent to the bus`
    starts |= row.unknown[i] and (word.endswith("ing") or adjective)
    return starts or (word == "to" and behind == ["our"])


def _is_colour(row: SentenceWords, word: str) -> bool:
    return bool(row.known.colours(word))


def _span(row: SentenceWords, first: int, end: int, *, before_thing: bool) -> PhraseSpan | None:
    """Words [first, end) as a phrase; None if all are known, or if it says a colour or two numbers."""
    words = row.words[first:end]
    strange = any(row.odd[first:end])
    numbers = [word for word in words if word[0].isdigit()]
    if not strange or len(numbers) > 1 or any(_is_colour(row, word) for word in words):
        return None
    told = ["{n}" if word[0].isdigit() else word for word in words] + ["{a}"] * before_thing
    tokens, text = row.tokens[first:end], " ".join(told)
    bare = re.sub(r"^(?:that|who|which) (?:is|are) ", "", text)
    return PhraseSpan(tokens[0].start(), tokens[-1].end(), text, bare, "".join(numbers))
