"""Total losses: named terms from a model's output and the labels. Pure functions, no state."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from vlm_occ.encoders.voxel_tokens import encode_regression
from vlm_occ.losses.box import box_l1, centre_cells, draw_heatmap
from vlm_occ.losses.language import next_token_cross_entropy
from vlm_occ.losses.matching import inside_footprint, match_boxes
from vlm_occ.losses.occupancy import Term, dice, heatmap_focal, sigmoid_focal, term
from vlm_occ.models.adapter import GroundingOutput, VLMOcc
from vlm_occ.models.batch import Batch
from vlm_occ.models.perception import PerceptionOutput
from vlm_occ.types import FREE, SceneLabels, VoxelGrid
from vlm_occ.voxels import coarsen, voxels_in_box

PERCEPTION_WEIGHTS = {
    "occupancy": 4.0,
    "occupancy_dice": 0.5,
    "coarse": 1.0,
    "semantic": 0.5,
    "heatmap": 1.0,
    "regression": 1.0,
    "label": 0.5,
    "colour": 0.5,
    "moving": 0.2,
}
"""Weight of each perception term in the total loss."""


GROUNDING_WEIGHTS = {"pointer": 4.0, "mask": 1.0, "mask_dice": 1.0, "box": 0.5, "language": 0.2}
"""Weight of each grounding term in the total loss."""


def seen_objects(labels: SceneLabels) -> Tensor:
    """Rows of the boxes [K] that a sensor saw at all: the ones that a candidate is asked for."""
    return ((labels.visibility >= 0.1) | (labels.num_points >= 3)).nonzero()[:, 0]


def perception_terms(
    output: PerceptionOutput, labels: Sequence[SceneLabels], grid: VoxelGrid
) -> dict[str, Term]:
    """The trunk's loss terms: occupancy, semantics, centres, boxes, class, colour and motion of candidates.
    """
    terms = occupancy_terms(output, labels)
    terms.update(centre_terms(output, labels, grid))
    terms.update(attribute_terms(output, labels))
    return terms


def occupancy_terms(output: PerceptionOutput, labels: Sequence[SceneLabels]) -> dict[str, Term]:
    """Occupancy (coarse and fine) over all voxels, unseen ones at a quarter; semantics where features
    exist.
    """
    occupied = torch.stack([item.semantics != FREE for item in labels])  # [B, X, Y, Z]
    seen = torch.stack([item.mask_lidar | item.mask_camera for item in labels])
    weight = torch.where(seen, 1.0, 0.25) * torch.where(occupied, 2.0, 1.0)
    target = occupied.float()
    fine = functional.binary_cross_entropy_with_logits(output.occupancy_logits, target, reduction="none")
    coarse_target = torch.stack([coarsen(item, (4, 4, 1)) for item in occupied]).float()
    coarse = functional.binary_cross_entropy_with_logits(
        output.coarse_logits, coarse_target, reduction="none"
    )
    b, x, y, z = output.voxel_index.unbind(-1)
    semantics = torch.stack([item.semantics for item in labels])[b, x, y, z].long()
    semantic = functional.cross_entropy(output.semantic_logits.float(), semantics, reduction="none")
    mask = seen.float()
    overlap = dice(output.occupancy_logits[seen], target[seen])
    return {
        "occupancy": term(fine, weight),
        "occupancy_dice": Term(overlap, mask.new_tensor(1.0)),
        "coarse": term(coarse),
        "semantic": term(semantic),
    }


def centre_terms(output: PerceptionOutput, labels: Sequence[SceneLabels], grid: VoxelGrid) -> dict[str, Term]:
    """Heat map and box regression; the 3x3 cells around a centre learn its box, as a peak may be a cell
    off.
    """
    heat, regression, count = [], [], output.regression.new_tensor(0.0)
    offsets = torch.cartesian_prod(torch.arange(-1, 2), torch.arange(-1, 2)).to(output.regression.device)
    size = output.regression.new_tensor(grid.shape[:2]).long()
    for b, item in enumerate(labels):
        rows = seen_objects(item)
        boxes, velocities = item.boxes[rows], item.velocities[rows]
        heat.append(draw_heatmap(boxes, item.classes[rows], grid))
        cells, inside = centre_cells(boxes, grid)
        around = (cells[inside][:, None] + offsets).flatten(0, 1)  # [K * 9, 2]
        box = boxes[inside].repeat_interleave(9, dim=0)
        velocity = velocities[inside].repeat_interleave(9, dim=0)
        keep = ((around >= 0) & (around < size)).all(-1)
        around, box, velocity = around[keep], box[keep], velocity[keep]
        predicted = output.regression[b][:, around[:, 0], around[:, 1]].T
        target = encode_regression(box, velocity, around, grid)
        scale = target.new_tensor([1, 1, 1, 1, 1, 1, 1, 1, 0.1, 0.1])
        loss = functional.smooth_l1_loss(predicted, target, reduction="none", beta=0.1) * scale
        regression.append(loss.sum() / 9)
        count = count + inside.sum()
    total = heatmap_focal(output.heatmap_logits, torch.stack(heat)).sum()
    return {
        "heatmap": Term(total, count.clamp(min=1)),
        "regression": Term(torch.stack(regression).sum(), count.clamp(min=1)),
    }


def attribute_terms(output: PerceptionOutput, labels: Sequence[SceneLabels]) -> dict[str, Term]:
    """Class, colour (where one is named) and motion of the candidates that match an object."""
    sums = {name: output.voxel_features.sum() * 0 for name in ("label", "colour", "moving")}
    counts = {name: output.voxel_features.new_tensor(0.0) for name in sums}
    for tokens, item in zip(output.tokens, labels, strict=True):
        rows = seen_objects(item)
        match = match_boxes(tokens.candidates.box, item.boxes[rows])
        rows, match = rows[match >= 0], match[match >= 0]
        speed = item.velocities[rows].norm(dim=-1)
        colours = item.colours[rows]
        losses = {
            "label": functional.cross_entropy(
                tokens.class_logits[match], item.classes[rows], reduction="sum"
            ),
            "colour": functional.cross_entropy(
                tokens.colour_logits[match], colours, reduction="sum", ignore_index=-1
            ),
            "moving": functional.binary_cross_entropy_with_logits(
                tokens.moving_logits[match], (speed > 0.5).float(), reduction="sum"
            ),
        }
        numbers = {"label": len(rows), "colour": int((colours >= 0).sum()), "moving": len(rows)}
        for name, value in losses.items():
            if numbers[name]:
                sums[name] = sums[name] + value
                counts[name] = counts[name] + numbers[name]
    return {name: Term(sums[name], counts[name].clamp(min=1)) for name in sums}


def weighted_sum(terms: dict[str, Term], weights: dict[str, float]) -> tuple[Tensor, dict[str, float]]:
    """The total loss and each term's mean for the log."""
    total = torch.stack([weights[name] * item.total / item.count for name, item in terms.items()]).sum()
    return total, {name: (item.total / item.count).item() for name, item in terms.items()}


