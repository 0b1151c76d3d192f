"""The heads of Loc3R-VLM together: the layout of vision tokens, situations from words and states."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import cast

import torch
from torch import Tensor, nn

from vlm_occ.config import SpatialConfig
from vlm_occ.encoders.sight import SIGHT_CHANNELS, Sight, sight_features
from vlm_occ.heads.anchored import ReadSituation, SituationReader, anchored_pose
from vlm_occ.heads.layout import BirdsEyeEstimate, LayoutHead, split_estimate
from vlm_occ.heads.situation import OrientationHead, PositionHead

SIGHT_DOUBT = 2.0
"""Metres that a surface may be from where the trunk's occupancy shows it, before anything is learnt of it."""


class SpatialHeads(nn.Module):
    """The heads of Loc3R-VLM 3.2 and 3.3 on final states of the language model, and the reader of situations.

    The layer norms are ours: a few channels of a small model's final states are a hundred times the others.
    Position and orientation heads start without effect: what the words say of the tokens comes first. So does
    the layout head where vision tokens have a sight: what is seen comes first.
    """

    def __init__(self, width: int, word_width: int, config: SpatialConfig) -> None:
        super().__init__()
        self.vision_norm, self.turn_norm = nn.LayerNorm(width), nn.LayerNorm(width)
        self.layout = LayoutHead(width, scale=config.scale) if config.layout else None
        self.position = PositionHead(width, scale=config.scale, hidden=config.hidden)
        self.orientation = OrientationHead(width, bins=config.bins, hidden=config.hidden)
        self.reader = SituationReader(word_width)
        self.scale, self.bins = config.scale, config.bins
        silent = [cast(nn.Linear, head.layers[-1]) for head in (self.position, self.orientation)]
        self.sighted = nn.Linear(SIGHT_CHANNELS, 4) if config.layout and config.sight else None
        if self.layout is not None and self.sighted is not None:
            silent += [self.layout.linear, self.sighted]
        for last in silent:
            nn.init.zeros_(last.weight)
            nn.init.zeros_(last.bias)
        if self.sighted is not None:
            nn.init.constant_(self.sighted.bias[2:], 2 * math.log(SIGHT_DOUBT / config.scale))

    def see(self, states: Tensor, sight: Sight | None = None) -> BirdsEyeEstimate | None:
        """Bird's-eye positions of N vision tokens in the first view's frame.

        From their states [N, D] and, where it is known, from where their rays meet the trunk's occupancy:
        then the states tell how far the surface is from there, and how sure that is. None without a layout
        head, and where a head that starts from a sight has none: in a plain video.
        """
        if self.layout is None or (self.sighted is not None and sight is None):
            return None
        raw = self.layout.linear(self.vision_norm(states.float()))
        if self.sighted is None or sight is None:
            return split_estimate(raw, scale=self.scale)
        estimate = split_estimate(raw + self.sighted(sight_features(sight)), scale=self.scale)
        met = (sight.share > 0)[:, None]
        return replace(estimate, mean=estimate.mean + torch.where(met, sight.point[:, :2], 0.0))

    def place(
        self, read: ReadSituation, objects: Tensor, boxes: Tensor, car: Tensor, where: Tensor, facing: Tensor
    ) -> tuple[BirdsEyeEstimate, Tensor]:
        """Positions [Q, 2] and orientation logits [Q, B]: what the words say, and what the states add.

        See `anchored_pose`; states [Q, D] of `<|pos|>` and `<|ori|>`. Without a token the states are all.
        """
        added = self.position(self.turn_norm(where.float()))
        turned = self.orientation(self.turn_norm(facing.float()))
        if not len(boxes):
            return added, turned
        estimate, logits = anchored_pose(read, objects, boxes, car, bins=self.bins)
        doubt = added.log_variance - 2 * math.log(self.scale)
        return BirdsEyeEstimate(estimate.mean + added.mean, estimate.log_variance + doubt), logits + turned
