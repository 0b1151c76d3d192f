"""What a sentence says, factor by factor: which voxel tokens fit its noun, colour, side, relation.

A description is a filter: a noun, attributes, a relation to another described thing, then an order. Each of
these factors has a score of its own for every token, read from the words that state it, and counts as much as
the sentence states it. Factors that the simulator knows the truth of are supervised one by one
(`vlm_occ.objectives_pointer.factor_losses`), as in EDA (Wu et al. 2023, dense alignment) and NS3D (Hsu et al.
2023, relations as functions of pairs). Without such truth they learn from the sum alone.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from vlm_occ.heads.words import WordPool
from vlm_occ.types import UNARY

ROLES = 2
"""Whose factors a sentence states: those of what is meant, and those of what it is related to."""
PAIR_CHANNELS = 24
KEYS = 6
"""Orders: distance, offset to the left, bearing, volume, height, and the gap to what is related."""
SHAPES = 4
"""Functions of a rank from 0: of the first, the second, the third, and a slope."""


@dataclass(frozen=True)
class Factors:
    """Scores of N tokens for Q sentences by factor, as logits; `stated`: how much a sentence states each."""

    logits: Tensor  # [Q, N]: the sum, above 0 where a token is rather meant than not
    unary: Tensor  # [Q, ROLES, len(UNARY), N]
    relation: Tensor  # [Q, N]
    anchor: Tensor  # [Q, N] log-likelihood of being what the sentence relates to
    order: Tensor  # [Q, N]
    stated: Tensor  # [Q, ROLES * len(UNARY) + 2]: unary factors by role, relation, order
    several: Tensor  # [Q]: whether a sentence means several objects, if it means any

    def scores(self) -> Tensor:
        """Probability [Q, N] of being meant; of one object a sentence means at most its likeliest token."""
        scores = self.logits.sigmoid()
        if not scores.numel():
            return scores
        best = scores == scores.amax(1, keepdim=True)
        return torch.where(best, scores, scores * self.several.sigmoid()[:, None])


def footprint_gaps(boxes: Tensor) -> Tensor:
    """Distance between the footprints of boxes [N, 7] along the line of their centres, metres [N, N]."""
    offset = boxes[None, :, :2] - boxes[:, None, :2]
    angle = torch.atan2(offset[..., 1], offset[..., 0] + 1e-6)
    cosine = (angle - boxes[:, None, 6]).cos().abs().clamp(min=1e-3)
    sine = (angle - boxes[:, None, 6]).sin().abs().clamp(min=1e-3)
    own = torch.minimum(boxes[:, None, 3] / 2 / cosine, boxes[:, None, 4] / 2 / sine)  # of n towards m
    return (offset.norm(dim=-1) - own - own.T).clamp(min=0)


def pair_features(boxes: Tensor, gaps: Tensor) -> Tensor:
    """Where box n [N, 7] lies to box m, for the viewer and for m itself: [N, N, PAIR_CHANNELS].

    `gaps` [N, N] are those of `footprint_gaps`.
    """
    centre = boxes[:, :2]
    offset = centre[:, None] - centre[None]  # [N, N, 2] from m to n
    distance, span = offset.norm(dim=-1), centre.norm(dim=-1)
    further = span[:, None] - span[None]
    ray = centre / span.clamp(min=0.1)[:, None]
    heading = torch.stack([boxes[:, 6].cos(), boxes[:, 6].sin()], dim=-1)
    axes = [*_along(offset, ray), *_along(offset, heading)]  # 4 of [N, N]
    near = distance.clamp(min=0.1)
    same = (distance == 0).to(distance.dtype)
    lengths = torch.stack([*axes, further, offset[..., 0], offset[..., 1]], dim=-1)
    parts = [
        (lengths / 2).tanh(),
        (lengths / 10).tanh(),
        torch.stack([(-gaps / scale).exp() for scale in (1.5, 4.0, 10.0)], dim=-1),
        torch.stack([gaps.log1p() / 2, distance.log1p() / 2, *(axis / near for axis in axes), same], dim=-1),
    ]
    return torch.cat(parts, dim=-1)


def _along(offset: Tensor, axis: Tensor) -> tuple[Tensor, Tensor]:
    """Components of offsets [N, M, 2] along and to the left of unit vectors [M, 2]."""
    return (offset * axis).sum(-1), axis[:, 0] * offset[..., 1] - axis[:, 1] * offset[..., 0]


class FactorHead(nn.Module):
    """Scores every voxel token for every sentence as a sum of log-likelihoods of the factors it states."""

    def __init__(self, width: int, *, depth: int = 64) -> None:
        super().__init__()
        self.depth = depth
        self.pool = WordPool(width, ROLES * len(UNARY) + 3)
        self.words = nn.Parameter(torch.randn(len(UNARY), width, depth) / math.sqrt(width))
        self.tokens = nn.Sequential(
            nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, len(UNARY) * depth)
        )
        self.bias = nn.Parameter(torch.zeros(len(UNARY)))
        self.stated = nn.Parameter(torch.randn(ROLES * len(UNARY) + 2, width) / math.sqrt(width))
        self.stated_bias = nn.Parameter(torch.zeros(ROLES * len(UNARY) + 2))
        self.pairs = nn.Sequential(nn.Linear(PAIR_CHANNELS, 128), nn.GELU(), nn.Linear(128, depth))
        self.relation = nn.Linear(width, depth)
        self.relation_bias = nn.Parameter(torch.tensor(-1.0))
        self.order = nn.Linear(width, KEYS * 2 * SHAPES)
        self.several = nn.Linear(width, 1)
        self.sharpness = nn.Parameter(torch.tensor(1.0))
        self.offset = nn.Parameter(torch.tensor(3.0))

    def forward(self, words: Tensor, valid: Tensor, tokens: Tensor, boxes: Tensor) -> Factors:
        """`words` [Q, l, W], `valid` bool [Q, l], `tokens` [N, W] with `boxes` [N, 7]."""
        boxes, count = boxes.detach().float(), ROLES * len(UNARY)
        read = self.pool(words.float(), valid)  # [Q, S, W]
        stated = (read[:, : count + 2] * self.stated).sum(-1) + self.stated_bias
        share = stated.sigmoid()
        unary = self._unary(read[:, :count], tokens.float())
        weight = share[:, :count].unflatten(1, (ROLES, len(UNARY)))
        meant, anchor = (weight[..., None] * functional.logsigmoid(unary)).sum(2).unbind(1)  # [Q, N]
        itself = torch.eye(boxes.shape[0], device=boxes.device)  # `len` would fix N in an export
        to_anchor = (2 * anchor[:, None] - 1e4 * itself).softmax(-1)  # [Q, N, N]: weight of m seen from n
        gaps = footprint_gaps(boxes)
        relation = self._relation(read[:, count], to_anchor, pair_features(boxes, gaps))
        filtered = meant + share[:, count, None] * functional.logsigmoid(relation)
        apart = (to_anchor * gaps).sum(-1)  # [Q, N]: from what is related
        order = self._order(read[:, count + 1], filtered.exp(), apart, boxes, 1 - itself)
        logits = self.sharpness.exp() * (filtered + share[:, count + 1, None] * order) + self.offset
        several = self.several(read[:, count + 2])[:, 0]
        return Factors(logits, unary, relation, anchor, order, stated, several)

    def _unary(self, read: Tensor, tokens: Tensor) -> Tensor:
        """Logits [Q, ROLES, F, N] of the factors that a token has or has not by itself."""
        asked = torch.einsum("qrfw,fwd->qrfd", read.unflatten(1, (ROLES, len(UNARY))), self.words)
        known = self.tokens(tokens).unflatten(-1, (len(UNARY), self.depth))  # [N, F, d]
        return torch.einsum("qrfd,nfd->qrfn", asked, known) / math.sqrt(self.depth) + self.bias[:, None]

    def _relation(self, read: Tensor, to_anchor: Tensor, features: Tensor) -> Tensor:
        """Logits [Q, N] of standing in the relation to what the sentence relates to."""
        pairs = self.pairs(features)  # [N, N, d]
        asked = self.relation(read) / math.sqrt(self.depth)
        each = torch.einsum("qd,nmd->qnm", asked, pairs) + self.relation_bias
        return torch.logit((to_anchor * each.sigmoid()).sum(-1), eps=1e-4)

    def _order(self, read: Tensor, meant: Tensor, apart: Tensor, boxes: Tensor, others: Tensor) -> Tensor:
        """Logits [Q, N] of having the rank that is asked for among the tokens that are `meant` [Q, N]."""
        x, y, z = boxes[:, 0], boxes[:, 1], boxes[:, 2]
        volume = boxes[:, 3:6].clamp(min=0.05).log().sum(-1)
        distance, bearing = boxes[:, :2].norm(dim=-1), torch.atan2(y, x + 1e-6)
        keys = torch.stack([distance / 1.5, y, bearing * (60 / math.pi), volume / 0.34, z])  # [K, N], margins
        gap = apart / 1.5  # [Q, N]
        fore, after = _before(keys) * others, _before(-keys) * others
        near, far = _before(gap) * others, _before(-gap) * others
        ranks = [torch.einsum("qm,knm->qkn", meant, part) for part in (fore, after)]
        gaps = [torch.einsum("qm,qnm->qn", meant, part)[:, None] for part in (near, far)]
        rank = torch.stack([torch.cat(part, dim=1) for part in zip(ranks, gaps, strict=True)], dim=2)
        shapes = [(-rank).exp(), (-2 * (rank - 1) ** 2).exp(), (-2 * (rank - 2) ** 2).exp()]
        shaped = torch.stack([*shapes, -rank.clamp(max=4) / 2], dim=-1)  # [Q, K, 2, N, SHAPES]
        asked = self.order(read).unflatten(-1, (KEYS, 2, SHAPES))
        return torch.einsum("qkds,qkdns->qn", asked, shaped)


def _before(keys: Tensor) -> Tensor:
    """How surely m comes before n by keys [..., N] in units of their margins: [..., N, N]."""
    return (2 * (keys[..., :, None] - keys[..., None, :])).sigmoid()
