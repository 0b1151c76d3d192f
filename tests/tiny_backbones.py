"""Backbones of tiny models whose adapters do something, scenes and queries for them."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from vlm_occ.config import LoraSettings
from vlm_occ.language.backbones import Backbone
from vlm_occ.language.loading import load_backbone
from vlm_occ.language.prefixes import Prefix
from vlm_occ.language.quantisation import Quantization

RANK_4 = LoraSettings(rank=4)
TEXTS = ("the red car on the left", "what is there?", "nothing")


def loaded(
    folder: Path,
    *,
    lora: LoraSettings | None = RANK_4,
    seed: int = 1,
    quantization: Quantization = "none",
    dtype: torch.dtype = torch.float32,
) -> Backbone:
    """A backbone whose adapter does something."""
    backbone = load_backbone(str(folder), dtype=dtype, lora=lora, quantization=quantization)
    state, generator = backbone.trainable_state(), torch.Generator().manual_seed(seed)
    for name, value in state.items():
        state[name] = value + 0.1 * torch.randn(value.shape, generator=generator)
    backbone.load_trainable_state(state)
    return backbone


def scene(
    backbone: Backbone, frames: int = 2, voxels: int = 5, *, seed: int = 0, pose: bool = True
) -> tuple[Prefix, dict[str, Tensor]]:
    """A prefix and its features."""
    generator = torch.Generator().manual_seed(seed)
    images = torch.randint(0, 256, (frames, 3, 60, 100), dtype=torch.uint8, generator=generator)
    features = {
        "pose": torch.randn(frames if pose else 0, backbone.hidden_size, generator=generator),
        "voxel": torch.randn(voxels, backbone.hidden_size, generator=generator),
    }
    return backbone.build_prefix(images, voxels, pose=pose), features


def queries(backbone: Backbone) -> list[Tensor]:
    return [backbone.query_ids(text)[0] for text in TEXTS]
