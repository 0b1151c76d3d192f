"""A backbone from the name of its base: the embedded default, a folder or a Hub id."""

from __future__ import annotations

from typing import Literal

import torch

from vlm_occ.config import LoraSettings
from vlm_occ.language import llava_video, nano
from vlm_occ.language.backbones import Backbone
from vlm_occ.language.bases import base_folder, base_hash, default_dtype, load_base, model_type
from vlm_occ.language.families import FAMILIES, normalisation
from vlm_occ.language.forget import forget
from vlm_occ.language.frames import IMAGENET_MEAN, IMAGENET_STD
from vlm_occ.language.quantisation import Quantization


def load_backbone(
    base: str,
    *,
    dtype: torch.dtype | None = None,
    lora: LoraSettings | None = None,
    quantization: Quantization = "none",
    weights: Literal["pretrained", "random"] = "pretrained",
) -> Backbone:
    """A pretrained VLM ("nano", a folder or a Hub id) with a fresh adapter, on the CPU.

    `dtype` None is bf16 where the machine computes with it, else fp32; without `lora` only token rows train.
    `quantization` rounds the language model's layers: see language/quantisation.py. With `weights` "random"
    the language model has forgotten all that it knew, always in the same way. ValueError where the base is
    unknown or damaged.
    """
    if weights == "random" and quantization != "none":
        raise ValueError(f"random weights in {quantization}; draw them with quantization 'none'")
    dtype = dtype or default_dtype()
    if base == "nano":
        folder = nano.nano_folder()
        model, tokenizer = nano.load_nano(dtype, folder=folder, quantization=quantization)
        family = FAMILIES["llava_onevision"](model, tokenizer, mean=IMAGENET_MEAN, std=IMAGENET_STD)
        if weights == "random":
            forget(model, family.language_model)
        found = base_hash(folder, skip=("position_embeddings",))  # resampled on this machine
        return Backbone(family, tokenizer, base_hash=found, lora=lora, train_projector=True).eval()
    folder = source = base_folder(base)
    if llava_video.is_published(source):
        folder = llava_video.converted(source, base_hash(source))
    kind = model_type(folder)
    found = base_hash(source)
    model, tokenizer = load_base(folder, dtype, quantization)
    mean, std = normalisation(folder, kind)
    family = FAMILIES[kind](model, tokenizer, mean=mean, std=std)
    if weights == "random":
        forget(model, family.language_model)
    return Backbone(family, tokenizer, base_hash=found, lora=lora).eval()
