"""Where on a scanline each piece of a solid's surface is seen, were it alone: exact intervals.

A scanline is a plane fan of rays from one origin: an image row, or one firing of the LiDAR's beams. With
o + t d a ray in a solid's axes and w = 1 / t, the plane of a face is met at w affine in the ray's position u
on the line, and lies within the face where linear inequalities in u hold; a quadric is met at w = affine +
root of a quadratic in u.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from vlm_occ.data.simulator.objects import BOX, CYLINDER, Solids

CURVED = 6
"""Code of a quadric's curved surface; codes 0 to 5 are flat faces: 2 * axis + (1 on the positive side)."""

_BIG, _TINY = 1e30, 1e-200


@dataclass(frozen=True)
class Scanlines:
    """Rays in lines: ray (l, s) is origin[l] + t * (base[l] + position[s] * step[l]), t > 0."""

    origin: Tensor  # float32 [L, 3]
    base: Tensor  # float32 [L, 3]
    step: Tensor  # float32 [L, 3]
    position: Tensor  # float32 [S], increasing


@dataclass(frozen=True)
class Candidates:
    """Which lines a solid may be seen on: `solid[k]` on first[k] .. first[k] + count[k] - 1, modulo L."""

    solid: Tensor  # long [K]
    first: Tensor  # long [K]
    count: Tensor  # long [K]


@dataclass(frozen=True)
class Spans:
    """Pieces of surface on lines: w over the samples start .. start + count - 1 of a line.

    The coefficients are about the position of the first sample, for precision.
    """

    line: Tensor  # int32 [R]
    solid: Tensor  # int32 [R]
    face: Tensor  # int32 [R]
    start: Tensor  # int32 [R]
    count: Tensor  # int32 [R]
    linear: Tensor  # float32 [2, R]: constant and slope of w (of its affine part, on a curved surface)
    root: Tensor | None = None  # float32 [3, R]: constant, slope and curvature under the root added to w
    along: Tensor | None = None  # float32 [3, R]: |along[0] w + along[1] + along[2] u| <= w bounds a cylinder


@dataclass(frozen=True)
class _Local:
    """Pairs of a solid and a line, in the solid's own axes scaled so that its half sizes are 1."""

    line: Tensor  # long [E]
    solid: Tensor  # long [E]
    origin: Tensor  # float64 [E, 3]
    base: Tensor  # float64 [E, 3]
    step: Tensor  # float64 [E, 3]


@dataclass(frozen=True)
class _Faces:
    """The plane through each pair's near face along each axis: w = alpha + beta u on low <= u <= high."""

    low: Tensor  # float64 [E, 3], positions from the line's first sample on
    high: Tensor  # float64 [E, 3]
    alpha: Tensor  # float64 [E, 3]
    beta: Tensor  # float64 [E, 3]


def find_spans(solids: Solids, lines: Scanlines, candidates: Candidates) -> tuple[Spans, Spans]:
    """All flat and all curved pieces; a solid that holds a line's origin is not seen on it."""
    position = lines.position.double() - lines.position[0].double()
    boxy = solids.shape[candidates.solid] == BOX
    local = _to_local(solids, lines, candidates, boxy)
    faces = _near_faces(local, position[-1])
    flat = [_flat_spans(local, faces, axis, position) for axis in range(3)]
    local = _to_local(solids, lines, candidates, ~boxy)
    faces = _near_faces(local, position[-1])
    cylinder = solids.shape[local.solid] == CYLINDER
    flat.append(_flat_spans(local, _cap(local, faces, cylinder), 2, position))
    curved = _curved_spans(local, faces, cylinder, position)
    names = ("line", "solid", "face", "start", "count", "linear")
    return Spans(*(torch.cat([getattr(item, name) for item in flat], dim=-1) for name in names)), curved


