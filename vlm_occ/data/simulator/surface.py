"""The raster of the ground: asphalt, markings, kerbs, paving and grass of a road map."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from vlm_occ.data.simulator.draws import RGB, Draws
from vlm_occ.data.simulator.objects import Ground
from vlm_occ.data.simulator.roads import (
    CELL,
    DRIVEABLE,
    EXTENT,
    OTHER_FLAT,
    SIDEWALK,
    TERRAIN,
    RoadMap,
    Street,
)
from vlm_occ.types import OCC3D_CLASSES

_WHITE: RGB = (0.82, 0.82, 0.8)
_YELLOW: RGB = (0.8, 0.64, 0.16)
_KERB: RGB = (0.55, 0.55, 0.53)


@dataclass(frozen=True)
class Placing:
    """How the layout frame lies in the world: turned about z, moved, on a tilted plane."""

    yaw: float
    shift: tuple[float, float]
    height: float  # of the plane at the world's origin, metres
    slope: tuple[float, float]

    def pose(self, x: float, y: float, yaw: float) -> tuple[float, float, float]:
        """World x, y and yaw of a pose in the layout frame."""
        cos, sin = math.cos(self.yaw), math.sin(self.yaw)
        return self.shift[0] + cos * x - sin * y, self.shift[1] + sin * x + cos * y, yaw + self.yaw


def draw_ground(draws: Draws, roads: RoadMap, placing: Placing) -> Ground:
    """The ground in the world frame; its raster is centred on the layout's origin."""
    size = round(2 * EXTENT / CELL)
    axis = (torch.arange(size, dtype=torch.float32) + 0.5) * CELL - EXTENT
    cos, sin = math.cos(placing.yaw), math.sin(placing.yaw)
    x = cos * axis[:, None] + sin * axis[None, :]  # [X, Y] layout coordinates of the cells
    y = cos * axis[None, :] - sin * axis[:, None]
    frames = [(street, *street.frenet(x, y)) for street in roads.streets]
    semantic = _surfaces(roads, frames)
    palette = torch.zeros(len(OCC3D_CLASSES), 3)
    tones = {
        TERRAIN: roads.soil,
        SIDEWALK: roads.paving,
        OTHER_FLAT: roads.lot_tone,
        DRIVEABLE: roads.asphalt,
    }
    for surface, tone in tones.items():
        palette[surface] = torch.tensor(tone)
    field = _patches(draws, size, 28, 0.13) * _patches(draws, size, 160, 0.09)  # [X, Y]
    grain = torch.rand(size, size, generator=draws.generator)
    colour = palette[semantic.long()] * (field * (0.94 + 0.12 * grain))[..., None]  # [X, Y, 3]
    flat = colour.view(-1, 3)
    for index, (street, s, d) in enumerate(frames):
        other = frames[1 - index] if len(frames) > 1 else None
        rows = _cells(street, s, d, margin=0.3)
        blocked = (
            None if other is None else _near_road(other[0], other[1].view(-1)[rows], other[2].view(-1)[rows])
        )
        _paint_street(draws, roads, street, s.view(-1)[rows], d.view(-1)[rows], flat, rows, blocked)
    _paint_lot(roads, frames[0][1], frames[0][2], flat)
    origin = (placing.shift[0] - EXTENT, placing.shift[1] - EXTENT)
    return Ground(placing.height, placing.slope, origin, CELL, semantic, colour.clamp_(0, 1))


def _surfaces(roads: RoadMap, frames: list[tuple[Street, Tensor, Tensor]]) -> Tensor:
    """OCC3D class of each cell, uint8 [X, Y]: roadway over pavement over car park over terrain."""
    semantic = torch.full(frames[0][1].shape, TERRAIN, dtype=torch.uint8)
    if roads.lot is not None:
        _, s, d = frames[0]
        s0, s1, d0, d1 = roads.lot
        semantic.masked_fill_((s > s0) & (s < s1) & (d > d0) & (d < d1), OTHER_FLAT)
    for street, s, d in frames:
        if max(street.pavement) > 0:
            walk = (d > street.edge(0)) & (d < street.edge(1)) & (s > street.start) & (s < street.end)
            semantic.masked_fill_(walk, SIDEWALK)
    for street, s, d in frames:
        road = (d > street.kerb[0]) & (d < street.kerb[1]) & (s > street.start) & (s < street.end)
        semantic.masked_fill_(road, DRIVEABLE)
    return semantic


def _patches(draws: Draws, size: int, coarse: int, spread: float) -> Tensor:
    """A smooth random field [size, size] around 1."""
    field = 1 + spread * (2 * torch.rand(1, 1, coarse, coarse, generator=draws.generator) - 1)
    return interpolate(field, size=(size, size), mode="bilinear", align_corners=False)[0, 0]


