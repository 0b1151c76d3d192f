"""The simulator's voxels, masks and scenes against naive loops."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from simulator_worlds import daylight, flat_ground, random_solids, wall

from vlm_occ.data.simulator import egocentric, filling, labels, lidar, rendering, report, rig, scene
from vlm_occ.data.simulator.objects import BOX, ELLIPSOID, Solids
from vlm_occ.geometry import box_corners, points_in_boxes, project
from vlm_occ.types import FREE, OCC3D_CLASSES, TALK2OCC_CLASSES, CameraRig, VoxelGrid
from vlm_occ.voxels import voxels_in_box

GRID = VoxelGrid(origin=(-10.0, -8.0, -1.0), shape=(50, 40, 12))
LEVEL = torch.eye(4).double()
ROAD = OCC3D_CLASSES.index("driveable_surface")


def holds(solids: Solids, index: int, point: list[float]) -> bool:
    """Whether a point lies in a solid whose thin sides are thickened to half the samples' spacing."""
    local = (torch.tensor(point) - solids.centre[index]) @ solids.rotation[index]
    x, y, z = (local / solids.half_size[index].clamp(min=0.1)).tolist()
    shape = int(solids.shape[index])
    if shape == BOX:
        return max(abs(x), abs(y), abs(z)) <= 1
    return x * x + y * y + z * z <= 1 if shape == ELLIPSOID else x * x + y * y <= 1 and abs(z) <= 1


def test_semantics_equal_a_naive_loop_over_voxels_solids_and_samples() -> None:
    solids = random_solids(0, 12)
    solids = replace(
        solids,
        centre=solids.centre * torch.tensor([0.3, 0.25, 0.5]),
        half_size=solids.half_size.clamp(max=0.25),  # too small to be hollow
        instance=torch.arange(12) - 3,
        semantic=torch.arange(12),
    )
    solids = replace(solids, instance=solids.instance.clamp(min=-1))
    truth = filling.voxelise(solids, flat_ground(), LEVEL, GRID)
    volume = solids.half_size.clamp(min=0.1).prod(-1)
    generator = torch.Generator().manual_seed(0)
    filled = (truth.instance >= 0).nonzero()
    voxels = torch.cat([filled[::7], filled[::9] + 1, torch.randint(0, 12, (150, 3), generator=generator)])
    for x, y, z in torch.minimum(voxels, torch.tensor(GRID.shape) - 1).tolist():
        centre = GRID.center_of(torch.tensor([x, y, z])).tolist()
        inside = []
        for index in range(12):
            samples = (
                [centre[0] + 0.2 * i, centre[1] + 0.2 * j, centre[2] + 0.2 * k]
                for i in (-1, 0, 1)
                for j in (-1, 0, 1)
                for k in (-1, 0, 1)
            )
            if any(holds(solids, index, sample) for sample in samples):
                inside.append(index)
        expected = FREE if z != 2 else ROAD
        if inside:
            best = min(inside, key=lambda i: (int(solids.instance[i]) < 0, float(volume[i])))
            expected = best  # its semantic is its number
        assert int(truth.semantics[x, y, z]) == expected, (x, y, z, inside)


def test_a_large_object_is_a_shell_and_a_building_has_neither_inside_nor_floor() -> None:
    box = replace(
        wall(0.0), centre=torch.tensor([[0.1, 0.1, 1.25]]), half_size=torch.tensor([[4.0, 3.0, 1.3]])
    )
    truth = filling.voxelise(box, flat_ground(), LEVEL, GRID)
    middle, _ = GRID.index_of(torch.tensor([0.1, 0.1, 0.0]))
    x, y, _ = middle.tolist()
    assert (truth.semantics[x, y, :6] == FREE).all()
    assert truth.semantics[x, y].min() == int(box.semantic[0])  # the roof
    vehicle = replace(box, instance=torch.tensor([0]), semantic=torch.tensor([4]), centre=box.centre + 0.6)
    truth = filling.voxelise(vehicle, flat_ground(), LEVEL, GRID)
    solid = voxels_in_box(torch.tensor([0.7, 0.7, 1.85, 8.0, 6.0, 2.6, 0.0]), GRID)
    neighbours = [solid.roll(shift, axis) for axis in range(3) for shift in (-1, 1)]
    inner = torch.stack([solid, *neighbours]).all(0)
    assert torch.equal(truth.semantics == 4, solid & ~inner)
    assert torch.equal(truth.instance == 0, solid & ~inner)


