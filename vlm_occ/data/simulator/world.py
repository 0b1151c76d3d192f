"""A world to drive through: ground, background, objects and the ego's way, all from one seed."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from vlm_occ.data.simulator.appearance import Appearance, draw_appearance
from vlm_occ.data.simulator.assemblies import SEMANTIC_OF_LABEL, Part, tight_boxes, to_solids
from vlm_occ.data.simulator.census import ObjectSize, draw_counts, size_of
from vlm_occ.data.simulator.clearance import FRAME_SECONDS, Clearance, Placed, arc
from vlm_occ.data.simulator.draws import Draws
from vlm_occ.data.simulator.objects import Ground, Motion, Place, Solids
from vlm_occ.data.simulator.placement import Crowd
from vlm_occ.data.simulator.population import populate
from vlm_occ.data.simulator.roads import Lane, RoadMap, draw_road_map
from vlm_occ.data.simulator.scenery import Scenery
from vlm_occ.data.simulator.sites import build_site
from vlm_occ.data.simulator.surface import Placing, draw_ground
from vlm_occ.geometry import rigid, rotation_z
from vlm_occ.types import OCC3D_CLASSES

_SAFE_FRAMES = 4
"""Objects keep clear of one another over so many frames, so that drives up to that length share one world."""

MANMADE, VEGETATION = OCC3D_CLASSES.index("manmade"), OCC3D_CLASSES.index("vegetation")
EGO_FRONT, EGO_REAR, EGO_HALF_WIDTH = 3.0, 1.1, 0.95
"""The ego vehicle around its origin (the middle of the rear axle, on the ground), metres."""


@dataclass(frozen=True)
class World(Appearance):
    """A simulated drive at `timestamps`, the last of them the reference. World frame unless said."""

    seed: int
    ground: Ground
    ego_poses: Tensor  # float64 [T, 4, 4] world_from_ego; the origin is on the ground under the rear axle
    timestamps: Tensor  # float64 [T] seconds, the last is 0
    labels: Tensor  # long [M], index in TALK2OCC_CLASSES
    variants: tuple[str, ...]
    colours: Tensor  # long [M], index in COLOURS, -1 where none is dominant
    sizes: tuple[ObjectSize, ...]
    velocities: Tensor  # float32 [M, 2] m/s at the reference
    motions: tuple[Motion, ...]
    places: tuple[Place, ...]
    calibration_seed: int  # for the rig's jitter
    ego_height_jitter: float  # metres that the rig sits higher than nominal
    parts: Solids  # the objects' parts, each in the frame of its object
    background: Solids  # instance -1
    tracks: Tensor  # float64 [M, 5]: x, y, heading at the reference, speed, yaw rate
    plane: Tensor  # float64 [3, 3]: rotation that takes the upright to the ground's normal

    def poses_at(self, frame: int) -> Tensor:
        """world_from_object [M, 4, 4] (float64) at a frame."""
        time = self.timestamps[frame]
        x, y, yaw, speed, rate = self.tracks.unbind(-1)
        turn = 0.5 * rate * time
        chord = speed * time * torch.sinc(turn / math.pi)
        x, y = x + chord * torch.cos(yaw + turn), y + chord * torch.sin(yaw + turn)
        z = self.ground.height + self.ground.slope[0] * x + self.ground.slope[1] * y
        return rigid(self.plane @ rotation_z(yaw + 2 * turn), torch.stack([x, y, z], dim=-1))

    def object_solids_at(self, frame: int) -> Solids:
        """The objects' solids at a frame, without the background."""
        poses = self.poses_at(frame)[self.parts.instance].float()  # [P, 4, 4]
        rotation = poses[:, :3, :3]
        centre = (rotation @ self.parts.centre[..., None])[..., 0] + poses[:, :3, 3]
        turned = rotation @ self.parts.rotation
        p = self.parts
        return Solids(centre, turned, p.half_size, p.shape, p.colour, p.semantic, p.instance, p.reflectance)

    def solids_at(self, frame: int) -> Solids:
        """Everything solid at a frame: the objects', then the background's solids."""
        a, b = self.object_solids_at(frame), self.background
        fields = ("centre", "rotation", "half_size", "shape", "colour", "semantic", "instance", "reflectance")
        return Solids(*(torch.cat([getattr(a, name), getattr(b, name)]) for name in fields))

    def boxes_at(self, frame: int) -> Tensor:
        """Tight upright boxes [M, 7] (float32) around the objects' parts at a frame."""
        rotation = self.poses_at(frame)[:, :3, :3]
        return tight_boxes(
            self.object_solids_at(frame), torch.atan2(rotation[:, 1, 0], rotation[:, 0, 0]).float()
        )


