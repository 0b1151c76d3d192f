"""Write the synonyms of vlm_occ/language/synonyms from the database files of WordNet.

    python scripts/make_synonyms.py /usr/share/wordnet

DIR holds `data.noun` in the format of wndb(5WN), as Debian's wordnet-base and NLTK's wordnet31 have it.
"""

from __future__ import annotations

import argparse
import lzma
from pathlib import Path

from vlm_occ.data.storage import write_atomic
from vlm_occ.language.thesaurus import SEPARATOR, SYNONYMS

KINDS = {"03": "tops", "05": "animal", "06": "artifact", "17": "object", "18": "person", "27": "substance"}
"""Lexicographer files, lexnames(5WN), whose nouns may name what stands in a street."""


def synonym_sets(path: Path) -> list[str]:
    """One line a set of at least two synonyms in lower case, in the order of the file."""
    lines = []
    for line in path.read_text(encoding="utf-8").splitlines():
        if line.startswith(" "):
            continue  # the licence
        fields = line.split(" | ")[0].split()
        names = [name.replace("_", " ") for name in fields[4 : 4 + 2 * int(fields[3], 16) : 2]]
        names = [name for name in names if name == name.lower()]  # no proper nouns, no species in Latin
        if fields[1] in KINDS and len(names) > 1:
            lines.append(SEPARATOR.join(names))
    return lines


def main() -> None:
    """Read `data.noun`, write the file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("folder", type=Path, metavar="DIR", help="folder that holds data.noun")
    path = parser.parse_args().folder / "data.noun"
    if not path.is_file():
        parser.error(
            f"there is no {path}; give the folder of WordNet's database files, e.g. /usr/share/wordnet"
        )
    lines = synonym_sets(path)
    write_atomic(SYNONYMS, lzma.compress("\n".join(lines).encode(), preset=9 | lzma.PRESET_EXTREME))
    print(f"{len(lines)} sets of synonyms, {SYNONYMS.stat().st_size} bytes: {SYNONYMS}")


if __name__ == "__main__":
    main()
