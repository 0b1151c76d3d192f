"""Training under Accelerate: the trunk on dense labels, the language side on labels or on a trunk, or all."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator, DistributedType
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from vlm_occ.config import TrainConfig, read_yaml
from vlm_occ.data.augment import without_cameras, without_lidar
from vlm_occ.encoders.inputs import collate_inputs, prepare_scene
from vlm_occ.models.adapter import VLMOcc
from vlm_occ.models.batch import Batch, GroundingOutput
from vlm_occ.models.checkpoint import load_model_state, save_checkpoint
from vlm_occ.models.label_tokens import label_tokens
from vlm_occ.models.perception import PerceptionOutput
from vlm_occ.models.spatial_batch import keep_clips, make_spatial_batch, without_pictures
from vlm_occ.objectives import (
    GROUNDING_WEIGHTS,
    PERCEPTION_WEIGHTS,
    grounding_terms,
    language_term,
    perception_terms,
    pointer_terms,
    weighted_sum,
)
from vlm_occ.objectives_spatial import SPATIAL_WEIGHTS, spatial_terms
from vlm_occ.run_config import check_config, keep_config, overridden, tell_deepspeed
from vlm_occ.run_log import Log, draw_samples
from vlm_occ.run_model import initial_model, recompute_activations, trainable
from vlm_occ.run_scenes import Scenes, StepScenes, open_source, step_loader
from vlm_occ.run_state import (
    RunParts,
    average,
    load_optimizer,
    load_weights,
    make_shardable,
    newest_state,
    restore_average,
    run_weights,
    save_training_state,
    weight_names,
    whole,
)
from vlm_occ.types import FREE, LabelledScene, SceneLabels

CACHED_SCENES = 1000
"""Outputs of the frozen trunk that stage "grounding" keeps, about 2 MB each."""


class TrainingModule(nn.Module):
    """One forward from labelled scenes to the total loss: what DDP and FSDP wrap."""

    def __init__(self, model: VLMOcc, config: TrainConfig) -> None:
        super().__init__()
        self.model, self.config = model, config
        self.cache: dict[str, PerceptionOutput] = {}
        keep_clips(model, keep=not config.data.augment)
        layers = model.backbone.language_model.layers
        self._no_split_modules = [type(layers[0]).__name__]  # what accelerate shards one by one under FSDP

    def forward(self, scenes: Sequence[LabelledScene]) -> tuple[Tensor, dict[str, float]]:
        """The mean loss over the scenes and its terms."""
        model, stage = self.model, self.config.stage
        labels = [to_device(item.labels, model.device) for item in scenes]
        terms, weights = {}, {}
        if stage == "language":
            output, batch = self._describe(scenes, labels)
            terms, weights = pointer_terms(output, batch, labels), dict(GROUNDING_WEIGHTS)
            terms["language"] = language_term(model, output, batch)
            terms.update(spatial_terms(model, output.spatial, batch))
        elif stage == "perception":
            inputs = collate_inputs([prepare_scene(s.scene, model.config.perception) for s in scenes])
            output = model.perception(inputs.to(model.device), extra_voxels=occupied(labels))
            terms, weights = perception_terms(output, labels, model.perception.grid), PERCEPTION_WEIGHTS
        else:
            batch = make_spatial_batch(scenes, model.config)
            batch = replace(
                batch,
                inputs=batch.inputs.to(model.device),
                boxes=tuple(item.boxes for item in labels),
            )
            if stage == "grounding" and float(torch.rand(())) < self.config.data.drop_vlm_frames:
                batch = without_pictures(batch)
            output = self._ground(scenes, batch, labels)
            terms, weights = grounding_terms(model, output, batch, labels), dict(GROUNDING_WEIGHTS)
            terms.update(spatial_terms(model, output.spatial, batch))
            if stage == "joint":
                terms.update(perception_terms(output.perception, labels, model.perception.grid))
                weights.update(PERCEPTION_WEIGHTS)
        total, log = weighted_sum(terms, {**weights, **SPATIAL_WEIGHTS})
        return total + self._touch(), log

    def _describe(
        self, scenes: Sequence[LabelledScene], labels: Sequence[SceneLabels]
    ) -> tuple[GroundingOutput, Batch]:
        """The language half on tokens made of labels; sensors are not looked at."""
        blind = [replace(s, scene=without_lidar(without_cameras(s.scene))) for s in scenes]
        batch = make_spatial_batch(blind, self.model.config)
        batch = replace(batch, boxes=tuple(item.boxes for item in labels))
        bits = torch.Generator().manual_seed(int(torch.randint(2**62, ())))  # of the step's own seed
        made = [
            label_tokens(s.labels, self.model.config.perception, bits, device=self.model.device)
            for s in scenes
        ]
        output = replace(made[0], tokens=tuple(item.tokens[0] for item in made))
        return self.model.ground_batch(batch, output, decode=False), batch

    def _ground(self, scenes: Sequence[LabelledScene], batch: Batch, labels: Sequence[SceneLabels]) -> Any:
        """A full forward, or in stage "grounding" the language half on a cached trunk."""
        if self.config.stage == "joint":
            return self.model(batch, extra_voxels=occupied(labels))
        name, plain = scenes[0].scene.name, len(scenes) == 1 and not self.config.data.augment
        if plain and name in self.cache:
            return self.model.ground_batch(batch, self.cache[name])
        with torch.no_grad():
            output = self.model.perception(batch.inputs, extra_voxels=occupied(labels))
        if plain:  # what is kept must not depend on when it was seen, or a resumed run would differ
            output = self.cache[name] = slim(output)
            if len(self.cache) > CACHED_SCENES:
                self.cache.pop(next(iter(self.cache)))
        return self.model.ground_batch(batch, output)

    def _touch(self) -> Tensor:
        """Zero that depends on every trained parameter, so that all processes have the same gradients.

        What FSDP has sharded again after its use (layers of the language model) is used in every forward.
        """
        used = [p for p in self.parameters() if p.requires_grad and not isinstance(p, DTensor)]
        return torch.stack([p.flatten()[0] * 0 for p in used]).sum()


def occupied(labels: Sequence[SceneLabels]) -> Tensor:
    """The truly occupied voxels, bool [B, X, Y, Z]."""
    return torch.stack([item.semantics != FREE for item in labels])


def slim(output: PerceptionOutput) -> PerceptionOutput:
    """A trunk's output without its dense maps, voxel features at half precision: about 2 MB a scene."""
    empty = torch.zeros(0)
    return replace(
        output,
        coarse_logits=empty,
        occupancy_logits=empty,
        heatmap_logits=empty,
        regression=empty,
        semantic_logits=empty,
        voxel_index=output.voxel_index.int(),
        voxel_features=output.voxel_features.bfloat16(),
    )


