"""What a small CUT3R is trained on beside its pose: a point for each patch, in the first view's axes.

Wang et al. 2025 predict dense point maps by heads that we do not have; one point a patch from its geometry
token teaches the same state at a fraction of the cost. The head is needed in training only.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from vlm_occ.encoders.cut3r import CameraTokens, Cut3r


class PatchPoints(nn.Module):
    """One linear layer from a geometry token to a point and the spread of its error, metres."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.linear = nn.Linear(width, 4)

    def forward(self, geometry: Tensor) -> tuple[Tensor, Tensor]:
        """Points [..., 3] (first camera's axes) and log spreads [...] of tokens [..., D].

        In units of 10 m. Lengths that grow exponentially, as those of CUT3R's poses do, blew up within three
        steps: a street is deeper than a room.
        """
        raw = self.linear(geometry).float()
        return 10 * raw[..., :3], math.log(10) + 4 * torch.tanh(raw[..., 3] / 4)


class Cut3rTrainer(nn.Module):
    """A CUT3R with its point head."""

    def __init__(self, model: Cut3r) -> None:
        super().__init__()
        self.model, self.points = model, PatchPoints(model.config.decoder_width)

    def forward(self, clip: Tensor) -> tuple[CameraTokens, Tensor, Tensor]:
        """Tokens of `clip` [B, T, 3, H, W] in [-1, 1], points [B, T, N, 3] and log spreads [B, T, N]."""
        tokens = self.model(clip)
        points, spread = self.points(tokens.geometry)
        return tokens, points, spread
