"""Colours of hits: sun and sky light, surface variation, haze and the camera's own colour and noise."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from vlm_occ.data.simulator.egocentric import Plane
from vlm_occ.data.simulator.objects import CYLINDER, Ground, Solids
from vlm_occ.data.simulator.scanlines import Hits
from vlm_occ.data.simulator.shadows import ShadowMap, cast_shadows
from vlm_occ.data.simulator.spans import CURVED, Scanlines
from vlm_occ.data.simulator.world import Appearance
from vlm_occ.types import OCC3D_CLASSES

_VEGETATION = OCC3D_CLASSES.index("vegetation")


_OVERCAST = 0.3
"""Sun weaker than this casts no shadow; what lies under things is then darkened a little instead."""

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
    shadows: ShadowMap
    overcast: bool  # then the shadows are those of the sky overhead, and faint


def shade(
    hits: Hits,
    lines: Scanlines,
    solids: Solids,
    ground: Ground,
    plane: Plane,
    world_from_ego: Tensor,
    look: Appearance,
    *,
    seed: int,
    shape: tuple[int, int, int],
) -> Tensor:
    """Images, uint8 [V, 3, H, W], of hits on `solids` (ego frame); depth without a solid is ground."""
    num_cameras, height, width = shape
    device = lines.base.device
    light = _light(solids, plane, look, world_from_ego)
    surfaces = _Surfaces.of(solids, light)
    raster = _Raster.of(ground, world_from_ego, light)
    images = torch.empty(num_cameras, 3, height, width, dtype=torch.uint8, device=device)
    generator = torch.Generator().manual_seed(seed)
    # One field of noise, shifted: independent noise for every camera would cost as much as the shading.
    noise = (2.5 * torch.randn(3 * height * width + num_cameras * 997, generator=generator)).to(device)
    cast = look.colour_cast.tolist()
    # Camera by camera the arrays stay in a CPU's cache; a GPU takes all at once.
    block = height if device.type == "cpu" else num_cameras * height
    for first in range(0, len(lines.base), block):
        part = slice(first, first + block)
        colour = _paint(_view(lines, hits, part), surfaces, raster, light)  # [3, block * W]
        for camera in range(first // height, (first + block) // height):
            inside = colour[:, (camera * height - first) * width : ((camera + 1) * height - first) * width]
            gain = 255 * look.exposure * _automatic_exposure(inside)
            for channel in range(3):
                start = camera * 997 + channel * height * width
                grain = noise[start : start + height * width]
                bright = torch.addcmul(grain, inside[channel], gain * cast[channel])
                images[camera, channel] = bright.clamp_(0, 255).view(height, width)
    return images


def _automatic_exposure(colour: Tensor) -> Tensor:
    """Gain that takes an image [3, N] half the way, in its logarithm, to a mean of 0.45.

    Rounded, so that the order in which threads add up does not show.
    """
    gain = (0.45 / colour[1, ::7].double().mean().clamp(min=1e-3)).sqrt().clamp(0.7, 1.8)
    return (gain * 1000).round() / 1000


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
        lit = light.shadows.lit(point, on_ground=painter is raster)
        painted = painter.paint(point, solid, face, lit)
        for channel, fog in enumerate(light.fog):
            colour[channel].scatter_(0, index, torch.addcmul(fog * (1 - clear), painted[channel], clear))
    return colour


def _light(solids: Solids, plane: Plane, look: Appearance, world_from_ego: Tensor) -> _Light:
    """The light of a world in the ego frame of `solids`."""
    rotation = world_from_ego[:3, :3].float().to(solids.centre.device)
    sun, up = rotation.T @ look.sun_direction.to(rotation), rotation[2]
    sky = look.sky_colour.tolist()
    overcast = look.sun_strength < _OVERCAST
    return _Light(
        sun=sun,
        up=up,
        strength=look.sun_strength,
        ambient=look.ambient,
        haze=look.haze,
        sky=sky,
        fog=[0.5 * value + 0.45 for value in sky],
        shadows=cast_shadows(solids, plane, up if overcast else sun),
        overcast=overcast,
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
    """The ground's colours."""

    ground: Ground
    pose: list[list[float]]
    colour: Tensor  # float32 [X * Y, 3]
    ambient: float  # brightness in shadow
    sunlight: float  # brightness that the sun adds

    @classmethod
    def of(cls, ground: Ground, world_from_ego: Tensor, light: _Light) -> _Raster:
        """The raster on the light's device."""
        ambient, sunlight = light.ambient, light.strength * float(light.sun[2].clamp(min=0))
        if light.overcast:
            ambient, sunlight = 0.6 * ambient, 0.4 * ambient + sunlight
        colour = ground.colour.reshape(-1, 3).to(light.sun.device)
        return cls(ground, world_from_ego.tolist(), colour, ambient, sunlight)

    def paint(self, point: list[Tensor], solid: Tensor, face: Tensor, lit: Tensor) -> list[Tensor]:
        """Colours (three of [N]) of ground points, between the four nearest cells."""
        del solid, face
        low, part = [], []
        for axis, size in enumerate(self.ground.semantic.shape):
            pose = [value / self.ground.cell for value in self.pose[axis]]
            offset = pose[3] - self.ground.origin[axis] / self.ground.cell - 0.5
            cell = sum_products(point, pose[:3]).add_(offset).clamp_(0, size - 1.001)
            low.append(cell.int())
            part.append((cell - low[-1])[:, None])
        width = self.ground.semantic.shape[1]
        index = low[0] * width + low[1]
        near, far = (
            torch.lerp(
                self.colour.index_select(0, index + shift),
                self.colour.index_select(0, index + shift + 1),
                part[1],
            )
            for shift in (0, width)
        )
        colour = torch.lerp(near, far, part[0])  # [N, 3]
        grain = 0.92 + 0.16 * _hash(*(((a + b[:, 0]) * 5).int() for a, b in zip(low, part, strict=True)))
        light = (lit * self.sunlight + self.ambient) * grain
        return [colour[:, channel] * light for channel in range(3)]


