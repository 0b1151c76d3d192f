"""Heads of one object: where voxels lie in its box, its mask, its refined box."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from vlm_occ.heads.box import BoxHead
from vlm_occ.heads.occupancy import (
    BUMP,
    FACE_STEPS,
    OFFSET_CHANNELS,
    SHELL_STEPS,
    ObjectMaskHead,
    offset_features,
)

BOX = torch.tensor([4.0, -2.0, 1.0, 8.0, 2.6, 3.2, 0.7])


def placed(local: Tensor) -> Tensor:
    """Points [K, 3] of the frame of BOX in the ego frame, by complex numbers."""
    turn = complex(math.cos(0.7), math.sin(0.7))
    flat = [complex(x, y) * turn for x, y in local[:, :2].tolist()]
    return torch.tensor(
        [[p.real + 4, p.imag - 2, z + 1] for p, z in zip(flat, local[:, 2].tolist(), strict=True)]
    )


def distance(point: list[float]) -> float:
    """Signed distance of a point of the box's frame to its surface, by its cases."""
    over = [abs(v) - half for v, half in zip(point, (4.0, 1.3, 1.6), strict=True)]
    if max(over) <= 0:
        return max(over)
    return math.sqrt(sum(max(v, 0.0) ** 2 for v in over))


def test_bumps_tell_how_far_a_voxel_is_from_each_face_and_from_the_surface() -> None:
    local = 5 * torch.rand(200, 3, generator=torch.Generator().manual_seed(0)) - 2.5
    local[:, 0] *= 2
    features = offset_features(placed(local), BOX)
    assert features.shape == (200, OFFSET_CHANNELS)
    faces, shell = features[:, 12:].split([6 * len(FACE_STEPS), len(SHELL_STEPS)], dim=1)
    for row, point in enumerate(local.tolist()):
        beyond = [sign * v - half for sign in (1, -1) for v, half in zip(point, (4.0, 1.3, 1.6), strict=True)]
        expected = [math.exp(-(((b - s) / BUMP) ** 2) / 2) for b in beyond for s in FACE_STEPS]
        assert faces[row].tolist() == pytest.approx(expected, abs=1e-4)
        expected = [math.exp(-(((distance(point) - s) / BUMP) ** 2) / 2) for s in SHELL_STEPS]
        assert shell[row].tolist() == pytest.approx(expected, abs=1e-4)


def test_features_move_and_turn_with_the_box_but_for_the_plain_offset() -> None:
    local = 6 * torch.rand(50, 3, generator=torch.Generator().manual_seed(1)) - 3
    still = torch.tensor([0.0, 0.0, 0.0, 8.0, 2.6, 3.2, 0.0])
    here, there = offset_features(local, still), offset_features(placed(local), BOX)
    own = [*range(9), *range(12, OFFSET_CHANNELS)]
    torch.testing.assert_close(here[:, own], there[:, own], atol=1e-4, rtol=1e-4)


def test_a_mask_learns_the_shell_of_a_box_that_no_ellipsoid_fills() -> None:
    torch.manual_seed(0)
    head = ObjectMaskHead(8, voxel_width=4, width=16, radius=9.0)
    axes = [torch.arange(-n, n + 0.1, 0.4) for n in (5.0, 2.4, 2.4)]
    local = torch.cartesian_prod(*axes)
    truth = torch.tensor([abs(distance(point)) < 0.25 for point in local.tolist()])
    joint, features = torch.ones(8), torch.zeros(len(local), 4)
    optimizer, logits = torch.optim.Adam(head.parameters(), lr=0.01), torch.zeros(len(local))
    for _ in range(150):
        logits = head(joint, features, placed(local), BOX)
        loss = torch.nn.functional.binary_cross_entropy_with_logits(logits, truth.float())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    found = logits > 0
    assert float((found & truth).sum() / (found | truth).sum()) > 0.9


def test_a_box_is_shifted_along_its_own_axes() -> None:
    torch.manual_seed(2)
    head = BoxHead(6)
    torch.nn.init.normal_(head.mlp[2].weight, std=0.3)  # type: ignore[arg-type]
    joint = torch.randn(1, 6)
    still = torch.tensor([[0.0, 0.0, 0.0, 8.0, 2.6, 3.2, 0.0]])
    ahead, there = head(joint, still)[0], head(joint, BOX[None])[0]
    assert ahead[:2].norm() > 0.05
    torch.testing.assert_close(there[:3], placed(ahead[None, :3])[0], atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(there[3:6], ahead[3:6])


def test_a_fresh_box_head_changes_nothing() -> None:
    torch.testing.assert_close(BoxHead(6)(torch.randn(1, 6), BOX[None])[0], BOX)
