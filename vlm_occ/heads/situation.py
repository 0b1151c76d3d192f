"""From the states of `<|pos|>` and `<|ori|>` to where an agent stands and looks (Loc3R-VLM 3.3)."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from vlm_occ.heads.layout import BirdsEyeEstimate, split_estimate, to_reference_frame
from vlm_occ.situated import Situation

ORIENTATION_BINS = 36


def orientation_bins(number: int = ORIENTATION_BINS, *, device: torch.device | str = "cpu") -> Tensor:
    """Centres [B] of equal bins over [-pi, pi), in radians."""
    return -math.pi + (torch.arange(number, device=device, dtype=torch.float32) + 0.5) * (
        2 * math.pi / number
    )


class PositionHead(nn.Module):
    """Two layers from the state of `<|pos|>` to a bird's-eye position with its uncertainty."""

    def __init__(self, width: int, *, hidden: int | None = None, scale: float = 1.0) -> None:
        super().__init__()
        hidden = hidden or width
        self.layers = nn.Sequential(nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, 4))
        self.scale = scale  # metres; see LayoutHead

    def forward(self, state: Tensor) -> BirdsEyeEstimate:
        """States [..., D] to positions [..., 2]."""
        return split_estimate(self.layers(state), scale=self.scale)


class OrientationHead(nn.Module):
    """Two layers from the state of `<|ori|>` to logits over orientation bins."""

    def __init__(self, width: int, *, hidden: int | None = None, bins: int = ORIENTATION_BINS) -> None:
        super().__init__()
        hidden = hidden or width
        self.layers = nn.Sequential(nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, bins))

    def forward(self, state: Tensor) -> Tensor:
        """States [..., D] to logits [..., B] over `orientation_bins(B)`."""
        return self.layers(state).float()


def circular_mean(probabilities: Tensor) -> Tensor:
    """Angles [...] in [-pi, pi] of probabilities [..., B] over orientation bins: the circular soft-argmax."""
    centres = orientation_bins(probabilities.shape[-1], device=probabilities.device).to(probabilities)
    sin, cos = (probabilities * centres.sin()).sum(-1), (probabilities * centres.cos()).sum(-1)
    return torch.atan2(sin, cos)


def decode_situation(position: BirdsEyeEstimate, orientation_logits: Tensor) -> Situation:
    """The situation of one position estimate [2] and its orientation logits [B], in the heads' frame."""
    if position.mean.shape != (2,) or orientation_logits.ndim != 1:
        raise ValueError(
            f"position {list(position.mean.shape)} and logits {list(orientation_logits.shape)}, "
            "expected [2] and [B]; decode one situation at a time"
        )
    probabilities = orientation_logits.float().softmax(-1)
    return Situation(
        position=position.mean,
        position_std=position.std,
        yaw=circular_mean(probabilities).item(),
        yaw_probabilities=probabilities,
    )


def situation_to_reference(situation: Situation, reference_from_first: Tensor) -> Situation:
    """A situation of the first view's frame in the reference ego frame, by its transform [4, 4].

    Probabilities that fall between two bins are shared between them in proportion.
    """
    estimate = BirdsEyeEstimate(mean=situation.position, log_variance=2 * situation.position_std.log())
    moved = to_reference_frame(estimate, reference_from_first)
    turn = math.atan2(reference_from_first[1, 0].item(), reference_from_first[0, 0].item())
    bins = len(situation.yaw_probabilities)
    shift = turn * bins / (2 * math.pi)
    whole = math.floor(shift)
    near = situation.yaw_probabilities.roll(whole)
    probabilities = torch.lerp(near, near.roll(1), shift - whole)
    yaw = math.remainder(situation.yaw + turn, 2 * math.pi)
    return Situation(position=moved.mean, position_std=moved.std, yaw=yaw, yaw_probabilities=probabilities)