def _to_local(solids: Solids, lines: Scanlines, candidates: Candidates, chosen: Tensor) -> _Local:
    """The lines of the chosen candidates [K] bool in their solids' scaled axes."""
    solid, first, count = (value[chosen] for value in (candidates.solid, candidates.first, candidates.count))
    row = torch.repeat_interleave(count)  # [E]
    before = torch.cumsum(count, 0) - count
    line = (first[row] + torch.arange(len(row), device=row.device) - before[row]) % len(lines.base)
    solid = solid[row]
    scale = (solids.rotation / solids.half_size[:, None]).double().index_select(0, solid)  # [E, 3, 3]

    def turned(vector: Tensor) -> Tensor:  # faster than many small matrix products
        return vector[:, 0:1] * scale[:, 0] + vector[:, 1:2] * scale[:, 1] + vector[:, 2:3] * scale[:, 2]

    origin, base, step = (
        value.double().index_select(0, line) for value in (lines.origin, lines.base, lines.step)
    )
    base = base + float(lines.position[0]) * step  # positions from here on start at 0
    origin = origin - solids.centre.double().index_select(0, solid)
    return _Local(line, solid, turned(origin), turned(base), turned(step))


def _near_faces(local: _Local, last: Tensor) -> _Faces:
    """Where each pair's rays, at positions 0 to `last`, meet the faces of the unit cube that look at them."""
    o, b, s = local.origin, local.base, local.step
    outside = o.abs() > 1
    gap = torch.where(outside, torch.sign(o) - o, 1.0)
    alpha, beta = b / gap, s / gap
    interval = _Interval((~outside) * _BIG, torch.zeros_like(o), last)
    interval.clip(alpha, beta)  # in front: w > 0
    for shift in (1, 2):  # within the face: |o w + d| <= w along the other two axes
        other_o, other_b, other_s = (value.roll(-shift, dims=1) for value in (o, b, s))
        middle, slope = other_o * alpha + other_b, other_o * beta + other_s
        interval.clip(alpha - middle, beta - slope)
        interval.clip(alpha + middle, beta + slope)
    return _Faces(interval.low, last - interval.cut, alpha, beta)


class _Interval:
    """Positions `low` .. `last` - `cut`, narrowed in place; both are at least 0, so no case needs a mask."""

    def __init__(self, low: Tensor, cut: Tensor, last: Tensor) -> None:
        self.low, self.cut, self.last = low, cut, last

    def clip(self, constant: Tensor, slope: Tensor) -> None:
        """Keep the part where constant + slope u >= 0.

        A slope of the wrong sign counts as a tiny one: the bound is then far outside, on the side that the
        sign of the value at this end of the line asks for.
        """
        self.low = torch.maximum(self.low, -constant / slope.clamp(min=_TINY))
        self.cut = torch.maximum(self.cut, -(constant + slope * self.last) / (-slope).clamp(min=_TINY))


def _clip_quadratic(
    low: Tensor, high: Tensor, coefficients: tuple[Tensor, Tensor, Tensor], rising: Tensor
) -> tuple[Tensor, Tensor]:
    """The part of low .. high where c0 + c1 u + c2 u^2 >= 0; of two half-lines the right one if `rising`."""
    c0, c1, c2 = coefficients
    c2 = torch.where(c2 == 0, 1e-200, c2)
    discriminant = c1 * c1 - 4 * c2 * c0
    real, between = discriminant > 0, c2 < 0
    root = discriminant.clamp(min=0).sqrt()
    first, second = (-c1 + root) / (2 * c2), (-c1 - root) / (2 * c2)
    first, second = torch.minimum(first, second), torch.maximum(first, second)
    lower = torch.where(between, first, torch.where(real & rising, second, -_BIG))
    upper = torch.where(between, second, torch.where(real & ~rising, first, _BIG))
    upper = torch.where(between & ~real, -_BIG, upper)
    return torch.maximum(low, lower), torch.minimum(high, upper)


