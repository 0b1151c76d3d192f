"""The 2D loss of GroundingOcc (eq. 13): where a sentence's object is in each picture.

The paper names the terms and their weights, not which cells learn the box: ours are, on every level, the
one whose middle is nearest to the object's centre.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from vlm_occ.losses.box import generalized_iou
from vlm_occ.losses.occupancy import Term, heatmap_focal

IMAGE_GROUNDING_WEIGHTS = {"image_box": 5.0, "image_centre": 10.0, "image_centerness": 1.0, "image_giou": 2.0}
"""lambda 1 to 4 of section IV-D."""


def centre_places(places: Tensor, sizes: Sequence[tuple[int, int]], centres: Tensor) -> Tensor:
    """Indices [B, S] of the places [N, 2] nearest to centres [B, 2], one on each of S levels of `sizes`."""
    chosen, start = [], 0
    for level in places.split([rows * columns for rows, columns in sizes]):
        chosen.append(torch.cdist(centres.float(), level.float()).argmin(dim=1) + start)
        start += len(level)
    return torch.stack(chosen, dim=1)


def centerness_targets(
    places: Tensor, sizes: Sequence[tuple[int, int]], boxes: Tensor, visible: Tensor
) -> Tensor:
    """Heat [B, N]: on each level a Gaussian around the box's centre, 1 at the nearest place; else 0.

    `boxes` [B, 4] left, top, right, bottom in [0, 1]. Standard deviations: a sixth of the box and half a
    cell.
    """
    boxes = torch.where(visible[:, None], boxes.float(), 0.0)
    centres, extent = (boxes[:, :2] + boxes[:, 2:]) / 2, boxes[:, 2:] - boxes[:, :2]
    cells = torch.cat(
        [places.new_tensor([1 / columns, 1 / rows]).expand(rows * columns, 2) for rows, columns in sizes]
    )
    sigma = extent[:, None] / 6 + cells / 2  # [B, N, 2]
    heat = torch.exp(-((places - centres[:, None]) / sigma).square().sum(-1) / 2)
    heat = heat.clamp(max=0.999).scatter(1, centre_places(places, sizes, centres), 1.0)
    return heat * visible[:, None]


def image_grounding_terms(
    predicted_boxes: Tensor,
    predicted_centres: Tensor,
    centerness_logits: Tensor,
    places: Tensor,
    sizes: Sequence[tuple[int, int]],
    boxes: Tensor,
    visible: Tensor,
) -> dict[str, Term]:
    """The four terms of L_2D, each a sum and a count; weigh them with IMAGE_GROUNDING_WEIGHTS.

    Predictions [B, N, 4], [B, N, 2], [B, N] at `places` [N, 2] of levels `sizes`; truth `boxes` [B, 4]
    (left, top, right, bottom in [0, 1]; any value where not `visible` bool [B]). Boxes count cells,
    centerness counts pictures.
    """
    boxes = torch.where(visible[:, None], boxes.float(), places.new_tensor([0.0, 0.0, 1.0, 1.0]))
    centres = (boxes[:, :2] + boxes[:, 2:]) / 2
    index = centre_places(places, sizes, centres)  # [B, S]
    rows = index[..., None]
    ours = predicted_boxes.gather(1, rows.expand(-1, -1, 4))  # [B, S, 4]
    our_centres = predicted_centres.gather(1, rows.expand(-1, -1, 2))
    truth = boxes[:, None].expand_as(ours)
    weight = visible[:, None].float().expand(index.shape)
    overlap = generalized_iou(ours.flatten(0, 1), truth.flatten(0, 1)).unflatten(0, index.shape)
    heat = centerness_targets(places, sizes, boxes, visible)
    values = {
        "image_box": (ours - truth).abs().sum(-1),
        "image_centre": (our_centres - centres[:, None]).abs().sum(-1),
        "image_giou": 1 - overlap,
    }
    terms = {name: Term((value * weight).sum(), weight.sum()) for name, value in values.items()}
    pictures = torch.tensor(float(len(boxes)), device=boxes.device)
    terms["image_centerness"] = Term(heatmap_focal(centerness_logits.float(), heat).sum(), pictures)
    return terms
