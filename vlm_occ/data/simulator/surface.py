"""The raster of the ground: asphalt, markings, kerbs, paving and grass of a road map."""

from __future__ import annotations

import math

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

_WHITE: RGB = (0.82, 0.82, 0.8)
_YELLOW: RGB = (0.8, 0.64, 0.16)
_KERB: RGB = (0.55, 0.55, 0.53)


def draw_ground(
    draws: Draws,
    roads: RoadMap,
    *,
    world_yaw: float,
    shift: tuple[float, float],
    height: float,
    slope: tuple[float, float],
) -> Ground:
    """The ground in the world frame, where the layout is turned by `world_yaw` and moved by `shift`."""
    size = round(2 * EXTENT / CELL)
    axis = (torch.arange(size, dtype=torch.float32) + 0.5) * CELL - EXTENT
    cos, sin = math.cos(world_yaw), math.sin(world_yaw)
    x = cos * axis[:, None] + sin * axis[None, :]  # [X, Y] layout coordinates of the cells
    y = cos * axis[None, :] - sin * axis[:, None]
    semantic = torch.full((size, size), TERRAIN, dtype=torch.uint8)
    colour = _patches(draws, size, 32, 0.22)[..., None] * torch.tensor(roads.soil)  # [X, Y, 3]
    frames = [(street, *street.frenet(x, y)) for street in roads.streets]
    _paint_lot(roads, frames[0][1], frames[0][2], semantic, colour)
    asphalt = _patches(draws, size, 40, 0.14)[..., None] * torch.tensor(roads.asphalt)
    paving = _patches(draws, size, 80, 0.1)[..., None] * torch.tensor(roads.paving)
    on_road = torch.zeros_like(semantic, dtype=torch.bool)
    for street, s, d in reversed(frames):
        alive = (s > street.start) & (s < street.end)
        for side in (0, 1):
            if street.pavement[side] > 0:
                edge = street.kerb[side] + (2 * side - 1) * street.pavement[side]
                walk = (
                    alive & ((d > edge) if side == 0 else (d < edge)) & ((d < 0) if side == 0 else (d >= 0))
                )
                semantic[walk] = SIDEWALK
                colour[walk] = paving[walk]
    for street, s, d in frames:
        on_road |= (s > street.start) & (s < street.end) & (d > street.kerb[0]) & (d < street.kerb[1])
    kerb = torch.zeros_like(on_road)
    for street, s, d in frames:
        rim = ((d - street.kerb[0]).abs() < 0.15) | ((d - street.kerb[1]).abs() < 0.15)
        kerb |= rim & (s > street.start) & (s < street.end)
    semantic[on_road] = DRIVEABLE
    colour[on_road] = asphalt[on_road]
    for index, (street, s, d) in enumerate(frames):
        _paint_markings(draws, roads, street, s, d, colour, clear=_inside_other(frames, index))
    for index in range(len(frames)):
        kerb &= ~_inside_road(*frames[index])
    if roads.urban:
        colour[kerb] = torch.tensor(_KERB)
    grain = torch.rand(size, size, generator=draws.generator) * 0.1 + 0.95
    colour = (colour * grain[..., None]).clamp_(0, 1)
    origin = (shift[0] - EXTENT, shift[1] - EXTENT)
    return Ground(height=height, slope=slope, origin=origin, cell=CELL, semantic=semantic, colour=colour)


def _patches(draws: Draws, size: int, coarse: int, spread: float) -> Tensor:
    """A smooth random field [size, size] around 1."""
    field = 1 + spread * (2 * torch.rand(1, 1, coarse, coarse, generator=draws.generator) - 1)
    return interpolate(field, size=(size, size), mode="bilinear", align_corners=False)[0, 0]


def _inside_road(street: Street, s: Tensor, d: Tensor) -> Tensor:
    """Cells well inside a street's kerbs."""
    return (s > street.start) & (s < street.end) & (d > street.kerb[0] + 0.2) & (d < street.kerb[1] - 0.2)


def _inside_other(frames: list[tuple[Street, Tensor, Tensor]], index: int) -> Tensor | None:
    """Cells of the other streets' roadway, widened by the stop line's distance."""
    if len(frames) < 2:
        return None
    street, s, d = frames[1 - index]
    return (
        (s > street.start - 2)
        & (s < street.end + 2)
        & (d > street.kerb[0] - 1.5)
        & (d < street.kerb[1] + 1.5)
    )


def _paint_markings(
    draws: Draws,
    roads: RoadMap,
    street: Street,
    s: Tensor,
    d: Tensor,
    colour: Tensor,
    *,
    clear: Tensor | None,
) -> None:
    """Paint lane lines, edge lines, parking bays, zebra crossings and stop lines of one street."""
    road = (s > street.start) & (s < street.end) & (d > street.kerb[0]) & (d < street.kerb[1])
    if clear is not None:
        road &= ~clear
    wear = draws.uniform(0.55, 1.0)
    borders = sorted(
        {round(lane.offset + e * street.lane_width / 2, 3) for lane in street.lanes for e in (-1, 1)}
    )
    dashes = torch.remainder(s, draws.uniform(4.5, 9.0)) < draws.uniform(1.8, 3.0)
    line = torch.zeros_like(road)
    middle = torch.zeros_like(road)
    for border in borders:
        near = (d - border).abs() < 0.09
        if street.divided and abs(border) < 1.1:
            middle |= near & dashes if draws.chance(0.4) else near
        elif border in (borders[0], borders[-1]):
            line |= near if draws.chance(0.6) else near & dashes
        else:
            line |= near & dashes
    for side in (0, 1):
        if street.parking[side]:
            inner = street.kerb[side] + (2.3 if side == 0 else -2.3)
            bay = ((d < inner) if side == 0 else (d > inner)) & (torch.remainder(s, 6.0) < 0.15)
            line |= bay
    if street is roads.main:
        for place in roads.crossing:
            zebra = ((s - place).abs() < 1.6) & (torch.remainder(d, 1.0) < 0.5)
            line = (line & ((s - place).abs() > 2.0)) | zebra
            middle &= (s - place).abs() > 2.0
    paint = road & line
    colour[paint] = colour[paint] * (1 - wear) + wear * torch.tensor(_WHITE)
    paint = road & middle
    colour[paint] = colour[paint] * (1 - wear) + wear * torch.tensor(_YELLOW if draws.chance(0.5) else _WHITE)


def _paint_lot(roads: RoadMap, s: Tensor, d: Tensor, semantic: Tensor, colour: Tensor) -> None:
    """Paint the car park: other flat ground with bay lines 2.6 m apart along both long sides."""
    if roads.lot is None:
        return
    s0, s1, d0, d1 = roads.lot
    inside = (s > s0) & (s < s1) & (d > d0) & (d < d1)
    semantic[inside] = OTHER_FLAT
    colour[inside] = torch.tensor(roads.asphalt) * 1.15
    bays = inside & (torch.remainder(s - s0, 2.6) < 0.15) & (((d - d0) < 5.0) | ((d1 - d) < 5.0))
    colour[bays] = torch.tensor(_WHITE)
