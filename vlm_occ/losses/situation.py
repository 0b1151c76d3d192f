"""Losses of bird's-eye positions and orientations (Loc3R-VLM 3.2 and 3.3); each is a sum and a count."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from vlm_occ.geometry import wrap_angle
from vlm_occ.losses.occupancy import Term

LAYOUT_WEIGHT = 0.05
"""Of the layout loss beside the language loss (FACTS 4, from summaries of the paper)."""
SITUATION_WEIGHT = 0.075
"""Of the situation loss beside the language loss (FACTS 4, from summaries of the paper)."""
ORIENTATION_WEIGHT = 3.5
"""Of the orientation loss beside the position loss (FACTS 4, from summaries of the paper)."""
ORIENTATION_STD = math.radians(10.0)
"""Width of the orientation targets: one of 36 bins. Our choice; the paper's value is not known."""


def gaussian_nll(mean: Tensor, log_variance: Tensor, target: Tensor, valid: Tensor | None = None) -> Term:
    """Gaussian negative log-likelihood, without its constant: (sum, count) over positions.

    `mean`, `log_variance`, `target` [..., 2] (metres), `valid` bool [...]. A position's term is half of the
    sum over x and y of `(target - mean)^2 / variance + log variance`; what a target holds where it is not
    valid does not matter, NaN included.
    """
    mean, log_variance, target = mean.float(), log_variance.float(), target.float()
    if valid is None:
        valid = torch.ones(mean.shape[:-1], dtype=torch.bool, device=mean.device)
    error = torch.where(valid[..., None], target - mean, 0.0)
    value = 0.5 * (error.square() * (-log_variance).exp() + log_variance).sum(-1)  # [...]
    return Term(torch.where(valid, value, 0.0).sum(), valid.sum().float())


def orientation_targets(yaw: Tensor, bins: Tensor, *, std: float = ORIENTATION_STD) -> Tensor:
    """Wrapped Gaussians [..., B] around angles `yaw` [...] (radians) over bin centres [B]; each sums to 1."""
    offset = wrap_angle(bins - yaw.float()[..., None])
    return torch.softmax(-0.5 * (offset / std).square(), dim=-1)


def orientation_kl(
    logits: Tensor,
    yaw: Tensor,
    bins: Tensor,
    valid: Tensor | None = None,
    *,
    std: float = ORIENTATION_STD,
) -> Term:
    """KL divergence of the predicted from the target orientations: (sum, count).

    `logits` [..., B] over bin centres `bins` [B], `yaw` [...] radians, `valid` bool [...].
    """
    if valid is None:
        valid = torch.ones(yaw.shape, dtype=torch.bool, device=logits.device)
    yaw = torch.where(valid, yaw.float(), 0.0)
    target = orientation_targets(yaw, bins, std=std)
    divergence = (torch.special.xlogy(target, target) - target * logits.float().log_softmax(-1)).sum(-1)
    return Term(torch.where(valid, divergence, 0.0).sum(), valid.sum().float())
