"""Whether the loader keeps up: scenes and sentences a second of the loader alone and of training steps."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from accelerate import Accelerator

from vlm_occ.config import TrainConfig
from vlm_occ.run_config import check_config
from vlm_occ.run_model import initial_model, trainable
from vlm_occ.run_scenes import Scenes, StepScenes, open_source, step_loader
from vlm_occ.train import new_optimizer, optimizer_step
from vlm_occ.training_module import TrainingModule
from vlm_occ.types import LabelledScene

WARM_UP = 2
"""Steps that are not timed: loader processes start, kernels are chosen."""


@dataclass(frozen=True)
class Throughput:
    """What was measured with one number of loader processes; rates are per second of wall time."""

    workers: int
    loader_scenes: float  # the loader alone
    loader_examples: float  # the same in sentences
    step_scenes: float  # training steps, their waits included
    step_examples: float
    waited: float  # share of the steps' time in which they waited for the loader


class Waited(Iterator[list[LabelledScene]]):
    """A loader that counts its scenes, their sentences and the seconds that its user waits."""

    def __init__(self, scenes: Iterator[list[LabelledScene]]) -> None:
        self._scenes = scenes
        self.reset()

    def reset(self) -> None:
        """Count from here on."""
        self.seconds, self.scenes, self.examples = 0.0, 0, 0

    def __next__(self) -> list[LabelledScene]:
        start = time.perf_counter()
        items = next(self._scenes)
        self.seconds += time.perf_counter() - start
        self.scenes += len(items)
        self.examples += sum(len(item.queries) for item in items)
        return items


def measure(
    config: TrainConfig, *, workers: int = 0, steps: int = 10, source: Scenes | None = None
) -> Throughput:
    """Time `steps` steps of a run's loader alone, then with the training step; nothing is saved.

    Both see the same scenes, so a folder that keeps simulated scenes (`data.keep`) should be filled first.
    """
    config = replace(config, steps=steps + WARM_UP, data=replace(config.data, workers=workers))
    check_config(config)
    source = source if source is not None else open_source(config)
    alone = Waited(step_loader(StepScenes(source, config), 0))
    for forward in range(config.steps * config.accumulation):
        if forward == WARM_UP * config.accumulation:
            alone.reset()
        next(alone)
    accelerator = Accelerator(gradient_accumulation_steps=1)
    model = initial_model(config)
    optimizer = new_optimizer(trainable(model, config), config, accelerator.device)
    module, optimizer = accelerator.prepare(TrainingModule(model, config), optimizer)
    loader = Waited(step_loader(StepScenes(source, config), 0))
    start = 0.0
    for step in range(config.steps):
        if step == WARM_UP:
            loader.reset()
            start = time.perf_counter()
        optimizer_step(accelerator, module, optimizer, loader, config, step)  # ends with a read-back
    seconds = time.perf_counter() - start
    return Throughput(
        workers=workers,
        loader_scenes=alone.scenes / alone.seconds,
        loader_examples=alone.examples / alone.seconds,
        step_scenes=loader.scenes / seconds,
        step_examples=loader.examples / seconds,
        waited=loader.seconds / seconds,
    )


def throughput_command(config: TrainConfig, *, workers: tuple[int, ...] = (0, 1, 2), steps: int = 10) -> None:
    """Print the table of `scripts/benchmark.py loader`."""
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU"
    print(
        f"stage {config.stage}, {config.queries_per_scene} sentences a scene, {device}, {steps} steps,",
        end=" ",
    )
    print(f"{torch.get_num_threads()} threads; scenes (sentences) a second")
    print(f"{'workers':>8}{'loader alone':>20}{'training':>20}{'waits':>8}")
    for count in workers:
        result = measure(config, workers=count, steps=steps)
        alone = f"{result.loader_scenes:.2f} ({result.loader_examples:.1f})"
        training = f"{result.step_scenes:.2f} ({result.step_examples:.1f})"
        print(f"{count:>8}{alone:>20}{training:>20}{result.waited:>8.0%}")
