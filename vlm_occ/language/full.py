"""Full fine-tuning of the language model, as Loc3R-VLM does it (4.1), beside LoRA."""

from __future__ import annotations

from vlm_occ.language.backbones import Backbone


def train_whole(backbone: Backbone) -> None:
    """Free every weight of the language model, in fp32: bf16 would lose steps of a rate of 1e-5.

    Vision tower and projector stay as they are. A checkpoint then holds the language model too. ValueError
    where LoRA is there.
    """
    model = backbone.model
    if any(".lora_" in name for name, _ in model.named_parameters()):
        raise ValueError("the language model has LoRA and is to be trained whole; set lora: null beside it")
    for name, parameter in model.named_parameters():  # tied weights come once
        language = "language_model." in name or "lm_head." in name
        if language and "trainable_tokens" not in name:
            parameter.data = parameter.data.float()
            parameter.requires_grad_(True)
            own = name.split("language_model.")[-1].replace(".base_layer", "").replace("token_adapter.", "")
            backbone._trainable[f"language.{own}"] = parameter