@dataclass(frozen=True)
class _Surfaces:
    """The solids' surfaces as columns [P] each: index_select over columns is fastest."""

    centre: list[Tensor]
    axes: list[list[Tensor]]  # axes[i][j]: ego axis i of the solid's axis j
    colour: list[Tensor]
    flat_sun: Tensor  # [P * 6] brightness of the six flat faces by the sun
    flat_sky: Tensor  # [P * 6] and by the sky
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
            flat_sun=light.strength * facing.clamp(min=0),
            flat_sky=light.ambient * (0.75 + 0.25 * rise),
            gradient=columns(gradient),
            sunward=columns(sunward),
            upward=columns(upward),
            spread=0.06 + 0.69 * vegetation,
            light=light,
        )

    def paint(self, point: list[Tensor], solid: Tensor, face: Tensor, lit: Tensor) -> list[Tensor]:
        """Colours (three of [N]) of points on solids."""
        offset = [point[i] - self.centre[i].index_select(0, solid) for i in range(3)]
        local = [  # metres along the solid's axes
            sum_products(offset, [self.axes[i][j].index_select(0, solid) for i in range(3)]) for j in range(3)
        ]
        light = self._brightness(local, solid, face, lit if not self.light.overcast else torch.ones_like(lit))
        fine = _hash(*((value * 25 + 4096).int() for value in local), solid)
        coarse = _hash(*((value * 7 + 4096).int() for value in local), solid)
        texture = (0.6 * fine + 0.4 * coarse - 0.5) * self.spread.index_select(0, solid)
        light = torch.addcmul(light, light, texture)
        return [plane.index_select(0, solid) * light for plane in self.colour]

    def _brightness(self, local: list[Tensor], solid: Tensor, face: Tensor, lit: Tensor) -> Tensor:
        """Brightness [N] by Lambert's law for the sun, and a sky that is brighter above."""
        plate = solid * 6 + face.clamp(max=5)
        bright = torch.addcmul(
            self.flat_sky.index_select(0, plate), self.flat_sun.index_select(0, plate), lit
        )
        curved = (face == CURVED).nonzero()[:, 0]
        index = solid.index_select(0, curved)
        normal = [
            local[i].index_select(0, curved) * self.gradient[i].index_select(0, index) for i in range(3)
        ]
        length = sum_products(normal, normal).clamp_(min=1e-12).rsqrt_()
        sun = sum_products(normal, [plane.index_select(0, index) for plane in self.sunward]) * length
        sky = sum_products(normal, [plane.index_select(0, index) for plane in self.upward]) * length
        sun = sun.clamp_(min=0) * lit.index_select(0, curved)
        return bright.scatter_(
            0, curved, self.light.strength * sun + self.light.ambient * (0.75 + 0.25 * sky)
        )


def sum_products(a: list[Tensor], b: list[Tensor] | list[float]) -> Tensor:
    """a[0] b[0] + a[1] b[1] + a[2] b[2]."""
    total = a[0] * b[0]
    for x, y in zip(a[1:], b[1:], strict=True):
        total = torch.addcmul(total, x, y) if isinstance(y, Tensor) else total.add_(x, alpha=y)
    return total
