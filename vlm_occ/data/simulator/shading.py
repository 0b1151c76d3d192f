"""Colours of hits: sun and sky light, surface variation, haze and the camera's own colour and noise."""

from __future__ import annotations

import torch
from torch import Tensor

from vlm_occ.data.simulator.objects import CYLINDER, Ground, Solids
from vlm_occ.data.simulator.scanlines import Hits
from vlm_occ.data.simulator.spans import CURVED, Scanlines
from vlm_occ.data.simulator.world import Appearance
from vlm_occ.types import OCC3D_CLASSES

_VEGETATION, _MANMADE = OCC3D_CLASSES.index("vegetation"), OCC3D_CLASSES.index("manmade")


def shade(
    hits: Hits,
    lines: Scanlines,
    solids: Solids,
    ground: Ground,
    world_from_ego: Tensor,
    look: Appearance,
    *,
    seed: int,
    shape: tuple[int, int, int],
) -> Tensor:
    """Images, uint8 [V, 3, H, W], of hits on `solids` (ego frame); depth without a solid is ground."""
    device = lines.base.device
    rotation = world_from_ego[:3, :3].float().to(device)
    sun = rotation.T @ look.sun_direction.to(device)  # ego frame
    sky_colour = look.sky_colour.to(device)
    solid, inverse = hits.solid.flatten(), hits.inverse.flatten()
    colour = _sky(lines, rotation[2], sky_colour)  # [3, N]
    for chosen, paint in (
        (((solid < 0) & (inverse > 0)).nonzero()[:, 0], "ground"),
        ((solid >= 0).nonzero()[:, 0], "solid"),
    ):
        line, ray = chosen // len(lines.position), None
        ray = _rays(lines, chosen, line)  # [3, n]
        depth = 1 / inverse[chosen]
        point = [lines.origin[:, i].contiguous()[line] + depth * ray[i] for i in range(3)]
        if paint == "ground":
            painted = _ground_colour(point, ground, world_from_ego, look, sun)
        else:
            painted = _solid_colour(point, solid[chosen], hits.face.flatten()[chosen], solids, look, sun)
        distance = depth * (ray[0] ** 2 + ray[1] ** 2 + ray[2] ** 2).sqrt()
        clear = torch.exp(-look.haze * distance)
        for channel in range(3):
            fog = 0.5 * sky_colour[channel] + 0.45
            colour[channel, chosen] = painted[channel] * clear + fog * (1 - clear)
    return _expose(colour, look, seed=seed, shape=shape)


def _rays(lines: Scanlines, chosen: Tensor, line: Tensor) -> list[Tensor]:
    """The three coordinates [n] of chosen rays (flat indices [n])."""
    position = lines.position[chosen % len(lines.position)]
    return [
        lines.base[:, i].contiguous()[line] + position * lines.step[:, i].contiguous()[line] for i in range(3)
    ]


def _sky(lines: Scanlines, up: Tensor, colour: Tensor) -> Tensor:
    """Sky colours [3, L * S]: brighter and paler towards the horizon."""
    height = (lines.base @ up)[:, None] + (lines.step @ up)[:, None] * lines.position
    a, b, c = (
        (lines.base**2).sum(-1, keepdim=True),
        2 * (lines.base * lines.step).sum(-1, keepdim=True),
        (lines.step**2).sum(-1, keepdim=True),
    )
    norm = a + lines.position * (b + c * lines.position)
    rise = (height.clamp(min=0) * norm.rsqrt()).sqrt().flatten()  # [N]
    horizon = 0.5 * colour + 0.5
    return horizon[:, None] + (0.92 * colour - horizon)[:, None] * rise


def _hash(*cells: Tensor) -> Tensor:
    """Numbers in [0, 1) from integer cells (int32 [n] each), the same for the same cells."""
    value = torch.zeros_like(cells[0])
    for cell, prime in zip(cells, (73856093, 19349663, 83492791, 49979687), strict=False):
        value = value ^ (cell * prime)
    value = (value ^ ((value >> 13) & 0x7FFFF)) * 1274126177
    return ((value >> 15) & 0xFFFF).float() * (1 / 65536)


