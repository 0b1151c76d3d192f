"""A backbone from the name of its base: the embedded default, a folder or a Hub id."""

from __future__ import annotations

import torch

from vlm_occ.config import LoraSettings
from vlm_occ.language import nano
from vlm_occ.language.backbones import Backbone
from vlm_occ.language.bases import base_folder, base_hash, default_dtype, load_base, model_type
from vlm_occ.language.families import FAMILIES, normalisation
from vlm_occ.language.frames import IMAGENET_MEAN, IMAGENET_STD


def load_backbone(
    base: str, *, dtype: torch.dtype | None = None, lora: LoraSettings | None = None
) -> Backbone:
    """A pretrained VLM ("nano", a folder or a Hub id) with a fresh adapter, on the CPU.

    `dtype` None is bf16 where the machine computes with it, else fp32; without `lora` only token rows train.
    ValueError where the base is unknown or damaged.
    """
    dtype = dtype or default_dtype()
    if base == "nano":
        folder = nano.nano_folder()
        model, tokenizer = nano.load_nano(dtype, folder=folder)
        family = FAMILIES["llava_onevision"](model, tokenizer, mean=IMAGENET_MEAN, std=IMAGENET_STD)
        found = base_hash(folder, skip=("position_embeddings",))  # resampled on this machine
        return Backbone(family, tokenizer, base_hash=found, lora=lora, train_projector=True).eval()
    folder = base_folder(base)
    kind = model_type(folder)
    found = base_hash(folder)
    model, tokenizer = load_base(folder, dtype)
    mean, std = normalisation(folder, kind)
    family = FAMILIES[kind](model, tokenizer, mean=mean, std=std)
    return Backbone(family, tokenizer, base_hash=found, lora=lora).eval()
