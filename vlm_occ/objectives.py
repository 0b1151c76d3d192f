"""Total losses: named terms from a model's output and the labels. Pure functions, no state."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional

from vlm_occ.encoders.voxel_tokens import encode_regression
from vlm_occ.losses.box import box_l1, centre_cells, draw_heatmap
from vlm_occ.losses.language import next_token_cross_entropy
from vlm_occ.losses.matching import match_boxes
from vlm_occ.losses.occupancy import Term, dice, heatmap_focal, term
from vlm_occ.losses.refine import attribute_loss, refine_loss
from vlm_occ.objectives_pointer import pointer_terms
from vlm_occ.types import FREE, SceneLabels, VoxelGrid
from vlm_occ.voxels import coarsen, voxels_in_box, voxels_in_boxes

if TYPE_CHECKING:
    from vlm_occ.models.adapter import VLMOcc
    from vlm_occ.models.batch import Batch, GroundingOutput
    from vlm_occ.models.perception import PerceptionOutput

PERCEPTION_WEIGHTS = {
    "occupancy": 4.0,
    "occupancy_dice": 0.5,
    "objects": 1.0,
    "objects_dice": 1.0,
    "coarse": 1.0,
    "semantic": 0.5,
    "heatmap": 1.0,
    "regression": 1.0,
    "label": 0.5,
    "colour": 0.5,
    "refine": 1.0,
}
"""Weight of each perception term in the total loss."""


GROUNDING_WEIGHTS = {
    "pointer": 1.0,
    "ranking": 2.0,
    "several": 0.5,
    "factors": 1.0,
    "stated": 1.0,
    "mask": 1.0,
    "mask_dice": 1.0,
    "box": 0.5,
    "language": 0.2,
}
"""Weight of each grounding term in the total loss."""


def seen_objects(labels: SceneLabels) -> Tensor:
    """Rows of the boxes [K] that a sensor saw at all: the ones that a candidate is asked for."""
    return labels.seen.nonzero()[:, 0]


def perception_terms(
    output: PerceptionOutput, labels: Sequence[SceneLabels], grid: VoxelGrid
) -> dict[str, Term]:
    """The trunk's terms: occupancy, semantics, centres, boxes, candidates' class, colour and refinement."""
    terms = occupancy_terms(output, labels)
    terms.update(object_occupancy_terms(output, labels, grid))
    terms.update(centre_terms(output, labels, grid))
    terms.update(attribute_terms(output, labels))
    terms.update(refine_terms(output, labels))
    return terms


def occupancy_terms(output: PerceptionOutput, labels: Sequence[SceneLabels]) -> dict[str, Term]:
    """Occupancy (coarse and fine) over all voxels, unseen ones at a quarter; semantics where features
    exist.
    """
    values: dict[str, list[Tensor]] = {
        name: [] for name in ("occupancy", "occupancy_dice", "coarse", "semantic")
    }
    for b, item in enumerate(labels):
        occupied = item.semantics != FREE  # [X, Y, Z]
        seen = item.mask_lidar | item.mask_camera
        weight = torch.where(seen, 1.0, 0.25) * torch.where(occupied, 2.0, 1.0)
        logits, target = output.occupancy_logits[b], occupied.float()
        fine = functional.binary_cross_entropy_with_logits(logits, target, weight, reduction="sum")
        coarse = functional.binary_cross_entropy_with_logits(
            output.coarse_logits[b], coarsen(occupied, (4, 4, 1)).float()
        )
        rows = (output.voxel_index[:, 0] == b).nonzero()[:, 0]
        _, x, y, z = output.voxel_index[rows].unbind(-1)
        semantic = functional.cross_entropy(
            output.semantic_logits[rows].float(), item.semantics[x, y, z].long(), reduction="sum"
        )
        values["occupancy"].append(fine / weight.sum())
        values["occupancy_dice"].append(dice(logits[seen], target[seen]))
        values["coarse"].append(coarse)
        values["semantic"].append(semantic / max(len(rows), 1))
    return _terms(values)


def object_occupancy_terms(
    output: PerceptionOutput, labels: Sequence[SceneLabels], grid: VoxelGrid
) -> dict[str, Term]:
    """Occupancy in and around each seen object's box: a mean over objects, so that cones count as buses.

    Objects are a fiftieth of the occupied voxels, and the ones that answers are made of.
    """
    values: dict[str, list[Tensor]] = {"objects": [], "objects_dice": []}
    margin = output.occupancy_logits.new_tensor([0, 0, 0, 0.8, 0.8, 0.8, 0])
    for logits, item in zip(output.occupancy_logits, labels, strict=True):
        boxes = item.boxes[seen_objects(item)]
        row, index = voxels_in_boxes(boxes + margin, grid)
        x, y, z = index.unbind(-1)
        said, truth = logits[x, y, z], (item.semantics[x, y, z] != FREE).float()
        entropy = functional.binary_cross_entropy_with_logits(said, truth, reduction="none")
        parts = torch.stack([torch.ones_like(said), entropy, said.sigmoid() * truth, said.sigmoid() + truth])
        sums = logits.new_zeros(4, len(boxes)).index_add(1, row, parts)
        count, entropies, overlap, total = sums[:, sums[0] > 0]  # boxes outside the grid have no voxel
        some = max(len(count), 1)
        values["objects"].append((entropies / count).sum() / some)
        values["objects_dice"].append((1 - (2 * overlap + 1) / (total + 1)).sum() / some)
    return _terms(values)


def centre_terms(output: PerceptionOutput, labels: Sequence[SceneLabels], grid: VoxelGrid) -> dict[str, Term]:
    """Heat map and box regression; the 3x3 cells around a centre learn its box, as a peak may be a cell
    off.
    """
    values: dict[str, list[Tensor]] = {"heatmap": [], "regression": []}
    offsets = torch.cartesian_prod(torch.arange(-1, 2), torch.arange(-1, 2)).to(output.regression.device)
    size = torch.tensor(grid.shape[:2], device=output.regression.device)
    scale = output.regression.new_tensor([1, 1, 1, 1, 1, 1, 1, 1, 0.1, 0.1])
    for b, item in enumerate(labels):
        rows = seen_objects(item)
        boxes, velocities = item.boxes[rows], item.velocities[rows]
        cells, inside = centre_cells(boxes, grid)
        count = inside.sum().clamp(min=1)
        heatmap = draw_heatmap(boxes, item.classes[rows], grid)
        values["heatmap"].append(heatmap_focal(output.heatmap_logits[b], heatmap).sum() / count)
        around = (cells[inside][:, None] + offsets).flatten(0, 1)  # [K * 9, 2]
        keep = ((around >= 0) & (around < size)).all(-1)
        around = around[keep]
        box = boxes[inside].repeat_interleave(9, dim=0)[keep]
        velocity = velocities[inside].repeat_interleave(9, dim=0)[keep]
        predicted = output.regression[b][:, around[:, 0], around[:, 1]].T
        target = encode_regression(box, velocity, around, grid)
        target = torch.where(target.isnan(), predicted.detach(), target)  # nuScenes knows not every velocity
        loss = functional.smooth_l1_loss(predicted, target, reduction="none", beta=0.1) * scale
        values["regression"].append(loss.sum() / (9 * count))
    return _terms(values)


def attribute_terms(output: PerceptionOutput, labels: Sequence[SceneLabels]) -> dict[str, Term]:
    """Class and colour (where one is named) of the candidates that match an object."""
    values: dict[str, list[Tensor]] = {"label": [], "colour": []}
    for tokens, item in zip(output.tokens, labels, strict=True):
        rows = seen_objects(item)
        match = match_boxes(tokens.candidates.box, item.boxes[rows])
        rows, match = rows[match >= 0], match[match >= 0]
        colours = item.colours[rows]
        label = functional.cross_entropy(tokens.class_logits[match], item.classes[rows], reduction="sum")
        colour = functional.cross_entropy(
            tokens.colour_logits[match], colours, reduction="sum", ignore_index=-1
        )
        count = max(len(rows), 1)
        values["label"].append(label / count)
        values["colour"].append(colour / (colours >= 0).sum().clamp(min=1))
    return _terms(values)


def refine_terms(output: PerceptionOutput, labels: Sequence[SceneLabels]) -> dict[str, Term]:
    """What each look at the candidates should have said of the objects that they stand for: their mean."""
    scenes = []
    for tokens, item in zip(output.tokens, labels, strict=True):
        match = match_boxes(tokens.candidates.box, item.boxes)
        rows, match = (match >= 0).nonzero()[:, 0], match[match >= 0]
        seen, classes, colours = item.seen[rows], item.classes[rows], item.colours[rows]
        truth = (item.boxes[rows], item.velocities[rows], classes, seen)
        losses = [output.heatmap_logits.sum() * 0]
        for look in tokens.looks if len(rows) else ():
            box = refine_loss(look.raw[match], look.boxes[match], *truth)
            said = (look.label_logits[match], look.colour_logits[match])
            losses.append((box + attribute_loss(*said, classes, colours, seen)).mean())
        scenes.append(_mean(losses))
    return {"refine": term(torch.stack(scenes))}


def _mean(losses: Sequence[Tensor]) -> Tensor:
    """The mean of a scene's losses after the first, a zero for scenes without any."""
    return torch.stack(list(losses)).sum() / max(len(losses) - 1, 1)