@pytest.fixture(scope="module")
def seen() -> tuple[Solids, CameraRig, rendering.CameraRender, filling.VoxelTruth]:
    solids, cameras = random_solids(2), rig.nuscenes_rig((128, 352))
    render = rendering.render_cameras(
        solids, flat_ground(), LEVEL, cameras, daylight(), num_objects=20, seed=0
    )
    return solids, cameras, render, filling.voxelise(solids, flat_ground(), LEVEL, VoxelGrid())


def test_the_camera_mask_equals_a_naive_check_of_sampled_voxels(
    seen: tuple[Solids, CameraRig, rendering.CameraRender, filling.VoxelTruth],
) -> None:
    _, cameras, render, truth = seen
    grid = VoxelGrid()
    plane = egocentric.ground_plane(flat_ground(), LEVEL)
    mask = labels.camera_mask(truth, render, cameras, plane, grid)
    rays = rendering.camera_lines(cameras)
    direction = rays.base[:, None] + rays.position[:, None] * rays.step[:, None]
    ends = rays.origin[:, None] + direction * render.depth.reshape(len(rays.base), -1, 1)
    ends = ends[torch.isfinite(ends).all(-1)]
    generator = torch.Generator().manual_seed(1)
    chosen = torch.cat([(truth.semantics != FREE).nonzero()[::401], mask.nonzero()[::1999]])
    chosen = torch.cat(
        [chosen, torch.randint(0, 16, (40, 3), generator=generator) * torch.tensor([12, 12, 1])]
    )
    for index in chosen:
        x, y, z = index.tolist()
        centre = grid.center_of(index)
        expected = bool(((ends - centre).abs() < 0.2 - 1e-5).all(-1).any())
        doubtful = bool(((ends - centre).abs() < 0.2 + 1e-5).all(-1).any()) != expected
        point = centre.clone()
        if truth.ground[x, y, z]:
            point[2] = 0.01
        pixels, depths = project(point[None], cameras.intrinsics, cameras.ego_from_camera)
        for camera in range(6):
            u, v = round(pixels[camera, 0, 0].item()), int(pixels[camera, 0, 1].floor())
            if depths[camera, 0] > 0.1 and 0 <= u < 352 and 0 <= v < 128:
                limit = render.depth[camera, v, u]
                doubtful |= bool((depths[camera, 0] - limit).abs() < 1e-3)
                expected |= bool(depths[camera, 0] <= limit)
        assert doubtful or bool(mask[x, y, z]) == expected, (x, y, z)


def test_the_lidar_mask_equals_a_fine_walk_along_every_ray() -> None:
    grid = VoxelGrid()
    sweep = lidar.scan(random_solids(2), flat_ground(), LEVEL, seed=0)
    mask = labels.lidar_mask(sweep, grid)
    walked = torch.zeros(grid.shape, dtype=torch.bool)
    way = sweep.surface - sweep.origin
    distance = way.norm(dim=-1)
    for step in torch.arange(0, 60, 0.05):  # metres; steps miss the corners that rays clip
        going = step < distance
        index, inside = grid.index_of(sweep.origin + (step / distance[going])[:, None] * way[going])
        walked[tuple(index[inside].T)] = True
    assert (walked & ~mask).sum() < 1e-3 * mask.sum()  # rounding at faces
    assert (mask & ~walked).sum() < 0.02 * mask.sum()


