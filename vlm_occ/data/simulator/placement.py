"""Ways of placing objects: in lanes, at kerbs, in the car park, on pavements, crossings and open ground."""

from __future__ import annotations

import math
from dataclasses import dataclass

from vlm_occ.data.simulator.assemblies import Assembly
from vlm_occ.data.simulator.clearance import Clearance, Placed
from vlm_occ.data.simulator.draws import Draws
from vlm_occ.data.simulator.objects import Motion
from vlm_occ.data.simulator.roads import Lane, RoadMap, Street

NEAR, FAR = -40.0, 43.0
"""Where along the main street objects may stand, metres from the ego."""

Pose = tuple[float, float, float]


@dataclass(frozen=True)
class Flow:
    """The traffic of one lane: its speed, 0 in a queue."""

    street: Street
    lane: Lane
    speed: float


class Crowd:
    """The objects placed so far, and the ways of adding one; each returns whether it found room."""

    def __init__(
        self, draws: Draws, roads: RoadMap, clearance: Clearance, ego_lane: Lane, ego_speed: float
    ) -> None:
        self.draws, self.roads, self.clearance = draws, roads, clearance
        self.objects: list[Placed] = []
        self.flows = [
            Flow(street, lane, ego_speed if lane is ego_lane else self._lane_speed(street))
            for street in roads.streets
            for lane in street.lanes
        ]

    def _lane_speed(self, street: Street) -> float:
        """A lane's speed; side streets wait at the junction more often."""
        waits = 0.35 if street is self.roads.main else 0.6
        return 0.0 if self.draws.chance(waits) else self.draws.uniform(2.5, 12.0)

    def add(
        self,
        assembly: Assembly,
        pose: Pose,
        *,
        motion: Motion,
        speed: float = 0.0,
        yaw_rate: float = 0.0,
        margin: float = 0.5,
        headway: float = 0.0,
    ) -> bool:
        """Place an assembly at a pose (x, y, yaw) unless something is within `margin` or `headway`."""
        item = Placed(assembly, assembly.centred(), *pose, speed, yaw_rate, motion)
        if not self.clearance.place(item, margin, headway):
            return False
        self.objects.append(item)
        return True

    def add_group(self, group: list[Placed], *, margin: float = 0.4) -> bool:
        """Place objects that belong together and may touch one another, all or none."""
        if not all(self.clearance.has_room(item, margin) for item in group):
            return False
        for item in group:
            self.clearance.take(self.clearance.footprints(item))
            self.objects.append(item)
        return True

    def lane_pose(self, flow: Flow, along: float) -> tuple[Pose, float] | None:
        """Pose and yaw rate of a vehicle in a lane, or None off the street's end or where it would block."""
        street, lane = flow.street, flow.lane
        if not street.start + 3 < along < street.end - 3:
            return None
        x, y, heading = street.pose(along, lane.offset + self.draws.normal(0, 0.12))
        if flow.speed == 0.0 and self.roads.on_street(x, y, margin=2.0) > 1:
            return None
        yaw = heading + (math.pi if lane.direction < 0 else 0.0)
        rate = flow.speed * lane.direction * street.curvature / (1 - street.curvature * lane.offset)
        return (x, y, yaw), rate

    def draw_flow(self) -> Flow:
        """A lane, the main street's more often."""
        flow = self.draws.choice(self.flows)
        return flow if flow.street is self.roads.main else self.draws.choice(self.flows)

    def in_lane(self, assembly: Assembly) -> bool:
        """Put a vehicle into a lane with that lane's traffic."""
        flow = self.draw_flow()
        found = self.lane_pose(flow, self.draws.uniform(NEAR, FAR))
        if found is None:
            return False
        (x, y, yaw), rate = found
        motion: Motion = "moving" if flow.speed > 0 else "stopped"
        headway = 1.5 if flow.speed == 0 else 3.0
        return self.add(
            assembly,
            (x, y, yaw),
            motion=motion,
            speed=flow.speed,
            yaw_rate=rate,
            margin=0.3,
            headway=headway,
        )

    def near_kerb_side(self, assembly: Assembly) -> bool:
        """Let a two-wheeler ride along the kerb of its lane."""
        draws = self.draws
        flow = self.draw_flow()
        speed = draws.uniform(2.0, 7.0)
        found = self.lane_pose(Flow(flow.street, flow.lane, speed), draws.uniform(NEAR, FAR))
        if found is None:
            return False
        (x, y, yaw), rate = found
        out = self.roads.handed * draws.uniform(-0.2, 0.9)
        pose = (x - out * math.sin(yaw), y + out * math.cos(yaw), yaw)
        return self.add(assembly, pose, motion="moving", speed=speed, yaw_rate=rate, headway=1.0)

    def at_kerb(self, assembly: Assembly, *, stopping: bool = False) -> bool:
        """Park a vehicle in a bay along the kerb; `stopping` only halts it there."""
        draws, street = self.draws, self.roads.main
        sides = [side for side in (0, 1) if street.parking[side]]
        if not sides:
            return False
        side, (half_length, half_width) = draws.choice(sides), assembly.centred()
        along = draws.uniform(NEAR, FAR)
        if half_length < 2.7:
            along = 6.0 * math.floor(along / 6.0) + 3.0 + draws.normal(0, 0.25)
        if self.roads.on_street(*street.pose(along, street.kerb[side])[:2], margin=6.0) > 1:
            return False
        inward = 1.0 if side == 0 else -1.0
        x, y, heading = street.pose(
            along, street.kerb[side] + inward * (half_width + draws.uniform(0.15, 0.3))
        )
        forward = (
            street.lanes[0].direction > 0 if len({lane.direction for lane in street.lanes}) == 1 else None
        )
        along_lane = forward if forward is not None else (side == 1) == (self.roads.handed == 1)
        yaw = heading + (0.0 if along_lane else math.pi) + draws.normal(0, 0.02)
        motion: Motion = "stopped" if stopping else "parked"
        return self.add(assembly, (x, y, yaw), motion=motion, margin=0.25, headway=0.6)

    def in_lot(self, assembly: Assembly) -> bool:
        """Park a vehicle in a bay of the car park, forwards or backwards."""
        draws, lot = self.draws, self.roads.lot
        half_length, half_width = assembly.centred()
        if lot is None or half_width > 1.15 or half_length > 2.9:
            return False
        along = lot[0] + 2.6 * (draws.integer(0, int((lot[1] - lot[0]) / 2.6) - 1) + 0.5)
        across = draws.choice((lot[2] + 2.55, lot[3] - 2.55))
        x, y, heading = self.roads.main.pose(along, across)
        if self.roads.on_street(x, y, margin=3.0):
            return False
        yaw = heading + draws.sign() * math.pi / 2 + draws.normal(0, 0.03)
        return self.add(assembly, (x, y, yaw), motion="parked", margin=0.15)

    def off_road(
        self, assembly: Assembly, *, spread: float = 8.0, turned: bool = False, motion: Motion = "parked"
    ) -> bool:
        """Leave something on the open ground beside a street."""
        draws, street = self.draws, self.draws.choice(self.roads.streets)
        side, half = draws.integer(0, 1), assembly.centred()
        out = street.pavement[side] + (half[0] if turned else half[1]) + draws.uniform(0.3, spread)
        along = draws.uniform(max(NEAR, street.start), min(FAR, street.end))
        x, y, heading = street.pose(along, street.kerb[side] + (2 * side - 1) * out)
        if self.roads.on_street(x, y, margin=max(half) + 0.5):
            return False
        yaw = draws.uniform(-math.pi, math.pi) if turned else heading + math.pi * draws.integer(0, 1)
        return self.add(assembly, (x, y, yaw), motion=motion)

    def pavement_pose(self, *, low: float, high: float) -> tuple[Pose, int] | None:
        """A pose along a pavement, `low` to `high` of its width from the kerb, with its side."""
        draws, street = self.draws, self.roads.main if self.draws.chance(0.75) else self.roads.streets[-1]
        side = draws.integer(0, 1)
        width = street.pavement[side] or 2.5
        out = draws.uniform(max(0.45, low * width), max(0.5, high * width - 0.35))
        along = draws.uniform(max(NEAR, street.start + 1), min(FAR, street.end - 1))
        x, y, heading = street.pose(along, street.kerb[side] + (2 * side - 1) * out)
        if self.roads.on_street(x, y, margin=0.25):
            return None
        return (x, y, heading), side

    def on_pavement(
        self, assembly: Assembly, *, walking: bool = False, low: float = 0.0, high: float = 1.0
    ) -> bool:
        """Put a person or an animal on a pavement, walking along it or standing."""
        found = self.pavement_pose(low=low, high=high)
        if found is None:
            return False
        draws, ((x, y, heading), _) = self.draws, found
        yaw = heading + math.pi * draws.integer(0, 1) + draws.normal(0, 0.15)
        speed = draws.uniform(0.7, 1.8) if walking else 0.0
        pose = (x, y, yaw if walking else draws.uniform(-math.pi, math.pi))
        motion: Motion = "moving" if walking else "stopped"
        return self.add(assembly, pose, motion=motion, speed=speed)

    def stand_on_pavement(
        self, assembly: Assembly, *, along: bool, low: float = 0.5, high: float = 1.0
    ) -> bool:
        """Put a thing on a pavement, along the street or facing it."""
        found = self.pavement_pose(low=low, high=high)
        if found is None:
            return False
        (x, y, heading), side = found
        yaw = heading + math.pi * self.draws.integer(0, 1) if along else heading + (0.5 - side) * math.pi
        return self.add(assembly, (x, y, yaw), motion="parked")

    def crossing_road(self, assembly: Assembly, *, walking: bool) -> bool:
        """Let a person cross the main street, on a zebra crossing where there is one."""
        draws, street = self.draws, self.roads.main
        along = draws.choice(self.roads.crossing) if self.roads.crossing else draws.uniform(NEAR, FAR)
        offset = draws.uniform(street.kerb[0] + 0.3, street.kerb[1] - 0.3)
        x, y, heading = street.pose(along + draws.uniform(-1.4, 1.4), offset)
        if self.roads.on_street(x, y) > 1:
            return False
        yaw = heading + draws.sign() * math.pi / 2 + draws.normal(0, 0.1)
        speed = draws.uniform(0.9, 1.9) if walking else 0.0
        motion: Motion = "moving" if walking else "stopped"
        return self.add(assembly, (x, y, yaw), motion=motion, speed=speed)
