"""Latency of grounding on backbones of published sizes, whose weights are drawn where they are used.

What a forward costs does not depend on the weights' values, so nothing is loaded and nothing is written: the
model of a published config is made on its device in its number format, and rounded there to few bits.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from vlm_occ.config import LoraSettings, ModelConfig
from vlm_occ.eval.report import circumstances, write_json
from vlm_occ.language import nano
from vlm_occ.language.backbones import Backbone
from vlm_occ.language.bases import default_dtype
from vlm_occ.language.costs import PUBLISHED
from vlm_occ.language.families import FAMILIES, NORMALISATIONS
from vlm_occ.language.quantisation import Quantization, is_quantised, quantise
from vlm_occ.latency import Latency, measure
from vlm_occ.models.adapter import VLMOcc
from vlm_occ.models.checkpoint import find_checkpoint, load_checkpoint, read_config
from vlm_occ.run_model import load_trunk
from vlm_occ.timing import default_device, device_name, failure_text, failures, forget_peak
from vlm_occ.types import Scene

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


@dataclass(frozen=True)
class Row:
    """One model: "nano" with its trained weights, or a published config with drawn ones."""

    base: str
    quantization: Quantization


ROWS = (
    Row("nano", "none"),
    Row("LLaVA-OneVision-7B", "none"),
    Row("LLaVA-OneVision-7B", "nf4"),
    Row("LLaVA-OneVision-0.5B", "none"),
    Row("LLaVA-OneVision-0.5B", "nf4"),
    Row("nano", "nf4"),
    Row("nano", "int8"),
)


def drawn_model(config: dict[str, Any], device: torch.device, dtype: torch.dtype) -> PreTrainedModel:
    """A model of a transformers config with fresh weights, made on `device` in `dtype`."""
    from transformers import AutoConfig, AutoModelForImageTextToText

    with torch.device(device), torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = AutoModelForImageTextToText.from_config(
            AutoConfig.for_model(**config), dtype=dtype, attn_implementation="sdpa"
        )
    return model.eval()


def nano_tokenizer() -> PreTrainedTokenizerBase:
    """nano's tokenizer, which stands in: its ids are fewer than any published model's."""
    from transformers import PreTrainedTokenizerFast

    return PreTrainedTokenizerFast.from_pretrained(nano.nano_folder() / "language")


def drawn_backbone(
    config: dict[str, Any],
    tokenizer: PreTrainedTokenizerBase,
    *,
    device: torch.device,
    dtype: torch.dtype,
    quantization: Quantization = "none",
    lora: LoraSettings | None = None,
) -> Backbone:
    """A backbone of a LLaVA-OneVision config with fresh weights on `device`, rounded as loading does."""
    ids = {name: tokenizer.convert_tokens_to_ids(token) for name, token in _marks(tokenizer).items()}
    model = drawn_model({**config, **ids}, device, dtype)
    quantise(model, quantization, dtype)
    kind = model.config.model_type
    mean, std = NORMALISATIONS[kind]
    family = FAMILIES[kind](model, tokenizer, mean=mean, std=std)
    return Backbone(family, tokenizer, base_hash="drawn", lora=lora).eval()


def _marks(tokenizer: PreTrainedTokenizerBase) -> dict[str, str]:
    """The tokenizer's placeholders of pictures and videos: nano's, or those of Qwen2's models."""
    known = tokenizer.get_vocab()
    video, image = (nano.VIDEO, nano.IMAGE) if nano.VIDEO in known else ("<|video_pad|>", "<|image_pad|>")
    return {"video_token_id": video, "image_token_id": image}


def build(row: Row, device: torch.device, dtype: torch.dtype) -> VLMOcc:
    """The model of a row; all of them have nano's trunk, so that they see the same voxel tokens."""
    if row.base == "nano":
        model = load_checkpoint("nano", quantization=row.quantization)
    else:
        folder = find_checkpoint("nano")
        config = ModelConfig() if folder is None else read_config(folder)[0]
        config = replace(config, base=row.base, quantization=row.quantization)
        tokenizer = nano_tokenizer()
        backbone = drawn_backbone(
            PUBLISHED[row.base],
            tokenizer,
            device=device,
            dtype=dtype,
            quantization=row.quantization,
            lora=config.lora,
        )
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            model = VLMOcc(config, backbone)
        if folder is not None:
            load_trunk(model, "nano")
    if model.config.lora is not None and row.quantization == "none":
        model.backbone.merge()  # as `from_pretrained`
    return model.to(device).eval()


def measured(
    row: Row, scene: Scene, device: torch.device, dtype: torch.dtype, *, repeat: int
) -> dict[str, object]:
    """The figures of one row; what it fails with is part of it, so that the others are not lost."""
    gc.collect()
    forget_peak(device)
    start = time.perf_counter()
    try:
        model = build(row, device, dtype)
        built = time.perf_counter() - start
        found = measure(model, scene, repeat=repeat)
        return {**asdict(row), **described(model, scene), "build_seconds": round(built, 1), **figures(found)}
    except failures() as error:
        return {**asdict(row), "error": failure_text(error)}


def described(model: VLMOcc, scene: Scene) -> dict[str, object]:
    """What kind of model was measured, and on how many tokens and objects."""
    parameters = list(model.backbone.parameters())
    state = model.encode(scene)
    language: Any = state.language
    return {
        "weights": "trained" if model.config.trained and model.backbone.base_hash != "drawn" else "drawn",
        "dtype": str(model.backbone.dtype).removeprefix("torch."),
        "quantised_layers": sum(is_quantised(layer) for layer in model.backbone.modules()),
        "backbone_gib": round(sum(p.numel() * p.element_size() for p in parameters) / 2**30, 3),
        "prefix_tokens": language.length,
        "voxel_tokens": len(state.token_boxes),
        "objects": len(model.ground(state, "the truck in front of us on the left").objects),
    }


def figures(found: Latency) -> dict[str, float]:
    """Milliseconds of each part and the peak of memory."""
    times = {f"{n}_ms": round(1000 * v, 2) for n, v in asdict(found).items() if n != "peak_gib"}
    return {**times, "peak_gib": round(found.peak_gib, 3)}


def backbones_command(
    results: Path,
    *,
    scene: str = "sim:7",
    bases: Sequence[str] = (),
    repeat: int = 7,
    device: str | None = None,
) -> list[dict[str, object]]:
    """`scripts/benchmark.py backbones`: the rows (those of `bases`, if given), written after each."""
    from vlm_occ.data.scenes import load_scene

    place, seen = default_device(device), load_scene(scene)
    about = {**circumstances(), "device": device_name(place), "scene": scene, "repeat": repeat}
    rows: list[dict[str, object]] = []
    for row in ROWS:
        if bases and row.base not in bases:
            continue
        rows.append(measured(row, seen, place, default_dtype(), repeat=repeat))
        print(" ".join(f"{name}={value}" for name, value in rows[-1].items()), flush=True)
        write_json({**about, "rows": rows}, results)
    return rows
