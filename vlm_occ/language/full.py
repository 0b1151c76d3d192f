"""Full fine-tuning of the language model, as Loc3R-VLM does it (4.1), beside LoRA."""

from __future__ import annotations

import re

from vlm_occ.language.adapters import LANGUAGE_MODELS
from vlm_occ.language.backbones import Backbone
from vlm_occ.language.quantisation import is_quantised


def train_whole(backbone: Backbone) -> None:
    """Free every weight of the language model, in fp32: bf16 would lose steps of a rate of 1e-5.

    Vision tower and projector stay as they are. A checkpoint then holds the language model too. ValueError
    where LoRA is there, or layers are quantised.
    """
    model = backbone.model
    if any(is_quantised(layer) for layer in model.modules()):
        raise ValueError("the language model is quantised and is to be trained whole; set quantization: none")
    if any(".lora_" in name for name, _ in model.named_parameters()):
        raise ValueError("the language model has LoRA and is to be trained whole; set lora: null beside it")
    for name, parameter in model.named_parameters():  # tied weights come once
        language = re.search(rf"{LANGUAGE_MODELS}\.|lm_head\.", name)
        if language and "trainable_tokens" not in name:
            parameter.data = parameter.data.float()
            parameter.requires_grad_(True)
            own = (
                re.split(rf"{LANGUAGE_MODELS}\.", name)[-1]
                .replace(".base_layer", "")
                .replace("token_adapter.", "")
            )
            backbone._trainable[f"language.{own}"] = parameter
