"""Which objects a world has and where they stand: traffic, kerbs, pavements and sites."""

from __future__ import annotations

import math

from vlm_occ.data.simulator import figures, vehicles
from vlm_occ.data.simulator.assemblies import Assembly
from vlm_occ.data.simulator.clearance import Clearance, Placed
from vlm_occ.data.simulator.draws import Draws
from vlm_occ.data.simulator.objects import Motion, Place
from vlm_occ.data.simulator.roads import RoadMap, Street


class Crowd:
    """The objects placed so far, and the ways of adding one."""

    def __init__(self, draws: Draws, roads: RoadMap, clearance: Clearance) -> None:
        self.draws, self.roads, self.clearance = draws, roads, clearance
        self.objects: list[Placed] = []

    def add(
        self,
        assembly: Assembly,
        pose: tuple[float, float, float],
        *,
        motion: Motion,
        place: Place,
        speed: float = 0.0,
        yaw_rate: float = 0.0,
        margin: float = 0.5,
    ) -> bool:
        """Place an assembly at a pose (x, y, yaw) unless something is in the way."""
        half = assembly.centred()
        candidate = Placed(assembly, half, *pose, speed, yaw_rate, motion, place)
        if not self.clearance.place(candidate, margin):
            return False
        self.objects.append(candidate)
        return True

    def in_lane(self, assembly: Assembly) -> bool:
        """Put a vehicle into a lane, moving or waiting."""
        draws, street = self.draws, self.draws.choice(self.roads.streets)
        lane = draws.choice(street.lanes)
        along = draws.uniform(-40, 45)
        if not street.start < along < street.end:
            return False
        x, y, heading = street.pose(along, lane.offset + draws.normal(0, 0.12))
        moving = draws.chance(0.65)
        speed = draws.uniform(2, 12) if moving else 0.0
        yaw = heading + (math.pi if lane.direction < 0 else 0.0)
        rate = speed * lane.direction * street.curvature / (1 - street.curvature * lane.offset)
        motion: Motion = "moving" if moving else "stopped"
        return self.add(assembly, (x, y, yaw), motion=motion, place="road", speed=speed, yaw_rate=rate)

    def at_kerb(self, assembly: Assembly) -> bool:
        """Park a vehicle in a parking row."""
        draws, street = self.draws, self.roads.main
        sides = [side for side in (0, 1) if street.parking[side]]
        if not sides:
            return False
        side = draws.choice(sides)
        offset = street.kerb[side] + (1.2 if side == 0 else -1.2)
        x, y, heading = street.pose(draws.uniform(-40, 42), offset)
        forward = (side == 1) == (self.roads.handed == 1)
        yaw = heading + (0.0 if forward else math.pi) + draws.normal(0, 0.02)
        return self.add(assembly, (x, y, yaw), motion="parked", place="kerb")

    def on_pavement(self, assembly: Assembly, *, moving: bool) -> bool:
        """Put a person or a thing on a pavement."""
        draws, street = self.draws, self.draws.choice(self.roads.streets)
        side = draws.integer(0, 1)
        width = max(street.pavement[side], 1.5)
        out = draws.uniform(0.5, width - 0.4)
        x, y, heading = street.pose(draws.uniform(-38, 40), street.kerb[side] + (2 * side - 1) * out)
        yaw = (
            heading + (math.pi if draws.chance(0.5) else 0.0) if moving else draws.uniform(-math.pi, math.pi)
        )
        place: Place = "pavement" if street.pavement[side] > 0 else "terrain"
        motion: Motion = "moving" if moving else "stopped"
        speed = draws.uniform(0.7, 1.8) if moving else 0.0
        return self.add(assembly, (x, y, yaw), motion=motion, place=place, speed=speed, margin=0.4)


def populate(draws: Draws, roads: RoadMap, clearance: Clearance, *, balanced: bool) -> list[Placed]:
    """The objects of a world."""
    crowd = Crowd(draws, roads, clearance)
    for _ in range(draws.integer(8, 18)):
        it = vehicles.car(draws) if draws.chance(0.8) else vehicles.truck(draws)
        for _ in range(6):
            if crowd.at_kerb(it) if draws.chance(0.5) else crowd.in_lane(it):
                break
    for _ in range(draws.integer(4, 12)):
        moving = draws.chance(0.6)
        it = figures.pedestrian(draws, walking=moving)
        for _ in range(4):
            if crowd.on_pavement(it, moving=moving):
                break
    return crowd.objects


def ego_street(roads: RoadMap) -> Street:
    """The street that the ego drives on."""
    return roads.main