def _cap(local: _Local, faces: _Faces, cylinder: Tensor) -> _Faces:
    """The near faces with the one along z cut down to the round end of a cylinder [E] bool."""
    alpha, beta = faces.alpha[:, 2], faces.beta[:, 2]
    e0 = local.origin[:, :2] * alpha[:, None] + local.base[:, :2]  # [E, 2]: w times the hit's x and y
    e1 = local.origin[:, :2] * beta[:, None] + local.step[:, :2]
    disc = (
        alpha * alpha - (e0 * e0).sum(-1),
        2 * (alpha * beta - (e0 * e1).sum(-1)),
        beta * beta - (e1 * e1).sum(-1),
    )
    low, high = _clip_quadratic(faces.low[:, 2], faces.high[:, 2], disc, beta > 0)
    low = torch.where(cylinder, low, _BIG)
    return _Faces(*(torch.stack([v, v, v], -1) for v in (low, high, alpha, beta)))


def _samples(low: Tensor, high: Tensor, position: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """First sample and number of samples of intervals [E], and which have any (long [R])."""
    start = torch.searchsorted(position, low, out_int32=True)
    count = torch.searchsorted(position, high, right=True, out_int32=True) - start
    keep = (count > 0).nonzero()[:, 0]
    return start[keep], count[keep], keep


def _flat_spans(local: _Local, faces: _Faces, axis: int, position: Tensor) -> Spans:
    """The pieces of the near faces along one axis."""
    low, high = faces.low[:, axis].contiguous(), faces.high[:, axis].contiguous()
    start, count, keep = _samples(low, high, position)
    alpha, beta = faces.alpha[keep, axis], faces.beta[keep, axis]
    linear = torch.stack([alpha + beta * position[start], beta]).float()
    face = 2 * axis + (local.origin[keep, axis] > 0).int()
    return Spans(local.line[keep].int(), local.solid[keep].int(), face, start, count, linear)


def _curved_spans(local: _Local, faces: _Faces, cylinder: Tensor, position: Tensor) -> Spans:
    """The pieces of unit spheres, or (`cylinder` [E] bool) of unit cylinders along z without their ends."""
    round_axes = torch.ones_like(local.origin)
    round_axes[:, 2] = (~cylinder).double()
    o, b, s = local.origin * round_axes, local.base * round_axes, local.step * round_axes
    kappa = (o * o).sum(-1) - 1
    b0, b1 = (o * b).sum(-1), (o * s).sum(-1)
    under = (  # discriminant of kappa w^2 + 2 (b0 + b1 u) w + |b + u s|^2 = 0
        b0 * b0 - kappa * (b * b).sum(-1),
        2 * (b0 * b1 - kappa * (b * s).sum(-1)),
        b1 * b1 - kappa * (s * s).sum(-1),
    )
    seen = faces.low <= faces.high  # [E, 3]
    within = (local.origin.abs() <= 1).all(-1)  # in the corner of the cube about the quadric
    low = torch.where(seen, faces.low, _BIG).amin(-1).masked_fill(within, 0).masked_fill(kappa <= 0, _BIG)
    high = torch.where(seen, faces.high, -_BIG).amax(-1).masked_fill(within, float(position[-1]))
    interval = _Interval(low, position[-1] - high, position[-1])
    interval.clip(-b0, -b1)  # in front: w > 0
    low, high = _clip_quadratic(interval.low, position[-1] - interval.cut, under, b1 < 0)
    start, count, keep = _samples(low, high, position)
    u0, u1, u2 = (value[keep] for value in under)
    kappa, b0, b1, first = kappa[keep], b0[keep], b1[keep], position[start]
    linear = torch.stack([-(b0 + b1 * first) / kappa, -b1 / kappa]).float()
    root = torch.stack([u0 + first * (u1 + first * u2), u1 + 2 * u2 * first, u2])
    root = (root / (kappa * kappa)).float()
    o2, b2, s2 = (value[keep, 2] for value in (local.origin, local.base, local.step))
    along = (torch.stack([o2, b2 + s2 * first, s2]) * cylinder[keep]).float()
    line, solid = local.line[keep].int(), local.solid[keep].int()
    return Spans(line, solid, torch.full_like(start, CURVED), start, count, linear, root, along)
