"""Losses of the paper's systems (eq. 4 and 13): occupancy by class and mask, boxes, and their 2D truth."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor
from torch.nn import functional

from vlm_occ.geometry import box_corners, invert_rigid
from vlm_occ.losses.depth import nearest_depth
from vlm_occ.losses.grounding2d import IMAGE_GROUNDING_WEIGHTS
from vlm_occ.losses.occupancy import (
    Term,
    geometric_affinity,
    lovasz_softmax,
    semantic_affinity,
    sigmoid_focal,
    term,
)
from vlm_occ.raycast import cell_rig, render_depth
from vlm_occ.types import FREE, VoxelGrid
from vlm_occ.voxels import voxels_in_box

PAPER_WEIGHTS = {
    **IMAGE_GROUNDING_WEIGHTS,  # lambda 1 to 4
    "label": 2.0,  # lambda 5
    "box": 0.25,  # lambda 6
    "depth": 1.0,
    **{f"{kind}_ce": 10.0 for kind in ("semantic", "geometric")},  # lambda 7
    "mask": 2.0,  # lambda 8
    **{f"{kind}_{name}": 1.0 for kind in ("semantic", "geometric") for name in ("lovasz", "geo", "sem")},
}
"""lambda of section IV-D; `weighted_sum` takes them."""


def grounding_labels(semantics: Tensor, boxes: Tensor, grid: VoxelGrid) -> Tensor:
    """The geometric grounding label {0 free, 1 occupied, 2 referred}, long [X, Y, Z] (section IV-A, eq. 1).

    `semantics` uint8 [X, Y, Z], `boxes` [M, 7] of the referred objects (none, one or several).
    """
    occupied = semantics != FREE
    labels = occupied.long()
    for box in boxes:
        labels[voxels_in_box(box, grid) & occupied] = 2
    return labels


def class_losses(
    logits: Tensor, labels: Tensor, *, free: int, geo_affinity: bool, sem_affinity: bool
) -> dict[str, Tensor]:
    """Cross-entropy, Lovasz-softmax and the affinities of MonoScene for one scene's voxels.

    `logits` [M, C], `labels` long [M]. A voxel counts whether a sensor saw it or not; Lovasz leaves free
    voxels out, as PanoOcc does (FACTS 2.5).
    """
    if not len(labels):
        names = ("ce", "lovasz", *["geo"] * geo_affinity, *["sem"] * sem_affinity)
        return dict.fromkeys(names, logits.sum() * 0)
    losses = {"ce": functional.cross_entropy(logits, labels)}
    probabilities = logits.softmax(-1)
    busy = (labels != free).nonzero()[:, 0]
    lovasz = lovasz_softmax(probabilities[busy], labels[busy])
    losses["lovasz"] = lovasz.total / lovasz.count.clamp(min=1)
    if geo_affinity:
        losses["geo"] = geometric_affinity(probabilities, labels, free=free)
    if sem_affinity:
        sem = semantic_affinity(probabilities, labels)
        losses["sem"] = sem.total / sem.count.clamp(min=1)
    return losses


def mask_focal(logits: Tensor, occupied: Tensor) -> Tensor:
    """Focal loss of the binary occupancy mask [M], summed over voxels, per occupied voxel."""
    loss = sigmoid_focal(logits.float(), occupied.float())
    return loss.sum() / occupied.sum().clamp(min=1)


def box_difference(predicted: Tensor, target: Tensor) -> Tensor:
    """L1 [...] of boxes [..., 7]: centre in metres, log sizes, sine and cosine of the yaw."""
    parts = [
        predicted[..., :3] - target[..., :3],
        predicted[..., 3:6].clamp(min=0.05).log() - target[..., 3:6].clamp(min=0.05).log(),
        torch.sin(predicted[..., 6:]) - torch.sin(target[..., 6:]),
        torch.cos(predicted[..., 6:]) - torch.cos(target[..., 6:]),
    ]
    return torch.cat(parts, dim=-1).abs().sum(-1)


@torch.no_grad()
def match_queries(boxes: Tensor, logits: Tensor, targets: Tensor, classes: Tensor) -> tuple[Tensor, Tensor]:
    """Queries and targets (both long [K]) of the cheapest assignment (DETR): classes and boxes as the loss.

    `boxes` [G, 7], `logits` [G, C], `targets` [M, 7], `classes` long [M].
    """
    positive = sigmoid_focal(logits, torch.ones_like(logits))[:, classes]  # [G, M]
    negative = sigmoid_focal(logits, torch.zeros_like(logits))[:, classes]
    distance = box_difference(boxes[:, None], targets[None])  # [G, M]
    cost = PAPER_WEIGHTS["label"] * (positive - negative) + PAPER_WEIGHTS["box"] * distance
    rows, columns = linear_sum_assignment(cost.cpu().numpy())
    return torch.as_tensor(rows, device=boxes.device), torch.as_tensor(columns, device=boxes.device)


def box_terms(
    layers: Sequence[tuple[Tensor, Tensor]], targets: Sequence[Tensor], classes: Sequence[Tensor]
) -> dict[str, Term]:
    """Focal loss of the classes and L1 of the boxes, summed over decoder layers; a sentence is one item.

    `layers`: boxes [N, G, 7] and class logits [N, G, C] of each; for each of N sentences the referred boxes
    [M, 7] and their classes [M].
    """
    label, box = [], []
    for n, (truth, kinds) in enumerate(zip(targets, classes, strict=True)):
        labels, boxes = layers[0][1].new_zeros(()), layers[0][1].new_zeros(())
        for predicted, logits in layers:
            rows, columns = match_queries(predicted[n], logits[n], truth, kinds)
            wanted = torch.zeros_like(logits[n])
            wanted[rows, kinds[columns]] = 1
            count = max(len(rows), 1)
            labels = labels + sigmoid_focal(logits[n], wanted).sum() / count
            boxes = boxes + box_difference(predicted[n, rows], truth[columns]).sum() / count
        label.append(labels)
        box.append(boxes)
    return {"label": term(torch.stack(label)), "box": term(torch.stack(box))}


_EDGES = (
    *((0, 1), (1, 2), (2, 3), (3, 0)),
    *((4, 5), (5, 6), (6, 7), (7, 4)),
    *((0, 4), (1, 5), (2, 6), (3, 7)),
)
_NEAR = 0.3


def image_boxes(
    boxes: Tensor,
    intrinsics: Tensor,
    ego_from_camera: Tensor,
    image_size: tuple[int, int],
    *,
    smallest: float = 4.0,
) -> tuple[Tensor, Tensor]:
    """What images show of boxes: left, top, right, bottom [V, M, 4] in [0, 1], and whether at all [V, M].

    `boxes` [M, 7] (ego), V images of `image_size` (H, W). Edges are cut at a plane 0.3 m in front of the
    camera, the hull is cut to the image; hulls below `smallest` pixels count as not shown. Occlusion does not
    count: the paper's truth are projected boxes.
    """
    camera_from_ego = invert_rigid(ego_from_camera)  # [V, 4, 4]
    corners = box_corners(boxes)  # [M, 8, 3]
    local = torch.einsum("vij,mkj->vmki", camera_from_ego[:, :3, :3], corners)
    local = local + camera_from_ego[:, None, None, :3, 3]  # [V, M, 8, 3]
    edges = torch.tensor(_EDGES, device=boxes.device)
    a, b = local[:, :, edges[:, 0]], local[:, :, edges[:, 1]]  # [V, M, 12, 3]
    step = b[..., 2] - a[..., 2]
    share = (_NEAR - a[..., 2]) / torch.where(step.abs() < 1e-9, 1e-9, step)
    cut = a + share.clamp(0, 1)[..., None] * (b - a)  # where an edge crosses the near plane
    crosses = (a[..., 2] - _NEAR) * (b[..., 2] - _NEAR) < 0
    points = torch.cat([local, cut], dim=2)  # [V, M, 20, 3]
    valid = torch.cat([local[..., 2] >= _NEAR, crosses], dim=2)
    pixels = torch.einsum("vij,vmkj->vmki", intrinsics, points)
    pixels = pixels[..., :2] / pixels[..., 2:].clamp(min=_NEAR / 2)
    limit = pixels.new_tensor([image_size[1], image_size[0]])
    low = torch.where(valid[..., None], pixels, torch.inf).amin(2)  # [V, M, 2]
    high = torch.where(valid[..., None], pixels, -torch.inf).amax(2)
    low, high = low.clamp(min=0), torch.minimum(high, limit)
    shown = ((high - low) >= smallest).all(-1)
    return torch.cat([low / limit, high / limit], dim=-1).nan_to_num(0, 0, 0), shown


@torch.no_grad()
def cell_depth(
    occupancy: Tensor,
    grid: VoxelGrid,
    intrinsics: Tensor,
    ego_from_camera: Tensor,
    image_size: tuple[int, int],
    cells: tuple[int, int],
    *,
    rays: int = 1,
) -> Tensor:
    """Depth [V, h, w] of the nearest occupied voxel in each of `cells` (h, w), 0 without one (eq. 9 to 11).

    `occupancy` bool [X, Y, Z]; images of `image_size` (H, W) with `intrinsics` [V, 3, 3]; `rays` a cell and
    direction, spread evenly.
    """
    rig = cell_rig(intrinsics, ego_from_camera, image_size, cells, rays=rays)
    return nearest_depth(render_depth(occupancy, grid, rig), cells)