def build_world(seed: int, *, balanced: bool = False, num_frames: int = 1) -> World:
    """The world of a seed; `balanced` makes every class about equally frequent over seeds.

    The reference moment does not depend on `num_frames` up to 4.

    Errors: ValueError where `num_frames` is below 1.
    """
    if num_frames < 1:
        raise ValueError(f"num_frames = {num_frames}, expected at least 1 (the reference frame)")
    draws = Draws(seed)
    roads = draw_road_map(draws)
    lane, (x, y, yaw), speed, rate = _draw_ego(draws, roads)
    clearance = Clearance(max(num_frames, _SAFE_FRAMES))
    middle, half = (EGO_FRONT - EGO_REAR) / 2, (EGO_FRONT + EGO_REAR) / 2
    past = [arc(x, y, yaw, speed, rate, time) for time in clearance.times]
    body = [
        (px + middle * math.cos(a), py + middle * math.sin(a), math.cos(a), math.sin(a)) for px, py, a in past
    ]
    clearance.take([(*pose, half, EGO_HALF_WIDTH) for pose in body])
    crowd, scenery = Crowd(draws, roads, clearance, lane, speed), Scenery(draws, roads, clearance)
    counts = draw_counts(draws, balanced=balanced)
    if counts["traffic cone"] + counts["barrier"] > 2 or (
        counts["construction vehicle"] and draws.chance(0.6)
    ):
        build_site(crowd, counts)
    scenery.build()
    scenery.furnish()
    scenery.horizon()
    populate(crowd, counts)
    return _to_world(draws, seed, roads, crowd.objects, scenery, past[num_frames - 1 :: -1])


def _draw_ego(draws: Draws, roads: RoadMap) -> tuple[Lane, tuple[float, float, float], float, float]:
    """The ego's lane, its pose (x, y, heading), speed and yaw rate at the reference, in the layout frame."""
    lane = draws.choice([lane for lane in roads.main.lanes if lane.direction > 0])
    pose = roads.main.pose(0.0, lane.offset)
    speed = 0.0 if draws.chance(0.2) else draws.uniform(1.0, 12.0)
    if roads.junction is not None and draws.chance(0.5):
        turning = _turning(draws, roads, lane, roads.junction)
        if turning is not None:
            pose, radius = turning
            speed = min(speed, draws.uniform(2.0, 6.0))
            return lane, pose, speed, speed / radius
    return lane, pose, speed, speed * roads.main.curvature / (1 - roads.main.curvature * lane.offset)


def _turning(
    draws: Draws, roads: RoadMap, lane: Lane, junction: float
) -> tuple[tuple[float, float, float], float] | None:
    """A pose on the way round a corner and the signed radius; None where no turn is near."""
    side, other = draws.sign(), roads.streets[1]
    exits = [lane for lane in other.lanes if lane.direction == side]
    if not exits or abs(junction) > 12 or (other.end if side > 0 else -other.start) < 20:
        return None
    radius = draws.uniform(8, 11) if side == roads.handed * -1 else draws.uniform(5, 7)
    turned = draws.uniform(0.15, 1.3)
    entry = junction - draws.choice(exits).offset - radius
    x, y = entry + radius * math.sin(turned), lane.offset + side * radius * (1 - math.cos(turned))
    return (x, y, side * turned), side * radius


