"""Random labels and outputs of a model made by hand, for tests of losses."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from vlm_occ.encoders.refine import CODE_CHANNELS
from vlm_occ.encoders.voxel_tokens import Candidates
from vlm_occ.heads.factors import ROLES, Factors
from vlm_occ.models.batch import Batch, GroundingOutput
from vlm_occ.models.perception import PerceptionOutput, SceneTokens
from vlm_occ.types import FREE, UNARY, GroundingQuery, SceneLabels, VoxelGrid

GRID = VoxelGrid(origin=(-4.0, -4.0, -1.0), voxel_size=0.8, shape=(12, 12, 4))
CLASSES, COLOURS = 15, 9


def labels(seed: int, boxes: int = 3) -> SceneLabels:
    """Random labels; the boxes stand apart."""
    bits = torch.Generator().manual_seed(seed)
    places = torch.tensor([[-2.0, -2.0, 0.0], [2.5, 1.0, 0.3], [-1.0, 3.0, 0.1]])[:boxes]
    sizes = 0.8 + torch.rand(boxes, 3, generator=bits)
    yaw = 6 * torch.rand(boxes, 1, generator=bits) - 3
    semantics = torch.randint(0, 18, GRID.shape, generator=bits)
    free = torch.rand(GRID.shape, generator=bits) < 0.7
    return SceneLabels(
        semantics=torch.where(free, FREE, semantics).to(torch.uint8),
        mask_lidar=torch.rand(GRID.shape, generator=bits) < 0.4,
        mask_camera=torch.rand(GRID.shape, generator=bits) < 0.4,
        boxes=torch.cat([places, sizes, yaw], dim=-1),
        classes=torch.randint(0, CLASSES, (boxes,), generator=bits),
        colours=torch.tensor([3, -1, 0])[:boxes],
        velocities=2 * torch.randn(boxes, 2, generator=bits),
        visibility=torch.ones(boxes),
        num_points=torch.full((boxes,), 20),
    )


def output(items: list[SceneLabels], seed: int = 9, extra: int = 2) -> PerceptionOutput:
    """A random output of the trunk; candidates: the boxes in reverse order, then `extra` others."""
    bits = torch.Generator().manual_seed(seed)
    count = len(items)

    def noise(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=bits)

    index = [(item.semantics != FREE).nonzero() for item in items]
    rows = torch.cat([torch.cat([torch.full((len(i), 1), b), i], dim=-1) for b, i in enumerate(index)])
    tokens = []
    for item in items:
        elsewhere = torch.tensor([[3.8, -3.8, 0.0], [-3.9, 0.2, 0.0]])[:extra]
        away = torch.cat([elsewhere, torch.ones(extra, 3), torch.zeros(extra, 1)], dim=-1)
        box = torch.cat([item.boxes.flip(0) + 0.05, away])
        n = len(box)
        cell = torch.zeros(n, 2, dtype=torch.long)
        candidates = Candidates(cell, torch.ones(n), box, torch.zeros(n, 2))
        known = (noise(n, CLASSES), noise(n, COLOURS), noise(n), torch.zeros(n, CODE_CHANNELS))
        tokens.append(SceneTokens(noise(n, 4), candidates, *known))
    x, y, z = GRID.shape
    return PerceptionOutput(
        noise(count, x // 4, y // 4, z),
        noise(count, *GRID.shape),
        rows,
        noise(len(rows), 6),
        noise(len(rows), 18),
        noise(count, CLASSES, x, y),
        noise(count, 10, x, y),
        tuple(tokens),
    )


def entropy(logit: float, target: float) -> float:
    """Binary cross-entropy of one logit."""
    p = 1 / (1 + math.exp(-logit))
    return -(target * math.log(p) + (1 - target) * math.log(1 - p))


def random_scores(logits: Tensor, seed: int = 5) -> Factors:
    """Scores with these logits [Q, N] in all and random ones by factor."""
    bits = torch.Generator().manual_seed(seed)
    queries, tokens = logits.shape
    unary = torch.randn(queries, ROLES, len(UNARY), tokens, generator=bits)
    relation, anchor, order = torch.randn(3, queries, tokens, generator=bits)
    stated = torch.randn(queries, ROLES * len(UNARY) + 2, generator=bits)
    several = torch.randn(queries, generator=bits)
    return Factors(logits, unary, relation, anchor, order, stated, several)


def grounding(
    item: SceneLabels, logits: Tensor, queries: list[GroundingQuery]
) -> tuple[GroundingOutput, Batch]:
    """An output whose pointer has `logits` [Q, N], and its batch; objects are matched in reverse order."""
    match = torch.tensor([2, 1, 0])
    result = GroundingOutput(output([item]), (random_scores(logits),), ((),), (match,), ())
    batch = Batch(inputs=None, frames=(), queries=(tuple(queries),))  # type: ignore[arg-type]
    return result, batch
