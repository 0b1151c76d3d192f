"""Who is in a world: the objects that the census asks for, each placed where such an object belongs."""

from __future__ import annotations

import math
from collections.abc import Callable

from vlm_occ.data.simulator import cycles, emergency, figures, lorries, machines, props, vehicles
from vlm_occ.data.simulator.assemblies import Assembly
from vlm_occ.data.simulator.clearance import Placed, arc
from vlm_occ.data.simulator.draws import Draws
from vlm_occ.data.simulator.objects import Motion
from vlm_occ.data.simulator.placement import FAR, NEAR, Crowd

_TRIES = 12


def populate(crowd: Crowd, left: dict[str, int]) -> None:
    """Place `left` objects of each class, the bulky ones first; what finds no room is left out."""
    _trailers(crowd, left)
    builders: dict[str, Callable[[Draws], Assembly]] = {
        "bus": lorries.bus,
        "construction vehicle": machines.construction_vehicle,
        "truck": lorries.truck,
        "emergency vehicle": emergency.emergency,
        "bicycle rack": cycles.bicycle_rack,
    }
    for name, build in builders.items():
        for _ in range(left[name]):
            _place(crowd, build(crowd.draws), _heavy if name != "bicycle rack" else _rack)
    for _ in range(left["car"]):
        _place(crowd, vehicles.car(crowd.draws), _car)
    _barriers(crowd, left["barrier"])
    for _ in range(left["traffic cone"]):
        _place(crowd, props.traffic_cone(crowd.draws), _cone)
    for name in ("motorcycle", "bicycle"):
        for _ in range(left[name]):
            _two_wheeler(crowd, name)
    _people(crowd, left)
    for _ in range(left["movable object"]):
        _place(crowd, props.movable_object(crowd.draws), _movable)
    for _ in range(left["debris"]):
        _place(crowd, props.debris(crowd.draws), _debris)
    for _ in range(left["animal"]):
        walking = crowd.draws.chance(0.5)
        it = figures.animal(crowd.draws, walking=walking)
        for _ in range(_TRIES):
            if _animal(crowd, it, walking=walking):
                break


def _place(crowd: Crowd, it: Assembly, way: Callable[[Crowd, Assembly], bool]) -> None:
    """Try a way of placing an object a few times."""
    for _ in range(_TRIES):
        if way(crowd, it):
            return


def _car(crowd: Crowd, it: Assembly) -> bool:
    way = crowd.draws.weighted({"lane": 0.45, "kerb": 0.4, "lot": 0.3})
    if way == "kerb" and crowd.at_kerb(it):
        return True
    return crowd.in_lot(it) if way == "lot" else crowd.in_lane(it)


def _heavy(crowd: Crowd, it: Assembly) -> bool:
    """Lorries, buses, machines and emergency vehicles: driving, at the kerb, or off the road."""
    draws = crowd.draws
    if it.variant in ("excavator", "wheel loader", "dumper", "mobile crane"):
        way = draws.weighted({"open": 0.6, "kerb": 0.2, "lane": 0.2 if it.variant != "excavator" else 0.0})
        turned = True
    else:
        way, turned = draws.weighted({"lane": 0.6, "kerb": 0.3, "open": 0.1}), False
    if way == "open":
        return crowd.off_road(it, turned=turned)
    return crowd.at_kerb(it, stopping=it.variant.endswith("bus")) if way == "kerb" else crowd.in_lane(it)


def _rack(crowd: Crowd, it: Assembly) -> bool:
    return crowd.stand_on_pavement(it, along=True, low=0.45) or crowd.off_road(it, spread=2.0)


def _cone(crowd: Crowd, it: Assembly) -> bool:
    """A cone on the road near a kerb, or on the pavement's edge."""
    draws, street = crowd.draws, crowd.roads.main
    if draws.chance(0.3):
        return crowd.stand_on_pavement(it, along=True, low=0.0, high=0.4)
    side = draws.integer(0, 1)
    offset = street.kerb[side] - (2 * side - 1) * draws.uniform(0.3, 2.2)
    x, y, heading = street.pose(draws.uniform(NEAR, FAR), offset)
    if crowd.roads.on_street(x, y) > 1:
        return False
    return crowd.add(it, (x, y, heading), motion="parked", margin=0.4)


