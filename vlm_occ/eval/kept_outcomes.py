"""The outcomes of scenes that an evaluation has done, so that one that was killed goes on from there."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable
from pathlib import Path

from vlm_occ.eval.evaluate import Outcome
from vlm_occ.eval.metrics import QueryRecord
from vlm_occ.types import LabelledScene
from vlm_occ.weights import sha256_of


class KeptOutcomes:
    """A file of one line a scene beside the results; lines of another model or commit are not taken."""

    def __init__(self, path: Path, about: str, *, share: int | None = None) -> None:
        """`about`: all that outcomes depend on but the scene, such as the sums of the model's files. What is
        known is read from `path` and from those of all shares; a process of several has a share of its own.
        """
        self.whole, self.about = path, about
        self.path = path if share is None else path.with_name(f"{path.name}.{share}")
        self.found: dict[str, list[Outcome]] = {}
        for line in (line for file in self._files() for line in file.read_text().splitlines()):
            try:
                key, rows = json.loads(line)
                self.found[key] = [_outcome(row) for row in rows]
            except (ValueError, TypeError, KeyError):  # the line at which it was killed
                continue

    def __call__(self, sensors: str, item: LabelledScene, make: Callable[[], list[Outcome]]) -> list[Outcome]:
        """The outcomes of a scene, as `make` gives them where they are not kept."""
        sentences = [(query.text, query.targets) for query in item.queries]
        key = hashlib.sha256(repr((self.about, sensors, item.scene.name, sentences)).encode()).hexdigest()
        if key not in self.found:
            self.found[key] = make()
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("a") as file:
                rows = [dataclasses.asdict(outcome) for outcome in self.found[key]]
                file.write("\n" + json.dumps([key, rows]))  # a line that was cut spoils no other
        return self.found[key]

    def forget(self) -> None:
        """Delete the files: the results are written."""
        for file in self._files():
            file.unlink(missing_ok=True)

    def _files(self) -> list[Path]:
        return sorted(self.whole.parent.glob(f"{self.whole.name}*"))


def file_sums(folder: Path) -> dict[str, str]:
    """The sha256 of each of a checkpoint's files by name."""
    files = sorted(path for path in folder.iterdir() if path.suffix in (".json", ".safetensors"))
    return {path.name: sha256_of(path) for path in files}


def _outcome(row: dict[str, dict[str, object]]) -> Outcome:
    return Outcome(**{name: QueryRecord(**record) for name, record in row.items()})  # type: ignore[arg-type]
