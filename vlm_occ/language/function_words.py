"""Quantifiers and ranks, a closed class of English, in the words that a model learned from.

`each of the vans` means all of the vans, and `the largest van but one` the second largest van. Only what is
unknown to a model is changed.
"""

from __future__ import annotations

import re

from vlm_occ.language.known_words import KnownWords

_WHOLES = "set|lot|group|bunch|collection|totality|entirety"
_WHOLE = re.compile(
    rf"\bthe (?:(?:entire|whole|complete|full) )?(?P<word>{_WHOLES}) of (?:the )?", re.IGNORECASE
)
_EACH = re.compile(r"\b(?P<word>each)(?P<of> of the)?\b", re.IGNORECASE)
_BUT = re.compile(r"\bthe (?P<group>(?:(?!\bthe\b)[\w'-]+ )+?)but (?P<word>one|two|three)\b", re.IGNORECASE)
_RANKS = {"one": "second", "two": "third", "three": "fourth"}


def plain_quantities(known: KnownWords, text: str) -> str:
    """A sentence whose quantifiers and ranks are known ones, where they were not.

    `the entire set of vans` becomes `all the vans`, `each van` `every van`, `the largest van but one` `the
    second largest van`.
    """

    def whole(match: re.Match[str]) -> str:
        return match.group() if match["word"] in known else "all the "

    def each(match: re.Match[str]) -> str:
        if match["word"] in known:
            return match.group()
        return "all of the" if match["of"] else "every"

    def rank(match: re.Match[str]) -> str:
        word = _RANKS[match["word"].lower()]
        return f"the {word} {match['group'].rstrip()}" if word in known else match.group()

    for pattern, change in ((_WHOLE, whole), (_EACH, each), (_BUT, rank)):
        text = pattern.sub(change, text)
    return text