def grounding_terms(
    model: VLMOcc, output: GroundingOutput, batch: Batch, labels: Sequence[SceneLabels]
) -> dict[str, Term]:
    """Which tokens a query means (focal), their masks (focal and Dice), boxes, and the answer's words."""
    terms = {"pointer": pointer_term(output, batch, labels)}
    terms.update(object_terms(output, labels, model.perception.grid))
    terms["language"] = language_term(model, output, batch)
    return terms


def pointer_term(output: GroundingOutput, batch: Batch, labels: Sequence[SceneLabels]) -> Term:
    """Focal loss of every token for every query, a mean over tokens per query.

    A token over a target's footprint that was not matched to it is neither right nor wrong; a query with a
    target
    that no token stands for is left out.
    """
    losses = []
    for logits, match, queries, tokens, item in zip(
        output.pointer_logits, output.matches, batch.queries, output.perception.tokens, labels, strict=True
    ):
        over = inside_footprint(tokens.candidates.box, item.boxes)  # [M, N]
        for q, query in enumerate(queries):
            rows = match[list(query.targets)]
            if (rows < 0).any() or not logits.shape[1]:
                continue
            target = torch.zeros_like(logits[q]).index_fill(0, rows, 1.0)
            ignore = over[list(query.targets)].any(0) & (target == 0)
            loss = sigmoid_focal(logits[q], target, alpha=0.5)
            losses.append(torch.where(ignore, torch.zeros_like(loss), loss).sum())
    if not losses:
        return _nothing(output)
    return term(torch.stack(losses))


def object_terms(output: GroundingOutput, labels: Sequence[SceneLabels], grid: VoxelGrid) -> dict[str, Term]:
    """Mask and box losses of the decoded objects; the truth of a mask is Talk2Occ's eq. 1."""
    masks, overlaps, boxes = [], [], []
    truths: dict[tuple[int, int], Tensor] = {}
    for item in output.objects:
        key = (item.scene, item.target)
        box = labels[item.scene].boxes[item.target]
        if key not in truths:
            truths[key] = voxels_in_box(box, grid) & (labels[item.scene].semantics != FREE)
        index = output.perception.voxel_index[item.voxel_rows]
        target = truths[key][index[:, 1], index[:, 2], index[:, 3]].float()
        weight = 1 / target.sum().clamp(min=20.0)  # small objects count as much as large ones
        loss = functional.binary_cross_entropy_with_logits(item.mask_logits, target, reduction="sum")
        masks.append(loss * weight)
        overlaps.append(dice(item.mask_logits, target))
        boxes.append(box_l1(item.box[None], box[None])[0])
    if not masks:
        return {name: _nothing(output) for name in ("mask", "mask_dice", "box")}
    return {
        "mask": term(torch.stack(masks)),
        "mask_dice": term(torch.stack(overlaps)),
        "box": term(torch.stack(boxes)),
    }


def language_term(model: VLMOcc, output: GroundingOutput, batch: Batch) -> Term:
    """Cross-entropy of the answer's words after the grounding token."""
    states, targets = [], []
    for scene_states, queries in zip(output.answer_states, batch.queries, strict=True):
        for state, query in zip(scene_states, queries, strict=True):
            if query.answer:
                ids, place = model.backbone.query_ids(query.text, query.answer)
                states.append(state[place : len(ids) - 1])
                targets.append(ids[place + 1 :].to(state.device))
    if not states:
        return _nothing(output)
    return next_token_cross_entropy(model.backbone.logits(torch.cat(states)), torch.cat(targets))


def _nothing(output: GroundingOutput) -> Term:
    """A term without items that still reaches the parameters, so that every process has the same gradients.
    """
    zero = output.perception.voxel_features.sum() * 0
    return Term(zero, torch.ones_like(zero).detach())
