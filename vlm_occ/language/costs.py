"""What a backbone costs: tokens, weights and memory, counted from its published config on the meta device."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from vlm_occ.language.adapters import LORA_TARGETS
from vlm_occ.language.families import FAMILIES, NORMALISATIONS
from vlm_occ.language.quantisation import Quantization

if TYPE_CHECKING:
    from transformers import PreTrainedModel

BYTES = {"none": 2.0, "int8": 1.0, "nf4": 0.5 + 1 / 64 + 4 / (64 * 256)}
"""Of one weight of the language model's layers; nf4 has a scale for each 64 weights, in 8 bits, and one for
each 256 of these scales. All else is in bf16."""
GIB = 2**30

SIGLIP = {"hidden_size": 1152, "intermediate_size": 4304, "num_attention_heads": 16, "patch_size": 14}
SIGLIP |= {"image_size": 384}
QWEN_TOWER = {"depth": 32, "hidden_size": 1280, "intermediate_size": 3420, "num_heads": 16}


def _text(
    kind: str, width: int, layers: int, heads: tuple[int, int], inner: int, words: int
) -> dict[str, Any]:
    """A language model's config: width, layers, (heads, key heads), width of its MLPs, vocabulary."""
    names = ("num_attention_heads", "num_key_value_heads")
    sizes = {"hidden_size": width, "num_hidden_layers": layers, "intermediate_size": inner}
    return {"model_type": kind, **sizes, **dict(zip(names, heads, strict=True)), "vocab_size": words}


def _llava(text: dict[str, Any], *, tied: bool = False, newline: str = "one_token") -> dict[str, Any]:
    vision = {
        "model_type": "siglip_vision_model",
        **SIGLIP,
        "num_hidden_layers": 26,
        "vision_use_head": False,
    }
    rest = {"tie_word_embeddings": tied, "mm_newline_position": newline}
    return {"model_type": "llava_onevision", "text_config": text, "vision_config": vision, **rest}


def _qwen25(text: dict[str, Any], *, tied: bool) -> dict[str, Any]:
    vision = {"model_type": "qwen2_5_vl_vision", **QWEN_TOWER, "out_hidden_size": text["hidden_size"]}
    rest = {"tie_word_embeddings": tied}
    return {"model_type": "qwen2_5_vl", "text_config": text, "vision_config": vision, **rest}


def _qwen3(text: dict[str, Any], depth: int, width: int, inner: int, deep: list[int], *, tied: bool) -> Any:
    sizes = {"depth": depth, "hidden_size": width, "intermediate_size": inner, "num_heads": 16}
    vision = {"model_type": "qwen3_vl_vision", **sizes, "out_hidden_size": text["hidden_size"]}
    vision["deepstack_visual_indexes"] = deep
    text = {**text, "head_dim": 128}
    rest = {"tie_word_embeddings": tied}
    return {"model_type": "qwen3_vl", "text_config": text, "vision_config": vision, **rest}


def _smolvlm(text: dict[str, Any], vision: dict[str, int], scale: int) -> dict[str, Any]:
    parts = {"text_config": text, "vision_config": {"model_type": "smolvlm_vision", **vision}}
    return {"model_type": "smolvlm", **parts, "scale_factor": scale, "tie_word_embeddings": False}


BASE_512 = {"hidden_size": 768, "intermediate_size": 3072, "num_attention_heads": 12, "num_hidden_layers": 12}
BASE_512 |= {"image_size": 512, "patch_size": 16}
DEEP_24 = (24, 1024, 4096, [5, 11, 17])
QWEN2_7B = _text("qwen2", 3584, 28, (28, 4), 18944, 152064)

PUBLISHED: dict[str, dict[str, Any]] = {
    "SmolVLM2-256M": _smolvlm(_text("llama", 576, 30, (9, 3), 1536, 49280), BASE_512, 4),
    "SmolVLM2-500M": _smolvlm(_text("llama", 960, 32, (15, 5), 2560, 49280), BASE_512, 4),
    "LLaVA-OneVision-0.5B": _llava(_text("qwen2", 896, 24, (14, 2), 4864, 152000), tied=True),
    "Qwen3-VL-2B": _qwen3(_text("qwen3_vl_text", 2048, 28, (16, 8), 6144, 151936), *DEEP_24, tied=True),
    "SmolVLM2-2.2B": _smolvlm(
        _text("llama", 2048, 24, (32, 32), 8192, 49280), {**SIGLIP, "num_hidden_layers": 27}, 3
    ),
    "Qwen2.5-VL-3B": _qwen25(_text("qwen2_5_vl_text", 2048, 36, (16, 2), 11008, 151936), tied=True),
    "Qwen3-VL-4B": _qwen3(_text("qwen3_vl_text", 2560, 36, (32, 8), 9728, 151936), *DEEP_24, tied=True),
    "LLaVA-OneVision-7B": _llava(QWEN2_7B),
    "LLaVA-Video-7B": _llava(QWEN2_7B, newline="grid"),
    "Qwen2.5-VL-7B": _qwen25({**QWEN2_7B, "model_type": "qwen2_5_vl_text"}, tied=False),
    "Qwen3-VL-8B": _qwen3(
        _text("qwen3_vl_text", 4096, 36, (32, 8), 12288, 151936), 27, 1152, 4304, [8, 16, 24], tied=False
    ),
}
"""Configs of published models, as far as sizes depend on them."""


