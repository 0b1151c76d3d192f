"""Training under Accelerate: the trunk on dense labels, the language side on labels or on a trunk, or all."""

from __future__ import annotations

import contextlib
import math
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator, DistributedType
from torch import Tensor, nn

from vlm_occ.config import TrainConfig, read_yaml
from vlm_occ.encoders.inputs import collate_inputs, prepare_scene
from vlm_occ.models.adapter import VLMOcc
from vlm_occ.models.batch import Batch, GroundingOutput
from vlm_occ.models.checkpoint import load_model_state, save_checkpoint
from vlm_occ.models.kept_states import KeptLanguage, blind, slim
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
from vlm_occ.run_config import (
    check_config,
    keep_config,
    keeps_language,
    names_system,
    overridden,
    tell_deepspeed,
)
from vlm_occ.run_log import Log, draw_samples
from vlm_occ.run_model import initial_model, recompute_activations, trainable
from vlm_occ.run_scenes import Scenes, StepScenes, open_source, step_loader
from vlm_occ.run_state import (
    RunParts,
    TrainingState,
    Weight,
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
from vlm_occ.trainee import M, Trainee, occupied, to_device
from vlm_occ.types import LabelledScene, SceneLabels

CACHED_SCENES = 4000
"""Outputs of the frozen trunk that stage "grounding" keeps, about 2 MB each."""


class TrainingModule(Trainee[VLMOcc]):
    """VLM-Occ in training, at any stage."""

    def __init__(self, model: VLMOcc, config: TrainConfig) -> None:
        super().__init__()
        self.model, self.config = model, config
        self.cache: dict[str, PerceptionOutput] = {}
        self.language: KeptLanguage | None = None
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
            output, batch = self._ground(scenes, labels)
            terms, weights = grounding_terms(model, output, batch, labels), dict(GROUNDING_WEIGHTS)
            terms.update(spatial_terms(model, output.spatial, batch))
            if stage == "joint":
                terms.update(perception_terms(output.perception, labels, model.perception.grid))
                weights.update(PERCEPTION_WEIGHTS)
        total, log = weighted_sum(terms, {**weights, **SPATIAL_WEIGHTS})
        return total + self.touch(), log

    def _describe(
        self, scenes: Sequence[LabelledScene], labels: Sequence[SceneLabels]
    ) -> tuple[GroundingOutput, Batch]:
        """The language half on tokens made of labels; sensors are not looked at."""
        batch = make_spatial_batch([blind(item) for item in scenes], self.model.config)
        batch = replace(batch, boxes=tuple(item.boxes for item in labels))
        words = self.language if len(scenes) == 1 else None
        name = scenes[0].scene.name  # what is kept must not depend on when it was seen
        seed = int(torch.randint(2**62, ())) if words is None else zlib.crc32(name.encode())
        bits = torch.Generator().manual_seed(seed)
        made = [
            label_tokens(s.labels, self.model.config.perception, bits, device=self.model.device)
            for s in scenes
        ]
        output = replace(made[0], tokens=tuple(item.tokens[0] for item in made))
        states = words and (
            words.find(name, False, scenes[0].queries) or words.keep(batch, output, name, False)
        )
        return self.model.ground_batch(batch, output, decode=False, states=states and [states]), batch

    def _ground(
        self, scenes: Sequence[LabelledScene], labels: Sequence[SceneLabels]
    ) -> tuple[GroundingOutput, Batch]:
        """A full forward, or in stage "grounding" what follows a frozen trunk (and a frozen language model).

        What is kept must not depend on when it was seen, or a resumed run would differ.
        """
        model, config, name = self.model, self.config, scenes[0].scene.name
        frozen = config.stage == "grounding"
        pictures = not (frozen and float(torch.rand(())) < config.data.drop_vlm_frames)
        keeps = frozen and len(scenes) == 1 and not config.data.augment
        seen = self.cache.get(name) if keeps else None
        words = self.language if keeps else None
        states = words and words.find(name, pictures, scenes[0].queries)
        if seen is not None and (states is not None or not pictures):
            scenes = [blind(item) for item in scenes]  # their sensors are not needed again
        batch = make_spatial_batch(scenes, model.config)
        batch = replace(
            batch, inputs=batch.inputs.to(model.device), boxes=tuple(item.boxes for item in labels)
        )
        if not pictures:
            batch = without_pictures(batch)
        if seen is None:
            with torch.no_grad() if frozen else contextlib.nullcontext():
                seen = model.perception(batch.inputs)
            if keeps:
                seen = self.cache[name] = slim(seen, model)
                if len(self.cache) > CACHED_SCENES:
                    self.cache.pop(next(iter(self.cache)))
        if words is not None and states is None:
            states = words.keep(batch, seen, name, pictures)
        return model.ground_batch(batch, seen, states=states and [states]), batch

    def weight_names(self) -> dict[str, Weight]:
        """See `vlm_occ.run_state.weight_names`."""
        return weight_names(self.model)

    def load(self, state: TrainingState, *, where: str) -> None:
        """Put the weights of a state into the model."""
        load_weights(state, self.model, where=where)

    def groups(self) -> list[dict[str, Any]]:
        """Parameter groups of the stage."""
        groups = trainable(self.model, self.config)
        if keeps_language(self.config):
            self.language = KeptLanguage(self.model)
        return groups

    def recompute(self) -> None:
        """Of the language model's layers."""
        recompute_activations(self.model)

    def finish(self, weights: dict[str, Tensor] | None, folder: Path | None) -> VLMOcc:
        """The finished model; every stage but "perception" makes it a trained one."""
        model, trained = self.model, self.config.stage != "perception" or self.model.config.trained
        if weights is not None:
            model = VLMOcc.from_config(model.config)
            load_model_state(model, weights, where="the trained model")
        model.config = replace(model.config, trained=trained)
        if folder is not None:
            save_checkpoint(model, folder)
        return model


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
    optimizer = torch.optim.AdamW(groups, weight_decay=config.weight_decay, betas=(0.9, 0.98), foreach=False)
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
        values = optimizer_step(accelerator, module, optimizer, loader, config, step)
        average(averaged, model, config.ema)
        log.write(step, values)
        if (step + 1) % config.save_every == 0:
            save_training_state(out, run, step + 1, keep=config.keep_checkpoints, writes=main)
        if draws and (step + 1) % config.picture_every == 0:
            folder = out / "pictures" / f"step-{step + 1:07d}"
            draw_samples(model, source[0], folder, grounding=config.stage != "perception")
    log.close()
    restore_average(averaged, model)
    return trainee.finish(run_weights(run) if sharded else None, out / "final" if main else None)


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
    """`vlm-occ train CONFIG.yaml --field value`: dotted fields override the file's.

    A config with a section `system` trains one of the paper's systems.
    """
    from vlm_occ.paper_train import PaperTrainConfig, train_paper

    if names_system(config_path):
        train_paper(overridden(read_yaml(PaperTrainConfig, config_path), overrides))
    else:
        train(overridden(read_yaml(TrainConfig, config_path), overrides))
