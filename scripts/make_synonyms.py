"""Write the synonyms of vlm_occ/language/synonyms from the database files of WordNet.

    python scripts/make_synonyms.py /usr/share/wordnet

DIR holds `data.noun` and `data.adj` in the format of wndb(5WN), as Debian's wordnet-base and NLTK's wordnet31
have them.
"""

from __future__ import annotations

import argparse
import lzma
from collections.abc import Iterator
from pathlib import Path

from vlm_occ.data.storage import write_atomic
from vlm_occ.language.colour_names import BASIC, LIKENED
from vlm_occ.language.thesaurus import SEPARATOR, SYNONYMS

KINDS = {"03": "tops", "05": "animal", "06": "artifact", "17": "object", "18": "person", "27": "substance"}
"""Lexicographer files, lexnames(5WN), whose nouns may name what stands in a street."""


def synonym_sets(path: Path) -> list[str]:
    """One line a set of at least two synonyms in lower case, in the order of the file."""
    lines = []
    for kind, names in _sets(path):
        names = [name for name in names if name == name.lower()]  # no proper nouns, no species in Latin
        if kind in KINDS and len(names) > 1:
            lines.append(SEPARATOR.join(names))
    return lines


def likened_colours(path: Path) -> list[str]:
    """Lines `ash grey` of what stands before one basic colour only in the names of adjectives."""
    found: dict[str, set[str]] = {}
    for _, names in _sets(path):
        for name in names:
            first, _, last = name.lower().replace("-", " ").replace("gray", "grey").rpartition(" ")
            if last in BASIC and first.isalpha():
                found.setdefault(first, set()).add(last)
    return sorted(f"{first} {colours.pop()}" for first, colours in found.items() if len(colours) == 1)


def _sets(path: Path) -> Iterator[tuple[str, list[str]]]:
    """The lexicographer file and the names of each set of synonyms of a database file."""
    for line in path.read_text(encoding="utf-8").splitlines():
        if line.startswith(" "):
            continue  # the licence
        fields = line.split(" | ")[0].split()
        names = fields[4 : 4 + 2 * int(fields[3], 16) : 2]
        yield fields[1], [name.partition("(")[0].replace("_", " ") for name in names]  # (p): its place


def main() -> None:
    """Read the database files, write ours."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("folder", type=Path, metavar="DIR", help="folder that holds data.noun and data.adj")
    nouns, adjectives = (parser.parse_args().folder / f"data.{kind}" for kind in ("noun", "adj"))
    for path in (nouns, adjectives):
        if not path.is_file():
            parser.error(
                f"there is no {path}; give the folder of WordNet's database files, e.g. /usr/share/wordnet"
            )
    lines = synonym_sets(nouns)
    write_atomic(SYNONYMS, lzma.compress("\n".join(lines).encode(), preset=9 | lzma.PRESET_EXTREME))
    print(f"{len(lines)} sets of synonyms, {SYNONYMS.stat().st_size} bytes: {SYNONYMS}")
    lines = likened_colours(adjectives)
    write_atomic(LIKENED, "".join(f"{line}\n" for line in lines).encode())
    print(f"{len(lines)} things of a colour: {LIKENED}")


if __name__ == "__main__":
    main()
