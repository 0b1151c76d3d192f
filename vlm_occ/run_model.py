"""The model that a run starts from, and which of its weights the run trains."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from vlm_occ.config import TRUNK_STAGES, TrainConfig
from vlm_occ.models.adapter import VLMOcc
from vlm_occ.models.checkpoint import (
    find_checkpoint,
    load_checkpoint,
    load_model_state,
    model_state,
    read_shards,
)
from vlm_occ.models.widen import widened

LAYOUT = ("spatial.layout.", "spatial.sighted.", "spatial.vision_norm.", "sight.")
"""Modules that see pictures only."""
UNUSED_BY_LANGUAGE = ("pose.", "joint.", "mask.", "box.", *LAYOUT)
"""Modules that stage "language" does not run: it sees no picture and decodes no object."""
POINTS = ("token_state.", "word_encoder.", "factors.", "spatial.reader.", "pointer.")
"""Modules of the pointer. Stage "pointer" trains all but `pointer.`, which reads the language model only."""
DESCRIBES_TOKENS = ("perception.tokens.", "perception.attributes.")
"""Modules of the trunk that stage "pointer" trains, as they are all that is run anew for a kept scene."""
FROZEN_TRUNK = ("pointer", "language", "grounding")


def initial_model(config: TrainConfig) -> VLMOcc:
    """The model that a run starts from: a checkpoint, or a pretrained base with new heads."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)  # of LoRA's first weights
        if config.init:
            model = widened(load_checkpoint(config.init), config.model, seed=config.seed)
        else:
            model = VLMOcc.from_config(config.model, seed=config.seed)
    if config.trunk:
        load_trunk(model, config.trunk)
    return model


def load_trunk(model: VLMOcc, name: str) -> None:
    """Take over the trunk's weights of the checkpoint `name`, whatever its language side is."""
    folder = find_checkpoint(name)
    if folder is None:
        raise ValueError(f"trunk {name!r} has no trained weights; give the folder of a checkpoint")
    given = {k: v for k, v in read_shards(folder).items() if k.startswith("perception.")}
    load_model_state(model, {**model_state(model), **given}, where=f"trunk {folder}")


def trainable(model: VLMOcc, config: TrainConfig) -> list[dict[str, Any]]:
    """Parameter groups of the stage's trained weights; everything else is frozen, and what has rate 0."""
    names = ("perception", "refiner", "pointer", "head", "input", "lora")
    groups: dict[str, list[nn.Parameter]] = {name: [] for name in names}
    for name, parameter in model.named_parameters():
        if name.startswith("perception.image_network."):
            parameter.requires_grad_(False)
        elif name.startswith("perception."):
            parameter.requires_grad_(_trunk_trains(name, config.stage))
            # A refiner that is shown poor boxes has large gradients: groups are clipped by themselves.
            groups["refiner" if name.startswith("perception.refiner.") else "perception"].append(parameter)
        elif name.startswith("backbone."):
            parameter.requires_grad_(
                parameter.requires_grad and config.stage not in (*TRUNK_STAGES, "pointer")
            )
            language = ".language_model." in name or ".lm_head." in name  # LoRA's weights, or all of it
            rows = "trainable_tokens" in name
            groups["lora" if language and not rows else "input"].append(parameter)
        else:
            parameter.requires_grad_(_head_trains(name, config.stage))
            spliced = name.startswith(("voxel_projector.", "pose.", "sight."))
            head = "pointer" if name.startswith(POINTS) else "head"
            groups["input" if spliced else head].append(parameter)
    rates = {
        "perception": config.perception_rate,
        "refiner": config.perception_rate,
        "pointer": config.pointer_rate,
        "head": config.head_rate,
        "input": config.input_rate,
        "lora": config.lora_rate,
    }
    for name, parameters in groups.items():
        for parameter in parameters if rates[name] == 0 else ():
            parameter.requires_grad_(False)
    return [
        {"params": [p for p in parameters if p.requires_grad], "lr": rates[name], "base": rates[name]}
        for name, parameters in groups.items()
        if any(p.requires_grad for p in parameters)
    ]


def _trunk_trains(name: str, stage: str) -> bool:
    """Whether a stage trains a weight of the trunk."""
    if stage == "refine":
        return name.startswith("perception.refiner.")
    return stage not in FROZEN_TRUNK or (stage == "pointer" and name.startswith(DESCRIBES_TOKENS))


def _head_trains(name: str, stage: str) -> bool:
    """Whether a stage trains a weight beside the trunk and the language model."""
    if stage == "pointer":
        return name.startswith(POINTS) and not name.startswith("pointer.")
    return stage not in TRUNK_STAGES and not (stage == "language" and name.startswith(UNUSED_BY_LANGUAGE))


def recompute_activations(model: VLMOcc) -> None:
    """Let the language model's layers forget their activations and compute them again going backward."""
    language = model.backbone.language_model
    enable = getattr(language, "activation_checkpointing_enable", language.gradient_checkpointing_enable)
    enable({"use_reentrant": False})  # renamed within transformers 5
