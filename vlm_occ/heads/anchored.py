"""A pose from words that name objects: `3 metres behind the bus, facing the van` (after Loc3R-VLM 3.3).

A situation is read as a frame (the ego vehicle's, an object's, that of the line between two objects), an
offset in it, and a direction with quarter turns. The objects are found by the same factors that ground any
sentence, from the words that name them. Everything is relative to boxes, so a shifted or turned scene gives
shifted and turned answers. The paper's heads, which read the states of `<|pos|>` and `<|ori|>` alone, are
added to it (`vlm_occ.models.spatial`).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from vlm_occ.heads.layout import BirdsEyeEstimate
from vlm_occ.heads.situation import ORIENTATION_BINS, orientation_bins
from vlm_occ.heads.words import WordPool
from vlm_occ.situated import FACINGS, MENTIONS, PLACE_FRAMES, Facing

STEP, REACH = 0.5, 20.0
"""Metres between the amounts that an offset may have along an axis, and the largest one."""
QUARTERS = 4
SEEDS = ("frame", "x", "y", "share", "facing", "turn", "spread")
"""What is read from the words, each by its own attention."""


@dataclass(frozen=True)
class ReadSituation:
    """What the words of Q situations say, as logits where it is a choice."""

    roles: Tensor  # [Q, l, 1 + len(MENTIONS)]: which mention each word belongs to, 0: none
    frame: Tensor  # [Q, len(PLACE_FRAMES)]
    metres: Tensor  # [Q, 2, A] over `amounts()`: x and y
    share: Tensor  # [Q, 2] of the frame's half size
    facing: Tensor  # [Q, len(FACINGS)]
    turn: Tensor  # [Q, QUARTERS]
    spread: Tensor  # [Q, 2, 2]: log variances in square metres, and in squares of the frame's half size
    sharpness: Tensor  # [Q] of the heading: a von Mises distribution's concentration
    certainty: Tensor  # []: by what log-likelihoods of objects are multiplied to tell how far others are

    def offset(self) -> Tensor:
        """Expected offset [Q, 2] in metres."""
        return self.metres.softmax(-1) @ amounts(device=self.metres.device)


def amounts(*, device: torch.device | str = "cpu") -> Tensor:
    """The amounts [A] in metres of which an offset is an expectation."""
    return torch.arange(-REACH, REACH + STEP / 2, STEP, device=device)


class SituationReader(nn.Module):
    """Words of situations to what they say."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.roles = nn.Linear(width, 1 + len(MENTIONS))
        self.pool = WordPool(width, len(SEEDS))
        self.frame = nn.Linear(width, len(PLACE_FRAMES))
        self.metres = nn.Linear(width, len(amounts()))
        self.share = nn.Linear(width, 2)
        self.facing = nn.Linear(width, len(FACINGS))
        self.turn = nn.Linear(width, QUARTERS)
        self.spread = nn.Linear(width, 5)
        self.doubt = nn.Parameter(torch.zeros(()))

    def forward(self, words: Tensor, valid: Tensor) -> ReadSituation:
        """`words` [Q, l, W], `valid` bool [Q, l]."""
        words = words.float()
        read = dict(zip(SEEDS, self.pool(words, valid).unbind(1), strict=True))
        spread = self.spread(read["spread"])
        return ReadSituation(
            roles=self.roles(words),
            frame=self.frame(read["frame"]),
            metres=self.metres(torch.stack([read["x"], read["y"]], dim=1)),
            share=self.share(read["share"]).tanh() * 1.2,
            facing=self.facing(read["facing"]),
            turn=self.turn(read["turn"]),
            spread=8 * (spread[:, :4] / 8).tanh().unflatten(-1, (2, 2)),
            sharpness=0.5 + 40 * spread[:, 4].sigmoid(),
            certainty=self.doubt.neg().exp(),
        )


def mention_spans(roles: Tensor) -> list[tuple[int, int] | None]:
    """First and last word + 1 of each mention in the words of one situation, by role logits [l, 1 + M].

    The run of words whose summed advantage over all other roles is largest; None where no word has one.
    """
    spans: list[tuple[int, int] | None] = []
    for column in range(1, roles.shape[-1]):
        rest = roles.detach().clone()
        rest[:, column] = -torch.inf
        gains = (roles.detach()[:, column] - rest.logsumexp(-1)).clamp(-6, 6).tolist()
        best, total, start, span = 0.0, 0.0, 0, None
        for place, gain in enumerate(gains):
            if total <= 0:
                total, start = 0.0, place
            total += gain
            if total > best:
                best, span = total, (start, place + 1)
        spans.append(span)
    return spans


