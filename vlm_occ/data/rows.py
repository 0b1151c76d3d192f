"""Reading rows of annotation files, with errors that name the file, the field and what it holds."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

Row = Mapping[str, object]


def read_rows(path: str | Path, key: str | None = None) -> list[Row]:
    """The rows of a JSON or JSON-lines file, under `key` where one is given."""
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise ValueError(f"cannot read {path} ({error.strerror}); give the annotation file") from error
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is no text file; give the JSON annotation file") from error
    try:
        if path.suffix == ".jsonl":
            content = [json.loads(line) for line in text.splitlines() if line.strip()]
        else:
            content = json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is not valid JSON ({error}); download it again") from error
    if key is not None:
        content = content.get(key) if isinstance(content, dict) else None
    if not isinstance(content, list) or not all(isinstance(row, dict) for row in content):
        where = f" under {key!r}" if key else ""
        raise ValueError(f"{path} holds no list of questions{where}; is this the file of another data set?")
    return content


def read_parquet(path: Path) -> list[Row]:
    """The rows of a parquet file; needs pyarrow."""
    from vlm_occ.weights import require

    require("pyarrow", "train")
    import pyarrow
    from pyarrow import parquet

    try:
        return parquet.read_table(path).to_pylist()
    except (OSError, pyarrow.ArrowInvalid) as error:
        raise ValueError(f"cannot read {path} ({error}); give the parquet file of VSI-Bench") from error


def _value(row: Row, key: str, path: str | Path) -> object:
    if key not in row:
        held = ", ".join(map(str, row)) or "nothing"
        raise ValueError(f"a row of {path} has no {key!r} (it has {held}); is this another data set?")
    return row[key]


def text_of(row: Row, key: str, path: str | Path) -> str:
    """A text or number of a row, as text."""
    value = _value(row, key, path)
    if not isinstance(value, str | int | float):
        raise ValueError(f"{key!r} in {path} is {value!r}, expected a text or a number")
    return str(value)


def number_of(row: Row, key: str, path: str | Path) -> float:
    """A number of a row."""
    value = _value(row, key, path)
    if not isinstance(value, int | float):
        raise ValueError(f"{key!r} in {path} is {value!r}, expected a number")
    return float(value)


def texts_of(row: Row, key: str, path: str | Path) -> tuple[str, ...]:
    """A list of texts of a row."""
    value = _value(row, key, path)
    if not isinstance(value, list):
        raise ValueError(f"{key!r} in {path} is {value!r}, expected a list of texts")
    return tuple(str(item) for item in value)


def numbers_of(row: Row, key: str, path: str | Path) -> list[float]:
    """A list of numbers of a row."""
    value = _value(row, key, path)
    if not isinstance(value, list) or not all(isinstance(item, int | float) for item in value):
        raise ValueError(f"{key!r} in {path} is {value!r}, expected a list of numbers")
    return [float(item) for item in value]


def row_of(row: Row, key: str, path: str | Path) -> Row:
    """An object with named fields inside a row."""
    value = _value(row, key, path)
    if not isinstance(value, dict):
        raise ValueError(f"{key!r} in {path} is {value!r}, expected an object with named fields")
    return value


def rows_of(row: Row, key: str, path: str | Path) -> list[Row]:
    """A list of objects inside a row."""
    value = _value(row, key, path)
    if not isinstance(value, list) or not all(isinstance(item, dict) for item in value):
        raise ValueError(f"{key!r} in {path} is {value!r}, expected a list of objects")
    return value


def triple(values: Sequence[float]) -> tuple[float, float, float]:
    """The three numbers x, y, z of a position."""
    if len(values) != 3:
        raise ValueError(f"the position {list(values)} has {len(values)} numbers, expected x, y, z")
    x, y, z = values
    return x, y, z
