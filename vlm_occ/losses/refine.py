"""What a look at boxes should have said: the matched objects' places, sizes, headings and motion."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional

from vlm_occ.geometry import adjusted, from_box_axes, wrap_angle
from vlm_occ.types import TALK2OCC_CLASSES

HEADED = (
    *("car", "truck", "bus", "trailer", "construction vehicle", "emergency vehicle"),
    *("bicycle", "motorcycle"),
)
"""Classes whose front can be told from their rear; headings of the others weigh a fifth."""
UNSEEN = 0.3
"""Weight of objects that no sensor saw."""
ATTRIBUTES = 0.3
"""Weight of class and colour beside the box."""
MOVING_SPEED = 0.5
"""Metres a second above which an object moves."""


def refine_loss(
    raw: Tensor, start: Tensor, boxes: Tensor, velocities: Tensor, classes: Tensor, seen: Tensor
) -> Tensor:
    """Loss [N] of what a look said, `raw` [N, CHANNELS] of `encoders.refine`, about boxes `start` [N, 7].

    They stand for true `boxes` [N, 7] with `velocities` [N, 2], `classes` and `seen` [N]. Smooth L1 on the
    places of the six faces and of the ends of the axis, log sizes and velocity, squared error on the axis
    (which is the same after half a turn), cross-entropy on being the wrong way round and on motion. Faces and
    ends count in metres: objects are shells, and a shell's voxels are the right ones where the face is within
    half a voxel. Three degrees move the end of a bus by a third of a metre.
    """
    sizes = (boxes[:, 3:6] / start[:, 3:6]).log().clamp(-1.5, 1.5)
    turn = wrap_angle(boxes[:, 6] - start[:, 6])
    axis = torch.stack([(2 * turn).sin(), (2 * turn).cos()], dim=-1)
    wrong_way = (turn.abs() > math.pi / 2).float()
    known = ~velocities.isnan().any(1)
    velocity = from_box_axes(velocities.nan_to_num(), -start[:, 6]) / 2
    moves = (velocities.nan_to_num().norm(dim=1) > MOVING_SPEED).float()
    headed = torch.tensor([name in HEADED for name in TALK2OCC_CLASSES], device=raw.device)[classes]
    heading = torch.where(headed, 1.0, 0.2)
    loss = functional.smooth_l1_loss(raw[:, 3:6], sizes, beta=0.1, reduction="none").sum(1)
    faces, there = face_errors(raw, start, boxes), raw.new_zeros(len(raw), 6)
    loss = loss + functional.smooth_l1_loss(faces, there, beta=0.05, reduction="none").sum(1)
    swing = end_swings(raw, turn, boxes[:, 3])
    loss = loss + 2 * functional.smooth_l1_loss(swing, there[:, 0], beta=0.05, reduction="none")
    loss = loss + heading * (raw[:, 6:8] - axis).square().sum(1)
    loss = loss + heading * functional.binary_cross_entropy_with_logits(
        raw[:, 8], wrong_way, reduction="none"
    )
    drift = functional.smooth_l1_loss(raw[:, 9:11], velocity, beta=0.3, reduction="none").sum(1)
    motion = functional.binary_cross_entropy_with_logits(raw[:, 11], moves, reduction="none")
    loss = loss + known * (0.5 * drift + motion)
    return loss * torch.where(seen, 1.0, UNSEEN)


def face_errors(raw: Tensor, start: Tensor, boxes: Tensor) -> Tensor:
    """Metres by which the faces that `raw` [N, C] makes of boxes `start` [N, 7] lie outside those of true
    `boxes` [N, 7], in the true boxes' axes: [N, 6].
    """
    centres, sizes = adjusted(start, raw)
    offset, growth = centres - boxes[:, :3], (sizes - boxes[:, 3:6]) / 2
    shift = torch.cat([from_box_axes(offset[:, :2], -boxes[:, 6]), offset[:, 2:]], dim=1)
    return torch.cat([growth + shift, growth - shift], dim=1)


def end_swings(raw: Tensor, turn: Tensor, lengths: Tensor) -> Tensor:
    """Metres [N] by which the axis that `raw` [N, C] makes lies beside the true one at a box's ends.

    `turn` [N] is from the box that was looked at to the true one of `lengths` [N].
    """
    sine, cosine = raw[:, 6], raw[:, 7]
    beside = sine * (2 * turn).cos() - cosine * (2 * turn).sin()
    size = (sine.square() + cosine.square()).clamp(min=0.25).sqrt()  # an axis not yet said has no steep slope
    return lengths / 4 * beside / size


def attribute_loss(
    label_logits: Tensor, colour_logits: Tensor, classes: Tensor, colours: Tensor, seen: Tensor
) -> Tensor:
    """Loss [N] of what a look says that its N objects are: cross-entropies of `classes` [N] and, where it
    has one (0 or more), `colours` [N].
    """
    label = functional.cross_entropy(label_logits, classes, reduction="none")
    colour = functional.cross_entropy(colour_logits, colours, reduction="none", ignore_index=-1)
    return ATTRIBUTES * (label + colour) * torch.where(seen, 1.0, UNSEEN)
