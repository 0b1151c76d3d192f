"""The simulated world: its geometry, its motion and its statistics."""

from __future__ import annotations

import dataclasses
import itertools
from collections import Counter

import pytest
import torch
from torch import Tensor

from vlm_occ.data.simulator import world as world_module
from vlm_occ.data.simulator.assemblies import euler_rotations
from vlm_occ.data.simulator.census import TABLE_I
from vlm_occ.data.simulator.draws import PAINTS, Draws
from vlm_occ.data.simulator.machines import construction_vehicle
from vlm_occ.data.simulator.objects import BOX, ELLIPSOID, Ground, Solids
from vlm_occ.data.simulator.roads import RoadMap
from vlm_occ.data.simulator.surface import Placing
from vlm_occ.data.simulator.world import EGO_FRONT, EGO_HALF_WIDTH, EGO_REAR, World, build_world
from vlm_occ.geometry import box_iou_3d, to_box_frame
from vlm_occ.types import COLOURS, OCC3D_CLASSES, TALK2OCC_CLASSES

VEHICLES = {
    "car",
    "truck",
    "construction vehicle",
    "trailer",
    "emergency vehicle",
    "motorcycle",
    "bicycle",
    "bus",
}


@pytest.fixture(scope="module")
def worlds() -> list[World]:
    """Worlds as in Table I and balanced ones, with three frames."""
    return [build_world(seed, balanced=seed % 2 == 1, num_frames=3) for seed in range(16)]


