"""Depth of camera images as a distribution over bins (GroundingOcc, section IV-C, depth predictor).

The paper names neither the bins nor the layers; ours are linearly growing bins (CaDDN, Reading et al. 2021)
and two convolutions on the finest level of the pyramid.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class DepthBins:
    """How a range of depths (metres along the optical axis) is cut into bins."""

    nearest: float = 1.0
    farthest: float = 58.0  # the corner of the occupancy grid is 57 m away
    number: int = 80
    spacing: Literal["growing", "equal"] = "growing"  # growing: bin i is i + 1 times as deep as bin 0

    def __post_init__(self) -> None:
        """Check the range."""
        if not 0 <= self.nearest < self.farthest or self.number < 1:
            raise ValueError(
                f"{self.number} depth bins from {self.nearest} to {self.farthest} m; expected at least "
                "one bin and 0 <= nearest < farthest"
            )

    def edges(self, *, device: torch.device | str = "cpu") -> Tensor:
        """Borders [D + 1] of the bins in metres."""
        index = torch.arange(self.number + 1, device=device, dtype=torch.float32)
        if self.spacing == "equal":
            share = index / self.number
        else:
            share = index * (index + 1) / (self.number * (self.number + 1))
        return self.nearest + share * (self.farthest - self.nearest)

    def centres(self, *, device: torch.device | str = "cpu") -> Tensor:
        """Middles [D] of the bins in metres."""
        edges = self.edges(device=device)
        return (edges[1:] + edges[:-1]) / 2

    def index_of(self, depth: Tensor) -> tuple[Tensor, Tensor]:
        """Bins [...] (long, clamped) of depths [...], and whether each lies in the range; NaN does not."""
        valid = (depth >= self.nearest) & (depth < self.farthest)
        safe = torch.where(valid, depth, torch.full_like(depth, self.nearest))
        index = torch.bucketize(safe, self.edges(device=depth.device), right=True) - 1
        return index.clamp(0, self.number - 1), valid


class DepthPredictor(nn.Module):
    """Two convolutions from the finest feature map to logits over depth bins."""

    def __init__(self, channels: int, *, hidden: int = 128, bins: DepthBins | None = None) -> None:
        super().__init__()
        self.bins = bins or DepthBins()
        layers: list[nn.Module] = []
        for width_in in (channels, hidden):
            layers += [
                nn.Conv2d(width_in, hidden, 3, padding=1, bias=False),
                nn.GroupNorm(8, hidden),
                nn.GELU(),
            ]
        self.layers = nn.Sequential(*layers, nn.Conv2d(hidden, self.bins.number, 1))

    def forward(self, finest: Tensor) -> Tensor:
        """Features [F, C, h, w] (P3) to logits [F, D, h, w]."""
        return self.layers(finest).float()


def expected_depth(logits: Tensor, bins: DepthBins) -> Tensor:
    """Mean depth [F, h, w] in metres of logits [F, D, h, w]."""
    return torch.einsum("fdhw,d->fhw", logits.float().softmax(1), bins.centres(device=logits.device))