def anchored_pose(
    read: ReadSituation, objects: Tensor, boxes: Tensor, car: Tensor, *, bins: int = ORIENTATION_BINS
) -> tuple[BirdsEyeEstimate, Tensor]:
    """Positions [Q, 2] and orientation logits [Q, bins] of situations, in the frame of the boxes.

    `objects` [Q, len(MENTIONS), N] log-likelihoods of being what each role names, `boxes` [N, 7], `car` [3]
    the ego vehicle's x, y and yaw. The position is that of the likeliest frame and objects; its variance adds
    up what the words leave open and how far the other frames and objects are from it. N must not be 0.
    """
    place, far = objects[:, 0].detach(), objects[:, 1].argmax(1)
    places, variance = _positions(read, far, boxes, car)  # [Q, P, 2] each
    rows, number = torch.arange(len(places), device=places.device), len(boxes)
    start = place.scatter(1, far[:, None], -1e4)  # of a line, which has two ends
    frame, frames = read.frame.argmax(1), read.frame.softmax(-1)
    best = torch.where(frame == 0, 0, 1 + torch.where(frame == 1, place.argmax(1), number + start.argmax(1)))
    position = places[rows, best]
    chance, chances = ((read.certainty * score).softmax(-1) for score in (place, start))
    weight = torch.cat([frames[:, :1], frames[:, 1:2] * chance, frames[:, 2:] * chances], dim=1)
    apart = (weight[..., None] * (places - position[:, None]).square()).sum(1)
    estimate = BirdsEyeEstimate(position, (variance[rows, best] + apart + 1e-3).log())
    return estimate, _headings(read, objects, boxes, car, position, bins)


def _positions(read: ReadSituation, far: Tensor, boxes: Tensor, car: Tensor) -> tuple[Tensor, Tensor]:
    """Position and variance [Q, 1 + 2 N, 2] in the car's frame, in each object's, and on the line from each
    to the object `far` [Q].
    """
    count, number = len(read.frame), len(boxes)
    centre = boxes[:, :2]
    line = centre[far][:, None] - centre[None]  # [Q, N, 2]
    origin = torch.cat([car[None, :2], centre, centre])[None]  # [1, P, 2]
    along = torch.atan2(line[..., 1], line[..., 0] + 1e-6)
    yaw = torch.cat([car[2].expand(count, 1), boxes[:, 6].expand(count, number), along], dim=1)
    lengths = functional.pad(line.norm(dim=-1, keepdim=True) / 2, (0, 1))  # [Q, N, 2]
    sizes = (boxes[:, 3:5] / 2).expand(count, number, 2)
    half = torch.cat([line.new_zeros(count, 1, 2), sizes, lengths], dim=1)
    offset = read.offset()[:, None] + read.share[:, None] * half  # [Q, P, 2]
    cos, sin = yaw.cos(), yaw.sin()
    x, y = cos * offset[..., 0] - sin * offset[..., 1], sin * offset[..., 0] + cos * offset[..., 1]
    own = read.spread[:, None, 0].exp() + read.spread[:, None, 1].exp() * half.square()
    squares = torch.stack([cos.square(), sin.square()], dim=-1)
    variance = torch.stack([(squares * own).sum(-1), (squares.flip(-1) * own).sum(-1)], dim=-1)
    return origin + torch.stack([x, y], dim=-1), variance


def _headings(
    read: ReadSituation, objects: Tensor, boxes: Tensor, car: Tensor, position: Tensor, bins: int
) -> Tensor:
    """Log-likelihoods [Q, bins] of headings seen from `position` [Q, 2]."""
    count, number = len(position), len(boxes)
    place, far, target = objects.log_softmax(-1).unbind(1)  # [Q, N]
    to_boxes = boxes[None, :, :2] - position[:, None]
    bearing = torch.atan2(to_boxes[..., 1], to_boxes[..., 0] + 1e-6)  # [Q, N]
    to_car = torch.atan2(car[1] - position[:, 1], car[0] - position[:, 0] + 1e-6)[:, None]
    certain, close = torch.zeros_like(to_car), to_boxes.norm(dim=-1).clamp(max=1.0)
    choices: dict[Facing, tuple[Tensor, Tensor, Tensor]] = {  # [Q, 1 or N]: angle, log-likelihood, sureness
        "car heading": (car[2].expand(count, 1), certain, certain + 1),
        "place heading": (boxes[:, 6].expand(count, number), place, torch.ones_like(bearing)),
        "to car": (to_car, certain, certain + 1),
        "to place": (bearing, place, close),  # what is underfoot lies in no direction
        "to far": (bearing, far, close),
        "to target": (bearing, target, close),
    }
    angles, weights, sure = zip(*(choices[facing] for facing in FACINGS), strict=True)
    facing = read.facing.log_softmax(-1)
    weight = torch.cat([facing[:, i, None] + part for i, part in enumerate(weights)], dim=1)  # [Q, P]
    turns = torch.arange(QUARTERS, device=position.device) * (math.pi / 2)
    angle = torch.cat(angles, dim=1)[:, :, None] + turns  # [Q, P, 4]
    joint = weight[..., None] + read.turn.log_softmax(-1)[:, None]
    centres = orientation_bins(bins, device=position.device)
    near = (angle[..., None] - centres).cos() - 1  # [Q, P, 4, bins]
    sharpness = read.sharpness[:, None] * torch.cat(sure, dim=1)
    each = joint[..., None] + sharpness[..., None, None] * near
    return each.flatten(1, 2).logsumexp(1)
