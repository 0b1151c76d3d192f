"""Training under Accelerate: the trunk on dense labels, the language side on labels or on a trunk, or all."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator, DistributedType
from torch import nn

from vlm_occ.config import TRUNK_STAGES, TrainConfig, read_yaml
from vlm_occ.models.adapter import VLMOcc
from vlm_occ.run_config import (
    check_config,
    keep_config,
    overridden,
    tell_deepspeed,
    trains,
)
from vlm_occ.run_log import Log, draw_samples
from vlm_occ.run_model import initial_model
from vlm_occ.run_scenes import Scenes, StepScenes, open_source, step_loader
from vlm_occ.run_state import (
    RunParts,
    average,
    load_optimizer,
    make_shardable,
    newest_state,
    restore_average,
    run_weights,
    save_training_state,
    whole,
)
from vlm_occ.trainee import M, Trainee, fill_gradients
from vlm_occ.training_module import TrainingModule
from vlm_occ.types import LabelledScene


class OutOfTime(Exception):
    """`until_time` is over before the last step; the state is saved."""


def rate_factor(step: int, config: TrainConfig) -> float:
    """Linear warm-up, then a cosine to 2 % of the rate."""
    if step < config.warmup:
        return (step + 1) / config.warmup
    progress = (step - config.warmup) / max(config.steps - config.warmup, 1)
    return 0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * min(progress, 1.0)))


def train(config: TrainConfig, *, source: Scenes | None = None, model: VLMOcc | None = None) -> VLMOcc:
    """Run or resume training of VLM-Occ; the finished model is saved in `config.out`/final and returned."""
    check_config(config)
    source = source if source is not None else open_source(config)
    trainee = TrainingModule(model if model is not None else initial_model(config), config)
    return run_training(trainee, config, source)


def run_training(trainee: Trainee[M], config: TrainConfig, source: Scenes) -> M:
    """The loop: from the newest checkpoint in `config.out`, if there is one, to the finished model."""
    accelerator = Accelerator(gradient_accumulation_steps=1)
    main, out, model = accelerator.is_main_process, Path(config.out), trainee.model
    found = newest_state(out)
    if found is not None:
        trainee.load(found, where=str(out))
    names = trainee.weight_names()
    if accelerator.distributed_type == DistributedType.FSDP:
        make_shardable(model)
    groups = trainee.groups()
    if config.checkpointing:
        trainee.recompute()
    optimizer = new_optimizer(groups, config, accelerator.device)
    if accelerator.distributed_type == DistributedType.DEEPSPEED:
        tell_deepspeed(accelerator, config)
    module, optimizer = accelerator.prepare(trainee, optimizer)
    averaged = {n: p.detach().clone() for n, p in model.named_parameters() if p.requires_grad and config.ema}
    run = RunParts(model, names, optimizer, averaged, accelerator.distributed_type)
    start = 0 if found is None else found.step
    if found is not None:
        load_optimizer(found, run)
    if main:
        keep_config(config, out, resumed=found is not None)
    log = Log(config, enabled=main, start=start)
    scenes = StepScenes(source, config, accelerator.process_index, accelerator.num_processes)
    loader = step_loader(scenes, start)
    sharded = run.kind == DistributedType.FSDP  # such a model answers to all processes at once only
    draws = main and config.picture_every > 0 and not sharded
    for step in log.progress(start, config.steps):
        if config.until_time and time.time() >= config.until_time:
            log.close()
            save_training_state(out, run, step, keep=config.keep_checkpoints, writes=main)
            raise OutOfTime(f"{out} has done {step} of {config.steps} steps; the same command goes on")
        values = optimizer_step(accelerator, module, optimizer, loader, config, step)
        average(averaged, model, config.ema)
        log.write(step, values)
        if (step + 1) % config.save_every == 0:
            save_training_state(out, run, step + 1, keep=config.keep_checkpoints, writes=main)
        if draws and (step + 1) % config.picture_every == 0:
            folder = out / "pictures" / f"step-{step + 1:07d}"
            draw_samples(model, source[0], folder, grounding=config.stage not in TRUNK_STAGES)
    log.close()
    restore_average(averaged, model)
    return trainee.finish(run_weights(run) if sharded else None, out / "final" if main else None)


def new_optimizer(
    groups: list[dict[str, Any]], config: TrainConfig, device: torch.device
) -> torch.optim.Optimizer:
    """AdamW; on a GPU it updates many weights by one kernel, as starting a kernel for each takes longer."""
    many = None if device.type == "cuda" else False  # None: where it is of use
    return torch.optim.AdamW(
        groups, weight_decay=config.weight_decay, betas=(0.9, 0.98), eps=config.adam_eps, foreach=many
    )


def optimizer_step(
    accelerator: Accelerator,
    module: nn.Module,
    optimizer: Any,
    loader: Iterator[list[LabelledScene]],
    config: TrainConfig,
    step: int,
) -> dict[str, float]:
    """Forward, backward and update of one step; the means of its loss terms."""
    torch.manual_seed(config.seed * 1_000_003 + step)  # dropout depends on the step alone: resume is exact
    for group in optimizer.param_groups:
        group["lr"] = group["base"] * rate_factor(step, config)
    module.train()
    sums: dict[str, float] = {}
    for number in range(config.accumulation):
        last = number == config.accumulation - 1
        with contextlib.nullcontext() if last else accelerator.no_sync(module):
            total, values = module(next(loader))
            accelerator.backward(total / config.accumulation)
        values["total"] = total.item()
        for name, value in values.items():
            sums[name] = sums.get(name, 0.0) + value / config.accumulation
    if not torch.distributed.is_initialized():
        fill_gradients(optimizer.param_groups)
    # Each group by itself: gradients of what enters the language model are a hundred times the others'.
    clipped = [accelerator.clip_grad_norm_(group["params"], config.clip) for group in optimizer.param_groups]
    known = [float(whole(torch.as_tensor(value))) for value in clipped if value is not None]
    norm = max(known, default=0.0)  # DeepSpeed tells none
    if not all(map(math.isfinite, known)):
        raise FloatingPointError(f"gradient norms are {known} at step {step}; lower the learning rates")
    optimizer.step()
    optimizer.zero_grad()
    names = sorted(sums)
    means = accelerator.reduce(torch.tensor([sums[n] for n in names], device=accelerator.device), "mean")
    return {**dict(zip(names, torch.as_tensor(means).tolist(), strict=True)), "norm": norm}


def train_command(config_path: str, overrides: dict[str, str]) -> None:
    """`vlm-occ train CONFIG.yaml --field value`: dotted fields override the file's.

    A config with a section `system` trains one of the paper's systems, one with `network` a small CUT3R.
    """
    from vlm_occ.cut3r_training import Cut3rTrainConfig, train_cut3r
    from vlm_occ.paper_train import PaperTrainConfig, train_paper

    kind = trains(config_path)
    if kind == "system":
        train_paper(overridden(read_yaml(PaperTrainConfig, config_path), overrides))
    elif kind == "network":
        train_cut3r(overridden(read_yaml(Cut3rTrainConfig, config_path), overrides))
    else:
        train(overridden(read_yaml(TrainConfig, config_path), overrides))
