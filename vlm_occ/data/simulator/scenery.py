"""The background: buildings, trees, hedges, walls, lamps and signs along the streets."""

from __future__ import annotations

import math

from vlm_occ.data.simulator.assemblies import Parts
from vlm_occ.data.simulator.clearance import Clearance, Rectangle
from vlm_occ.data.simulator.draws import DARK_METAL, GLASS, METAL, RGB, Draws
from vlm_occ.data.simulator.roads import RoadMap, Street

_WALLS: tuple[RGB, ...] = (
    (0.62, 0.55, 0.45),
    (0.55, 0.3, 0.22),
    (0.7, 0.68, 0.63),
    (0.45, 0.44, 0.43),
    (0.75, 0.66, 0.5),
    (0.5, 0.4, 0.33),
    (0.6, 0.63, 0.66),
    (0.66, 0.5, 0.42),
)
_LEAVES: tuple[RGB, ...] = ((0.13, 0.29, 0.09), (0.2, 0.36, 0.12), (0.28, 0.38, 0.14), (0.1, 0.22, 0.1))
_BARK: RGB = (0.25, 0.19, 0.14)


class Scenery:
    """Background solids in the layout frame, and the ground that they take."""

    def __init__(self, draws: Draws, roads: RoadMap, clearance: Clearance) -> None:
        self.draws, self.roads, self.clearance = draws, roads, clearance
        self.manmade, self.vegetation = Parts(), Parts()
        self.season = draws.uniform(0.75, 1.2)

    def build(self) -> None:
        """Line every street with buildings, or with walls, hedges and trees."""
        for street in self.roads.streets:
            for side in (0, 1):
                self._frontage(street, side)

    def horizon(self) -> None:
        """Close the view with distant blocks and woods beyond the raster of the ground."""
        draws = self.draws
        town = 0.6 if self.roads.urban else 0.15
        for i in range(18):
            angle, far = (i + draws.uniform(0.1, 0.9)) * 2 * math.pi / 18, draws.uniform(72, 110)
            x, y, wide = far * math.cos(angle), far * math.sin(angle), draws.uniform(16, 34)
            if draws.chance(town):
                high = draws.uniform(6, 26)
                wall = draws.shade(draws.choice(_WALLS))
                self.manmade.box((x, y, high / 2), (draws.uniform(8, 16), wide, high), wall, yaw=angle)
            else:
                high = draws.uniform(6, 13)
                self.vegetation.ellipsoid(
                    (x, y, high * 0.3), (wide * 0.7, wide * 1.3, high), self._leaf(), yaw=angle
                )

    def furnish(self) -> None:
        """Add lamps, street trees, signs and traffic lights to the pavements; call it after the sites."""
        for street in self.roads.streets:
            for side in (0, 1):
                self._kerbside(street, side)
        if self.roads.junction is not None:
            self._traffic_lights(self.roads.junction)

    def _frontage(self, street: Street, side: int) -> None:
        draws, outward = self.draws, 2 * side - 1
        built = draws.chance(0.88 if self.roads.urban else 0.25)
        setback = draws.uniform(0.4, 5.0) if self.roads.urban else draws.uniform(8.0, 20.0)
        along = max(-58.0, street.start)
        while along < min(58.0, street.end):
            length = draws.uniform(8, 22)
            middle, edge = along + length / 2, street.edge(side)
            if self._in_lot(street, side, along, along + length):
                along += length
                continue
            if built and draws.chance(0.85):
                depth = draws.uniform(8, 14)
                pose = street.pose(middle, edge + outward * (setback + depth / 2))
                if self._clear(pose, length / 2 - 0.5, depth / 2):
                    self._building(pose, length - draws.uniform(0.8, 3.0), depth, outward)
                    if setback > 3.0:
                        self._border(street, side, along, length, edge + outward * 0.6)
            else:
                self._green(street, side, along, length, edge)
            along += length + (0 if draws.chance(0.7) else draws.uniform(1, 5))

    def _in_lot(self, street: Street, side: int, low: float, high: float) -> bool:
        lot = self.roads.lot
        if lot is None or street is not self.roads.main or (lot[2] > 0) != (side == 1):
            return False
        return high > lot[0] - 1 and low < lot[1] + 1

    def _clear(
        self, pose: tuple[float, float, float], half_x: float, half_y: float, *, gap: float = 0.3
    ) -> bool:
        """Take a rectangle if it lies off every street and pavement, and nothing else is there."""
        x, y, yaw = pose
        cos, sin = math.cos(yaw), math.sin(yaw)
        for u in (-half_x, 0.0, half_x):
            for v in (-half_y, half_y):
                px, py = x + cos * u - sin * v, y + sin * u + cos * v
                for street in self.roads.streets:
                    s, d = street.frenet_point(px, py)
                    low, high = street.edge(0) - gap, street.edge(1) + gap
                    if street.start - 3 < s < street.end + 3 and low < d < high:
                        return False
        return self._take((x, y, cos, sin, half_x, half_y))

    def _take(self, rectangle: Rectangle, margin: float = 0.1) -> bool:
        if not self.clearance.fits([rectangle], margin):
            return False
        self.clearance.take([rectangle])
        return True

    def _building(self, pose: tuple[float, float, float], length: float, depth: float, outward: int) -> None:
        """A house, a block of flats, an office or a shed; the street is on its -outward side."""
        draws, it = self.draws, Parts()
        kind = draws.weighted({"flats": 0.4, "office": 0.2, "house": 0.3, "shed": 0.1})
        wall = draws.shade(draws.choice(_WALLS))
        floors = {"flats": draws.integer(3, 6), "office": draws.integer(3, 7), "house": 2, "shed": 1}[kind]
        floor_height = 5.0 if kind == "shed" else draws.uniform(2.9, 3.5)
        top = floors * floor_height
        it.box((0, 0, top / 2), (length, depth, top), wall)
        face = -outward * depth / 2
        for floor in range(min(floors, 4)):  # higher windows are out of sight of the cameras nearby
            z = (floor + 0.58) * floor_height
            if kind == "office":
                it.box((0, 0, z), (length + 0.06, depth + 0.06, floor_height * 0.5), GLASS, reflectance=0.15)
            elif kind != "shed":
                self._windows(it, length, face, z, floor_height * 0.45, ground=floor == 0)
        if kind == "shed":
            it.box((draws.uniform(-0.2, 0.2) * length, face, 1.9), (4.2, 0.12, 3.8), draws.shade(METAL))
            it.box(
                (0, face, top - 0.5), (length, 0.1, 0.8), draws.paint(draws.choice(("red", "blue", "green")))
            )
        elif kind == "house":
            side = depth * 0.62
            roof = draws.shade(draws.choice(((0.45, 0.22, 0.16), (0.25, 0.24, 0.25))))
            it.box((0, 0, top - 0.15 * side), (length + 0.3, side, side), roof, roll=math.pi / 4)
            it.box((draws.uniform(-0.3, 0.3) * length, face, 1.05), (1.0, 0.12, 2.1), draws.paint("brown"))
        else:
            it.box((0, 0, top + 0.15), (length + 0.2, depth + 0.2, 0.3), draws.shade(wall, 0.3))
        self.manmade.merge(it, x=pose[0], y=pose[1], yaw=pose[2])

    def _windows(
        self, it: Parts, length: float, face: float, z: float, height: float, *, ground: bool
    ) -> None:
        """A floor's windows on the street's side: one strip cut by a pier, or a shop front."""
        draws = self.draws
        if ground and draws.chance(0.4):
            it.box((0, face, 1.5), (length * 0.85, 0.1, 2.4), GLASS, reflectance=0.15)
            it.box(
                (0, face, 3.0),
                (length * 0.9, 0.3, 0.6),
                draws.paint(draws.choice(("red", "blue", "green", "yellow"))),
            )
            return
        count = max(2, min(4, round(length / 4)))
        for i in range(count):
            x = (i - (count - 1) / 2) * length / count
            it.box((x, face, z), (length / count * 0.5, 0.12, height), GLASS, reflectance=0.15)

    def _border(self, street: Street, side: int, along: float, length: float, offset: float) -> None:
        """A hedge, a wall or railings in front of a garden."""
        draws = self.draws
        kind = draws.weighted({"hedge": 0.35, "wall": 0.25, "fence": 0.15, "none": 0.25})
        if kind == "none":
            return
        thick = 0.8 if kind == "hedge" else 0.2
        pose = street.pose(along + length / 2, offset + (2 * side - 1) * thick / 2)
        if not self._clear(pose, length / 2 - 0.6, thick / 2, gap=0.0):
            return
        it, height = Parts(), draws.uniform(0.8, 1.9)
        if kind == "hedge":
            leaf = self._leaf()
            it.box((0, 0, height / 2), (length - 1.2, thick, height), leaf)
            for i in range(3):
                x = (i - 1) * length * 0.3
                it.ellipsoid(
                    (x, 0, height * 0.85), (length * 0.3, thick * 1.2, height * 0.5), draws.shade(leaf)
                )
            self.vegetation.merge(it, x=pose[0], y=pose[1], yaw=pose[2])
        else:
            wall = draws.shade(draws.choice(_WALLS)) if kind == "wall" else draws.shade(DARK_METAL)
            it.box((0, 0, height / 2), (length - 1.2, thick if kind == "wall" else 0.05, height), wall)
            self.manmade.merge(it, x=pose[0], y=pose[1], yaw=pose[2])

    def _green(self, street: Street, side: int, along: float, length: float, edge: float) -> None:
        """A stretch of trees and bushes behind the pavement."""
        draws, outward = self.draws, 2 * side - 1
        if draws.chance(0.3):
            self._border(street, side, along, length, edge + outward * 0.5)
        for _ in range(draws.integer(2, 4)):
            out = draws.uniform(2.0, 12.0)
            x, y, yaw = street.pose(along + draws.uniform(0, length), edge + outward * out)
            big = draws.chance(0.6)
            radius = 1.2 if big else 0.8
            if self._clear((x, y, yaw), radius, radius):
                if big:
                    self._tree(x, y, draws.uniform(5, 12))
                else:
                    wide, high, leaf = draws.uniform(1.4, 2.6), draws.uniform(0.9, 2.0), self._leaf()
                    self.vegetation.ellipsoid((x, y, high * 0.45), (wide, wide * 0.8, high), leaf, yaw=yaw)
                    side_bush = (x + wide * 0.4, y + 0.2, high * 0.3)
                    self.vegetation.ellipsoid(
                        side_bush, (wide * 0.7, wide * 0.7, high * 0.65), draws.shade(leaf)
                    )

    def _leaf(self) -> RGB:
        r, g, b = self.draws.shade(self.draws.choice(_LEAVES), 0.2)
        return (min(1.0, r * self.season), g, b)

    def _tree(self, x: float, y: float, height: float, *, pruned: float = 2.4) -> None:
        """A trunk and a crown of a few ellipsoids, or a conifer; nothing grows below `pruned` metres."""
        draws, it, leaf = self.draws, self.vegetation, self._leaf()
        clear = max(pruned, height * draws.uniform(0.25, 0.4))
        it.rod((x, y, 0), (x, y, clear + 0.25 * height), 0.1 + 0.018 * height, draws.shade(_BARK))
        crown = height - clear
        if draws.chance(0.2):
            for i in range(3):
                wide = (0.62 - 0.16 * i) * crown
                it.ellipsoid(
                    (x, y, clear + crown * (0.2 + 0.28 * i)), (wide, wide, crown * 0.5), draws.shade(leaf)
                )
            return
        wide = crown * draws.uniform(0.75, 1.05)
        it.ellipsoid((x, y, clear + crown / 2), (wide, wide, crown), leaf)
        for _ in range(2):
            angle, out = draws.uniform(0, 6.28), wide * 0.3
            spot = (
                x + out * math.cos(angle),
                y + out * math.sin(angle),
                clear + crown * draws.uniform(0.35, 0.6),
            )
            it.ellipsoid(spot, (wide * 0.6, wide * 0.6, crown * 0.55), draws.shade(leaf, 0.2))

    def _kerbside(self, street: Street, side: int) -> None:
        """Lamps or trees at a regular pitch along the kerb, and a sign."""
        draws, outward = self.draws, 2 * side - 1
        if street.pavement[side] == 0 and draws.chance(0.6):
            return
        pitch, phase = draws.uniform(9, 26), draws.uniform(0, 9)
        trees = draws.chance(0.45) and street.pavement[side] > 2.4
        steps = int((min(52.0, street.end) - max(-52.0, street.start)) / pitch)
        for i in range(steps):
            along = max(-52.0, street.start) + phase + i * pitch
            x, y, heading = street.pose(along, street.kerb[side] + outward * 0.65)
            if self.roads.on_street(x, y, margin=0.4) or not self._take((x, y, 1.0, 0.0, 0.2, 0.2)):
                continue
            if trees and i % 3 != 2:
                self._tree(x, y, draws.uniform(6.5, 9.5), pruned=3.9)
            else:
                self._lamp(x, y, heading - outward * math.pi / 2)
        for _ in range(draws.integer(0, 2)):
            x, y, heading = street.pose(draws.uniform(-35, 40), street.kerb[side] + outward * 0.5)
            if not self.roads.on_street(x, y, margin=0.3) and self._take((x, y, 1.0, 0.0, 0.2, 0.2)):
                self._sign(x, y, heading)

    def _lamp(self, x: float, y: float, toward: float) -> None:
        height, steel = self.draws.uniform(5.5, 8.5), self.draws.shade(DARK_METAL, 0.4)
        reach = 1.6
        end = (x + reach * math.cos(toward), y + reach * math.sin(toward), height + 0.2)
        self.manmade.rod((x, y, 0), (x, y, height), 0.08, steel)
        self.manmade.rod((x, y, height), end, 0.05, steel)
        self.manmade.box(end, (0.6, 0.25, 0.12), (0.7, 0.7, 0.66), yaw=toward)

    def _sign(self, x: float, y: float, heading: float) -> None:
        draws = self.draws
        height = draws.uniform(2.2, 2.9)
        self.manmade.rod((x, y, 0), (x, y, height + 0.3), 0.035, METAL)
        face = draws.paint(draws.choice(("red", "blue", "white", "yellow", "green")))
        size = draws.uniform(0.5, 0.8)
        self.manmade.box((x, y, height), (0.04, size, size), face, yaw=heading, reflectance=1.0)

    def _traffic_lights(self, junction: float) -> None:
        main, other = self.roads.streets
        for s in (junction + other.kerb[0] - 0.8, junction + other.kerb[1] + 0.8):
            for side in (0, 1):
                x, y, heading = main.pose(s, main.kerb[side] + (2 * side - 1) * 0.8)
                if self.roads.on_street(x, y, margin=0.3) or not self._take((x, y, 1.0, 0.0, 0.2, 0.2)):
                    continue
                self.manmade.rod((x, y, 0), (x, y, 3.2), 0.07, DARK_METAL)
                self.manmade.box((x, y, 2.9), (0.3, 0.32, 0.9), (0.06, 0.07, 0.06), yaw=heading)
                lit = self.draws.choice((((0.9, 0.1, 0.05), 3.18), ((0.1, 0.8, 0.3), 2.62)))
                self.manmade.box((x, y, lit[1]), (0.34, 0.18, 0.18), lit[0], yaw=heading)
