"""The language-modelling loss over answer tokens."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional

from vlm_occ.losses.occupancy import Term, term


def next_token_cross_entropy(logits: Tensor, targets: Tensor) -> Term:
    """Cross-entropy of logits [L, vocabulary] against the next tokens' ids [L] (Loc3R-VLM 3.4)."""
    return term(functional.cross_entropy(logits.float(), targets, reduction="none"))
