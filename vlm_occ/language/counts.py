"""What a sentence's first noun group says of the number that it means: three by `the three vans`, two by
`both buses`, and by `a van` that there may be none.
"""

from __future__ import annotations

import re

from vlm_occ.types import NUMBER_WORDS, WORD

_BEFORE = {"all", "the", "these", "those", "of", "our", "my", "your"}
_DETERMINERS = _BEFORE | {"a", "an", "each", "every", "any", "some", "this", "that"}
_INDEFINITE = {"a", "an", "any", "some"}
_WORD = re.compile(rf"\d+|{WORD}")


def stated_count(text: str) -> int | None:
    """The number that stands before a sentence's first noun group, in words or digits; None without one.

    Numbers further on belong to something else: `the car behind the two vans`, `the bus 20 metres away`.
    """
    return _value(next((word for word in _from_first_determiner(text) if word not in _BEFORE), ""))


def presupposes(text: str) -> bool:
    """Whether a sentence takes for granted that what it means is there: `the van` does, `find a van` not.

    Definite descriptions presuppose, indefinite ones don't (Strawson 1950). Without a determiner it does.
    """
    return not {*_from_first_determiner(text)[:1]} & _INDEFINITE


def _from_first_determiner(text: str) -> list[str]:
    """A sentence's words in lower case from its first determiner or number on; empty without one."""
    words = [match.group().lower() for match in _WORD.finditer(text)]
    start = next((i for i, word in enumerate(words) if word in _DETERMINERS or _value(word)), len(words))
    return words[start:]


def _value(word: str) -> int | None:
    """The number of at least two that a word is."""
    if word == "both":
        return 2
    number = NUMBER_WORDS.index(word) if word in NUMBER_WORDS else int(word) if word.isdigit() else 0
    return number if number > 1 else None