def _ground_colour(
    point: list[Tensor], ground: Ground, world_from_ego: Tensor, look: Appearance, sun: Tensor
) -> list[Tensor]:
    """Lit colours of ground points (three coordinates [n], ego frame)."""
    pose = world_from_ego.tolist()
    size_x, size_y = ground.semantic.shape
    cell = []
    for axis in range(2):
        offset = pose[axis][3] - ground.origin[axis]
        world = pose[axis][0] * point[0] + pose[axis][1] * point[1] + pose[axis][2] * point[2]
        cell.append((world + offset) / ground.cell)
    fine = [(8 * value).int() for value in cell]
    index = cell[0].long().clamp(0, size_x - 1) * size_y + cell[1].long().clamp(0, size_y - 1)
    light = look.ambient + look.sun_strength * float(sun[2].clamp(min=0))
    grain = (0.94 + 0.12 * _hash(*fine)) * light
    raster = ground.colour.to(index.device).reshape(-1, 3)
    return [raster[:, channel].contiguous()[index] * grain for channel in range(3)]


def _solid_colour(
    point: list[Tensor], solid: Tensor, face: Tensor, solids: Solids, look: Appearance, sun: Tensor
) -> list[Tensor]:
    """Lit colours of points on solids (three coordinates [n], ego frame)."""
    offset = [point[i] - solids.centre[:, i].contiguous()[solid] for i in range(3)]
    local = [  # metres along the solid's axes
        offset[0] * solids.rotation[:, 0, j].contiguous()[solid]
        + offset[1] * solids.rotation[:, 1, j].contiguous()[solid]
        + offset[2] * solids.rotation[:, 2, j].contiguous()[solid]
        for j in range(3)
    ]
    light = _light(local, solid, face, solids, look, sun)
    vegetation = solids.semantic == _VEGETATION
    spread = torch.where(vegetation, 0.75, 0.06)[solid]
    salt = (solid & 1023).int()
    fine = _hash(*((value * 12).floor().int() for value in local), salt)
    coarse = _hash(*((value * 3.1).floor().int() for value in local), salt)
    light = light * (1 + spread * (0.6 * fine + 0.4 * coarse - 0.5))
    return [solids.colour[:, channel].contiguous()[solid] * light for channel in range(3)]


def _light(
    local: list[Tensor], solid: Tensor, face: Tensor, solids: Solids, look: Appearance, sun: Tensor
) -> Tensor:
    """Brightness [n] by Lambert's law for the sun and a sky that is brighter above."""
    sunward = torch.einsum("pij,i->pj", solids.rotation, sun)  # [P, 3] the sun in each solid's axes
    upward = solids.rotation[:, 2]
    sign = torch.tensor([-1.0, 1.0], device=solid.device)
    facing = (sunward[..., None] * sign).reshape(-1, 6)
    rise = (upward[..., None] * sign).reshape(-1, 6)
    table = look.sun_strength * facing.clamp(min=0) + look.ambient * (0.75 + 0.25 * rise)
    light = table.reshape(-1)[solid * 6 + face.clamp(max=5)]
    curved = (face == CURVED).nonzero()[:, 0]
    index = solid[curved]
    round_axes = torch.ones_like(solids.half_size)
    round_axes[:, 2] = (solids.shape != CYLINDER).float()
    slope = round_axes / solids.half_size**2  # gradient of the quadric per metre
    normal = [local[i][curved] * slope[:, i].contiguous()[index] for i in range(3)]
    length = (normal[0] ** 2 + normal[1] ** 2 + normal[2] ** 2).clamp(min=1e-12).rsqrt()
    to_sun = sum(normal[i] * sunward[:, i].contiguous()[index] for i in range(3)) * length
    to_sky = sum(normal[i] * upward[:, i].contiguous()[index] for i in range(3)) * length
    light[curved] = look.sun_strength * to_sun.clamp(min=0) + look.ambient * (0.75 + 0.25 * to_sky)
    return light


def _expose(colour: Tensor, look: Appearance, *, seed: int, shape: tuple[int, int, int]) -> Tensor:
    """Exposure, colour cast, noise and quantisation of colours [3, V * H * W]: uint8 [V, 3, H, W]."""
    num_cameras, height, width = shape
    generator = torch.Generator().manual_seed(seed)
    noise = 2.5 * torch.randn(3, height, width, generator=generator)
    shifts = torch.randint(0, height * width, (num_cameras,), generator=generator).tolist()
    # One tile of noise, shifted: independent noise for every camera costs as much as the shading.
    noise = torch.stack([noise.flatten().roll(shift).view(3, height, width) for shift in shifts])
    gain = 255 * look.exposure * look.colour_cast.to(colour.device)
    image = colour.view(3, num_cameras, height, width).transpose(0, 1) * gain[:, None, None]
    return (image + noise.to(colour.device)).clamp_(0, 255).to(torch.uint8)
