"""Training under Accelerate: perception on dense labels, grounding on frozen perception, or both jointly."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import yaml
from accelerate import Accelerator
from torch import Tensor, nn

from vlm_occ.config import TrainConfig, from_dict, read_yaml, to_dict
from vlm_occ.encoders.inputs import collate_inputs, prepare_scene
from vlm_occ.models.adapter import VLMOcc
from vlm_occ.models.batch import Batch, make_batch
from vlm_occ.models.checkpoint import load_checkpoint, save_checkpoint
from vlm_occ.models.perception import PerceptionOutput
from vlm_occ.objectives import (
    GROUNDING_WEIGHTS,
    PERCEPTION_WEIGHTS,
    grounding_terms,
    perception_terms,
    weighted_sum,
)
from vlm_occ.run_log import Log
from vlm_occ.run_scenes import Scenes, StepScenes, open_source, step_loader
from vlm_occ.run_state import resume, save_training_state
from vlm_occ.types import FREE, LabelledScene, SceneLabels


class TrainingModule(nn.Module):
    """One forward from labelled scenes to the total loss: what DDP and FSDP wrap."""

    def __init__(self, model: VLMOcc, config: TrainConfig) -> None:
        super().__init__()
        self.model, self.config = model, config
        self.cache: dict[str, PerceptionOutput] = {}

    def forward(self, scenes: Sequence[LabelledScene]) -> tuple[Tensor, dict[str, float]]:
        """The mean loss over the scenes and its terms."""
        model, stage = self.model, self.config.stage
        labels = [to_device(item.labels, model.device) for item in scenes]
        terms, weights = {}, {}
        if stage == "perception":
            inputs = collate_inputs([prepare_scene(s.scene, model.config.perception) for s in scenes])
            output = model.perception(inputs.to(model.device), extra_voxels=occupied(labels))
            terms, weights = perception_terms(output, labels, model.perception.grid), PERCEPTION_WEIGHTS
        else:
            batch = make_batch(scenes, model.config)
            batch = replace(
                batch,
                inputs=batch.inputs.to(model.device),
                boxes=tuple(item.boxes for item in labels),
            )
            output = self._ground(scenes, batch, labels)
            terms, weights = grounding_terms(model, output, batch, labels), dict(GROUNDING_WEIGHTS)
            if stage == "joint":
                terms.update(perception_terms(output.perception, labels, model.perception.grid))
                weights.update(PERCEPTION_WEIGHTS)
        total, log = weighted_sum(terms, weights)
        return total + self._touch(), log

    def _ground(self, scenes: Sequence[LabelledScene], batch: Batch, labels: Sequence[SceneLabels]) -> Any:
        """A full forward, or in stage "grounding" the language half on a cached trunk."""
        if self.config.stage == "joint":
            return self.model(batch, extra_voxels=occupied(labels))
        name = scenes[0].scene.name
        if len(scenes) > 1 or name not in self.cache:
            with torch.no_grad():
                output = self.model.perception(batch.inputs, extra_voxels=occupied(labels))
            if len(scenes) > 1:
                return self.model.ground_batch(batch, output)
            self.cache[name] = slim(output)
        return self.model.ground_batch(batch, self.cache[name])

    def _touch(self) -> Tensor:
        """Zero that depends on every trained parameter, so that all processes have the same gradients."""
        return torch.stack([p.flatten()[0] * 0 for p in self.parameters() if p.requires_grad]).sum()


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
        voxel_index=output.voxel_index.short(),
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


def trainable(model: VLMOcc, config: TrainConfig) -> list[dict[str, Any]]:
    """Parameter groups of the stage's trained weights; everything else is frozen."""
    groups: dict[str, list[nn.Parameter]] = {"perception": [], "head": [], "lora": []}
    for name, parameter in model.named_parameters():
        if name.startswith("perception.image_network."):
            parameter.requires_grad_(False)
        elif name.startswith("perception."):
            parameter.requires_grad_(config.stage != "grounding")
            groups["perception"].append(parameter)
        elif name.startswith("backbone."):
            parameter.requires_grad_(parameter.requires_grad and config.stage != "perception")
            groups["lora" if "lora_" in name else "head"].append(parameter)
        else:
            parameter.requires_grad_(config.stage != "perception")
            groups["head"].append(parameter)
    rates = {"perception": config.perception_rate, "head": config.head_rate, "lora": config.lora_rate}
    return [
        {"params": [p for p in parameters if p.requires_grad], "lr": rates[name], "base": rates[name]}
        for name, parameters in groups.items()
        if any(p.requires_grad for p in parameters)
    ]


