"""The loader's benchmark: it counts what was loaded, and the share of waiting is that of the clock."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from tiny_runs import prepare, tiny_config, tiny_scenes

from vlm_occ.throughput import Waited, measure
from vlm_occ.types import LabelledScene


class Slow(list[LabelledScene]):
    """Scenes that take a while to load."""

    seconds = 0.0

    def __getitem__(self, index: int) -> LabelledScene:  # type: ignore[override]
        time.sleep(self.seconds)
        return super().__getitem__(index)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return prepare(tmp_path_factory.mktemp("tiny"))


def test_a_slow_loader_is_waited_for_and_a_fast_one_is_not(folder: Path, tmp_path: Path) -> None:
    config = replace(tiny_config(folder, tmp_path / "run"), queries_per_scene=3)
    scenes = Slow(tiny_scenes(folder))
    fast = measure(config, steps=2, source=scenes)
    scenes.seconds = 2.0
    slow = measure(config, steps=2, source=scenes)
    assert slow.loader_scenes <= 1 / scenes.seconds < fast.loader_scenes
    assert slow.step_scenes < slow.loader_scenes  # a step in one process waits, then works
    waits = [result.waited * 2 / result.step_scenes for result in (fast, slow)]  # seconds of two steps
    assert waits[0] < 2 * scenes.seconds <= waits[1] < 2 / slow.step_scenes
    assert fast.step_examples == pytest.approx(3 * fast.step_scenes)
    assert not (tmp_path / "run").exists()


def test_waiting_is_counted_from_the_reset_on(folder: Path) -> None:
    items = tiny_scenes(folder)

    def loader() -> Iterator[list[LabelledScene]]:
        time.sleep(0.2)
        yield items
        yield items[:1]

    waited = Waited(loader())
    next(waited)
    assert waited.seconds >= 0.2 and waited.scenes == 2
    waited.reset()
    next(waited)
    assert waited.seconds < 0.2 and (waited.scenes, waited.examples) == (1, len(items[0].queries))
