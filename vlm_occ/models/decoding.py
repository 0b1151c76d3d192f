"""From scores to objects: which tokens to decode, and the masks around them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from vlm_occ.heads.factors import Factors
from vlm_occ.heads.occupancy import ObjectMaskHead, mask_window
from vlm_occ.losses.matching import match_boxes
from vlm_occ.models.batch import Batch, ReferredObject
from vlm_occ.models.perception import PerceptionOutput, SceneTokens

if TYPE_CHECKING:
    from vlm_occ.models.adapter import VLMOcc


MOST_TRAINED = 16
"""Objects of a scene that are decoded in a training step; of more a random part, as sentences repeat them."""
LEAST = 0.05
"""Score below which a token is no answer, whatever number a sentence states."""


def chosen_rows(scores: Tensor, threshold: float, ratio: float, *, count: int | None = None) -> Tensor:
    """Rows of the tokens of scores [N] that are the answer, best first; none if no score passes `threshold`.

    A sentence that says how many it means (`count`) gets that many, of those that may be meant at all; else
    the answer is what passes the threshold and the `ratio` to the best score.
    """
    best = float(scores.max()) if len(scores) else 0.0
    if count is None or best <= threshold:
        rows = (scores > max(threshold, ratio * best)).nonzero()[:, 0]
        return rows[scores[rows].argsort(descending=True)]
    rows = scores.argsort(descending=True)[:count]
    return rows[scores[rows] > LEAST]


def pairs_to_decode(
    batch: Batch, tokens: SceneTokens, b: int, factors: Factors, choose: Callable[[Tensor, str], Tensor]
) -> tuple[list[tuple[int, int, int]], Tensor]:
    """The (query, token, target) triples of scene b to decode, and the token of each true box [M].

    In training the true objects' tokens, at most MOST_TRAINED; else those that `choose` takes by their scores
    [N] and the sentence, with target -1.
    """
    if batch.boxes is None:
        scores = factors.scores().detach()
        asked = enumerate(zip(scores, batch.queries[b], strict=True))
        found = [(q, n, -1) for q, (row, query) in asked for n in choose(row, query.text).tolist()]
        return found, scores.new_zeros(0, dtype=torch.long)
    match = match_boxes(tokens.candidates.box, batch.boxes[b])
    chosen = match.tolist()
    pairs = [
        (q, chosen[target], target)
        for q, query in enumerate(batch.queries[b])
        for target in query.targets
        if chosen[target] >= 0
    ]
    if len(pairs) > MOST_TRAINED:
        pairs = [pairs[row] for row in torch.randperm(len(pairs))[:MOST_TRAINED].tolist()]
    return pairs, match


def decode_objects(
    model: VLMOcc,
    b: int,
    pairs: Sequence[tuple[int, int, int]],
    ground: Tensor,
    tokens: Tensor,
    perception: PerceptionOutput,
) -> list[ReferredObject]:
    """Boxes and masks of (query, token, target) triples of scene b; states [Q, D], tokens [N, width]."""
    if not pairs:
        return []
    rows = (perception.voxel_index[:, 0] == b).nonzero()[:, 0]
    index = torch.tensor(pairs, device=ground.device)
    found = perception.tokens[b]
    joint = model.joint(ground[index[:, 0]], tokens[index[:, 1]], found.code[index[:, 1]])  # [K, width]
    boxes = model.box(joint, found.candidates.box[index[:, 1]])  # [K, 7]
    centers = model.perception.grid.center_of(perception.voxel_index[rows, 1:])
    masks = object_masks(model.mask, joint, boxes, centers, perception.voxel_features[rows])
    return [
        ReferredObject(b, q, n, target, box, rows[window], logits)
        for (q, n, target), box, (window, logits) in zip(pairs, boxes, masks, strict=True)
    ]


def best_overlap(logits: Tensor) -> Tensor:
    """Of voxels [W] that are an object's with the odds `logits`, those that overlap it best: bool [W].

    With probabilities p in falling order, the k likeliest have an expected IoU of about
    sum(p[:k]) / (k + sum(p[k:])); that is greatest at a lower probability than one half where much is unsure.
    """
    if not len(logits):
        return logits > 0
    ordered, order = logits.sigmoid().double().sort(descending=True)
    inside = ordered.cumsum(0)
    count = torch.arange(1, len(ordered) + 1, device=logits.device)
    best = int((inside / (count + inside[-1] - inside)).argmax()) + 1
    return torch.zeros_like(logits, dtype=torch.bool).index_fill(0, order[:best], True)


def object_masks(
    head: ObjectMaskHead, joint: Tensor, boxes: Tensor, centers: Tensor, features: Tensor
) -> list[tuple[Tensor, Tensor]]:
    """For each object the rows of the voxels in its window and their mask logits.

    `joint` [K, width] and `boxes` [K, 7] are of objects, `centers` [M, 3] and `features` [M, C] of voxels.
    """
    result = []
    for state, box in zip(joint, boxes.detach(), strict=True):  # up to tens of objects, 1 ms each
        window = mask_window(box, centers, head.radius)
        result.append((window, head(state, features[window], centers[window], box)))
    return result
