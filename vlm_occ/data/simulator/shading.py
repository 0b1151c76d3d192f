"""Colours of hits: sun and sky light, surface variation, haze and the camera's own colour and noise."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from vlm_occ.data.simulator.objects import CYLINDER, Ground, Solids
from vlm_occ.data.simulator.scanlines import Hits
from vlm_occ.data.simulator.spans import CURVED, Scanlines
from vlm_occ.data.simulator.world import Appearance
from vlm_occ.types import OCC3D_CLASSES

_VEGETATION = OCC3D_CLASSES.index("vegetation")


_FOG_FAR = 1e4
"""Depth in metres that stands for the sky's."""


@dataclass(frozen=True)
class _Light:
    """The scene's light in the ego frame, on the device of the render."""

    sun: Tensor  # float32 [3], unit, towards the sun
    up: Tensor  # float32 [3], the world's vertical
    strength: float
    ambient: float
    haze: float
    sky: list[float]
    fog: list[float]


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
    num_cameras, height, width = shape
    device = lines.base.device
    light = _light(look, world_from_ego, device)
    surfaces = _Surfaces.of(solids, light)
    raster = _Raster.of(ground, world_from_ego, light, device)
    images = torch.empty(num_cameras, 3, height, width, dtype=torch.uint8, device=device)
    generator = torch.Generator().manual_seed(seed)
    # One field of noise, shifted: independent noise for every camera would cost as much as the shading.
    noise = (2.5 * torch.randn(3 * height * width + num_cameras * 997, generator=generator)).to(device)
    gain = 255 * look.exposure * look.colour_cast
    # Camera by camera the arrays stay in a CPU's cache; a GPU takes all at once.
    block = height if device.type == "cpu" else num_cameras * height
    for first in range(0, len(lines.base), block):
        part = slice(first, first + block)
        colour = _paint(_view(lines, hits, part), surfaces, raster, light)  # [3, block * W]
        for camera in range(first // height, (first + block) // height):
            inside = slice((camera * height - first) * width, ((camera + 1) * height - first) * width)
            for channel in range(3):
                start = camera * 997 + channel * height * width
                plane = colour[channel, inside] * float(gain[channel]) + noise[start : start + height * width]
                images[camera, channel] = plane.clamp_(0, 255).view(height, width)
    return images


@dataclass(frozen=True)
class _View:
    """A block of rays and what they hit."""

    ray: list[Tensor]  # three of float32 [N]
    point: list[Tensor]  # three of float32 [N], ego frame
    depth: Tensor  # float32 [N]
    solid: Tensor  # int32 [N]
    face: Tensor  # int32 [N]


def _view(lines: Scanlines, hits: Hits, part: slice) -> _View:
    """The rays of a slice of lines, flat."""
    depth = 1 / hits.inverse[part].clamp(min=1 / _FOG_FAR)
    ray = [
        torch.addcmul(lines.base[part, i, None], lines.step[part, i, None], lines.position) for i in range(3)
    ]
    point = [torch.addcmul(lines.origin[part, i, None], depth, ray[i]).flatten() for i in range(3)]
    flat = [value.flatten() for value in ray]
    return _View(flat, point, depth.flatten(), hits.solid[part].flatten(), hits.face[part].flatten())


def _paint(view: _View, surfaces: _Surfaces, raster: _Raster, light: _Light) -> Tensor:
    """Colours [3, N] of a block of rays."""
    x, y, z = view.ray
    norm = torch.addcmul(torch.addcmul(x * x, y, y), z, z).sqrt_()
    height = (x * float(light.up[0]) + y * float(light.up[1]) + z * float(light.up[2])) / norm
    rise = height.clamp_(min=0).sqrt_()
    colour = torch.stack([(0.5 + 0.5 * c) + (0.42 * c - 0.5) * rise for c in light.sky])
    hit = view.depth < _FOG_FAR
    on_solid = view.solid >= 0
    for chosen, painter in ((hit & ~on_solid, raster), (on_solid, surfaces)):
        index = chosen.nonzero()[:, 0]
        short = index.int()
        point = [value.index_select(0, short) for value in view.point]
        solid, face = view.solid.index_select(0, short), view.face.index_select(0, short)
        distance = view.depth.index_select(0, short) * norm.index_select(0, short)
        clear = (distance * -light.haze).exp_()
        painted = painter.paint(point, solid, face)
        for channel, fog in enumerate(light.fog):
            colour[channel].scatter_(0, index, torch.addcmul(fog * (1 - clear), painted[channel], clear))
    return colour


def _light(look: Appearance, world_from_ego: Tensor, device: torch.device) -> _Light:
    """The light of a world in the ego frame."""
    rotation = world_from_ego[:3, :3].float().cpu()
    sky = look.sky_colour.tolist()
    return _Light(
        sun=(rotation.T @ look.sun_direction).to(device),
        up=rotation[2].to(device),
        strength=look.sun_strength,
        ambient=look.ambient,
        haze=look.haze,
        sky=sky,
        fog=[0.5 * value + 0.45 for value in sky],
    )


def _hash(*cells: Tensor) -> Tensor:
    """Numbers in [0, 1) from integer cells (int32 [N] each), the same for the same cells."""
    value = cells[0] * 73856093
    for cell, prime in zip(cells[1:], (19349663, 83492791, 49979687), strict=False):
        value = value ^ (cell * prime)
    value = (value ^ ((value >> 13) & 0x7FFFF)) * 1274126177
    return ((value >> 15) & 0xFFFF).float() * (1 / 65536)


@dataclass(frozen=True)
class _Raster:
    """The ground's colours, lit."""

    ground: Ground
    pose: list[list[float]]
    colour: list[Tensor]  # three of float32 [X * Y]
    light: float

    @classmethod
    def of(cls, ground: Ground, world_from_ego: Tensor, light: _Light, device: torch.device) -> _Raster:
        """The raster on a device."""
        colour = [ground.colour[..., channel].flatten().to(device) for channel in range(3)]
        level = light.ambient + light.strength * float(light.sun[2].clamp(min=0))
        return cls(ground, world_from_ego.tolist(), colour, level)

    def paint(self, point: list[Tensor], solid: Tensor, face: Tensor) -> list[Tensor]:
        """Lit colours (three of [N]) of ground points; `solid` and `face` are not needed."""
        del solid, face
        cells = []
        for axis, size in enumerate(self.ground.semantic.shape):
            pose = [value / self.ground.cell for value in self.pose[axis]]
            world = point[0] * pose[0] + point[1] * pose[1] + point[2] * pose[2]
            offset = pose[3] - self.ground.origin[axis] / self.ground.cell
            cells.append((world + offset).clamp_(0, size - 1))
        index = cells[0].int() * self.ground.semantic.shape[1] + cells[1].int()
        grain = 0.94 + 0.12 * _hash(*((8 * value).int() for value in cells))
        return [plane.index_select(0, index) * grain * self.light for plane in self.colour]


@dataclass(frozen=True)
class _Surfaces:
    """The solids' surfaces as columns [P] each: index_select over columns is fastest."""

    centre: list[Tensor]
    axes: list[list[Tensor]]  # axes[i][j]: ego axis i of the solid's axis j
    colour: list[Tensor]
    flat_light: Tensor  # [P * 6] brightness of the six flat faces
    gradient: list[Tensor]  # of the quadric, per metre from the centre
    sunward: list[Tensor]  # the sun in the solid's axes
    upward: list[Tensor]
    spread: Tensor  # strength of the surface's variation
    light: _Light

    @classmethod
    def of(cls, solids: Solids, light: _Light) -> _Surfaces:
        """Columns of solids."""
        rotation = solids.rotation
        sunward = torch.einsum("pij,i->pj", rotation, light.sun)
        upward = torch.einsum("pij,i->pj", rotation, light.up)
        sign = torch.tensor([-1.0, 1.0], device=rotation.device)
        facing, rise = ((value[..., None] * sign).reshape(-1) for value in (sunward, upward))
        gradient = 1 / solids.half_size**2
        gradient[:, 2] *= (solids.shape != CYLINDER).float()
        vegetation = (solids.semantic == _VEGETATION).float()

        def columns(value: Tensor) -> list[Tensor]:
            return [value[:, i].contiguous() for i in range(3)]

        return cls(
            centre=columns(solids.centre),
            axes=[columns(rotation[:, i]) for i in range(3)],
            colour=columns(solids.colour),
            flat_light=light.strength * facing.clamp(min=0) + light.ambient * (0.75 + 0.25 * rise),
            gradient=columns(gradient),
            sunward=columns(sunward),
            upward=columns(upward),
            spread=0.06 + 0.69 * vegetation,
            light=light,
        )

    def paint(self, point: list[Tensor], solid: Tensor, face: Tensor) -> list[Tensor]:
        """Lit colours (three of [N]) of points on solids."""
        offset = [point[i] - self.centre[i].index_select(0, solid) for i in range(3)]
        local = [  # metres along the solid's axes
            sum_products(offset, [self.axes[i][j].index_select(0, solid) for i in range(3)]) for j in range(3)
        ]
        light = self._brightness(local, solid, face)
        fine = _hash(*((value * 12 + 4096).int() for value in local), solid)
        coarse = _hash(*((value * 3.1 + 4096).int() for value in local), solid)
        texture = (0.6 * fine + 0.4 * coarse - 0.5) * self.spread.index_select(0, solid)
        light = torch.addcmul(light, light, texture)
        return [plane.index_select(0, solid) * light for plane in self.colour]

    def _brightness(self, local: list[Tensor], solid: Tensor, face: Tensor) -> Tensor:
        """Brightness [N] by Lambert's law for the sun, and a sky that is brighter above."""
        bright = self.flat_light.index_select(0, solid * 6 + face.clamp(max=5))
        curved = (face == CURVED).nonzero()[:, 0]
        index = solid.index_select(0, curved)
        normal = [
            local[i].index_select(0, curved) * self.gradient[i].index_select(0, index) for i in range(3)
        ]
        length = sum_products(normal, normal).clamp_(min=1e-12).rsqrt_()
        sun = sum_products(normal, [plane.index_select(0, index) for plane in self.sunward]) * length
        sky = sum_products(normal, [plane.index_select(0, index) for plane in self.upward]) * length
        round_ = self.light.strength * sun.clamp_(min=0) + self.light.ambient * (0.75 + 0.25 * sky)
        return bright.scatter_(0, curved, round_)


def sum_products(a: list[Tensor], b: list[Tensor]) -> Tensor:
    """a[0] b[0] + a[1] b[1] + a[2] b[2]."""
    return torch.addcmul(torch.addcmul(a[0] * b[0], a[1], b[1]), a[2], b[2])
