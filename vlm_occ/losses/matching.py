"""Which candidate stands for which object."""

from __future__ import annotations

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from vlm_occ.geometry import to_box_frame


def match_boxes(candidates: Tensor, boxes: Tensor) -> Tensor:
    """For each box [M, 7] the row of its candidate [N, 7], -1 where none is near: long [M].

    The assignment minimises the summed distance of the centres in the bird's-eye view; a candidate is near
    if it is
    within 0.8 m or 0.3 footprint diagonals of the centre.
    """
    match = torch.full((len(boxes),), -1, dtype=torch.long, device=boxes.device)
    if not len(boxes) or not len(candidates):
        return match
    distance = torch.cdist(boxes[:, :2].float(), candidates[:, :2].detach().float())  # [M, N]
    reach = (0.3 * boxes[:, 3:5].norm(dim=-1)).clamp(min=0.8)[:, None]
    cost = torch.where(distance <= reach, distance, torch.full_like(distance, 1e3))
    rows, columns = (torch.as_tensor(part) for part in linear_sum_assignment(cost.cpu().numpy()))
    near = (distance <= reach).cpu()[rows, columns]  # one look at the device's numbers, not one a box
    match[rows[near].to(match.device)] = columns[near].to(match.device)
    return match


def inside_footprint(candidates: Tensor, boxes: Tensor, *, margin: float = 0.4) -> Tensor:
    """Whether candidates [N, 7] have their centre over the footprint of boxes [M, 7]: bool [M, N]."""
    local = to_box_frame(candidates[:, :3].detach(), boxes)[..., :2].abs()  # [M, N, 2]
    return (local <= boxes[:, None, 3:5] / 2 + margin).all(-1)
