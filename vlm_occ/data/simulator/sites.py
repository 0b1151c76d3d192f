"""Construction sites: cones and barriers along the traffic, a machine, a heap and workers behind them."""

from __future__ import annotations

import math

from vlm_occ.data.simulator import figures, machines, props
from vlm_occ.data.simulator.assemblies import Assembly
from vlm_occ.data.simulator.draws import Draws
from vlm_occ.data.simulator.objects import Motion
from vlm_occ.data.simulator.placement import Crowd

_DEPTH = 6.5
"""Metres from the traffic's side of a site to its back."""


class Site:
    """A stretch of roadside that is closed off; s runs along the street, out away from the traffic."""

    def __init__(self, crowd: Crowd) -> None:
        draws, street = crowd.draws, crowd.roads.main
        self.crowd, self.street = crowd, street
        self.side = draws.integer(0, 1)
        self.length = draws.uniform(12, 22)
        self.start = draws.uniform(5.0, 24.0) if draws.chance(0.75) else draws.uniform(-38.0, -20.0)
        self.inner = street.kerb[self.side] - (2 * self.side - 1) * (
            2.3 if street.parking[self.side] else 0.2
        )

    def pose(self, s: float, out: float, turn: float = 0.0) -> tuple[float, float, float]:
        """Pose at `s` metres into the site, `out` metres from its edge."""
        x, y, heading = self.street.pose(self.start + s, self.inner + (2 * self.side - 1) * out)
        return x, y, heading + turn

    def add(
        self,
        it: Assembly,
        s: float,
        out: float,
        turn: float = 0.0,
        *,
        margin: float = 0.4,
        motion: Motion = "parked",
    ) -> bool:
        """Place something in the site unless it would stand on another street."""
        pose = self.pose(s, out, turn)
        if self.crowd.roads.on_street(pose[0], pose[1]) > 1:
            return False
        return self.crowd.add(it, pose, motion=motion, margin=margin)


def build_site(crowd: Crowd, left: dict[str, int]) -> None:
    """Place a site with what `left` still asks for, and take it off."""
    draws, site = crowd.draws, Site(crowd)
    for _ in range(min(left["construction vehicle"], 2)):
        for _ in range(6):
            it = machines.construction_vehicle(draws)
            half = it.centred()
            spot = (
                draws.uniform(half[0], max(half[0] + 0.5, site.length - half[0])),
                half[1] + draws.uniform(0.9, 2.5),
            )
            if site.add(it, *spot, math.pi * draws.integer(0, 1) + draws.normal(0, 0.25)):
                left["construction vehicle"] -= 1
                break
    _fence(draws, site, left)
    cones = min(left["traffic cone"], 7)
    for i in range(cones):
        it = props.traffic_cone(draws, tall=False if i else None)
        s = (i + 0.5) * site.length / max(cones, 1) + draws.normal(0, 0.2)
        left["traffic cone"] -= site.add(it, s, draws.normal(0.25, 0.08))
    for _ in range(min(left["debris"], 2)):
        left["debris"] -= _somewhere(draws, site, props.debris(draws))
    for _ in range(min(left["pedestrian"] // 2, draws.integer(0, 3))):
        left["pedestrian"] -= _somewhere(draws, site, figures.pedestrian(draws, "worker"), motion="stopped")
    for _ in range(min(left["movable object"], draws.integer(0, 1))):
        left["movable object"] -= _somewhere(draws, site, props.movable_object(draws, "pallet"))


def _fence(draws: Draws, site: Site, left: dict[str, int]) -> None:
    """A row of like barriers behind the cones, as long as they last."""
    count = min(left["barrier"], 6)
    variant = draws.choice(("concrete barrier", "plastic barrier", "construction fence"))
    first = props.barrier(draws, variant)
    paint = (first.colour, first.parts[0][10:13])
    s = draws.uniform(0.2, max(0.3, site.length - 2.6 * count))
    for i in range(count):
        it = (
            first
            if i == 0
            else props.barrier(draws, variant, paint=(paint[0], (paint[1][0], paint[1][1], paint[1][2])))
        )
        half = it.centred()
        s += half[1] + 0.05
        left["barrier"] -= site.add(it, s, 0.75, math.pi / 2, margin=0.02)
        s += half[1]


def _somewhere(draws: Draws, site: Site, it: Assembly, *, motion: Motion = "parked") -> bool:
    """Place something at a free spot of the site."""
    for _ in range(8):
        spot = (
            draws.uniform(0.5, site.length - 0.5),
            draws.uniform(1.4, _DEPTH),
            draws.uniform(-math.pi, math.pi),
        )
        if site.add(it, *spot, motion=motion):
            return True
    return False
