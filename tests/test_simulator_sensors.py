"""The simulator's sensors and labels against brute force and closed forms."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from simulator_worlds import daylight, flat_ground, random_solids, wall
from torch import Tensor

from vlm_occ.data.simulator import egocentric, lidar, rendering, rig, shadows
from vlm_occ.data.simulator.objects import BOX, CYLINDER, ELLIPSOID, Solids
from vlm_occ.data.simulator.scanlines import cast, covered_samples
from vlm_occ.data.simulator.spans import Scanlines
from vlm_occ.geometry import project
from vlm_occ.types import CAMERAS

SMALL = (48, 132)


def entry(solids: Solids, index: int, origin: Tensor, ray: Tensor) -> tuple[Tensor, Tensor]:
    """Parameters [N] (float64) at which rays [N, 3] enter a solid, and whether they do: textbook tests."""
    scale = solids.rotation[index].double() / solids.half_size[index].double()
    o, d = (origin - solids.centre[index]).double() @ scale, ray.double() @ scale
    slabs = torch.stack([(-1 - o) / d, (1 - o) / d])
    enter, leave = slabs.amin(0), slabs.amax(0)
    shape = int(solids.shape[index])
    if shape != BOX:
        axes = [0, 1, 2] if shape == ELLIPSOID else [0, 1]
        a, b, c = (d[:, axes] ** 2).sum(-1), (o * d)[:, axes].sum(-1), (o[:, axes] ** 2).sum(-1) - 1
        root = (b * b - a * c).clamp(min=0).sqrt()
        miss = b * b < a * c
        low = torch.where(miss, torch.inf, (-b - root) / a)[:, None]
        high = torch.where(miss, -torch.inf, (-b + root) / a)[:, None]
        keep = [] if shape == ELLIPSOID else [2]
        enter, leave = torch.cat([enter[:, keep], low], 1), torch.cat([leave[:, keep], high], 1)
    enter, leave = enter.amax(-1), leave.amin(-1)
    return enter, (enter < leave) & (enter > 0)


def nearest_by_brute_force(solids: Solids, origin: Tensor, ray: Tensor) -> tuple[Tensor, Tensor]:
    """1 / t [N] and solid [N] of the nearest hits of rays, solid by solid."""
    best, which = torch.zeros(len(ray), dtype=torch.float64), torch.full((len(ray),), -1)
    for index in range(len(solids.centre)):
        enter, hit = entry(solids, index, origin, ray)
        nearer = hit & (1 / enter > best)
        best, which = torch.where(nearer, 1 / enter, best), torch.where(nearer, index, which)
    return best, which


def all_rays(lines: Scanlines) -> tuple[Tensor, Tensor]:
    """Origins and rays [L * S, 3] of scanlines."""
    ray = lines.base[:, None] + lines.position[:, None] * lines.step[:, None]
    return lines.origin[:, None].expand_as(ray).reshape(-1, 3), ray.reshape(-1, 3)


@pytest.mark.parametrize(("seed", "near"), [(0, 3.0), (1, 3.0), (2, 0.5)])
def test_camera_hits_equal_brute_force_over_all_solids(seed: int, near: float) -> None:
    solids, cameras = random_solids(seed, near=near), rig.nuscenes_rig(SMALL, calibration_seed=seed)
    lines = rendering.camera_lines(cameras)
    hits = cast(solids, lines, rendering.camera_candidates(solids, cameras), chunk=5000)
    inverse, which = nearest_by_brute_force(solids, *all_rays(lines))
    assert (which >= 0).sum() > 3000
    assert (hits.solid.flatten() != which).float().mean() < 1e-4  # ties at edges
    same = hits.solid.flatten() == which
    torch.testing.assert_close(hits.inverse.flatten()[same].double(), inverse[same], rtol=2e-5, atol=1e-9)


def test_lidar_hits_equal_brute_force_over_all_solids() -> None:
    solids, lines = random_solids(5), lidar.lidar_lines()
    hits = cast(solids, lines, lidar.lidar_candidates(solids, lines.origin[0]))
    inverse, which = nearest_by_brute_force(solids, *all_rays(lines))
    assert (which >= 0).sum() > 3000
    assert (hits.solid.flatten() != which).float().mean() < 1e-4
    same = hits.solid.flatten() == which
    torch.testing.assert_close(hits.inverse.flatten()[same].double(), inverse[same], rtol=2e-5, atol=1e-9)


def test_covered_samples_count_each_ray_of_a_group_once() -> None:
    solids, cameras = random_solids(3), rig.nuscenes_rig(SMALL)
    solids = replace(solids, shape=solids.shape.where(solids.shape != CYLINDER, BOX))
    lines = rendering.camera_lines(cameras)
    hits = cast(solids, lines, rendering.camera_candidates(solids, cameras))
    covered = covered_samples(hits, solids.instance, num_groups=20)
    origin, ray = all_rays(lines)
    for group in range(20):
        met = torch.zeros(len(ray), dtype=torch.bool)
        for index in (solids.instance == group).nonzero()[:, 0].tolist():
            met |= entry(solids, index, origin, ray)[1]
        assert abs(int(met.sum()) - int(covered[group])) <= 1


def test_the_face_of_a_hit_is_the_one_its_point_lies_on() -> None:
    solids, cameras = random_solids(4), rig.nuscenes_rig(SMALL)
    lines = rendering.camera_lines(cameras)
    hits = cast(solids, lines, rendering.camera_candidates(solids, cameras))
    origin, ray = all_rays(lines)
    flat = ((hits.solid >= 0) & (hits.face < 6)).flatten()
    solid, face = hits.solid.flatten()[flat].long(), hits.face.flatten()[flat].long()
    point = origin[flat] + ray[flat] / hits.inverse.flatten()[flat, None]
    local = ((point - solids.centre[solid])[:, None] @ solids.rotation[solid])[:, 0] / solids.half_size[solid]
    along = local.gather(1, (face // 2)[:, None])[:, 0]
    torch.testing.assert_close(along, 2.0 * (face % 2) - 1, rtol=0, atol=1e-3)


def test_a_wall_has_its_distance_as_depth_and_the_sky_none() -> None:
    cameras = rig.nuscenes_rig((256, 704))
    render = rendering.render_cameras(
        wall(20.0), flat_ground(), torch.eye(4).double(), cameras, daylight(), num_objects=0, seed=0
    )
    assert torch.isinf(render.depth[3, 0]).all()  # behind, above the horizon
    pose, intrinsics = cameras.ego_from_camera[0], cameras.intrinsics[0]
    for u, v, axis, plane in (
        (352, 60, 0, 20.0),
        (600, 70, 0, 20.0),
        (352, 250, 2, 0.0),
    ):  # wall, wall, ground
        ray = pose[:3, :3] @ torch.linalg.inv(intrinsics) @ torch.tensor([float(u), float(v), 1.0])
        expected = (plane - pose[axis, 3]) / ray[axis]
        assert render.depth[0, v, u].item() == pytest.approx(float(expected), rel=1e-5)


def test_the_rig_is_the_keyframes(real_keyframe: Path) -> None:
    cameras = json.loads((real_keyframe / "keyframe.json").read_text())["cams"]
    nominal = rig.nuscenes_rig(rig.NATIVE_SIZE)
    for index, name in enumerate(CAMERAS):
        torch.testing.assert_close(
            nominal.intrinsics[index], torch.tensor(cameras[name]["K"]), rtol=0, atol=0.1
        )
        torch.testing.assert_close(
            nominal.ego_from_camera[index], torch.tensor(cameras[name]["cam2ego"]), rtol=0, atol=1e-3
        )


def test_a_smaller_image_is_the_lower_part_of_the_scaled_one() -> None:
    native, small = rig.nuscenes_rig(rig.NATIVE_SIZE), rig.nuscenes_rig((256, 704))
    point = torch.tensor([[15.0, 2.0, 0.5]])
    (u, v), _ = (value[0, 0] for value in project(point, native.intrinsics, native.ego_from_camera))
    pixel, _ = project(point, small.intrinsics, small.ego_from_camera)
    assert pixel[0, 0, 0].item() == pytest.approx((float(u) + 0.5) * 0.44 - 0.5, abs=1e-2)
    assert pixel[0, 0, 1].item() == pytest.approx((float(v) + 0.5) * 0.44 - 0.5 - 140, abs=1e-2)


def test_lidar_points_lie_on_surfaces_within_the_range_noise() -> None:
    solids = random_solids(6)
    sweep = lidar.scan(solids, flat_ground(), torch.eye(4).double(), seed=1)
    off = torch.full((len(sweep.points),), torch.inf)  # from the nearest surface of a solid of the instance
    for index in range(len(solids.centre)):
        local = (sweep.surface - solids.centre[index]) @ solids.rotation[index] / solids.half_size[index]
        shape = int(solids.shape[index])
        radius = local.abs().amax(-1) if shape == BOX else local.norm(dim=-1)
        if shape == CYLINDER:
            radius = torch.maximum(local[:, :2].norm(dim=-1), local[:, 2].abs())
        mine = sweep.instance == solids.instance[index]
        off = torch.where(mine, torch.minimum(off, (radius - 1).abs()), off)
    on_ground = sweep.instance < 0
    assert on_ground.sum() > 3000 and (~on_ground).sum() > 1000
    assert off[~on_ground].max() < 1e-3
    assert sweep.surface[on_ground, 2].abs().max() < 1e-4
    error = sweep.points[:, :3] - sweep.surface
    ray = torch.nn.functional.normalize(sweep.surface - sweep.origin, dim=-1)
    assert error.norm(dim=-1).square().mean().sqrt().item() == pytest.approx(lidar.RANGE_NOISE, rel=0.05)
    torch.testing.assert_close((error * ray).sum(-1).abs(), error.norm(dim=-1), rtol=0, atol=1e-4)
    assert (sweep.points[:, 3] >= 0).all() and (sweep.points[:, 3] <= 1).all()


def test_dark_and_distant_surfaces_return_fewer_points() -> None:
    def count(x: float, reflectance: float) -> int:
        solids = replace(wall(x), reflectance=torch.tensor([reflectance]))
        sweep = lidar.scan(solids, flat_ground(-50.0), torch.eye(4).double(), seed=3)
        return len(sweep.points)

    assert count(60.0, 0.02) < 0.5 * count(60.0, 0.9)
    assert count(10.0, 0.02) > 0.8 * count(10.0, 0.9)


def test_a_wall_casts_a_shadow_as_long_as_the_suns_height_says() -> None:
    solids, plane = wall(20.0), egocentric.ground_plane(flat_ground(), torch.eye(4).double())
    sun = torch.nn.functional.normalize(torch.tensor([1.0, 0.0, 0.75]), dim=0)  # 8 m of shadow before it
    shadow = shadows.cast_shadows(solids, plane, sun)
    x = torch.tensor([10.0, 11.6, 12.6, 15.0, 19.5, 21.5])
    lit = shadow.lit([x, torch.zeros(6), torch.zeros(6)], on_ground=True)
    assert lit.tolist() == [1, 1, 0, 0, 0, 1]
    height = torch.tensor([0.5, 3.0, 5.0])  # 2 m before the wall: in shadow below 6 - 2 * 0.75 = 4.5 m
    assert shadow.lit([torch.full((3,), 18.0), torch.zeros(3), height], on_ground=False).tolist() == [0, 0, 1]


def test_sunlit_ground_is_brighter_than_shaded_ground() -> None:
    cameras, look = rig.nuscenes_rig((128, 352)), daylight()
    look = replace(look, sun_direction=torch.tensor([0.8, 0.0, 0.6]))
    render = rendering.render_cameras(
        wall(20.0), flat_ground(), torch.eye(4).double(), cameras, look, num_objects=0, seed=0
    )
    pixels, _ = project(
        torch.tensor([[8.0, 0.0, 0.0], [16.0, 0.0, 0.0]]), cameras.intrinsics, cameras.ego_from_camera
    )
    (near_u, near_v), (far_u, far_v) = pixels[0].round().long().tolist()
    sunlit, shaded = render.images[0, :, near_v, near_u].float(), render.images[0, :, far_v, far_u].float()
    assert (sunlit > 1.5 * shaded).all()


def test_nothing_solid_leaves_ground_and_sky() -> None:
    names = ("centre", "rotation", "half_size", "shape", "colour", "semantic", "instance", "reflectance")
    nothing = Solids(*(getattr(wall(1.0), name)[:0] for name in names))
    pose = torch.eye(4).double()
    cameras = rig.nuscenes_rig(SMALL)
    render = rendering.render_cameras(
        nothing, flat_ground(), pose, cameras, daylight(), num_objects=0, seed=0
    )
    assert (render.instance == -1).all() and torch.isinf(render.depth).any() and (render.depth < 60).any()
    sweep = lidar.scan(nothing, flat_ground(), pose, seed=0)
    assert (sweep.points[:, 2].abs() < 0.2).all() and len(sweep.points) > 3000