def _debris(crowd: Crowd, it: Assembly) -> bool:
    if crowd.draws.chance(0.4):
        return _on_road(crowd, it)
    return crowd.off_road(it, spread=4.0, turned=True)


def _on_road(crowd: Crowd, it: Assembly) -> bool:
    """In the gutter or in a lane."""
    draws, street = crowd.draws, crowd.roads.main
    offset = draws.uniform(street.kerb[0] + 0.8, street.kerb[1] - 0.8)
    x, y, _ = street.pose(draws.uniform(NEAR, FAR), offset)
    return crowd.add(it, (x, y, draws.uniform(-3, 3)), motion="parked")


def _movable(crowd: Crowd, it: Assembly) -> bool:
    """Bins stand at the back of the pavement, in rows; other things anywhere on it."""
    if it.variant in ("wheelie bin", "skip"):
        return crowd.stand_on_pavement(it, along=False, low=0.55)
    return crowd.stand_on_pavement(it, along=crowd.draws.chance(0.5), low=0.1)


def _animal(crowd: Crowd, it: Assembly, *, walking: bool) -> bool:
    if it.variant == "dog":
        return crowd.on_pavement(it, walking=walking)
    return crowd.off_road(it, spread=14.0, turned=True, motion="stopped")


def _two_wheeler(crowd: Crowd, name: str) -> None:
    """A cycle with its rider on the road, or one left on the pavement or at the kerb."""
    draws = crowd.draws
    ridden = draws.chance(0.55)
    it = (
        cycles.bicycle(draws, ridden=ridden) if name == "bicycle" else cycles.motorcycle(draws, ridden=ridden)
    )
    for _ in range(_TRIES):
        if ridden:
            found = crowd.near_kerb_side(it)
        elif name == "motorcycle" and draws.chance(0.6):
            found = crowd.at_kerb(it)
        else:
            found = crowd.stand_on_pavement(
                it, along=draws.chance(0.6), low=0.0 if draws.chance(0.5) else 0.6
            )
        if found:
            return


def _trailers(crowd: Crowd, left: dict[str, int]) -> None:
    """Trailers behind tractors and cars, or left alone."""
    draws = crowd.draws
    for _ in range(left["trailer"]):
        for _ in range(_TRIES):
            if left["truck"] > 0 and draws.chance(0.45):
                puller, it = lorries.tractor(draws), lorries.trailer(draws, "semi-trailer", coupled=True)
                if _coupled(crowd, puller, it, gap=0.12):
                    left["truck"] -= 1
                    break
            elif left["car"] > 0 and draws.chance(0.15):
                if _coupled(crowd, vehicles.car(draws), lorries.trailer(draws, "car trailer"), gap=0.08):
                    left["car"] -= 1
                    break
            else:
                it = lorries.trailer(draws)
                if crowd.at_kerb(it) if draws.chance(0.5) else crowd.off_road(it):
                    break


def _coupled(crowd: Crowd, puller: Assembly, trailer: Assembly, *, gap: float) -> bool:
    """A vehicle in a lane with a trailer behind it, on the same arc."""
    flow = crowd.draw_flow()
    found = crowd.lane_pose(flow, crowd.draws.uniform(NEAR, FAR))
    if found is None:
        return False
    (x, y, yaw), rate = found
    front, back = puller.centred(), trailer.centred()
    curvature = flow.street.curvature * flow.lane.direction
    distance = front[0] + gap + back[0]
    behind = arc(x, y, yaw, -1.0, -curvature, distance)
    motion: Motion = "moving" if flow.speed > 0 else "stopped"
    poses = ((puller, front, (x, y, yaw)), (trailer, back, behind))
    return crowd.add_group([Placed(a, h, *p, flow.speed, rate, motion) for a, h, p in poses])


def _barriers(crowd: Crowd, count: int) -> None:
    """Rows of like barriers along a kerb or a lane line."""
    draws = crowd.draws
    while count > 0:
        row = min(count, draws.integer(2, 6))
        variant = draws.choice(("concrete barrier", "plastic barrier", "construction fence"))
        first = props.barrier(draws, variant)
        for _ in range(_TRIES):
            if barrier_row(crowd, row, variant, first, draws.uniform(NEAR, FAR - 8)):
                break
        count -= row


