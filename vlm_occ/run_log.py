"""What a run shows of itself: a progress bar, a line of JSON a step, a tracker."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

from vlm_occ.config import TrainConfig


class Log:
    """Progress bar on stderr, a line of JSON a step in `out`/log.jsonl, and the tracker."""

    def __init__(self, config: TrainConfig, *, enabled: bool) -> None:
        self.config, self.enabled = config, enabled
        self.file = (Path(config.out) / "log.jsonl").open("a") if enabled else None
        self.tracker = None
        if enabled and config.tracker == "tensorboard":
            from vlm_occ.weights import require

            require("tensorboard", "train")
            from torch.utils.tensorboard.writer import SummaryWriter

            self.tracker = SummaryWriter(str(Path(config.out) / "tensorboard"))

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
                for name, value in values.items():
                    self.tracker.add_scalar(name, value, step)

    def close(self) -> None:
        """Flush everything."""
        if self.file is not None:
            self.file.close()
        if self.tracker is not None:
            self.tracker.close()
