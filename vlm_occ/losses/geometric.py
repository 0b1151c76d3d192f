"""Losses of the paper's systems (eq. 4 and 13): occupancy by class and mask, boxes, and their 2D truth."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor
from torch.nn import functional
from torch.nn.utils.rnn import pad_sequence

from vlm_occ.geometry import box_corners, invert_rigid
from vlm_occ.losses.depth import nearest_depth
from vlm_occ.losses.grounding2d import IMAGE_GROUNDING_WEIGHTS
from vlm_occ.losses.occupancy import (
    Term,
    affinities_of_sentences,
    lovasz_of_sentences,
    sigmoid_focal,
    term,
)
from vlm_occ.raycast import cell_rig, render_depth
from vlm_occ.types import FREE, VoxelGrid
from vlm_occ.voxels import ravel, voxels_in_boxes

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
    inside = referred_voxels(boxes, [range(len(boxes))], grid, device=semantics.device)[0]
    return occupied.long() + (inside.view(grid.shape) & occupied)


def referred_voxels(
    boxes: Tensor, targets: Sequence[Sequence[int]], grid: VoxelGrid, *, device: torch.device
) -> Tensor:
    """Voxels of the boxes (rows of `boxes` [M, 7]) that each of N sentences means: bool [N, X * Y * Z].

    Each box is cut into voxels once, all together.
    """
    used = sorted({row for rows in targets for row in rows})
    owner, index = voxels_in_boxes(boxes[used], grid)
    counts = owner.bincount(minlength=len(used)).tolist()
    inside = dict(zip(used, ravel(index, grid.shape).split(counts), strict=True)) if used else {}
    size = math.prod(grid.shape)
    parts = [inside[row] + n * size for n, rows in enumerate(targets) for row in rows]
    found = torch.zeros(len(targets) * size, dtype=torch.bool, device=device)
    if parts:
        found[torch.cat(parts).to(device)] = True
    return found.view(len(targets), size)


def class_losses(
    logits: Tensor, labels: Tensor, *, free: int, geo_affinity: bool, sem_affinity: bool
) -> dict[str, Tensor]:
    """Cross-entropy, Lovasz-softmax and the affinities of MonoScene, [N] each, for one scene's voxels.

    `logits` [N, M, C] of N sentences, `labels` long [N, M]. A voxel counts whether a sensor saw it or not;
    Lovasz leaves free voxels out, as PanoOcc does (FACTS 2.5). Sentences run together: no loop over them.
    """
    if not labels.shape[1]:
        names = ("ce", "lovasz", *["geo"] * geo_affinity, *["sem"] * sem_affinity)
        return dict.fromkeys(names, logits.sum((1, 2)) * 0)
    each = functional.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="none")
    losses = {"ce": each.view_as(labels).mean(1)}
    probabilities = logits.softmax(-1)
    busy = labels != free
    some = busy.any(0).nonzero()[:, 0]
    losses["lovasz"] = lovasz_of_sentences(probabilities[:, some], labels[:, some], busy[:, some])
    if geo_affinity:
        taken = 1 - probabilities[..., free : free + 1]
        losses["geo"] = affinities_of_sentences(taken, busy[..., None].to(taken.dtype))[:, 0]
    if sem_affinity:
        target = functional.one_hot(labels, logits.shape[2]).to(probabilities.dtype)  # [N, M, C]
        present = (target.sum(1) > 0).to(probabilities.dtype)  # [N, C]
        values = affinities_of_sentences(probabilities, target)
        losses["sem"] = (values * present).sum(1) / present.sum(1).clamp(min=1)
    return losses


def mask_focal(logits: Tensor, occupied: Tensor) -> Tensor:
    """Focal loss [...] of binary occupancy masks [..., M], summed over voxels, per voxel `occupied` [M]."""
    loss = sigmoid_focal(logits.float(), occupied.float().expand_as(logits))
    return loss.sum(-1) / occupied.sum().clamp(min=1)


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
def match_queries(
    boxes: Tensor, logits: Tensor, targets: Tensor, classes: Tensor, counts: Sequence[int]
) -> Tensor:
    """The cheapest assignments (DETR; classes and boxes as the loss): long [4, K], each a column of layer,
    sentence, query and target.

    `boxes` [L, N, G, 7], `logits` [L, N, G, C] of L layers and N sentences; `targets` [N, M, 7] and `classes`
    long [N, M], of which the first `counts` of each sentence are meant.
    """
    wanted = classes[None, :, None].expand(*logits.shape[:3], -1)  # [L, N, G, M]
    positive = sigmoid_focal(logits, torch.ones_like(logits)).gather(3, wanted)
    negative = sigmoid_focal(logits, torch.zeros_like(logits)).gather(3, wanted)
    distance = box_difference(boxes[:, :, :, None], targets[None, :, None])  # [L, N, G, M]
    cost = PAPER_WEIGHTS["label"] * (positive - negative) + PAPER_WEIGHTS["box"] * distance
    table, found = cost.cpu().numpy(), []
    for layer, sentence in itertools.product(range(len(table)), range(len(counts))):
        if counts[sentence]:
            rows, columns = linear_sum_assignment(table[layer, sentence, :, : counts[sentence]])
            found += [(layer, sentence, r, c) for r, c in zip(rows.tolist(), columns.tolist(), strict=True)]
    return torch.tensor(found, dtype=torch.long, device=boxes.device).reshape(-1, 4).T


def box_terms(
    layers: Sequence[tuple[Tensor, Tensor]], targets: Sequence[Tensor], classes: Sequence[Tensor]
) -> dict[str, Term]:
    """Focal loss of the classes and L1 of the boxes, summed over decoder layers; a sentence is one item.

    `layers`: boxes [N, G, 7] and class logits [N, G, C] of each; for each of N sentences the referred boxes
    [M, 7] and their classes [M].
    """
    boxes, logits = (torch.stack(part) for part in zip(*layers, strict=True))  # [L, N, G, 7], [L, N, G, C]
    counts = [len(truth) for truth in targets]
    truth = pad_sequence(list(targets), batch_first=True, padding_value=1.0)  # [N, M, 7]
    kinds = pad_sequence(list(classes), batch_first=True)
    layer, sentence, row, column = match_queries(boxes, logits, truth, kinds, counts)
    wanted = torch.zeros_like(logits)
    wanted[layer, sentence, row, kinds[sentence, column]] = 1
    found = torch.tensor([max(min(count, boxes.shape[2]), 1) for count in counts], device=boxes.device)
    label = sigmoid_focal(logits, wanted).sum((2, 3)).sum(0) / found  # [N]
    apart = box_difference(boxes[layer, sentence, row], truth[sentence, column])  # [K]
    box = apart.new_zeros(len(counts)).index_add(0, sentence, apart) / found
    return {"label": term(label), "box": term(box)}


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
