"""Where a sentence speaks of things and places: its noun groups, and which of their words training never saw.

A group is what follows `the`, `a`, `all`, ... up to a word that can't be part of it. A side (`the left-hand`)
stays as it is.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from vlm_occ.language.known_words import KnownWords, Role
from vlm_occ.types import NUMBER_WORDS, WORD

_TOKEN = re.compile(rf"\d+(?:\.\d+)?|{WORD}|[^\w\s]")
_MANY = {*NUMBER_WORDS[2:], "all", "both", "these", "those"}
FUNCTION = frozenset(
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
_ROLES: dict[str, Role] = {
    **dict.fromkeys(("on", "along", "across"), "place"),
    **dict.fromkeys(("at", "in", "off", "to", "by", "from"), "either"),
}
"""What a noun group may stand for behind a preposition; a thing behind all other words."""
RANKS = frozenset(["first", "second", "third", "fourth"])
_INDEFINITE = {"a", "an", "any", "some"}
DETERMINERS = _MANY | _INDEFINITE | {"the", "this", "that", "every", "each"}


@dataclass(frozen=True)
class NounGroup:
    """Words of a noun group behind its determiner, one or more of them unknown.

    `many`: its determiner is one of several things; `sure`: what it means is there, as `the` says, not `a`;
    `to`: that is the word behind it, as in `the lorry adjacent to`; `relates`: it names no thing of its own,
    as `the rear` of `to the rear of the bus`.
    """

    tokens: list[re.Match[str]]
    unknown: list[bool]
    many: bool
    role: Role
    sure: bool
    to: bool
    relates: bool

    @property
    def words(self) -> list[str]:
        """The words as they are written."""
        return [token.group() for token in self.tokens]


@dataclass(frozen=True)
class SentenceWords:
    """The words of a sentence in lower case."""

    known: KnownWords
    tokens: list[re.Match[str]]
    words: list[str]
    unknown: list[bool]
    odd: list[bool]  # unknown, function words included
    parts: frozenset[str]  # known words that a group may hold

    def end_of_group(self, start: int) -> int:
        """The first word from `start` on that is no part of the group that begins there."""
        words, end = self.words, start + self.ranks(start)
        while end < len(words) and self._in_group(end):
            if self.unknown[end] and words[end].endswith("ing") and self._behind_noun(start, end):
                break  # `the bus bearing down on us`
            end += 1
        return end

    def _behind_noun(self, start: int, place: int) -> bool:
        """Whether an unknown word in -ing begins what is said behind the noun of a group from `start` on."""
        following = self.words[place + 1 : place + 2]
        said = place > start and following != [] and following[0] in FUNCTION
        return said or self.words[place - 1] in self.known.nouns.parts

    def ranks(self, place: int) -> bool:
        """Whether a word is a rank, `the second nearest van`."""
        return self.words[place : place + 1] != [] and self.words[place] in RANKS

    def _in_group(self, place: int) -> bool:
        if self.unknown[place] or self.words[place] in self.parts or is_side(self.words[place]):
            return True
        joins = self.words[place] == "of" and self.unknown[place - 1]
        return joins and place + 1 < len(self.words) and self.unknown[place + 1]

    def relates(self, start: int, end: int) -> bool:
        """Whether a group only relates to what follows: `in the vicinity of the bus`, `to the rear of us`."""
        words = self.words
        if words[end : end + 1] != ["of"] or end + 1 == len(words):
            return False
        return words[end + 1] in DETERMINERS or (end == start + 1 and words[end + 1] in FUNCTION)

    def role(self, place: int) -> Role:
        """What a group may stand for behind word `place` and its determiner.

        `To` and `from` with an adjective or noun before them, `adjacent to the` or `distance from the`, are
        followed by a thing.
        """
        before = self.words[place] if place >= 0 else ""
        word = self.words[place - 1] if place > 0 else ""
        joined = before in ("to", "from") and word[:1].isalpha()
        if joined and word not in FUNCTION and not word.endswith("ing"):
            return "thing"
        return _ROLES.get(before, "thing")

    def groups(self) -> Iterator[tuple[int, int]]:
        """Each noun group: the place of its determiner and the place behind it."""
        place = 0
        while place < len(self.words):
            place += 1
            if self.words[place - 1] in DETERMINERS and not self.begins_clause(place - 1):
                end = self.end_of_group(place)
                yield place - 1, end
                place = end + (self.words[end : end + 1] == ["that"])  # behind a noun it is no determiner

    def begins_clause(self, place: int) -> bool:
        """Whether `that` stands behind a noun or a colour, as in `clad in grey that stays put`."""
        if self.words[place] != "that" or place == 0:
            return False
        before = self.words[place - 1]
        return before in self.parts or bool(self.known.colours(before))


def noun_groups(row: SentenceWords) -> list[NounGroup]:
    """The noun groups of a sentence that have unknown words."""
    groups, words = list[NounGroup](), row.words
    for place, end in row.groups():
        sides = [i for i in range(place + 1, end) if is_side(words[i])]
        start = sides[-1] + 1 if sides else place + 1 + row.ranks(place + 1)
        if any(row.unknown[start:end]):
            before = words[place - 1] if place > 0 else ""
            many = words[place] in _MANY or before in _MANY
            role = row.role(place - 1)
            sure = role != "place" and words[place] not in _INDEFINITE
            to = words[end : end + 1] == ["to"]
            relates = row.relates(place + 1, end)
            tokens, unknown = row.tokens[start:end], row.unknown[start:end]
            groups.append(NounGroup(tokens, unknown, many, role, sure, to, relates))
    return groups


def request(known: KnownWords, text: str, names_nothing: Callable[[str], bool]) -> tuple[int, bool] | None:
    """Where the first noun phrase begins that names a thing, if unknown words stand before it, and whether it
    is indefinite: `kindly indicate | the van`, `sit to the rear of | the van`, `take a glance at | the van`.

    `the` before a noun that only relates to another, `to the rear of the van`, does not begin one, nor does
    `a` before an unknown one that `names_nothing`, where another follows.
    """
    row, found = sentence_words(known, text), list[int]()
    for place, word in enumerate(row.words):
        if word not in DETERMINERS or row.begins_clause(place):
            continue
        end = row.end_of_group(place + 1)
        if word != "the" or not row.relates(place + 1, end):
            found.append(place)
            noun = text[row.tokens[place + 1].start() : row.tokens[end - 1].end()] if end > place + 1 else ""
            strange = any(row.unknown[place + 1 : end])
            if word not in _INDEFINITE or not strange or not names_nothing(noun):
                break
    else:
        found = found[:1]
    if not found or not any(row.unknown[: found[-1]]):
        return None
    return row.tokens[found[-1]].start(), row.words[found[-1]] in _INDEFINITE


def words_behind_in(row: SentenceWords) -> list[re.Match[str]]:
    """Unknown words right behind `in`: `dressed in crimson`."""
    return [row.tokens[i] for i in range(1, len(row.words)) if row.words[i - 1] == "in" and row.unknown[i]]


def sentence_words(known: KnownWords, text: str) -> SentenceWords:
    """The words of a sentence, and which of them a model knows."""
    tokens = list(_TOKEN.finditer(text))
    words, fixed = [token.group().lower() for token in tokens], FUNCTION | DETERMINERS
    odd = [word[0].isalpha() and word not in known for word in words]
    unknown = [strange and word not in fixed for word, strange in zip(words, odd, strict=True)]
    return SentenceWords(
        known, tokens, words, unknown, odd, (known.nouns.parts | known.adjectives.parts) - fixed
    )


def is_side(word: str) -> bool:
    return re.match("left|right", word) is not None
