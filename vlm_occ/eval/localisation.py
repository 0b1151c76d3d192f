"""How often a described situation is found (SQA3D), and whether the predicted uncertainty is honest."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from vlm_occ.geometry import wrap_angle

MAX_PREDICTIONS = 3
"""SQA3D accepts the best of at most three predictions a situation."""


@dataclass(frozen=True)
class LocalisationScore:
    """Shares of situations found, each in [0, 1], over `number` situations."""

    number: int
    position_half_metre: float  # Acc@0.5m
    position_metre: float  # Acc@1.0m
    yaw_15_degrees: float  # Acc@15
    yaw_30_degrees: float  # Acc@30

    def as_dict(self) -> dict[str, float]:
        """The figures under the names of the results file."""
        return {
            "n": self.number,
            "acc_0.5m": self.position_half_metre,
            "acc_1m": self.position_metre,
            "acc_15deg": self.yaw_15_degrees,
            "acc_30deg": self.yaw_30_degrees,
        }


def localisation_errors(
    position: Tensor, yaw: Tensor, true_position: Tensor, true_yaw: Tensor
) -> tuple[Tensor, Tensor]:
    """Errors on the ground (metres) and of the yaw (degrees), [...] each.

    `position`, `true_position` [..., >=2] (only x and y count), `yaw`, `true_yaw` [...] radians.
    """
    distance = (position[..., :2].double() - true_position[..., :2].double()).norm(dim=-1)
    turn = torch.rad2deg(wrap_angle(yaw.double() - true_yaw.double()).abs())
    return distance, turn


def localisation_score(
    positions: Sequence[Tensor], yaws: Sequence[Tensor], true_positions: Tensor, true_yaws: Tensor
) -> LocalisationScore:
    """SQA3D's localisation accuracy, as the localisation metric of its repository computes it.

    For each of N situations up to three `positions` [P, >=2] and `yaws` [P]; truth [N, >=2] and [N]. The
    nearest position and the nearest yaw count, each for itself; a bound is met only strictly below it.
    """
    number = len(true_positions)
    if not number or not len(positions) == len(yaws) == len(true_yaws) == number:
        raise ValueError(
            f"{len(positions)} positions and {len(yaws)} yaws for {number} true positions and "
            f"{len(true_yaws)} true yaws; give one entry a situation, and at least one"
        )
    distances, turns = [], []
    for index in range(number):
        if not 1 <= len(positions[index]) == len(yaws[index]) <= MAX_PREDICTIONS:
            raise ValueError(
                f"situation {index} has {len(positions[index])} positions and {len(yaws[index])} yaws, "
                f"expected as many of each, 1 to {MAX_PREDICTIONS}; keep the best-scored ones"
            )
        distance, turn = localisation_errors(
            positions[index], yaws[index], true_positions[index], true_yaws[index]
        )
        distances.append(distance.min())
        turns.append(turn.min())
    distance, turn = torch.stack(distances), torch.stack(turns)
    return LocalisationScore(
        number=number,
        position_half_metre=(distance < 0.5).double().mean().item(),
        position_metre=(distance < 1.0).double().mean().item(),
        yaw_15_degrees=(turn < 15.0).double().mean().item(),
        yaw_30_degrees=(turn < 30.0).double().mean().item(),
    )


def coverage(mean: Tensor, std: Tensor, truth: Tensor, levels: Sequence[float]) -> list[float]:
    """Share of truths [N, 2] inside the ellipses that should hold `levels` of them, one share a level.

    `mean`, `std` [N, 2] metres, independent axes. Honest uncertainties give shares equal to the levels.
    """
    squared = ((truth - mean) / std).double().square().sum(-1)  # chi-squared with two degrees of freedom
    return [(squared <= -2 * math.log1p(-level)).double().mean().item() for level in levels]


def error_correlation(std: Tensor, error: Tensor) -> float:
    """Spearman's rank correlation of predicted spreads [N] and errors [N]; 1 if one orders the other."""
    from scipy.stats import spearmanr

    if len(std) < 3:
        raise ValueError(f"{len(std)} situations, a rank correlation needs at least 3")
    correlation = spearmanr(std.cpu().numpy(), error.cpu().numpy())
    return float(correlation[0])  # type: ignore[arg-type]
