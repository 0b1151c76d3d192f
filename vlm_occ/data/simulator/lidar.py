"""A turn of the spinning LiDAR over solids and ground: range, noise, intensity and missing returns."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from vlm_occ.data.simulator.egocentric import ground_cells, ground_inverse, ground_plane, solid_corners
from vlm_occ.data.simulator.objects import CYLINDER, Ground, Solids
from vlm_occ.data.simulator.rig import LIDAR_POSITION, LIDAR_RANGE, LIDAR_STEPS, lidar_tangents
from vlm_occ.data.simulator.scanlines import cast
from vlm_occ.data.simulator.spans import CURVED, Candidates, Scanlines

RANGE_NOISE = 0.02
"""Standard deviation of a measured range, metres."""

EGO_ROOF = ((0.05, -0.46, 0.9), (1.85, 0.46, 1.53))
"""Lower and upper corner of what the ego vehicle hides (ego frame, metres): rays that meet it give no return.

Chosen so that about as many rays of each ring are lost as in the nuScenes keyframe."""

_HALF_POWER, _GAIN = 0.006, 0.6
"""Received power (reflectance * cosine at 30 m) at which half of the returns are lost, and intensity of full
power; both vary from sweep to sweep."""


@dataclass(frozen=True)
class LidarSweep:
    """One turn: the points, and what each ray met."""

    points: Tensor  # float32 [N, 4]: x, y, z (ego, metres), intensity in [0, 1]
    instance: Tensor  # long [N], -1 on background and ground
    surface: Tensor  # float32 [N, 3]: where the points would be without range noise
    inverse: Tensor  # float32 [LIDAR_STEPS, LIDAR_BEAMS]: 1 / horizontal range of each return, 0 without one
    origin: Tensor  # float32 [3], ego frame


def lidar_lines(*, lift: float = 0.0, device: torch.device | str = "cpu") -> Scanlines:
    """One scanline per firing, from ahead to the left; the rays' parameter is the horizontal range."""
    azimuth = torch.arange(LIDAR_STEPS, device=device) * (2 * math.pi / LIDAR_STEPS)
    zero = torch.zeros_like(azimuth)
    base = torch.stack([azimuth.cos(), azimuth.sin(), zero], dim=-1)
    x, y, z = LIDAR_POSITION
    origin = torch.tensor([x, y, z + lift], device=device).expand_as(base)
    step = torch.tensor([0.0, 0.0, 1.0], device=device).expand_as(base)
    return Scanlines(origin, base, step, lidar_tangents(device=device))


def lidar_candidates(solids: Solids, origin: Tensor) -> Candidates:
    """The firings whose plane may meet a solid: those between the azimuths of its bounding corners."""
    offset = solid_corners(solids)[..., :2] - origin[:2]  # [P, 8, 2]
    middle = solids.centre[:, :2] - origin[:2]
    # Angles of the corners about the centre's direction; half a turn means over or under the solid.
    cross = middle[:, None, 0] * offset[..., 1] - middle[:, None, 1] * offset[..., 0]
    angle = torch.atan2(cross, (middle[:, None] * offset).sum(-1))  # [P, 8]
    low, high = angle.amin(-1), angle.amax(-1)
    heading = torch.atan2(middle[:, 1], middle[:, 0])
    around = high - low >= math.pi
    step = 2 * math.pi / LIDAR_STEPS
    first = torch.where(around, 0, ((heading + low) / step).ceil()).long()
    last = torch.where(around, LIDAR_STEPS - 1, ((heading + high) / step).floor()).long()
    near = offset.norm(dim=-1).amin(-1) - solids.half_size.norm(dim=-1) * 2 < LIDAR_RANGE
    keep = ((last >= first) & near).nonzero()[:, 0]
    return Candidates(keep, first[keep], (last - first + 1)[keep])