def train(config: TrainConfig, *, source: Scenes | None = None, model: VLMOcc | None = None) -> VLMOcc:
    """Run or resume training; the finished model is saved in `config.out`/final and returned."""
    accelerator = Accelerator(gradient_accumulation_steps=1)
    out = Path(config.out)
    source = source if source is not None else open_source(config)
    model = model if model is not None else initial_model(config)
    groups = trainable(model, config)
    optimizer = torch.optim.AdamW(groups, weight_decay=config.weight_decay, betas=(0.9, 0.98), foreach=False)
    module, optimizer = accelerator.prepare(TrainingModule(model, config), optimizer)
    averaged = {n: p.detach().clone() for n, p in model.named_parameters() if p.requires_grad and config.ema}
    start = resume(out, model, optimizer, averaged)
    if accelerator.is_main_process:
        out.mkdir(parents=True, exist_ok=True)
        (out / "config.yaml").write_text(yaml.safe_dump(to_dict(config), sort_keys=False))
    log = Log(config, enabled=accelerator.is_main_process)
    loader = step_loader(
        StepScenes(source, config, accelerator.process_index, accelerator.num_processes), start
    )
    for step in log.progress(start, config.steps):
        values = optimizer_step(accelerator, module, optimizer, loader, config, step)
        average(averaged, model, config.ema)
        log.write(step, values)
        if (step + 1) % config.save_every == 0 and accelerator.is_main_process:
            save_training_state(out, model, optimizer, averaged, step + 1, keep=config.keep_checkpoints)
    if accelerator.is_main_process:
        restore_average(averaged, model)
        model.config = replace(model.config, trained=config.stage != "perception" or model.config.trained)
        save_checkpoint(model, out / "final")
    log.close()
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
    for _ in range(config.accumulation):
        total, values = module(next(loader))
        accelerator.backward(total / config.accumulation)
        values["total"] = total.item()
        for name, value in values.items():
            sums[name] = sums.get(name, 0.0) + value / config.accumulation
    norm = accelerator.clip_grad_norm_(module.parameters(), config.clip)
    if norm is not None and not torch.isfinite(norm):
        raise FloatingPointError(f"gradient norm is {float(norm)} at step {step}; lower the learning rates")
    optimizer.step()
    optimizer.zero_grad()
    names = sorted(sums)
    means = accelerator.reduce(torch.tensor([sums[n] for n in names], device=accelerator.device), "mean")
    return {**dict(zip(names, torch.as_tensor(means).tolist(), strict=True)), "norm": float(norm or 0.0)}


def average(averaged: dict[str, Tensor], model: VLMOcc, decay: float) -> None:
    """Exponential moving average of the trained weights."""
    if averaged:
        parameters = dict(model.named_parameters())
        for name, value in averaged.items():
            value.lerp_(parameters[name].detach(), 1 - decay)


def restore_average(averaged: dict[str, Tensor], model: VLMOcc) -> None:
    """Put the averaged weights into the model."""
    parameters = dict(model.named_parameters())
    with torch.no_grad():
        for name, value in averaged.items():
            parameters[name].copy_(value)


def initial_model(config: TrainConfig) -> VLMOcc:
    """The model that a run starts from: a checkpoint, or a pretrained base with new heads."""
    return load_checkpoint(config.init) if config.init else VLMOcc.from_config(config.model, seed=config.seed)


def train_command(config_path: str, overrides: dict[str, str]) -> None:
    """`vlm-occ train CONFIG.yaml --field value`: dotted fields override the file's."""
    config = read_yaml(TrainConfig, config_path)
    values = to_dict(config)
    for name, text in overrides.items():
        *path, last = name.split(".")
        place = values
        for part in path:
            if not isinstance(place.get(part), dict):
                raise ValueError(f"unknown field --{name}; {part!r} is not a section of the config")
            place = place[part]
        if last not in place:
            raise ValueError(f"unknown field --{name}; the config has {', '.join(sorted(place))}")
        place[last] = yaml.safe_load(text)
    train(from_dict(TrainConfig, values))