def to_device(labels: SceneLabels, device: torch.device) -> SceneLabels:
    """Labels on another device."""
    return SceneLabels(**{name: getattr(labels, name).to(device) for name in labels.__dataclass_fields__})


def rate_factor(step: int, config: TrainConfig) -> float:
    """Linear warm-up, then a cosine to 2 % of the rate."""
    if step < config.warmup:
        return (step + 1) / config.warmup
    progress = (step - config.warmup) / max(config.steps - config.warmup, 1)
    return 0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * min(progress, 1.0)))


def train(config: TrainConfig, *, source: Scenes | None = None, model: VLMOcc | None = None) -> VLMOcc:
    """Run or resume training; the finished model is saved in `config.out`/final and returned."""
    check_config(config)
    accelerator = Accelerator(gradient_accumulation_steps=1)
    main, out = accelerator.is_main_process, Path(config.out)
    source = source if source is not None else open_source(config)
    model = model if model is not None else initial_model(config)
    found = newest_state(out)
    if found is not None:
        load_weights(found, model, where=str(out))
    names = weight_names(model)
    if accelerator.distributed_type == DistributedType.FSDP:
        make_shardable(model)
    groups = trainable(model, config)
    if config.checkpointing:
        recompute_activations(model)
    optimizer = torch.optim.AdamW(groups, weight_decay=config.weight_decay, betas=(0.9, 0.98), foreach=False)
    if accelerator.distributed_type == DistributedType.DEEPSPEED:
        tell_deepspeed(accelerator, config)
    module, optimizer = accelerator.prepare(TrainingModule(model, config), optimizer)
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
        values = optimizer_step(accelerator, module, optimizer, loader, config, step)
        average(averaged, model, config.ema)
        log.write(step, values)
        if (step + 1) % config.save_every == 0:
            save_training_state(out, run, step + 1, keep=config.keep_checkpoints, writes=main)
        if draws and (step + 1) % config.picture_every == 0:
            folder = out / "pictures" / f"step-{step + 1:07d}"
            draw_samples(model, source[0], folder, grounding=config.stage != "perception")
    log.close()
    return finished(run, config, writes=main)


def finished(run: RunParts, config: TrainConfig, *, writes: bool) -> VLMOcc:
    """The trained model with its averaged weights; the process that `writes` saves it in `out`/final."""
    restore_average(run.averaged, run.model)
    model, trained = run.model, config.stage != "perception" or run.model.config.trained
    if run.kind == DistributedType.FSDP:  # its shards into a whole model
        weights = run_weights(run)
        model = VLMOcc.from_config(model.config)
        load_model_state(model, weights, where="the trained model")
    model.config = replace(model.config, trained=trained)
    if writes:
        save_checkpoint(model, Path(config.out) / "final")
    return model


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
    """`vlm-occ train CONFIG.yaml --field value`: dotted fields override the file's."""
    train(overridden(read_yaml(TrainConfig, config_path), overrides))
