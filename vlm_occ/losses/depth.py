"""Loss of binned depth (GroundingOcc, eq. 13): focal loss against the nearest surface of each cell."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from vlm_occ.losses.occupancy import Term


def nearest_depth(depth: Tensor, size: tuple[int, int]) -> Tensor:
    """The nearest valid depth of each cell: [F, h, w] from a depth image [F, H, W], 0 where there is none.

    Not valid are 0, negative, NaN and infinite depths. H and W are multiples of `size` (h, w).
    """
    height, width = depth.shape[1:]
    rows, columns = size
    if height % rows or width % columns:
        raise ValueError(
            f"a depth image of {height}x{width} pixels doesn't divide into {rows}x{columns} "
            "cells; render the depth at the size of the image that the network sees"
        )
    valid = torch.isfinite(depth) & (depth > 0)
    cells = torch.where(valid, depth, torch.inf).unflatten(2, (columns, -1)).unflatten(1, (rows, -1))
    nearest = cells.amin(dim=(2, 4))  # [F, h, w]
    return torch.where(torch.isfinite(nearest), nearest, 0.0)


def depth_focal(
    logits: Tensor, target: Tensor, valid: Tensor, *, gamma: float = 2.0, alpha: float = 0.25
) -> Term:
    """Focal loss over depth bins: sum and count over cells.

    `logits` [F, D, h, w], `target` [F, h, w] (long, bin of each cell), `valid` bool [F, h, w]. A cell's
    loss is `-alpha (1 - p)^gamma log p` of its bin's probability p (Lin et al. 2017, over a softmax).
    """
    if logits.shape[:1] + logits.shape[2:] != target.shape or target.shape != valid.shape:
        raise ValueError(
            f"logits {list(logits.shape)}, target {list(target.shape)}, valid {list(valid.shape)}; expected "
            "[F, D, h, w] and twice [F, h, w]"
        )
    log_probability = -functional.cross_entropy(logits.float(), target, reduction="none")  # [F, h, w]
    value = -alpha * (1 - log_probability.exp()) ** gamma * log_probability
    return Term(torch.where(valid, value, 0.0).sum(), valid.sum().float())