def _cells(street: Street, s: Tensor, d: Tensor, *, margin: float) -> Tensor:
    """Flat indices [R] of the cells on a street's roadway, widened by `margin`."""
    low, high = street.kerb[0] - margin, street.kerb[1] + margin
    return ((d > low) & (d < high) & (s > street.start) & (s < street.end)).view(-1).nonzero()[:, 0]


def _near_road(street: Street, s: Tensor, d: Tensor) -> Tensor:
    """Cells within 1.5 m of another street's roadway, where no line is painted; bool [R]."""
    low, high = street.kerb[0] - 1.5, street.kerb[1] + 1.5
    return (s > street.start - 2) & (s < street.end + 2) & (d > low) & (d < high)


def _stripe(offset: Tensor, half_width: float) -> Tensor:
    """How much of each cell a stripe covers, in [0, 1], by the distance to its middle."""
    return ((half_width - offset.abs()) / CELL + 0.5).clamp_(0, 1)


def _blend(flat: Tensor, rows: Tensor, cover: Tensor, tone: RGB) -> None:
    """Mix a tone into the colours [X*Y, 3] of some cells."""
    some = cover > 0
    rows, cover = rows[some], cover[some][:, None]
    flat[rows] = flat[rows] * (1 - cover) + cover * torch.tensor(tone)


def _paint_street(
    draws: Draws,
    roads: RoadMap,
    street: Street,
    s: Tensor,
    d: Tensor,
    flat: Tensor,
    rows: Tensor,
    blocked: Tensor | None,
) -> None:
    """Paint kerbs, lane lines, edge lines, parking bays, zebra crossings and stop lines of one street."""
    free = torch.ones_like(d) if blocked is None else (~blocked).float()
    if roads.urban:
        kerb = torch.maximum(_stripe(d - street.kerb[0], 0.13), _stripe(d - street.kerb[1], 0.13))
        _blend(flat, rows, kerb * free, _KERB)
    wear = draws.uniform(0.55, 1.0)
    line, middle = _lines(draws, street, s, d)
    line = torch.maximum(line, _bays(street, s, d))
    if street is roads.main:
        road = ((d > street.kerb[0] + 0.2) & (d < street.kerb[1] - 0.2)).float()
        for place in roads.crossing:
            away = ((s - place).abs() > 2.2).float()
            zebra = _stripe(torch.remainder(d, 1.0) - 0.5, 0.25) * ((s - place).abs() < 1.6).float() * road
            line, middle = torch.maximum(line * away, zebra), middle * away
    _blend(flat, rows, line * wear * free, _WHITE)
    _blend(flat, rows, middle * wear * free, _YELLOW if draws.chance(0.4) else _WHITE)


def _lines(draws: Draws, street: Street, s: Tensor, d: Tensor) -> tuple[Tensor, Tensor]:
    """Cover of the lane and edge lines, and of the line between the directions."""
    half = street.lane_width / 2
    borders = sorted({round(lane.offset + e * half, 3) for lane in street.lanes for e in (-1, 1)})
    dashes = (torch.remainder(s, draws.uniform(4.5, 9.0)) < draws.uniform(1.8, 3.0)).float()
    line, middle = torch.zeros_like(d), torch.zeros_like(d)
    solid_edge, solid_middle = draws.chance(0.6), draws.chance(0.6)
    for border in borders:
        stripe = _stripe(d - border, 0.07)
        if street.divided and abs(border) < 1.1:
            middle = torch.maximum(middle, stripe if solid_middle else stripe * dashes)
        elif border in (borders[0], borders[-1]):
            line = torch.maximum(line, stripe if solid_edge else stripe * dashes)
        else:
            line = torch.maximum(line, stripe * dashes)
    return line, middle


def _bays(street: Street, s: Tensor, d: Tensor) -> Tensor:
    """Cover of the lines between the parking spaces along the kerbs, 6 m apart."""
    ticks = _stripe(torch.remainder(s + 3.0, 6.0) - 3.0, 0.06)
    beside = torch.zeros_like(d)
    if street.parking[0]:
        beside += (d < street.kerb[0] + 2.3).float()
    if street.parking[1]:
        beside += (d > street.kerb[1] - 2.3).float()
    return ticks * beside


def _paint_lot(roads: RoadMap, s: Tensor, d: Tensor, flat: Tensor) -> None:
    """Paint the car park's bay lines, 2.6 m apart along both long sides."""
    if roads.lot is None:
        return
    s0, s1, d0, d1 = roads.lot
    bays = ((s > s0) & (s < s1) & (((d > d0) & (d < d0 + 5.0)) | ((d > d1 - 5.0) & (d < d1)))).view(-1)
    rows = bays.nonzero()[:, 0]
    ticks = _stripe(torch.remainder(s.view(-1)[rows] - s0 + 1.3, 2.6) - 1.3, 0.06)
    _blend(flat, rows, ticks, _WHITE)