def _to_world(
    draws: Draws,
    seed: int,
    roads: RoadMap,
    placed: list[Placed],
    scenery: Scenery,
    ego: list[tuple[float, float, float]],
) -> World:
    """Turn and move the layout into the world frame and make tensors of it."""
    shift = (draws.uniform(-500, 500), draws.uniform(-500, 500))
    slope = (draws.normal(0, 0.008), draws.normal(0, 0.008))
    height = draws.uniform(-3, 3) - slope[0] * shift[0] - slope[1] * shift[1]
    placing = Placing(draws.uniform(-math.pi, math.pi), shift, height, slope)
    ground = draw_ground(draws, roads, placing)
    plane = _tilt(slope)
    tracks = torch.tensor(
        [(*placing.pose(o.x, o.y, o.yaw), o.speed, o.yaw_rate) for o in placed], dtype=torch.float64
    ).reshape(-1, 5)
    heading = torch.stack([torch.cos(tracks[:, 2]), torch.sin(tracks[:, 2])], dim=-1)
    return World(
        seed=seed,
        ground=ground,
        **vars(draw_appearance(draws)),
        ego_poses=_ego_poses(ego, placing, plane),
        timestamps=(torch.arange(len(ego), dtype=torch.float64) - (len(ego) - 1)) * FRAME_SECONDS,
        labels=torch.tensor([o.assembly.label for o in placed], dtype=torch.long),
        variants=tuple(o.assembly.variant for o in placed),
        colours=torch.tensor([o.assembly.colour for o in placed], dtype=torch.long),
        sizes=tuple(size_of(o.assembly.label, o.assembly.size()) for o in placed),
        velocities=(heading * tracks[:, 3:4]).float(),
        motions=tuple(o.motion for o in placed),
        places=tuple(roads.place_of(o.x, o.y, moving=o.speed > 0) for o in placed),
        calibration_seed=draws.integer(0, 2**30),
        ego_height_jitter=draws.normal(0.0, 0.04),
        parts=_object_parts(placed),
        background=_background(scenery, placing, plane),
        tracks=tracks,
        plane=plane,
    )


def _object_parts(placed: list[Placed]) -> Solids:
    """The objects' solids, each in the frame of its object."""
    parts: list[Part] = [part for o in placed for part in o.assembly.parts]
    instance = [i for i, o in enumerate(placed) for _ in o.assembly.parts]
    semantic = [SEMANTIC_OF_LABEL[placed[i].assembly.label] for i in instance]
    return to_solids(parts, semantic=semantic, instance=instance)


def _ego_poses(ego: list[tuple[float, float, float]], placing: Placing, plane: Tensor) -> Tensor:
    """world_from_ego [T, 4, 4] (float64) of poses in the layout frame, on the ground."""
    x, y, yaw = torch.tensor([placing.pose(*pose) for pose in ego], dtype=torch.float64).unbind(
        -1
    )  # [T] each
    z = placing.height + placing.slope[0] * x + placing.slope[1] * y
    return rigid(plane @ rotation_z(yaw), torch.stack([x, y, z], dim=-1))


def _background(scenery: Scenery, placing: Placing, plane: Tensor) -> Solids:
    """The background's solids in the world frame, tilted with the ground as the objects are."""
    x, y, yaw = placing.pose(0.0, 0.0, 0.0)
    parts = scenery.manmade.parts + scenery.vegetation.parts
    semantic = [MANMADE] * len(scenery.manmade.parts) + [VEGETATION] * len(scenery.vegetation.parts)
    local = to_solids(parts, semantic=semantic, instance=[-1] * len(parts))
    turn = plane @ rotation_z(torch.tensor(yaw, dtype=torch.float64))
    origin = torch.tensor(
        [x, y, placing.height + placing.slope[0] * x + placing.slope[1] * y], dtype=torch.float64
    )
    centre = local.centre.double() @ turn.T + origin
    return replace(local, centre=centre.float(), rotation=turn.float() @ local.rotation)


def _tilt(slope: tuple[float, float]) -> Tensor:
    """The smallest rotation [3, 3] (float64) that takes z to the normal of a slope (Rodrigues)."""
    normal = torch.tensor([-slope[0], -slope[1], 1.0], dtype=torch.float64)
    a, b, c = (normal / normal.norm()).tolist()
    k = 1 / (1 + c)
    rows = [[1 - k * a * a, -k * a * b, a], [-k * a * b, 1 - k * b * b, b], [-a, -b, c]]
    return torch.tensor(rows, dtype=torch.float64)
