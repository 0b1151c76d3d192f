"""What a run shows of itself: a progress bar, a line of JSON a step, a tracker, sample pictures."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol, cast

from torch import nn

from vlm_occ.config import TrainConfig, to_dict
from vlm_occ.run_state import whole_text
from vlm_occ.types import GroundingResult, LabelledScene
from vlm_occ.weights import require

PICTURE_QUERIES = 2
"""Sentences of the sample scene that are drawn."""


class Tracker(Protocol):
    """Where curves go."""

    def write(self, step: int, values: dict[str, float]) -> None:
        """Record the values of a step."""
        ...

    def close(self) -> None:
        """Flush everything."""
        ...


class TensorboardTracker:
    """Curves in `out`/tensorboard."""

    def __init__(self, config: TrainConfig, start: int) -> None:
        require("tensorboard", "train")
        from torch.utils.tensorboard.writer import SummaryWriter

        self.writer = SummaryWriter(str(Path(config.out) / "tensorboard"), purge_step=start or None)

    def write(self, step: int, values: dict[str, float]) -> None:
        """Record the values of a step."""
        for name, value in values.items():
            self.writer.add_scalar(name, value, step)

    def close(self) -> None:
        """Flush everything."""
        self.writer.close()


class HostedTracker:
    """Curves in wandb or trackio, which share their interface; project vlm-occ, a run named after `out`."""

    def __init__(self, config: TrainConfig, start: int) -> None:
        import importlib

        del start
        require(config.tracker, config.tracker)
        self.package = importlib.import_module(config.tracker)
        self.package.init(project="vlm-occ", name=Path(config.out).name, config=to_dict(config))

    def write(self, step: int, values: dict[str, float]) -> None:
        """Record the values of a step."""
        self.package.log(values, step=step)

    def close(self) -> None:
        """Flush everything."""
        self.package.finish()


TRACKERS = {"tensorboard": TensorboardTracker, "wandb": HostedTracker, "trackio": HostedTracker}


class Log:
    """Progress bar on stderr, a line of JSON a step in `out`/log.jsonl, and the tracker."""

    def __init__(self, config: TrainConfig, *, enabled: bool, start: int = 0) -> None:
        self.config, self.enabled = config, enabled
        self.file, self.tracker = None, None
        if enabled:
            path = Path(config.out) / "log.jsonl"
            keep_lines(path, start)
            self.file = path.open("a")
            if config.tracker != "none":
                self.tracker: Tracker | None = TRACKERS[config.tracker](config, start)

    def progress(self, start: int, steps: int) -> Iterator[int]:
        """The steps to run, with a bar."""
        from tqdm import tqdm

        self.bar = tqdm(
            range(start, steps), initial=start, total=steps, disable=not self.enabled, unit="step"
        )
        yield from self.bar

    def write(self, step: int, values: dict[str, float]) -> None:
        """Record one step."""
        if self.file is None:
            return
        self.file.write(json.dumps({"step": step, **{k: round(v, 6) for k, v in values.items()}}) + "\n")
        if step % self.config.log_every == 0:
            self.file.flush()
            self.bar.set_postfix(
                {k: f"{v:.3g}" for k, v in values.items() if k in ("total", "pointer", "heatmap")}
            )
            if self.tracker is not None:
                self.tracker.write(step, values)

    def close(self) -> None:
        """Flush everything."""
        if self.file is not None:
            self.file.close()
        if self.tracker is not None:
            self.tracker.close()


def keep_lines(path: Path, start: int) -> None:
    """Drop the lines of a log from step `start` on, which will be run again, and a half-written last one."""
    if not path.exists():
        return
    kept = []
    for line in path.read_text().splitlines():
        try:
            if json.loads(line)["step"] < start:
                kept.append(line)
        except json.JSONDecodeError:
            continue
    whole_text(path, "".join(f"{line}\n" for line in kept))


def draw_samples(model: nn.Module, item: LabelledScene, folder: Path, *, grounding: bool) -> None:
    """Pictures of a scene from above: its first sentences, or without `grounding` its occupancy alone."""
    from vlm_occ.render import draw_birds_eye

    training, answerer = model.training, cast(Any, model)
    model.eval()
    state = answerer.encode(item.scene)
    if grounding:
        results = answerer.ground(state, [query.text for query in item.queries[:PICTURE_QUERIES]])
    else:
        results = [GroundingResult("", "occupancy", (), state.occupancy, state.grid)]
    model.train(training)
    for number, result in enumerate(results):
        draw_birds_eye(result, folder / f"query-{number}.png", scene=item.scene)
    print(f"vlm-occ: wrote {folder}/", file=sys.stderr)
