"""What a look at boxes should have said: the matched objects' places, sizes, headings and motion."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional

from vlm_occ.geometry import from_box_axes, wrap_angle
from vlm_occ.types import TALK2OCC_CLASSES

HEADED = (
    *("car", "truck", "bus", "trailer", "construction vehicle", "emergency vehicle"),
    *("bicycle", "motorcycle"),
)
"""Classes whose front can be told from their rear; headings of the others weigh a fifth."""
UNSEEN = 0.3
"""Weight of objects that no sensor saw."""
MOVING_SPEED = 0.5
"""Metres a second above which an object moves."""


def refine_loss(
    raw: Tensor, start: Tensor, boxes: Tensor, velocities: Tensor, classes: Tensor, seen: Tensor
) -> Tensor:
    """Loss [N] of what a look said, `raw` [N, CHANNELS] of `encoders.refine`, about boxes `start` [N, 7].

    They stand for true `boxes` [N, 7] with `velocities` [N, 2], `classes` and `seen` [N]. Smooth L1 on
    offset, log sizes and velocity, squared error on the axis (which is the same after half a turn),
    cross-entropy on being the wrong way round and on motion.
    """
    flat = from_box_axes(boxes[:, :2] - start[:, :2], -start[:, 6])
    offset = torch.cat([flat, boxes[:, 2:3] - start[:, 2:3]], dim=1)
    sizes = (boxes[:, 3:6] / start[:, 3:6]).log().clamp(-1.5, 1.5)
    turn = wrap_angle(boxes[:, 6] - start[:, 6])
    axis = torch.stack([(2 * turn).sin(), (2 * turn).cos()], dim=-1)
    wrong_way = (turn.abs() > math.pi / 2).float()
    known = ~velocities.isnan().any(1)
    velocity = from_box_axes(velocities.nan_to_num(), -start[:, 6]) / 2
    moves = (velocities.nan_to_num().norm(dim=1) > MOVING_SPEED).float()
    headed = torch.tensor([name in HEADED for name in TALK2OCC_CLASSES], device=raw.device)[classes]
    heading = torch.where(headed, 1.0, 0.2)
    loss = functional.smooth_l1_loss(raw[:, :3], offset, beta=0.2, reduction="none").sum(1)
    loss = loss + 2 * functional.smooth_l1_loss(raw[:, 3:6], sizes, beta=0.1, reduction="none").sum(1)
    loss = loss + heading * (raw[:, 6:8] - axis).square().sum(1)
    loss = loss + heading * functional.binary_cross_entropy_with_logits(
        raw[:, 8], wrong_way, reduction="none"
    )
    drift = functional.smooth_l1_loss(raw[:, 9:11], velocity, beta=0.3, reduction="none").sum(1)
    motion = functional.binary_cross_entropy_with_logits(raw[:, 11], moves, reduction="none")
    loss = loss + known * (0.5 * drift + motion)
    return loss * torch.where(seen, 1.0, UNSEEN)