def test_boxes_hold_their_points_pixels_and_voxels() -> None:
    simulation = scene.simulate_details(7, balanced=True, image_size=(128, 352))
    truth, render, sweep = simulation.labelled.labels, simulation.render, simulation.sweep
    assert render is not None and sweep is not None and len(truth.boxes) > 5
    rectangles = rendering.visible_boxes(render, len(truth.boxes))
    cameras = simulation.labelled.scene.rig
    for row, box in enumerate(truth.boxes):
        grown = box + torch.tensor([0, 0, 0, 0.2, 0.2, 0.2, 0])
        mine = sweep.surface[sweep.instance == row]
        assert points_in_boxes(mine, grown[None]).all()
        touching = voxels_in_box(grown, VoxelGrid())
        assert not ((simulation.voxels.instance == row) & ~touching).any()
        pixels, depths = project(box_corners(grown[None])[0], cameras.intrinsics, cameras.ego_from_camera)
        for camera in range(6):
            x0, y0, x1, y1 = rectangles[camera, row].tolist()
            if x0 == x0 and (depths[camera] > 0.5).all():
                low, high = pixels[camera].amin(0), pixels[camera].amax(0)
                assert x0 >= low[0] - 1 and y0 >= low[1] - 1 and x1 <= high[0] + 2 and y1 <= high[1] + 2
    assert (truth.visibility >= 0).all() and (truth.visibility <= 1).all()


def test_an_object_behind_a_wall_is_not_visible_and_in_front_it_is() -> None:
    ball = replace(
        wall(0.0),
        centre=torch.tensor([[25.0, 0.0, 1.0]]),
        half_size=torch.ones(1, 3),
        shape=torch.tensor([ELLIPSOID]),
        instance=torch.tensor([0]),
    )
    fields = ("centre", "rotation", "half_size", "shape", "colour", "semantic", "instance", "reflectance")
    cameras = rig.nuscenes_rig((128, 352))
    for distance, fraction in ((20.0, 0.0), (40.0, 1.0)):
        both = Solids(*(torch.cat([getattr(ball, n), getattr(wall(distance), n)]) for n in fields))
        render = rendering.render_cameras(
            both, flat_ground(), LEVEL, cameras, daylight(), num_objects=1, seed=0
        )
        assert render.covered[0] > 100
        share = render.visible[0] / render.covered[0]
        assert share.item() == pytest.approx(fraction, abs=0.01)


def test_a_seed_gives_the_same_scene_and_another_seed_another() -> None:
    first, again, other = (scene.simulate(seed, image_size=(64, 176), num_frames=2) for seed in (3, 3, 4))
    assert first.queries == again.queries and first.queries != other.queries
    for a, b in zip(first.scene.frames, again.scene.frames, strict=True):
        assert torch.equal(a.images, b.images)
        assert a.points is not None and b.points is not None and torch.equal(a.points, b.points)
    for name in ("semantics", "mask_lidar", "mask_camera", "boxes", "visibility", "num_points"):
        assert torch.equal(getattr(first.labels, name), getattr(again.labels, name))
    assert not torch.equal(first.labels.semantics, other.labels.semantics)
    assert first.scene.reference.timestamp == 0 and first.scene.frames[0].timestamp == -0.5


def test_sensors_can_be_left_out() -> None:
    bare = scene.simulate(5, cameras=False, num_frames=2, num_queries=2, num_situations=1)
    assert bare.scene.rig.names == () and bare.scene.reference.images.shape == (0, 3, 256, 704)
    assert not bare.labels.mask_camera.any() and bare.labels.mask_lidar.any()
    late = scene.simulate(5, lidar=False, num_frames=2, camera_frames=1, image_size=(32, 88), num_queries=0)
    assert [len(frame.images) for frame in late.scene.frames] == [0, 6]
    assert all(frame.points is None for frame in late.scene.frames)


def test_splits_share_no_seed() -> None:
    assert scene.split_seed("train", 5) == 1_000_005
    assert scene.split_seed("val", 0) == 50_000_000
    assert scene.split_seed("test", 1) == 60_000_001
    with pytest.raises(ValueError, match="expected 0 <= index < 1000000"):
        scene.split_seed("demo", 1_000_000)


def test_the_voxel_table_counts_what_fills_the_boxes() -> None:
    simulation = scene.simulate_details(12, balanced=True, cameras=False, lidar=False)
    truth = simulation.labelled.labels
    rows = report.voxel_table([simulation.labelled]).splitlines()[1:]
    assert sum(int(row[22:30]) for row in rows) == len(truth.boxes)
    first = int(truth.classes[0])
    counts = [
        int((voxels_in_box(box, VoxelGrid()) & (truth.semantics != FREE)).sum())
        for box in truth.boxes[truth.classes == first]
    ]
    row = next(row for row in rows if row.startswith(TALK2OCC_CLASSES[first]))
    assert int(row[30:40]) == round(sum(counts) / len(counts))
