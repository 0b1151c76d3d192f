"""A language model without its pretraining: what that brings is one of the ablations."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import nn

if TYPE_CHECKING:
    from transformers import PreTrainedModel

SEED = 20


@torch.no_grad()
def forget(model: PreTrainedModel, language_model: nn.Module) -> None:
    """Draw the weights of `model`'s language model and of its output layer anew, the same every time.

    As a fresh model's: matrices from a Gaussian of the config's `initializer_range`, vectors that scale stay
    ones, biases are zero. The vision tower and what projects its features stay pretrained.
    """
    std = float(getattr(model.config.get_text_config(), "initializer_range", 0.02))
    bits = torch.Generator().manual_seed(SEED)
    parameters = dict(language_model.named_parameters())
    head = model.get_output_embeddings()
    if head is not None and not any(head.weight is p for p in parameters.values()):
        parameters["output.weight"] = head.weight  # type: ignore[assignment]
    for name, parameter in parameters.items():
        if parameter.dim() > 1:
            parameter.copy_(torch.randn(parameter.shape, generator=bits) * std)
        elif name.endswith("bias"):
            parameter.zero_()
        else:
            parameter.fill_(1.0)
