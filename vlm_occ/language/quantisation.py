"""Frozen layers in 8 or 4 bits through bitsandbytes: loading, moving, and back to plain layers."""

from __future__ import annotations

import importlib
import logging
import re
from typing import Any, Literal

import torch
from torch import Tensor, nn

from vlm_occ.weights import require

Quantization = Literal["none", "int8", "nf4"]

KEPT = r"(?!(?:.*(?:language_model|text_model)\.|model\.)layers\.).*"
"""Names of what stays in the base's format: all but the language model's layers. Tower, projector, embeddings
and output layer are a small part of a large model, and what is spliced is compared with them."""


NF4_BLOCK = 64
"""Weights that share a scale."""
OUTLIER = 6.0
"""Activations beyond it are not rounded by int8 layers: the default of LLM.int8() and of loading."""


def quantised_loading(quantization: Quantization, dtype: torch.dtype) -> dict[str, Any]:
    """Arguments of `from_pretrained` that round the language model's layers while they are read.

    nf4 is QLoRA's (arXiv 2305.14314: blocks of 64, their scales rounded too), int8 that of LLM.int8() (arXiv
    2208.07339). They are rounded on the CPU, whichever device they go to, so that all see the same weights.
    """
    if quantization == "none":
        return {}
    _require_bitsandbytes()
    from transformers import BitsAndBytesConfig

    settings = BitsAndBytesConfig(
        load_in_8bit=quantization == "int8",
        load_in_4bit=quantization == "nf4",
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=dtype,
        llm_int8_skip_modules=[KEPT],
    )
    return {"quantization_config": settings, "device_map": {"": "cpu"}}


def _require_bitsandbytes() -> None:
    """Raise where it is not installed; else let it not write a line for each layer's forward."""
    require("bitsandbytes", "quant")
    for part in ("autograd._functions", "backends.cpu.ops"):
        logging.getLogger(f"bitsandbytes.{part}").setLevel(logging.ERROR)


@torch.no_grad()
def quantise(model: nn.Module, quantization: Quantization, dtype: torch.dtype) -> None:
    """Round the layers of a model in memory, on its device, that loading would round, and as it would."""
    if quantization == "none":
        return
    _require_bitsandbytes()
    for name, layer in list(model.named_modules()):
        if isinstance(layer, nn.Linear) and not re.match(KEPT, name):
            model.set_submodule(name, _rounded(layer, quantization, dtype))
    mark = "is_loaded_in_4bit" if quantization == "nf4" else "is_loaded_in_8bit"
    setattr(model, mark, True)  # by which peft knows it
    keep_exact(model)


def _rounded(layer: nn.Linear, quantization: Quantization, dtype: torch.dtype) -> nn.Module:
    """A layer of few bits in place of a plain one; nf4 computes in `dtype`."""
    few: Any = importlib.import_module("bitsandbytes.nn")
    sizes, weight, bias = (layer.in_features, layer.out_features), layer.weight.data, layer.bias is not None
    if quantization == "nf4":
        settings: dict[str, Any] = {"compress_statistics": True, "quant_type": "nf4"}
        with torch.device("meta"):
            rounded = few.Linear4bit(*sizes, bias=bias, compute_dtype=dtype, **settings)
        plain = few.Params4bit(weight, requires_grad=False, module=rounded, **settings)
        rounded.weight = plain.to(weight.device)  # which rounds it
    else:
        with torch.device("meta"):
            rounded = few.Linear8bitLt(*sizes, bias=bias, has_fp16_weights=False, threshold=OUTLIER)
        functional: Any = importlib.import_module("bitsandbytes.functional")
        data, scale, _ = functional.int8_vectorwise_quant(weight.to(torch.float16))
        rounded.weight = few.Int8Params(data, requires_grad=False, CB=data, SCB=scale)
    rounded.bias = layer.bias
    return rounded.requires_grad_(False).train(layer.training)


def keep_exact(model: nn.Module) -> None:
    """Let 4-bit layers compute with the weights that they hold; ValueError where bitsandbytes could not.

    At the first inference on a CPU with AVX512-BF16 it would repack them: the repacked layer computes in bf16
    whatever it is asked for, and its scales are rounded anew on the way there and back, so that a model that
    was once looked at is not the one that was trained. And on a CPU (0.50.2) it reads the scales of blocks
    that do not end with a row from the wrong places, silently.
    """
    for name, layer in model.named_modules():
        if not is_quantised(layer) or not hasattr(layer, "support_avx512bf16_for_cpu"):
            continue
        layer.support_avx512bf16_for_cpu = False  # type: ignore[assignment]
        if layer.in_features % NF4_BLOCK:  # type: ignore[operator]
            raise ValueError(
                f"nf4 rounds blocks of {NF4_BLOCK} weights, but {name} has rows of {layer.in_features}; use "
                "quantization: int8 for this base"
            )


def is_quantised(layer: nn.Module) -> bool:
    """Whether a layer is one of bitsandbytes'; peft's wrappers bear the same names."""
    kind = type(layer)
    return kind.__module__.startswith("bitsandbytes.") and kind.__name__ in ("Linear4bit", "Linear8bitLt")


def plain_weight(layer: nn.Module) -> Tensor:
    """The weight [out, in] that a quantised layer computes with, in the format it was loaded in."""
    from bitsandbytes.functional import dequantize_4bit

    weight: Any = layer.weight
    if type(layer).__name__ == "Linear4bit":
        return dequantize_4bit(weight.data, weight.quant_state)
    state: Any = layer.state
    scale = weight.SCB if weight.SCB is not None else state.SCB  # moved to the state by the first forward
    return weight.data.float() * (scale.float() / 127)[:, None]


def plain_layer(layer: nn.Module, change: Tensor, dtype: torch.dtype) -> nn.Linear:
    """The layer with its weight plus `change` [out, in], not rounded to few bits again."""
    weight = (plain_weight(layer).float() + change.float()).to(dtype)
    with torch.device("meta"):
        plain = nn.Linear(weight.shape[1], weight.shape[0], bias=layer.bias is not None)
    plain.weight = nn.Parameter(weight, requires_grad=False)
    if isinstance(layer.bias, Tensor):
        plain.bias = nn.Parameter(layer.bias.detach().to(dtype), requires_grad=False)
    return plain


def forget_quantisation(model: nn.Module) -> None:
    """Let a model whose layers are plain again be saved as a plain one."""
    configs: list[Any] = [model.config, model.config.get_text_config()]  # type: ignore[union-attr,operator]
    for config in configs:
        vars(config).pop("quantization_config", None)
    for name in ("is_loaded_in_4bit", "is_loaded_in_8bit", "is_quantized"):
        setattr(model, name, False)
    model.hf_quantizer = None  # type: ignore[assignment]


def move_statistics(model: nn.Module) -> None:
    """Bring the scales of 8-bit layers to where their weights were moved.

    bitsandbytes does it where a layer is moved by itself, not as a part of a model.
    """
    for layer in model.modules():
        if not is_quantised(layer) or not hasattr(layer, "state"):
            continue
        weight: Any = layer.weight
        places: tuple[Any, ...] = (weight, layer.state)
        for place in places:
            if getattr(place, "SCB", None) is not None:
                place.CB, place.SCB = weight.data, place.SCB.to(weight.device)
