"""Losses over voxels and tokens. Each returns a sum and a count, so that ranks and steps can be joined
exactly.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional


class Term(NamedTuple):
    """A loss as a sum over items and the number of items; the loss is `total / count`."""

    total: Tensor
    count: Tensor  # type: ignore[assignment]  # hides tuple.count, which nobody wants of a loss


def term(values: Tensor, weight: Tensor | None = None) -> Term:
    """The sum and count of `values`, or of those with weight."""
    if weight is None:
        return Term(values.sum(), torch.tensor(float(values.numel()), device=values.device))
    return Term((values * weight).sum(), weight.sum().to(values.dtype))


def sigmoid_focal(logits: Tensor, targets: Tensor, *, gamma: float = 2.0, alpha: float = 0.25) -> Tensor:
    """Focal loss of each element (Lin et al. 2017, eq. 5); `targets` in {0, 1}, any shape."""
    cross_entropy = functional.binary_cross_entropy_with_logits(logits, targets, reduction="none")
    probability = logits.sigmoid()
    agreement = probability * targets + (1 - probability) * (1 - targets)
    weight = alpha * targets + (1 - alpha) * (1 - targets)
    return weight * cross_entropy * (1 - agreement) ** gamma


def heatmap_focal(logits: Tensor, targets: Tensor, *, alpha: float = 2.0, beta: float = 4.0) -> Tensor:
    """Penalty-reduced focal loss of a heat map (CornerNet, eq. 1): 1 at centres, a Gaussian around them."""
    probability = logits.sigmoid()
    positive = (targets >= 1 - 1e-6).to(logits.dtype)
    at_centre = functional.logsigmoid(logits) * (1 - probability) ** alpha * positive
    elsewhere = functional.logsigmoid(-logits) * probability**alpha * (1 - targets) ** beta * (1 - positive)
    return -(at_centre + elsewhere)


def dice(logits: Tensor, targets: Tensor) -> Tensor:
    """Dice loss of one mask: logits and targets [M]; 0 is a perfect mask, smoothed by one voxel."""
    probability = logits.sigmoid()
    overlap = 2 * (probability * targets).sum() + 1
    return 1 - overlap / (probability.sum() + targets.sum() + 1)


def lovasz_gradient(sorted_targets: Tensor) -> Tensor:
    """Gradient of the Lovasz extension of the Jaccard loss (Berman et al. 2018, algorithm 1): [..., M]."""
    total = sorted_targets.sum(-1, keepdim=True)
    intersection = total - sorted_targets.cumsum(-1)
    union = total + (1 - sorted_targets).cumsum(-1)
    jaccard = 1 - intersection / union
    return torch.cat([jaccard[..., :1], jaccard[..., 1:] - jaccard[..., :-1]], dim=-1)


def lovasz_of_sentences(probabilities: Tensor, labels: Tensor, keep: Tensor) -> Tensor:
    """Lovasz-softmax (Berman et al. 2018) of each of N sentences, the mean over its present classes: [N].

    `probabilities` [N, M, C], `labels` long [N, M]; only voxels that are to `keep`, bool [N, M], count. All
    sentences run at once: on a GPU a launch a sentence costs more than the work.
    """
    total, count = probabilities.sum((1, 2)) * 0, torch.zeros(len(labels), device=labels.device)
    for index in labels[keep].unique().tolist():
        chosen = (labels == index) & keep
        target = chosen.to(probabilities.dtype)  # [N, M]
        errors = torch.where(keep, (target - probabilities[..., index]).abs(), -1.0)  # the others come last
        errors, order = errors.sort(dim=1, descending=True)
        present = chosen.any(1)
        gradient = lovasz_gradient(target.gather(1, order))
        total = total + (errors.clamp(min=0) * gradient).sum(1) * present
        count = count + present
    return total / count.clamp(min=1)


def affinities_of_sentences(probabilities: Tensor, target: Tensor) -> Tensor:
    """Precision, recall and specificity of each sentence and class as a loss (MonoScene, eq. 2-5): [N, C].

    `probabilities` and `target` (0 or 1) [N, M, C]. A share of nothing costs nothing.
    """
    overlap, count = (probabilities * target).sum(1), target.sum(1)  # [N, C]
    total = torch.zeros_like(overlap)
    for numerator, denominator in (
        (overlap, probabilities.sum(1)),
        (overlap, count),
        (((1 - probabilities) * (1 - target)).sum(1), (1 - target).sum(1)),
    ):
        ratio = (numerator / denominator.clamp(min=1e-6)).clamp(1e-6, 1 - 1e-6)
        total = total + torch.where(denominator.detach() > 0, -ratio.log(), 0.0)
    return total
