"""Shadows: what a far lamp in the sun's direction sees, cast by the same scanlines as the images."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from vlm_occ.data.simulator.egocentric import Plane, solid_corners
from vlm_occ.data.simulator.objects import Solids
from vlm_occ.data.simulator.scanlines import cast
from vlm_occ.data.simulator.spans import Candidates, Scanlines

_FAR, _HALF_SIDE, _CELLS = 1500.0, 46.0, 512
"""Distance of the lamp, and half side and cells of the square of ground that it lights, metres."""

_BIAS_GROUND, _BIAS_SOLID = 0.03, 0.9
"""How far a hit must lie before a point to shade it, metres; more on solids, whose sides may lie nearly along
the rays."""


@dataclass(frozen=True)
class ShadowMap:
    """Nearest hits of rays from the lamp to cells of the ground: 1 / t, where t = 1 on the ground."""

    lamp: list[float]  # ego frame
    normal: list[float]
    offset: float
    nearest: Tensor  # float32 [cells * cells + 1]: row by row along y, then one that is never in shadow

    def lit(self, point: list[Tensor], *, on_ground: bool) -> Tensor:
        """Whether the lamp reaches points (three of float32 [N], ego frame): 1 or 0, float32 [N]."""
        a, b, c = self.normal
        start = sum(n * p for n, p in zip(self.normal, self.lamp, strict=True))
        scale = (point[0] * a + point[1] * b + point[2] * c - start).reciprocal_() * (self.offset - start)
        cells = []
        for axis in range(2):
            ground = (point[axis] - self.lamp[axis]) * scale + (self.lamp[axis] + _HALF_SIDE)
            cells.append((ground * (_CELLS / (2 * _HALF_SIDE))).clamp_(-1, _CELLS).floor_())
        outside = (cells[0] < 0) | (cells[0] >= _CELLS) | (cells[1] < 0) | (cells[1] >= _CELLS)
        index = (cells[1] * _CELLS + cells[0]).int().masked_fill_(outside, _CELLS * _CELLS)
        bias = (_BIAS_GROUND if on_ground else _BIAS_SOLID) / _FAR
        return (self.nearest.index_select(0, index) <= scale + bias).float()


def cast_shadows(solids: Solids, plane: Plane, direction: Tensor) -> ShadowMap:
    """The shadows of `solids` on the ground and each other, the sun being in `direction` [3] (unit, ego)."""
    device = solids.centre.device
    lamp = _FAR * direction
    cell = 2 * _HALF_SIDE / _CELLS
    position = torch.arange(_CELLS, device=device, dtype=torch.float32)
    slope = -plane.normal[:2] / plane.normal[2]
    y = -_HALF_SIDE + cell * (position + 0.5)
    x = -_HALF_SIDE + cell / 2
    z = plane.offset / plane.normal[2] + slope[0] * x + slope[1] * y
    base = torch.stack([torch.full_like(y, x), y, z], dim=-1) - lamp
    step = torch.cat([slope.new_tensor([1.0, 0.0]), slope[:1]]) * cell
    lines = Scanlines(lamp.expand_as(base), base, step.expand_as(base), position)
    nearest = cast(solids, lines, _candidates(solids, plane, lamp)).inverse.flatten()
    return ShadowMap(
        lamp.tolist(), plane.normal.tolist(), plane.offset, torch.cat([nearest, nearest.new_zeros(1)])
    )


def _candidates(solids: Solids, plane: Plane, lamp: Tensor) -> Candidates:
    """The rows of the map that the shadow of a solid's bounding box falls on."""
    ray = solid_corners(solids) - lamp  # [P, 8, 3]
    ground = lamp + ray * ((plane.offset - lamp @ plane.normal) / (ray @ plane.normal))[..., None]
    cells = (ground[..., :2] + _HALF_SIDE) * (_CELLS / (2 * _HALF_SIDE)) - 0.5
    low, high = cells.amin(1).ceil().clamp(min=0), cells.amax(1).floor().clamp(max=_CELLS - 1)
    count = (high - low + 1).clamp(min=0).long()
    keep = (count > 0).all(-1).nonzero()[:, 0]
    return Candidates(keep, low[keep, 1].long(), count[keep, 1])
