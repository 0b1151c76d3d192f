"""Phrases with slots, `within {n} metres`: what they look like in sentences, and how common they are."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence

import torch
from torch import Tensor

from vlm_occ.types import Wording

SLOTS = {"{n}": "20", "{c}": "red", "{a}": "the tree"}
"""What stands in a phrase where it is told: for a number, a colour and the thing behind it."""


def filled(phrase: str) -> str:
    """A phrase with something in its slots."""
    for slot, words in SLOTS.items():
        phrase = phrase.replace(slot, words)
    return phrase


def frame(phrase: str) -> tuple[frozenset[str], bool, bool]:
    """The slots of a phrase, and whether it says left and right."""
    slots = frozenset(slot for slot in SLOTS if slot in phrase)
    return slots, bool(re.search(r"\bleft", phrase)), bool(re.search(r"\bright", phrase))


def frequencies(phrases: Sequence[Wording], sentences: Sequence[str]) -> Tensor:
    """Logarithms [P] of the share of what each phrase means in all that sentences say behind nouns.

    Every meaning counts once more than it occurs; a longer phrase hides the shorter ones in it.
    """
    counts = dict.fromkeys((wording.singular for wording in phrases), 1)
    patterns = [(_pattern(wording.phrase), wording) for wording in phrases]
    patterns.sort(key=lambda item: -len(item[1].phrase))
    for text in sentences:
        rest = text.lower()
        for pattern, wording in patterns:
            rest, found = pattern.subn("#", rest)
            counts[wording.singular] += found
    total = sum(counts.values())
    return torch.tensor([math.log(counts[wording.singular] / total) for wording in phrases])


def _pattern(phrase: str) -> re.Pattern[str]:
    """What a phrase looks like in a sentence."""
    text = (
        re.escape(phrase.lower().replace(" {a}", "")).replace(r"\{n\}", r"\d+").replace(r"\{c\}", r"[\w-]+")
    )
    return re.compile(rf"(?<![\w-]){text}(?![\w-])" + (" (?=the )" if "{a}" in phrase else ""))
