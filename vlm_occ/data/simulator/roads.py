"""Streets: centre lines with lanes, kerbs and pavements, and the raster of the ground that they make."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from vlm_occ.data.simulator.draws import RGB, Draws
from vlm_occ.data.simulator.objects import Place
from vlm_occ.types import OCC3D_CLASSES

DRIVEABLE, OTHER_FLAT, SIDEWALK, TERRAIN = (
    OCC3D_CLASSES.index(name) for name in ("driveable_surface", "other_flat", "sidewalk", "terrain")
)
EXTENT, CELL = 64.0, 0.16
"""Half the side and the cell of the ground's raster, metres."""


@dataclass(frozen=True)
class Lane:
    """A lane of a street: its middle's offset to the left of the centre line, and its direction along it."""

    offset: float
    direction: int  # 1 along the centre line, -1 against it


@dataclass(frozen=True)
class Street:
    """A street around a centre line of constant curvature; offsets d are to the left, in metres."""

    x: float
    y: float
    heading: float
    curvature: float
    lanes: tuple[Lane, ...]
    kerb: tuple[float, float]  # offsets of the (right, left) kerb, right < 0 < left
    pavement: tuple[float, float]  # widths of the (right, left) pavement, 0 without
    parking: tuple[bool, bool]  # a row of parking spaces along the (right, left) kerb
    lane_width: float
    divided: bool  # a solid or dashed line between the directions
    start: float = -EXTENT * 1.6
    end: float = EXTENT * 1.6

    def pose(self, along: float, offset: float) -> tuple[float, float, float]:
        """x, y and heading of the point `along` metres down the centre line, `offset` metres to its left."""
        k = self.curvature
        turn = k * along
        dx = along if abs(turn) < 1e-6 else math.sin(turn) / k
        dy = 0.5 * k * along * along if abs(turn) < 1e-6 else (1 - math.cos(turn)) / k
        dx, dy = dx - offset * math.sin(turn), dy + offset * math.cos(turn)
        cos, sin = math.cos(self.heading), math.sin(self.heading)
        return self.x + cos * dx - sin * dy, self.y + sin * dx + cos * dy, self.heading + turn

    def frenet(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """Distance along the centre line and offset to its left of points x, y (same shape)."""
        cos, sin = math.cos(self.heading), math.sin(self.heading)
        x, y = x - self.x, y - self.y
        x, y = cos * x + sin * y, cos * y - sin * x
        if self.curvature == 0:
            return x, y
        radius = 1 / self.curvature
        side = math.copysign(1.0, radius)
        return torch.atan2(side * x, side * (radius - y)) * radius, radius - side * torch.hypot(x, radius - y)

    def frenet_point(self, x: float, y: float) -> tuple[float, float]:
        """`frenet` of one point."""
        cos, sin = math.cos(self.heading), math.sin(self.heading)
        x, y = x - self.x, y - self.y
        x, y = cos * x + sin * y, cos * y - sin * x
        if self.curvature == 0:
            return x, y
        radius = 1 / self.curvature
        side = math.copysign(1.0, radius)
        return math.atan2(side * x, side * (radius - y)) * radius, radius - side * math.hypot(x, radius - y)

    def edge(self, side: int) -> float:
        """Offset of the outer border of the right (0) or left (1) pavement."""
        return self.kerb[side] + (2 * side - 1) * self.pavement[side]


@dataclass(frozen=True)
class RoadMap:
    """The streets of a world in the layout frame; the main one passes the origin, the ego drives along +x."""

    streets: tuple[Street, ...]  # the main street, then the crossing one, if any
    crossing: tuple[float, ...]  # where zebra crossings lie along the main street
    junction: float | None  # where the crossing street meets the main one, metres along it
    lot: tuple[float, float, float, float] | None  # a car park: s from, s to, d from, d to of the main street
    urban: bool
    handed: int  # 1 drives on the left, -1 on the right
    asphalt: RGB
    paving: RGB
    soil: RGB

    def on_street(self, x: float, y: float, *, margin: float = 0.0) -> int:
        """How many streets' roadways (kerb to kerb, widened by `margin`) hold a point of the layout."""
        count = 0
        for street in self.streets:
            s, d = street.frenet_point(x, y)
            low, high = street.kerb[0] - margin, street.kerb[1] + margin
            count += street.start < s < street.end and low < d < high
        return count

    def place_of(self, x: float, y: float, *, moving: bool) -> Place:
        """What a point of the layout belongs to; the `kerb` is a parking row, for things that stand still."""
        count = 0
        place: Place = "terrain"
        for street in self.streets:
            s, d = street.frenet_point(x, y)
            if not street.start < s < street.end or not street.edge(0) < d < street.edge(1):
                continue
            if not street.kerb[0] < d < street.kerb[1]:
                place = "pavement" if count == 0 else place
                continue
            count, side = count + 1, int(d > 0)
            parked = street.parking[side] and abs(d - street.kerb[side]) < 2.4 and not moving
            place = "junction" if count > 1 else "kerb" if parked else "road"
        return place

    @property
    def lot_tone(self) -> RGB:
        """Albedo of the car park."""
        r, g, b = self.asphalt
        return (1.15 * r, 1.15 * g, 1.15 * b)

    @property
    def main(self) -> Street:
        """The street that the ego drives on."""
        return self.streets[0]


def draw_street(draws: Draws, handed: int, *, urban: bool, curvature: float = 0.0) -> Street:
    """A street with one or two lanes a direction, or one way, through the origin along +x."""
    width = draws.uniform(2.9, 3.6)
    one_way = urban and draws.chance(0.2)
    per_side = draws.weighted({1: 0.55, 2: 0.45}) if urban else 1
    median = draws.uniform(0.6, 2.0) if per_side == 2 and draws.chance(0.25) and not one_way else 0.0
    lanes: list[Lane] = []
    if one_way:
        count = draws.integer(1, 3)
        lanes = [Lane((i - (count - 1) / 2) * width, 1) for i in range(count)]
    else:
        for i in range(per_side):
            offset = median / 2 + (i + 0.5) * width
            lanes += [Lane(handed * offset, 1), Lane(-handed * offset, -1)]
    half = max(abs(lane.offset) for lane in lanes) + width / 2
    chance = 0.6 if urban else 0.1
    parking = (draws.chance(chance), draws.chance(chance))
    shoulder = 0.3 if urban else 0.8
    kerb = (-half - (2.4 if parking[0] else shoulder), half + (2.4 if parking[1] else shoulder))
    pavement = (draws.uniform(2.0, 5.0), draws.uniform(2.0, 5.0)) if urban else (0.0, 0.0)
    if not urban and draws.chance(0.4):
        pavement = (0.0, draws.uniform(1.6, 2.4)) if draws.chance(0.5) else (draws.uniform(1.6, 2.4), 0.0)
    return Street(0.0, 0.0, 0.0, curvature, tuple(lanes), kerb, pavement, parking, width, not one_way)


def draw_road_map(draws: Draws) -> RoadMap:
    """A straight or curved street, perhaps with a junction, zebra crossings and a car park."""
    handed = draws.sign()
    urban = draws.chance(0.8)
    kind = draws.weighted({"straight": 0.4, "curve": 0.25, "junction": 0.35})
    curvature = draws.sign() / draws.uniform(55, 220) if kind == "curve" else 0.0
    main = draw_street(draws, handed, urban=urban, curvature=curvature)
    streets, crossing, junction = [main], [], None
    if kind == "junction":
        junction = draws.uniform(-14, 30)
        other = _draw_crossing_street(draws, handed, junction, urban=urban)
        streets.append(other)
        reach = max(-other.kerb[0], other.kerb[1]) + 4.5
        crossing = [s for s in (junction - reach, junction + reach) if draws.chance(0.6)]
    elif urban and draws.chance(0.4):
        crossing = [draws.uniform(-25, 35)]
    lot = _draw_lot(draws, main, junction) if draws.chance(0.3) else None
    grey = draws.uniform(0.2, 0.36)
    asphalt = (grey, grey, grey * draws.uniform(0.98, 1.06))
    stone = draws.uniform(0.42, 0.62)
    paving = (stone, stone * 0.97, stone * draws.uniform(0.85, 0.97))
    soils: list[RGB] = [(0.22, 0.36, 0.13), (0.34, 0.40, 0.17), (0.42, 0.36, 0.22), (0.27, 0.33, 0.15)]
    soil = draws.shade(draws.choice(soils))
    return RoadMap(tuple(streets), tuple(crossing), junction, lot, urban, handed, asphalt, paving, soil)


def _draw_crossing_street(draws: Draws, handed: int, junction: float, *, urban: bool) -> Street:
    """A street across the main one at `junction`, or one that ends there, to the left or to the right."""
    street = draw_street(draws, handed, urban=urban)
    ends = draws.weighted({"both": 0.6, "left": 0.2, "right": 0.2})
    return replace(
        street,
        x=junction,
        heading=math.pi / 2 + draws.uniform(-0.2, 0.2),
        parking=(False, False),
        start=0.0 if ends == "left" else street.start,
        end=0.0 if ends == "right" else street.end,
    )


def _draw_lot(draws: Draws, main: Street, junction: float | None) -> tuple[float, float, float, float]:
    """A car park 16 m deep behind a pavement of the main street, away from the junction."""
    side = draws.integer(0, 1)
    outward = 2 * side - 1
    near, far = main.edge(side) + outward * 0.5, main.edge(side) + outward * 16.5
    free = draws.uniform(-35, 5)
    low = free if junction is None else junction + 14 if junction < 0 else junction - 44
    return low, low + draws.uniform(16, 30), min(near, far), max(near, far)
