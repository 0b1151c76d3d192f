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

_BIG = 1e30


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
    """Pieces of surface on lines: w over the samples start .. start + count - 1 of a line."""

    line: Tensor  # long [R]
    solid: Tensor  # long [R]
    face: Tensor  # long [R]
    start: Tensor  # long [R]
    count: Tensor  # long [R]
    middle: Tensor  # float64 [R]: the position that the coefficients are about, for precision
    linear: Tensor  # float32 [R, 2]: constant and slope of w (of its affine part, on a curved surface)
    root: Tensor | None = None  # float32 [R, 3]: constant, slope and curvature under the root added to w
    along: Tensor | None = None  # float32 [R, 3]: |along[0] w + along[1] + along[2] u| <= w bounds a cylinder


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

    low: Tensor  # float64 [E, 3]
    high: Tensor  # float64 [E, 3]
    alpha: Tensor  # float64 [E, 3]
    beta: Tensor  # float64 [E, 3]


def find_spans(solids: Solids, lines: Scanlines, candidates: Candidates) -> tuple[Spans, Spans]:
    """All flat and all curved pieces; a solid that holds a line's origin is not seen on it."""
    position = lines.position.double()
    boxy = solids.shape[candidates.solid] == BOX
    flat, curved = [], []
    local = _to_local(solids, lines, candidates, boxy)
    faces = _near_faces(local, position)
    flat += [_flat_spans(local, faces, axis, position) for axis in range(3)]
    local = _to_local(solids, lines, candidates, ~boxy)
    faces = _near_faces(local, position)
    cylinder = solids.shape[local.solid] == CYLINDER
    flat.append(_flat_spans(local, _cap(local, faces, cylinder), 2, position))
    curved = _curved_spans(local, faces, cylinder, position)
    names = ("line", "solid", "face", "start", "count", "middle", "linear")
    return Spans(*(torch.cat([getattr(item, name) for item in flat]) for name in names)), curved


def _to_local(solids: Solids, lines: Scanlines, candidates: Candidates, chosen: Tensor) -> _Local:
    """The lines of the chosen candidates [K] bool in their solids' scaled axes."""
    solid, first, count = (value[chosen] for value in (candidates.solid, candidates.first, candidates.count))
    row = torch.repeat_interleave(count)  # [E]
    before = torch.cumsum(count, 0) - count
    line = (first[row] + torch.arange(len(row), device=row.device) - before[row]) % len(lines.base)
    solid = solid[row]
    scale = (solids.rotation / solids.half_size[:, None]).double()  # [P, 3, 3]
    scale, centre = scale[solid], solids.centre.double()[solid]
    local = [
        torch.einsum("eij,ei->ej", scale, vector)
        for vector in (
            lines.origin.double()[line] - centre,
            lines.base.double()[line],
            lines.step.double()[line],
        )
    ]
    return _Local(line, solid, *local)


def _near_faces(local: _Local, position: Tensor) -> _Faces:
    """Intervals over which each pair's rays meet the face of the unit cube that looks at their origin."""
    o, b, s = local.origin, local.base, local.step
    outside = o.abs() > 1
    gap = torch.where(outside, torch.sign(o) - o, 1.0)
    alpha, beta = b / gap, s / gap
    low = torch.where(outside, position[0], _BIG)
    high = torch.where(outside, position[-1], -_BIG)
    low, high = _clip(low, high, alpha, beta)  # in front: w > 0
    for shift in (1, 2):  # within the face: |o w + d| <= w along the other two axes
        other_o, other_b, other_s = (value.roll(-shift, dims=1) for value in (o, b, s))
        middle, slope = other_o * alpha + other_b, other_o * beta + other_s
        low, high = _clip(low, high, alpha - middle, beta - slope)
        low, high = _clip(low, high, alpha + middle, beta + slope)
    return _Faces(low, high, alpha, beta)


def _clip(low: Tensor, high: Tensor, constant: Tensor, slope: Tensor) -> tuple[Tensor, Tensor]:
    """The part of low .. high where constant + slope u >= 0."""
    slope = torch.where(slope == 0, 1e-200, slope)  # a constant sign then clips at +-infinity
    root = -constant / slope
    low = torch.maximum(low, torch.where(slope > 0, root, -_BIG))
    return low, torch.minimum(high, torch.where(slope > 0, _BIG, root))


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
    start = torch.searchsorted(position, low)
    count = torch.searchsorted(position, high, right=True) - start
    keep = (count > 0).nonzero()[:, 0]
    return start[keep], count[keep], keep


def _flat_spans(local: _Local, faces: _Faces, axis: int, position: Tensor) -> Spans:
    """The pieces of the near faces along one axis."""
    low, high = faces.low[:, axis].contiguous(), faces.high[:, axis].contiguous()
    start, count, keep = _samples(low, high, position)
    middle = (low[keep] + high[keep]) / 2
    alpha, beta = faces.alpha[keep, axis], faces.beta[keep, axis]
    linear = torch.stack([alpha + beta * middle, beta], dim=-1).float()
    face = 2 * axis + (local.origin[keep, axis] > 0).long()
    return Spans(local.line[keep], local.solid[keep], face, start, count, middle, linear)


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
    low = torch.where(within, position[0], torch.where(seen, faces.low, _BIG).amin(-1))
    high = torch.where(within, position[-1], torch.where(seen, faces.high, -_BIG).amax(-1))
    low, high = _clip(torch.where(kappa > 0, low, _BIG), high, -b0, -b1)
    low, high = _clip_quadratic(low, high, under, b1 < 0)
    start, count, keep = _samples(low, high, position)
    middle = (low[keep] + high[keep]) / 2
    u0, u1, u2 = (value[keep] for value in under)
    kappa, b0, b1 = kappa[keep], b0[keep], b1[keep]
    linear = torch.stack([-(b0 + b1 * middle) / kappa, -b1 / kappa], dim=-1).float()
    root = torch.stack([u0 + middle * (u1 + middle * u2), u1 + 2 * u2 * middle, u2], dim=-1)
    root = (root / (kappa * kappa)[:, None]).float()
    along = torch.stack(
        [local.origin[keep, 2], local.base[keep, 2] + local.step[keep, 2] * middle, local.step[keep, 2]],
        dim=-1,
    )
    along = (along * cylinder[keep, None]).float()
    face = torch.full_like(start, CURVED)
    return Spans(local.line[keep], local.solid[keep], face, start, count, middle, linear, root, along)
