"""Losses of a camera's pose and of its patches' points, for a small CUT3R; each is a sum and a count."""

from __future__ import annotations

import torch
from torch import Tensor

from vlm_occ.losses.occupancy import Term, term


def pose_loss(pose: Tensor, first_from_camera: Tensor, *, rotation_weight: float = 5.0) -> dict[str, Term]:
    """Errors of poses [..., 7] (metres, w, x, y, z) against transforms [..., 4, 4]: translation and rotation.

    Translation: distance over 1 + the true distance, so that far views do not drown near ones. Rotation: half
    the chordal distance of the rotation matrices, about the angle in radians where it is small.
    """
    true = first_from_camera.float()
    distance = (pose[..., :3] - true[..., :3, 3]).norm(dim=-1) / (1 + true[..., :3, 3].norm(dim=-1))
    w, x, y, z = pose[..., 3:].unbind(-1)
    rows = (
        (1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)),
        (2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)),
        (2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)),
    )
    rotation = torch.stack([torch.stack(row, -1) for row in rows], dim=-2)
    square = (rotation - true[..., :3, :3]).square().sum((-2, -1))
    chord = (square / 2 + 1e-8).sqrt()  # smooth at 0
    return {"translation": term(distance.flatten()), "rotation": term(rotation_weight * chord.flatten())}


def point_loss(points: Tensor, log_spread: Tensor, target: Tensor, valid: Tensor) -> Term:
    """Laplace negative log-likelihood of points [..., 3] with log spreads [...] (metres) where `valid`."""
    error = torch.where(valid[..., None], points - target, 0.0).norm(dim=-1)
    value = error * (-log_spread).exp() + log_spread
    return Term(torch.where(valid, value, 0.0).sum(), valid.sum().float().clamp(min=1))