def scan(
    solids: Solids, ground: Ground, world_from_ego: Tensor, *, seed: int, lift: float = 0.0
) -> LidarSweep:
    """A sweep over `solids` (ego frame) and the ground (world frame), on the solids' device.

    `lift` raises the sensor (metres). Returns get rarer with distance, grazing incidence and darkness.
    """
    device = solids.centre.device
    lines = lidar_lines(lift=lift, device=device)
    hits = cast(solids, lines, lidar_candidates(solids, lines.origin[0]))
    plane = ground_plane(ground, world_from_ego, device=device)
    floor = ground_inverse(plane, lines)
    inverse = torch.maximum(hits.inverse, floor)
    solid = hits.solid.masked_fill(hits.inverse <= floor, -1)
    slant = (1 + lines.position**2).sqrt()  # [S] range per horizontal range
    met = (inverse * LIDAR_RANGE > slant) & ~_meets_ego(lines, inverse)
    line, beam = met.nonzero(as_tuple=True)
    solid, face = solid[line, beam].long(), hits.face[line, beam].long()
    ray = lines.base[line] + lines.position[beam, None] * lines.step[line]  # [N, 3]
    surface = lines.origin[0] + ray / inverse[line, beam][:, None]
    distance = slant[beam] / inverse[line, beam]
    ray = ray / slant[beam, None]
    on = (solid >= 0).nonzero()[:, 0]
    normal = plane.normal.repeat(len(surface), 1)
    normal[on] = hit_normals(surface[on], solid[on], face[on], solids)
    albedo = ground.colour.to(device).mean(-1).flatten()[ground_cells(surface, ground, world_from_ego)]
    reflectance, instance = 0.4 * albedo, torch.full_like(solid, -1)
    reflectance[on], instance[on] = solids.reflectance[solid[on]], solids.instance[solid[on]]
    facing = (normal * ray).sum(-1).abs()
    chance, spread, speckle, half_power, gain = _draws(seed, inverse.numel(), device)
    slot = line * len(lines.position) + beam
    power = reflectance * facing * (30 / distance) ** 2
    kept = chance[slot] < power / (power + half_power)
    points = surface + (RANGE_NOISE * spread[slot])[:, None] * ray
    intensity = gain * reflectance * facing.sqrt() * torch.exp(-distance / 80) * (1 + 0.15 * speckle[slot])
    points = torch.cat([points, intensity.clamp(0, 1)[:, None]], dim=-1)
    returned = torch.zeros_like(inverse)
    returned[line[kept], beam[kept]] = inverse[line[kept], beam[kept]]
    return LidarSweep(points[kept], instance[kept], surface[kept], returned, lines.origin[0])


def _draws(seed: int, count: int, device: torch.device) -> tuple[Tensor, Tensor, Tensor, float, float]:
    """A uniform and two normal numbers for every ray [count], the half power and the gain of a sweep.

    Drawn on the CPU, so that devices agree.
    """
    generator = torch.Generator().manual_seed(seed)
    half, gain = torch.randn(2, generator=generator).tolist()
    uniform = torch.rand(count, generator=generator).to(device)
    normal = torch.randn(2, count, generator=generator).to(device)
    return uniform, normal[0], normal[1], _HALF_POWER * 2.0**half, _GAIN * 1.25**gain


def _meets_ego(lines: Scanlines, inverse: Tensor) -> Tensor:
    """Which rays [L, S] meet the ego's body before what they hit at 1 / inverse (slab test)."""
    ray = lines.base[:, None] + lines.position[:, None] * lines.step[:, None]  # [L, S, 3]
    ray = torch.where(ray.abs() < 1e-9, 1e-9, ray)
    low, high = (torch.tensor(corner, device=ray.device) for corner in EGO_ROOF)
    origin = lines.origin[:, None]
    a, b = (low - origin) / ray, (high - origin) / ray
    enter, leave = torch.minimum(a, b).amax(-1), torch.maximum(a, b).amin(-1)
    return (enter < leave) & (leave > 0) & (enter * inverse < 1)


def hit_normals(points: Tensor, solid: Tensor, face: Tensor, solids: Solids) -> Tensor:
    """Unit normals [N, 3] of the surfaces that points [N, 3] lie on."""
    rotation = solids.rotation[solid]  # [N, 3, 3]
    flat = rotation.gather(2, (face // 2).clamp(max=2)[:, None, None].expand(-1, 3, 1))[..., 0]
    local = ((points - solids.centre[solid])[:, None] @ rotation)[:, 0]
    local = local / solids.half_size[solid] ** 2
    local[:, 2] *= (solids.shape[solid] != CYLINDER).float()
    curved = (rotation @ torch.nn.functional.normalize(local, dim=-1)[..., None])[..., 0]
    return torch.where((face == CURVED)[:, None], curved, torch.where((face % 2 == 1)[:, None], flat, -flat))