@pytest.fixture(scope="module")
def many_labels() -> dict[bool, list[list[str]]]:
    """Class names of the objects of many worlds, as in Table I (False) and balanced (True)."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(world_module, "draw_ground", _bare_ground)  # half of the time, and no matter here
        return {
            balanced: [_names(build_world(seed, balanced=balanced)) for seed in range(100, 100 + count)]
            for balanced, count in ((False, 60), (True, 30))
        }


def _bare_ground(draws: Draws, roads: RoadMap, placing: Placing) -> Ground:
    return Ground(placing.height, placing.slope, (0.0, 0.0), 1.0, torch.zeros(1, 1), torch.zeros(1, 1, 3))


def _names(world: World) -> list[str]:
    return [TALK2OCC_CLASSES[i] for i in world.labels.tolist()]


def _surface_points(solids: Solids, index: Tensor) -> Tensor:
    """Points [P, S, 3] on the surfaces of some solids: corners of boxes, a fine net on the round ones."""
    u = torch.linspace(0, 2 * torch.pi, 65)[:-1]
    v = torch.linspace(0, torch.pi, 33)
    ring = torch.stack([torch.cos(u), torch.sin(u)], dim=-1)
    ball = torch.cat(
        [torch.sin(v)[:, None, None] * ring, torch.cos(v)[:, None, None].expand(-1, 64, 1)], -1
    ).reshape(-1, 3)
    tube = torch.cat([torch.cat([ring, torch.full((64, 1), z)], dim=-1) for z in (-1.0, 1.0)])
    corners = torch.tensor(list(itertools.product((-1.0, 1.0), repeat=3)))
    points = []
    for i in index.tolist():
        net = corners if solids.shape[i] == BOX else ball if solids.shape[i] == ELLIPSOID else tube
        points.append((net * solids.half_size[i]) @ solids.rotation[i].T + solids.centre[i])
    return torch.cat(points)


def _centred_at_ego(world: World, solids: Solids, boxes: Tensor) -> tuple[Solids, Tensor]:
    """Solids and boxes moved next to the origin, where float32 is exact enough for tests."""
    origin = world.ego_poses[-1, :3, 3].float()
    moved = boxes.clone()
    moved[:, :3] -= origin
    return dataclasses.replace(solids, centre=solids.centre - origin), moved


def test_the_same_seed_builds_the_same_world_and_another_seed_another() -> None:
    first, again, other = (
        build_world(3, num_frames=2),
        build_world(3, num_frames=2),
        build_world(4, num_frames=2),
    )
    for field in dataclasses.fields(World):
        a, b = getattr(first, field.name), getattr(again, field.name)
        if isinstance(a, Tensor):
            assert torch.equal(a, b), field.name
    for name in ("centre", "rotation", "colour"):
        assert torch.equal(getattr(first.solids_at(0), name), getattr(again.solids_at(0), name))
    assert torch.equal(first.ground.colour, again.ground.colour)
    assert first.variants == again.variants and first.places == again.places
    assert first.variants != other.variants


def test_the_reference_moment_is_the_same_for_a_longer_drive() -> None:
    drive, moment = build_world(8, num_frames=4), build_world(8)
    assert torch.equal(drive.ego_poses[-1:], moment.ego_poses)
    assert torch.equal(drive.boxes_at(3), moment.boxes_at(0))
    assert torch.equal(drive.solids_at(3).centre, moment.solids_at(0).centre)
    assert not torch.equal(drive.boxes_at(0), moment.boxes_at(0))


def test_boxes_are_tight_around_the_surfaces_of_their_parts(worlds: list[World]) -> None:
    for world in worlds[:4]:
        solids, boxes = _centred_at_ego(world, world.object_solids_at(2), world.boxes_at(2))
        for i in range(len(boxes)):
            points = _surface_points(solids, (solids.instance == i).nonzero()[:, 0])
            local = to_box_frame(points, boxes[i : i + 1])[0]
            half = boxes[i, 3:6] / 2
            assert (local.abs() <= half + 2e-3).all()
            # Touched on all six sides, up to the nets' spacing on round parts (1 - cos(pi/64) of the radius).
            assert (local.amax(0) >= half - 0.01).all() and (local.amin(0) <= -half + 0.01).all()


def test_every_object_stands_on_the_ground(worlds: list[World]) -> None:
    for world in worlds:
        solids, boxes = _centred_at_ego(world, world.object_solids_at(2), world.boxes_at(2))
        origin = world.ego_poses[-1, :3, 3].float()
        slope = torch.tensor(world.ground.slope)
        height = (
            world.ground.height
            + world.ground.slope[0] * origin[0]
            + world.ground.slope[1] * origin[1]
            - origin[2]
        )
        for i in range(len(boxes)):
            points = _surface_points(solids, (solids.instance == i).nonzero()[:, 0])
            above = points[:, 2] - (height + points[:, :2] @ slope)
            assert above.min().abs() < 0.01, world.variants[i]


def test_no_two_vehicles_overlap_at_any_frame(worlds: list[World]) -> None:
    for world in worlds:
        rows = [i for i, name in enumerate(_names(world)) if name in VEHICLES]
        pairs = torch.tensor(list(itertools.combinations(rows, 2)), dtype=torch.long).reshape(-1, 2)
        for frame in range(3):
            boxes = world.boxes_at(frame)
            overlaps = box_iou_3d(boxes[pairs[:, 0]], boxes[pairs[:, 1]])
            assert (overlaps < 1e-3).all()


def test_nothing_stands_in_the_way_of_the_ego(worlds: list[World]) -> None:
    length, middle = EGO_FRONT + EGO_REAR, (EGO_FRONT - EGO_REAR) / 2
    for world in worlds:
        for frame in range(3):
            pose, boxes = world.ego_poses[frame], world.boxes_at(frame)
            centre = pose[:3, :3] @ torch.tensor([middle, 0, 0.8], dtype=torch.float64) + pose[:3, 3]
            yaw = torch.atan2(pose[1, 0], pose[0, 0])
            size = torch.tensor([length, 2 * EGO_HALF_WIDTH, 1.6], dtype=torch.float64)
            ego = torch.cat([centre, size, yaw[None]]).float().expand(len(boxes), 7)
            assert box_iou_3d(ego, boxes).max() == 0


def test_objects_move_with_their_velocity_and_others_stay(worlds: list[World]) -> None:
    moved = 0
    for world in worlds:
        dt = (world.timestamps[2] - world.timestamps[1]).item()
        step = (world.boxes_at(2) - world.boxes_at(1))[:, :2]
        rate = world.tracks[:, 4].abs().float()
        speed = world.velocities.norm(dim=1)
        bend = 0.5 * rate * speed * dt**2 + 0.02  # an arc leaves its tangent by v w t^2 / 2
        assert ((step - world.velocities * dt).norm(dim=1) <= 1.5 * bend).all()
        for motion, v in zip(world.motions, speed.tolist(), strict=True):
            assert (v > 0) == (motion == "moving")
        moved += int((speed > 0).sum())
    assert moved > 50


def test_the_ego_drives_forward_along_its_heading(worlds: list[World]) -> None:
    distances = []
    for world in worlds:
        step = world.ego_poses[2, :3, 3] - world.ego_poses[1, :3, 3]
        heading = (
            world.ego_poses[1, :3, 0] + world.ego_poses[2, :3, 0]
        )  # the chord of an arc has the mean heading
        distances.append(step.norm().item())
        assert torch.linalg.cross(step, heading).norm() <= 1e-3 * step.norm()
        assert (step @ heading) >= 0
        rotation = world.ego_poses[2, :3, :3]
        assert torch.allclose(rotation @ rotation.T, torch.eye(3, dtype=torch.float64), atol=1e-9)
    assert min(distances) == 0 and 3 < max(distances) <= 6


def test_places_name_the_surface_under_the_object(worlds: list[World]) -> None:
    allowed = {
        "road": {"driveable_surface"},
        "junction": {"driveable_surface"},
        "kerb": {"driveable_surface"},
        "pavement": {"sidewalk"},
        "terrain": {"terrain", "other_flat"},
    }
    right = total = 0
    for world in worlds:
        ground = world.ground
        cells = ((world.boxes_at(2)[:, :2] - torch.tensor(ground.origin)) / ground.cell).long()
        surfaces = ground.semantic[cells[:, 0], cells[:, 1]].tolist()
        for place, surface in zip(world.places, surfaces, strict=True):
            right, total = right + (OCC3D_CLASSES[surface] in allowed[place]), total + 1
    assert right / total > 0.99


def test_class_frequencies_follow_table_i(many_labels: dict[bool, list[list[str]]]) -> None:
    counts = Counter(itertools.chain.from_iterable(many_labels[False]))
    total = sum(counts.values())
    for name, referents in zip(TALK2OCC_CLASSES, TABLE_I, strict=True):
        expected = referents / sum(TABLE_I)
        # Four deviations of a count whose objects come in groups of about five, and 15 % of placement loss.
        tolerance = 4 * (5 * expected / total) ** 0.5 + 0.15 * expected
        assert abs(counts[name] / total - expected) < tolerance, name
    assert all(8 <= len(names) <= 60 for names in many_labels[False])
    assert 18 <= total / len(many_labels[False]) <= 34


def test_balanced_worlds_hold_every_class_about_equally_often(
    many_labels: dict[bool, list[list[str]]],
) -> None:
    present = Counter(name for names in many_labels[True] for name in set(names))
    assert set(present) == set(TALK2OCC_CLASSES)
    assert min(present.values()) > 0.25 * len(many_labels[True])


def test_scenes_hold_unique_classes_and_several_of_one_class(
    many_labels: dict[bool, list[list[str]]],
) -> None:
    counts = [Counter(names) for names in many_labels[False]]
    assert sum(1 in count.values() for count in counts) > 0.8 * len(counts)
    assert sum(count["car"] >= 3 for count in counts) > 0.8 * len(counts)


def test_an_excavators_box_is_mostly_empty() -> None:
    shares = []
    for seed in range(20):
        it = construction_vehicle(Draws(seed), "excavator")
        low, high = (torch.tensor(corner) for corner in it.extent())
        points = low + (high - low) * torch.rand(4000, 3, generator=torch.Generator().manual_seed(seed))
        filled = torch.zeros(len(points), dtype=torch.bool)
        rotations = euler_rotations(torch.tensor([part[7:10] for part in it.parts]))
        for part, rotation in zip(it.parts, rotations, strict=True):  # a round part counts as its whole box
            local = (points - torch.tensor(part[1:4])) @ rotation
            filled |= (local.abs() <= torch.tensor(part[4:7])).all(-1)
        shares.append(filled.float().mean().item())
    assert sum(shares) / len(shares) < 0.3 and max(shares) < 0.5


def test_colours_are_the_paint_of_most_of_the_surface(worlds: list[World]) -> None:
    paints = torch.tensor([PAINTS[name] for name in COLOURS])
    right = total = 0
    for world in worlds:
        for i, name in enumerate(_names(world)):
            if name != "car":
                continue
            mine = world.parts.instance == i
            half = world.parts.half_size[mine]
            area = half[:, 0] * half[:, 1] + half[:, 1] * half[:, 2] + half[:, 2] * half[:, 0]
            biggest = world.parts.colour[mine][area.argmax()]
            nearest = (paints - biggest).norm(dim=1).argmin()
            right, total = right + int(nearest == world.colours[i]), total + 1
    assert total > 60 and right / total > 0.95


def test_a_world_without_frames_is_refused() -> None:
    with pytest.raises(ValueError, match="at least 1"):
        build_world(0, num_frames=0)