def _terms(values: dict[str, list[Tensor]]) -> dict[str, Term]:
    """Each scene's mean is one item of a term, so that a batch split over processes gives the same loss."""
    return {name: term(torch.stack(items)) for name, items in values.items()}


def weighted_sum(terms: dict[str, Term], weights: dict[str, float]) -> tuple[Tensor, dict[str, float]]:
    """The total loss and each term's mean for the log; a term of no items is zero."""
    means = {name: item.total / item.count.clamp(min=1e-9) for name, item in terms.items()}
    total = torch.stack([weights[name] * mean for name, mean in means.items()]).sum()
    return total, {name: mean.item() for name, mean in means.items()}


def grounding_terms(
    model: VLMOcc, output: GroundingOutput, batch: Batch, labels: Sequence[SceneLabels]
) -> dict[str, Term]:
    """Which tokens a query means (focal), their masks (focal and Dice), boxes, and the answer's words."""
    terms = pointer_terms(output, batch, labels)
    terms.update(object_terms(output, labels, model.perception.grid))
    terms["language"] = language_term(model, output, batch)
    return terms


def object_terms(output: GroundingOutput, labels: Sequence[SceneLabels], grid: VoxelGrid) -> dict[str, Term]:
    """Mask and box losses of the decoded objects; the truth of a mask is Talk2Occ's eq. 1."""
    values: dict[str, list[Tensor]] = {"mask": [], "mask_dice": [], "box": []}
    for b, item in enumerate(labels):
        truths: dict[int, Tensor] = {}
        masks, overlaps, boxes = ([output.scores[b].logits.sum() * 0] for _ in range(3))
        for found in output.objects:
            if found.scene != b:
                continue
            box = item.boxes[found.target]
            if found.target not in truths:
                truths[found.target] = voxels_in_box(box, grid) & (item.semantics != FREE)
            index = output.perception.voxel_index[found.voxel_rows]
            target = truths[found.target][index[:, 1], index[:, 2], index[:, 3]].float()
            loss = functional.binary_cross_entropy_with_logits(found.mask_logits, target, reduction="sum")
            masks.append(loss / target.sum().clamp(min=20.0))  # small objects count as much as large ones
            overlaps.append(dice(found.mask_logits, target))
            boxes.append(box_l1(found.box[None], box[None])[0])
        for name, losses in zip(values, (masks, overlaps, boxes), strict=True):
            values[name].append(_mean(losses))
    return _terms(values)


def language_term(model: VLMOcc, output: GroundingOutput, batch: Batch) -> Term:
    """Cross-entropy of the answer's words after the grounding token, a mean over a scene's words."""
    scenes = []
    for b, (scene_states, queries) in enumerate(zip(output.answer_states, batch.queries, strict=True)):
        states, targets = [], []
        for state, query in zip(scene_states, queries, strict=True):
            if query.answer:
                ids, place = model.backbone.query_ids(query.text, query.answer)
                states.append(state[place : len(ids) - 1])
                targets.append(ids[place + 1 :].to(state.device))
        loss = output.scores[b].logits.sum() * 0
        if states:
            words = next_token_cross_entropy(model.backbone.logits(torch.cat(states)), torch.cat(targets))
            loss = loss + words.total / words.count
        scenes.append(loss)
    return term(torch.stack(scenes))
