"""Files that appear whole or not at all, and the words in pictures."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

REFERRED = (255, 31, 143)
"""The colour of what the query means: a pink that no road, plant, vehicle or sign has."""


@contextmanager
def whole_file(path: str | Path) -> Iterator[Path]:
    """A temporary path that takes the place of `path` when the block succeeds and vanishes when it fails."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def shorten(text: str, limit: int) -> str:
    """At most `limit` characters of a text."""
    return text if len(text) <= limit else text[: limit - 1].rstrip() + "…"