@dataclass(frozen=True)
class Costs:
    """What one backbone costs; memory in bytes."""

    layer_weights: int  # of the language model's linear layers: what quantisation rounds and LoRA adapts
    other_weights: int  # tower, projector, embeddings, output layer, norms
    lora_weights: int  # of one rank
    frame_tokens: int  # of one picture of one camera, without its pose token
    layers: int
    width: int
    inner: int  # width of the MLPs
    token_cache: int  # keys and values of one token in bf16

    def weights(self, quantization: Quantization) -> float:
        """Memory of the base."""
        return self.layer_weights * BYTES[quantization] + self.other_weights * 2

    def prefix(self, cameras: int, frames: int, *, voxels: int = 128, words: int = 40) -> int:
        """Tokens of a scene: `words` for the template around it, a pose token a picture, voxel tokens."""
        return cameras * frames * (self.frame_tokens + 1) + voxels + words

    def inference(self, quantization: Quantization, tokens: int) -> float:
        """Memory while a scene of `tokens` is encoded: weights, cache, one layer's activations."""
        return self.weights(quantization) + tokens * (self.token_cache + self._layer_activations())

    def training(self, quantization: Quantization, tokens: int, *, rank: int = 16) -> float:
        """Memory of a LoRA step on one scene of `tokens`, activations of layers recomputed.

        A trained weight takes 16 bytes (fp32, gradient, two moments); of each layer its input is kept; and
        the layer being recomputed keeps about three times what inference holds at once.
        """
        trained = 16 * rank * self.lora_weights
        kept = 2 * self.layers * self.width + 3 * self._layer_activations()
        return self.weights(quantization) + trained + tokens * kept

    def _layer_activations(self) -> int:
        """Of one token in bf16: gate, up and their product in an MLP, six vectors of the layer's width."""
        return 2 * (3 * self.inner + 6 * self.width)


def costs_of(config: dict[str, Any], *, image_size: tuple[int, int] = (900, 1600)) -> Costs:
    """The costs of a model with a transformers config, for pictures of `image_size` (H, W)."""
    from transformers import AutoConfig, AutoModelForImageTextToText

    with torch.device("meta"):
        model: PreTrainedModel = AutoModelForImageTextToText.from_config(
            AutoConfig.for_model(**config), dtype=torch.bfloat16
        )
    text = model.config.get_text_config()
    linear = {
        name: layer
        for name, layer in model.named_modules()
        if isinstance(layer, nn.Linear) and re.fullmatch(LORA_TARGETS, name)
    }
    rounded = sum(layer.weight.numel() for layer in linear.values())
    heads = text.num_key_value_heads
    head = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    return Costs(
        layer_weights=rounded,
        other_weights=sum(p.numel() for p in model.parameters()) - rounded,
        lora_weights=sum(layer.in_features + layer.out_features for layer in linear.values()),
        frame_tokens=frame_tokens(model, image_size),
        layers=text.num_hidden_layers,
        width=text.hidden_size,
        inner=text.intermediate_size,
        token_cache=2 * 2 * text.num_hidden_layers * heads * head,
    )


class _Words:
    """A tokenizer as far as counting needs one."""

    def get_vocab(self) -> dict[str, int]:
        """Tokens that stand around pictures."""
        return {"<fake_token_around_image>": 0, "<global-img>": 1}


def frame_tokens(model: PreTrainedModel, image_size: tuple[int, int]) -> int:
    """Tokens of one picture, as its family lays them out."""
    kind = model.config.model_type
    mean, std = NORMALISATIONS[kind]
    family = FAMILIES[kind](model, _Words(), mean=mean, std=std)  # type: ignore[arg-type]
    prepared = family.prepare(torch.zeros(1, 3, *image_size, dtype=torch.uint8))
    return sum(len(piece.ids) for piece in family.frame_pieces(prepared)[0])


def tables() -> str:
    """The tables of docs/backbones.md: tokens and memory of each published model, and what fits where."""
    costs = {name: costs_of(config) for name, config in PUBLISHED.items()}
    lines = [
        "| base | weights (language layers) | tokens a picture | 6 cameras, 1 / 2 / 4 frames | their cache |"
    ]
    lines += ["|---|---|---|---|---|"]
    for name, cost in costs.items():
        total, counts = cost.layer_weights + cost.other_weights, [cost.prefix(6, n) for n in (1, 2, 4)]
        cache = " / ".join(f"{count * cost.token_cache / GIB:.2f}" for count in counts)
        weights = f"{total / 1e9:.2f} G ({cost.layer_weights / 1e9:.2f})"
        words = " / ".join(f"{count:,}" for count in counts)
        lines.append(f"| {name} | {weights} | {cost.frame_tokens} | {words} | {cache} GiB |")
    head = "| base | inference: bf16 | int8 | nf4 | LoRA training: bf16 | int8 | nf4 |"
    lines += ["", head, "|---|---|---|---|---|---|---|"]
    for name, cost in costs.items():
        tokens = cost.prefix(6, 1)
        kinds: tuple[Quantization, ...] = ("none", "int8", "nf4")
        asked = [cost.inference(kind, tokens) for kind in kinds]
        trained = [cost.training(kind, tokens + TRAINING_QUERIES) for kind in kinds]
        lines.append(f"| {name} | " + " | ".join(fits(value) for value in (*asked, *trained)) + " |")
    return "\n".join(lines)


TRAINING_QUERIES = 16 * 30
"""Tokens of the queries of a step: sixteen sentences."""
OVERHEAD = 1.5 * GIB
"""The GPU's context, our trunk and its activations for one scene: a guess until it is measured."""


def fits(memory: float) -> str:
    """Memory in GiB with the smallest of the usual cards that holds it and OVERHEAD."""
    cards = [card for card in (8, 16, 24, 48, 80) if memory + OVERHEAD < card * GIB]
    return f"{memory / GIB:.1f} → {cards[0]} GB" if cards else f"{memory / GIB:.1f} → more"