def barrier_row(crowd: Crowd, count: int, variant: str, first: Assembly, along: float) -> bool:
    """Barriers end to end from `along`, 0.3-2 m inside a kerb or on the pavement's edge."""
    draws, street = crowd.draws, crowd.roads.main
    side = draws.integer(0, 1)
    offset = street.kerb[side] - (2 * side - 1) * draws.uniform(-0.6, 2.0)
    group: list[Placed] = []
    for i in range(count):
        it = first if i == 0 else props.barrier(draws, variant, paint=(first.colour, _paint_of(first)))
        half = it.centred()
        along += half[1]
        x, y, heading = street.pose(along, offset)
        along += half[1] + 0.08
        if crowd.roads.on_street(x, y) > 1:
            return False
        group.append(Placed(it, half, x, y, heading + math.pi / 2, 0.0, 0.0, "parked"))
    return crowd.add_group(group, margin=0.3)


def _paint_of(it: Assembly) -> tuple[float, float, float]:
    part = it.parts[0]
    return (part[10], part[11], part[12])


def _people(crowd: Crowd, left: dict[str, int]) -> None:
    """People alone, in talking groups, walking together, crossing, or pushing something."""
    draws, count = crowd.draws, left["pedestrian"]
    while count > 0:
        way = draws.weighted({"alone": 0.5, "group": 0.22, "crossing": 0.18, "pushing": 0.05, "dog": 0.05})
        if way == "group" and count > 1:
            size = min(count, draws.integer(2, 3))
            _group(crowd, size)
            count -= size
        elif way == "pushing" and left["movable object"] > 0:
            if _together(
                crowd, props.movable_object(draws, draws.choice(("pushchair", "trolley"))), ahead=0.75
            ):
                left["movable object"] -= 1
            count -= 1
        elif way == "dog" and left["animal"] > 0:
            if _together(crowd, figures.animal(draws, "dog", walking=True), ahead=0.6):
                left["animal"] -= 1
            count -= 1
        else:
            walking = draws.chance(0.6)
            it = figures.pedestrian(draws, walking=walking)
            for _ in range(_TRIES):
                if way == "crossing" and crowd.crossing_road(it, walking=walking):
                    break
                if way != "crossing" and crowd.on_pavement(it, walking=walking):
                    break
            count -= 1


def _group(crowd: Crowd, size: int) -> None:
    """Two or three people who stand and talk, or walk side by side."""
    draws = crowd.draws
    walking = draws.chance(0.5)
    people = [figures.pedestrian(draws, walking=walking) for _ in range(size)]
    for _ in range(_TRIES):
        found = crowd.pavement_pose(low=0.2, high=0.85)
        if found is None:
            continue
        (x, y, heading), _ = found
        heading += math.pi * draws.integer(0, 1)
        speed = draws.uniform(0.7, 1.5) if walking else 0.0
        group: list[Placed] = []
        for i, it in enumerate(people):
            if walking:
                out = (i - (size - 1) / 2) * 0.85
                pose = (x - out * math.sin(heading), y + out * math.cos(heading), heading)
            else:
                angle = heading + 2 * math.pi * i / size
                pose = (x + 0.55 * math.cos(angle), y + 0.55 * math.sin(angle), angle + math.pi)
            motion: Motion = "moving" if walking else "stopped"
            group.append(Placed(it, it.centred(), *pose, speed, 0.0, motion))
        if not any(crowd.roads.on_street(p.x, p.y, margin=0.2) for p in group) and crowd.add_group(group):
            return


def _together(crowd: Crowd, thing: Assembly, *, ahead: float) -> bool:
    """A walker with a pushchair or a trolley in front, or with a dog."""
    draws = crowd.draws
    person = figures.pedestrian(draws, "adult", walking=True)
    speed = draws.uniform(0.7, 1.4)
    for _ in range(_TRIES):
        found = crowd.pavement_pose(low=0.2, high=0.8)
        if found is None:
            continue
        (x, y, heading), _ = found
        heading += math.pi * draws.integer(0, 1)
        half, own = thing.centred(), person.centred()
        reach = own[0] + half[0] * 0.95 + ahead * 0.1
        front = (x + reach * math.cos(heading), y + reach * math.sin(heading), heading)
        group = [Placed(person, own, x, y, heading, speed, 0.0, "moving")]
        group.append(Placed(thing, half, *front, speed, 0.0, "moving"))
        if crowd.add_group(group):
            return True
    return False
