"""Tiny training runs: two simulated scenes with small pictures, narrow encoders, a tiny LLaVA."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import cast

import torch
from tiny_models import save_tiny_llava
from torch import Tensor

from vlm_occ.config import DataConfig, LoraSettings, ModelConfig, PerceptionConfig, TrainConfig
from vlm_occ.data.simulator.scene import simulate
from vlm_occ.data.store import load_scene_file, save_scene
from vlm_occ.models.adapter import VLMOcc
from vlm_occ.types import LabelledScene

PERCEPTION = PerceptionConfig(
    image_size=(64, 176),
    image_backbone="random",
    image_width=8,
    lidar_width=8,
    volume_width=8,
    bev_width=8,
    fine_bev_width=8,
    fine_width=8,
    max_frames=1,
    max_tokens=16,
    token_threshold=0.0,
    token_width=16,
)
SCENES = 2


def prepare(folder: Path) -> Path:
    """Write the tiny base model and the scenes into a folder, once."""
    if not (folder / "base").exists():
        folder.mkdir(parents=True, exist_ok=True)
        for seed in range(SCENES):
            item = simulate(seed + 3, image_size=(64, 176), num_queries=4)
            save_scene(thinned(item), folder / f"scene-{seed}.safetensors")
        save_tiny_llava(folder / "base")
    return folder


def thinned(item: LabelledScene) -> LabelledScene:
    """The scene with every fourth LiDAR point."""
    reference = item.scene.reference
    points = None if reference.points is None else reference.points[::4].contiguous()
    return replace(item, scene=replace(item.scene, frames=(replace(reference, points=points),)))


def tiny_scenes(folder: Path) -> list[LabelledScene]:
    """The scenes of a prepared folder."""
    return [load_scene_file(folder / f"scene-{seed}.safetensors")[0] for seed in range(SCENES)]


def tiny_config(folder: Path, out: Path, *, augment: bool = False) -> TrainConfig:
    """A short joint run on a prepared folder."""
    torch.set_num_threads(1)
    return TrainConfig(
        out=str(out),
        model=ModelConfig(
            base=str(folder / "base"),
            dtype="float32",
            lora=LoraSettings(rank=2),
            perception=PERCEPTION,
            head_width=16,
        ),
        data=DataConfig(augment=augment),
        steps=4,
        queries_per_scene=3,
        perception_rate=5e-3,
        head_rate=5e-3,
        pointer_rate=6e-3,
        lora_rate=5e-3,
        input_rate=5e-3,
        language_share=0.5,
        warmup=1,
        save_every=2,
        log_every=1,
        tracker="none",
    )


def listening(model: VLMOcc) -> VLMOcc:
    """The model with heads that read the language model's states; their weights on these start at zero."""
    bits = torch.Generator().manual_seed(5)
    for layer in (model.token_state.state[1], model.word_encoder.state[1], model.pointer.query):
        weight = cast(Tensor, layer.weight)
        weight.data.copy_(torch.randn(weight.shape, generator=bits) * weight.shape[1] ** -0.5)
    return model
