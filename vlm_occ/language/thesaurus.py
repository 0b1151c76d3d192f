"""Other names of a thing, by the senses of its name: a `wrecker` is a tow truck, or someone who wrecks.

The sets of synonyms are WordNet 3.1's (Princeton University; its licence lies beside them), of people,
animals, artefacts, natural objects and substances. `scripts/make_synonyms.py` writes them.
"""

from __future__ import annotations

import lzma
from functools import cache
from pathlib import Path

SYNONYMS = Path(__file__).parent / "synonyms" / "nouns.txt.xz"
SEPARATOR = "|"


def other_names(noun: str) -> list[tuple[str, ...]]:
    """The other names of a noun in the singular, for each of its senses that has any."""
    name = noun.lower()
    spellings = dict.fromkeys((name, name.replace("-", " "), name.replace("-", "")))
    found = next((sets for spelling in spellings if (sets := _sets().get(spelling))), ())
    names = [tuple(other for other in one if other not in spellings) for one in found]
    return [own for own in names if own]


@cache
def _sets() -> dict[str, list[list[str]]]:
    """The sets of synonyms that each name is in."""
    result: dict[str, list[list[str]]] = {}
    for line in lzma.decompress(SYNONYMS.read_bytes()).decode().splitlines():
        names = line.split(SEPARATOR)
        for name in names:
            result.setdefault(name, []).append(names)
    return result
