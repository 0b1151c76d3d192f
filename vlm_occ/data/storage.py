"""Writing files that are whole or absent, whatever stops the process."""

from __future__ import annotations

import contextlib
import json
import os
from pathlib import Path


def write_atomic(path: Path, content: bytes) -> None:
    """Write a file under a temporary name and rename it; ValueError names the file where the disk refuses."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("wb") as file:
            file.write(content)
        temporary.replace(path)
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise ValueError(
            f"can't write {path}: {error.strerror}; free the disk or choose another folder, and run the same "
            "command again: what is finished is kept"
        ) from error


def encode_json(value: object) -> bytes:
    """Compact JSON whose bytes depend on the value only; NaN is refused."""
    return json.dumps(value, separators=(",", ":"), allow_nan=False).encode()


def read_json(path: Path) -> object:
    """The value of a JSON file, or ValueError that names it."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ValueError(f"{path} is missing") from error
    except OSError as error:
        raise ValueError(f"can't read {path}: {error.strerror}") from error
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is truncated or not valid JSON ({error}); restore it") from error
