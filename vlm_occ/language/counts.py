"""How many objects a sentence says that it means: three by `the three vans`, two by `both buses`."""

from __future__ import annotations

import re

from vlm_occ.types import NUMBER_WORDS, WORD

_BEFORE = {"all", "the", "these", "those", "of", "our", "my", "your"}
_DETERMINERS = _BEFORE | {"a", "an", "each", "every", "any", "some", "this", "that"}
_WORD = re.compile(rf"\d+|{WORD}")


def stated_count(text: str) -> int | None:
    """The number that stands before a sentence's first noun group, in words or digits; None without one.

    Numbers further on belong to something else: `the car behind the two vans`, `the bus 20 metres away`.
    """
    words = [match.group().lower() for match in _WORD.finditer(text)]
    start = next((i for i, word in enumerate(words) if word in _DETERMINERS or _value(word)), len(words))
    end = start
    while end < len(words) and words[end] in _BEFORE:
        end += 1
    return _value(words[end]) if end < len(words) else None


def _value(word: str) -> int | None:
    """The number of at least two that a word is."""
    if word == "both":
        return 2
    number = NUMBER_WORDS.index(word) if word in NUMBER_WORDS else int(word) if word.isdigit() else 0
    return number if number > 1 else None
