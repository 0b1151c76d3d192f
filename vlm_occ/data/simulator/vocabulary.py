"""A training lexicon as a list: every word of its sentences, and its nouns and adjectives by meaning."""

from __future__ import annotations

import re

from vlm_occ.data.simulator.lexicon import NOUNS, plural
from vlm_occ.data.simulator.phrases import AGREEMENT
from vlm_occ.data.simulator.relations import RELATIONS
from vlm_occ.data.simulator.wordings import (
    ADJECTIVES,
    DETERMINERS,
    FRAMES,
    NUMBERS,
    ORDINALS,
    PHRASES,
    SITUATIONS,
)
from vlm_occ.situated import Lexicon
from vlm_occ.types import WORD, Vocabulary, Wording

_PLACES = {
    **{"side": "side", "back": "back", "front": "front", "road": "road", "street": "road", "grass": "grass"},
    **{"sidewalk": "pavement", "pavement": "pavement", "kerb": "kerb", "curb": "kerb"},
    **{"roadside": "side of the road", "junction": "junction", "intersection": "junction"},
    **dict.fromkeys(("way", "distance", "parking spot", "friend", "look", "metre"), ""),
}
"""Nouns of the training sentences that name no object; those that mean "" are not reworded."""
_OF_ONE = frozenset((*RELATIONS, "closest_to"))
_OF_TWO = frozenset(["between"])
"""Keys of the phrases that stand before another thing, or two."""


def training_words(lexicon: Lexicon = "train") -> frozenset[str]:
    """Every word of a lexicon in lower case."""
    tables = (NOUNS, ADJECTIVES, PHRASES, FRAMES, ORDINALS, DETERMINERS, SITUATIONS)
    texts = [wording for table in tables for row in table[lexicon].values() for wording in row]
    texts += [plural(noun) for row in NOUNS[lexicon].values() for noun in row]
    texts += [*NUMBERS, *(changed for _, changed in AGREEMENT), "first second third metre metres m us both"]
    words = re.findall(WORD, re.sub(r"\{\w+\}|\\b", " ", " ".join(texts)))
    return frozenset(word.lower() for word in words)


def training_nouns(lexicon: Lexicon = "train") -> tuple[Wording, ...]:
    """Every noun of a lexicon with the first wording of its meaning, then the places."""
    rows = [Wording(noun, nouns[0], plural(nouns[0])) for nouns in NOUNS[lexicon].values() for noun in nouns]
    return (*rows, *(Wording(word, meaning) for word, meaning in _PLACES.items()))


def training_adjectives(lexicon: Lexicon = "train") -> tuple[Wording, ...]:
    """Every adjective of a lexicon with the first wording of its meaning."""
    return tuple(Wording(word, words[0]) for words in ADJECTIVES[lexicon].values() for word in words)


def training_phrases(lexicon: Lexicon = "train") -> tuple[Wording, ...]:
    """Every phrase of a lexicon that stands behind a noun, with the first wording of its meaning."""
    rows = []
    for key, phrases in PHRASES[lexicon].items():
        if key not in _OF_TWO:
            told = [f"{phrase} {{a}}" if key in _OF_ONE else phrase for phrase in phrases]
            rows += [Wording(phrase, told[0]) for phrase in told]
    return tuple(rows)


def training_vocabulary(lexicon: Lexicon = "train") -> Vocabulary:
    """A lexicon, and what the wide one has besides."""
    words, nouns = training_words(lexicon), training_nouns(lexicon)
    adjectives, phrases = training_adjectives(lexicon), training_phrases(lexicon)
    more = (
        tuple(row for row in wide if row not in own)
        for wide, own in (
            (training_adjectives("wide"), adjectives),
            (training_phrases("wide"), phrases),
        )
    )
    return Vocabulary(words, nouns, adjectives, phrases, *more)
