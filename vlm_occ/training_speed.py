"""How fast a training step is when scenes are at hand: samples a second, share of the GPU's peak, memory."""

from __future__ import annotations

import itertools
import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from accelerate import Accelerator
from torch.utils.flop_counter import FlopCounterMode

from vlm_occ.config import TrainConfig, read_yaml
from vlm_occ.encoders.sparse_backends import VARIABLE
from vlm_occ.eval.report import circumstances, write_json
from vlm_occ.models.spatial_batch import make_spatial_batch
from vlm_occ.run_model import initial_model, trainable
from vlm_occ.run_scenes import Scenes, StepScenes, open_source, step_loader
from vlm_occ.timing import device_name, failure_text, failures, forget_peak, peak_gib, settle
from vlm_occ.train import new_optimizer, optimizer_step
from vlm_occ.training_module import TrainingModule
from vlm_occ.types import LabelledScene

WARM_UP = 3
"""Steps that are not timed: kernels are chosen, memory is found."""
PARTED = 3
"""Steps that are timed part by part, after the others, as waiting for each part takes time itself."""


@dataclass(frozen=True)
class TrainingSpeed:
    """Medians and means over the timed steps of one number of scenes a step."""

    scenes_per_step: int
    sentences_per_step: float
    step_seconds: float
    scenes_per_second: float
    sentences_per_second: float
    teraflop_per_step: float  # of matrix products and convolutions, counted, forward and backward
    utilisation: float  # of the peak, by these
    peak_gib: float
    prepare_seconds: float  # of a step: pictures and sweeps made ready on the CPU, in the training process
    forward_seconds: float  # with what is prepared
    backward_seconds: float


def training_config(path: str, *, workers: int | None = None, keep: str | None = None) -> TrainConfig:
    """The config of a run, with other loader processes and another folder of scenes where they are given."""
    config = read_yaml(TrainConfig, path)
    data = config.data
    data = replace(data, workers=data.workers if workers is None else workers, keep=keep or data.keep)
    return replace(config, data=data)


def load_scenes(config: TrainConfig, count: int, *, source: Scenes | None = None) -> tuple[list, float]:
    """`count` scenes as a run's loader gives them, one a forward, and scenes a second.

    The rate is that after the first scene of each worker, which waited for its process to start: it takes
    twice as many scenes as workers to be of use.
    """
    config = replace(config, steps=count, accumulation=1, scenes_per_step=1)
    source = source if source is not None else open_source(config)
    first = min(max(config.data.workers, 1), count - 1)
    items, start = [], time.perf_counter()
    for number, scenes in enumerate(step_loader(StepScenes(source, config), 0)):
        items += scenes
        if number == first - 1:
            start = time.perf_counter()
    return items, (count - first) / max(time.perf_counter() - start, 1e-9)


def rounds(items: Sequence[LabelledScene], size: int) -> Iterator[list[LabelledScene]]:
    """The scenes over and over, `size` at a time."""
    again = itertools.cycle(items)
    while True:
        yield list(itertools.islice(again, size))


def counted_flops(module: TrainingModule, scenes: list[LabelledScene]) -> float:
    """Operations of one forward and backward; sparse convolutions by the reference, whose products count."""
    before = os.environ.get(VARIABLE)
    os.environ[VARIABLE] = "reference"
    try:
        with FlopCounterMode(display=False) as counter:
            module(scenes)[0].backward()
    finally:
        os.environ.pop(VARIABLE) if before is None else os.environ.update({VARIABLE: before})
        module.zero_grad()
    return float(counter.get_total_flops())


def parts(module: TrainingModule, batches: Iterator[list[LabelledScene]]) -> tuple[float, float, float]:
    """Seconds of preparing a batch, of a forward and of a backward."""
    device, sums = module.model.device, [0.0, 0.0, 0.0]
    for _ in range(PARTED):
        scenes = next(batches)
        settle(device)
        times = [time.perf_counter()]
        make_spatial_batch(scenes, module.model.config)
        times.append(time.perf_counter())
        total = module(scenes)[0]
        settle(device)
        times.append(time.perf_counter())
        total.backward()
        settle(device)
        times.append(time.perf_counter())
        module.zero_grad()
        sums = [s + (b - a) / PARTED for s, a, b in zip(sums, times[:-1], times[1:], strict=True)]
    return sums[0], sums[1], sums[2]


def measure(
    config: TrainConfig, items: Sequence[LabelledScene], *, steps: int, peak_tflops: float
) -> TrainingSpeed:
    """Time `steps` optimiser steps of a run on scenes at hand; `peak_tflops` is the device's, dense bf16."""
    config = replace(config, steps=steps + WARM_UP, accumulation=1)
    accelerator = Accelerator(gradient_accumulation_steps=1)
    device = accelerator.device
    forget_peak(device)
    model = initial_model(config)
    optimizer = new_optimizer(trainable(model, config), config, device)
    plain = TrainingModule(model, config)
    module, optimizer = accelerator.prepare(plain, optimizer)
    batches = rounds(items, config.scenes_per_step)
    start = 0.0
    for step in range(config.steps):
        if step == WARM_UP:
            settle(device)
            start = time.perf_counter()
        optimizer_step(accelerator, module, optimizer, batches, config, step)
    settle(device)
    seconds = (time.perf_counter() - start) / steps
    peak = peak_gib(device)
    flops = counted_flops(plain, next(rounds(items, config.scenes_per_step)))
    prepare, forward, backward = parts(plain, batches)
    sentences = sum(len(item.queries) for item in items) / len(items) * config.scenes_per_step
    return TrainingSpeed(
        scenes_per_step=config.scenes_per_step,
        sentences_per_step=sentences,
        step_seconds=seconds,
        scenes_per_second=config.scenes_per_step / seconds,
        sentences_per_second=sentences / seconds,
        teraflop_per_step=flops / 1e12,
        utilisation=flops / seconds / (peak_tflops * 1e12),
        peak_gib=peak,
        prepare_seconds=prepare,
        forward_seconds=forward,
        backward_seconds=backward,
    )


def training_command(
    config: TrainConfig,
    results: Path,
    *,
    scenes_per_step: Sequence[int] = (1, 8),
    steps: int = 10,
    scenes: int = 16,
    peak_tflops: float = 989.0,
    source: Scenes | None = None,
) -> list[dict[str, object]]:
    """`scripts/benchmark.py training-gpu`: a row for each number of scenes a step, the loader apart."""
    items, rate = load_scenes(config, scenes, source=source)
    device = Accelerator().device
    about: dict[str, object] = {**circumstances(), "device": device_name(device), "stage": config.stage}
    about |= {"peak_tflops": peak_tflops, "steps": steps, "threads": torch.get_num_threads()}
    about |= {"scenes": scenes, "loader_workers": config.data.workers, "loader_scenes_per_second": rate}
    about["sparse"] = os.environ.get(VARIABLE, "auto")
    print(f"loader alone, {config.data.workers} workers: {rate:.2f} scenes a second", flush=True)
    rows: list[dict[str, object]] = []
    for count in scenes_per_step:
        one = replace(config, scenes_per_step=count)
        try:
            found = measure(one, items, steps=steps, peak_tflops=peak_tflops)
            rows.append({name: float(f"{value:.4g}") for name, value in asdict(found).items()})
        except failures() as error:
            rows.append({"scenes_per_step": count, "error": failure_text(error)})
        print(" ".join(f"{name}={value}" for name, value in rows[-1].items()), flush=True)
        write_json({**about, "rows": rows}, results)
    return rows
