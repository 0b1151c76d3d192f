"""The trainable part of a frozen VLM: LoRA, the rows of the special tokens, nano's projector."""

from __future__ import annotations

import re
import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from vlm_occ.config import LoraSettings
from vlm_occ.language.quantisation import is_quantised, plain_layer

if TYPE_CHECKING:
    from transformers import PreTrainedModel

LINEARS = "q_proj|k_proj|v_proj|o_proj|gate_proj|up_proj|down_proj"
LANGUAGE_MODELS = "(?:language_model|text_model)"
"""What the families call their language model."""
LORA_TARGETS = rf".*{LANGUAGE_MODELS}\.layers\.\d+\.(self_attn|mlp)\.({LINEARS})"
"""Only the language model's: names alone would adapt the vision tower too, whose layers share them."""


ROW_SEED = 17


def add_rows(model: PreTrainedModel, tokens: Sequence[int], *, vocabulary: int) -> None:
    """Give `tokens` embedding rows, near the mean of all, the same in every process.

    The matrices grow only where they have fewer rows than `vocabulary`; many models have some to spare.
    """
    known = weight_of(model.get_input_embeddings()).shape[0]  # rows beyond them begin at random
    if known < vocabulary:
        model.resize_token_embeddings(vocabulary, mean_resizing=False)
    generator = torch.Generator().manual_seed(ROW_SEED)
    places = torch.tensor(list(tokens))
    with torch.no_grad():
        for layer in (model.get_output_embeddings(), model.get_input_embeddings()):
            weight = weight_of(layer)  # [vocabulary, D]
            sample = weight[: known : max(1, known // 4096)].float()
            noise = torch.randn(len(places), weight.shape[1], generator=generator).to(weight.device)
            weight[places] = (sample.mean(0) + 0.5 * sample.std(0) * noise).to(weight.dtype)


def weight_of(layer: nn.Module | None) -> Tensor:
    """The weight of an embedding or output layer."""
    weight = getattr(layer, "weight", None)
    if not isinstance(weight, Tensor):
        raise TypeError(f"{type(layer).__name__} has no weight matrix, expected an embedding or output layer")
    return weight


def add_adapter(model: PreTrainedModel, tokens: Sequence[int], lora: LoraSettings | None) -> None:
    """Freeze `model` and put LoRA (if any) and trainable rows for `tokens` into it, in place."""
    from peft import LoraConfig, PeftConfig, TrainableTokensConfig, get_peft_model
    from peft.tuners.lora import LoraLayer
    from peft.tuners.trainable_tokens import TrainableTokensLayer

    model.requires_grad_(False)
    rows = sorted(tokens)
    settings: PeftConfig = TrainableTokensConfig(token_indices=rows, target_modules=["embed_tokens"])
    if lora is not None:
        settings = LoraConfig(
            r=lora.rank,
            lora_alpha=lora.alpha,
            lora_dropout=lora.dropout,
            target_modules=LORA_TARGETS,
            trainable_token_indices=rows,
        )
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "`is_gradient_checkpointing`")  # peft's use of transformers
        warnings.filterwarnings("ignore", ".*tie_word_embeddings")  # the base is never saved with the adapter
        get_peft_model(model, settings)
    for module in model.modules():
        if isinstance(module, LoraLayer):  # autocast alone casts: measured 17 % off a training step in bf16
            module.cast_input_dtype_enabled = False
        elif isinstance(module, TrainableTokensLayer):
            # Its forward copies the whole table to set five rows, its backward zeroes another: 113 MB, for
            # nano a fifth of a training step. `Splice` writes the rows over their tokens instead.
            module.enable_adapters(False)
            module.trainable_tokens_delta.requires_grad_(True)


def merge_adapter(model: nn.Module) -> None:
    """Add the adapter's weights to the base's: inference as fast as without it, and no way back.

    A quantised layer becomes a plain one: the sum rounded to few bits would lose what LoRA has learned.
    """
    from peft.tuners.lora import LoraLayer
    from peft.tuners.trainable_tokens import TrainableTokensLayer

    dtype = weight_of(model.get_input_embeddings()).dtype  # type: ignore[operator]
    for module in list(model.modules()):
        if isinstance(module, LoraLayer) and not module.merged:
            base, names = module.get_base_layer(), list(module.active_adapters)
            if is_quantised(base):
                changes = [module.get_delta_weight(name).detach() for name in names]  # type: ignore[operator]
                module.base_layer = plain_layer(base, sum(changes), dtype)  # type: ignore[arg-type]
                module.merged_adapters = names
            else:
                module.merge()
        elif isinstance(module, TrainableTokensLayer):
            weight = weight_of(module.get_base_layer())
            for name, rows in module.trainable_tokens_delta.items():
                weight.data[torch.tensor(module.token_indices[name])] = rows.data.to(weight.dtype)


def adapter_parameters(model: nn.Module, projector: dict[str, nn.Parameter]) -> dict[str, nn.Parameter]:
    """The trainable parameters under names that do not depend on the versions of peft and transformers."""
    named = {f"projector.{name}": parameter for name, parameter in projector.items()}
    for name, parameter in model.named_parameters():
        if ".lora_" in name:
            inner = re.split(rf"{LANGUAGE_MODELS}\.", name)[-1]
            named["lora." + inner.replace(".default", "")] = parameter
        elif "trainable_tokens_delta" in name:
            named["token_rows"] = parameter
    return named


def load_parameters(parameters: dict[str, nn.Parameter], state: dict[str, Tensor]) -> None:
    """Copy `state` into `parameters`; ValueError where names or shapes differ."""
    missing, unknown = sorted(set(parameters) - set(state)), sorted(set(state) - set(parameters))
    if missing or unknown:
        what = f"lacks {missing[0]!r}" if missing else f"has {unknown[0]!r}, which the model lacks"
        raise ValueError(
            f"the adapter's weights do not fit the model: the file {what} ({len(missing)} missing, "
            f"{len(unknown)} unknown); was it trained with other LoRA settings or another base?"
        )
    for name, parameter in parameters.items():
        if parameter.shape != state[name].shape:
            raise ValueError(
                f"adapter weight {name!r} is {list(state[name].shape)}, expected {list(parameter.shape)}; "
                "was it trained with another LoRA rank or another base?"
            )
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(state[name])
