"""A small labelled scene made by hand, and what its tests compare."""

from __future__ import annotations

import math
from dataclasses import fields

import numpy as np
import torch
from torch import Tensor

from vlm_occ.geometry import invert_rigid, points_in_boxes, project, rigid, rotation_z
from vlm_occ.situated import SituationQuery
from vlm_occ.types import FREE, CameraRig, Frame, GroundingQuery, LabelledScene, Scene, SceneLabels, VoxelGrid
from vlm_occ.voxels import voxels_in_box

GRID = VoxelGrid(origin=(-8.0, -8.0, -1.0), voxel_size=0.4, shape=(40, 40, 8))
SIZE = (60, 100)  # of an image
CAR = 4


def numbers(seed: int) -> torch.Generator:
    """A source of random numbers."""
    return torch.Generator().manual_seed(seed)


def random_pose(bits: torch.Generator, reach: float) -> Tensor:
    """A turn about z and a shift: [4, 4] float64."""
    yaw = 2 * math.pi * torch.rand(1, generator=bits, dtype=torch.float64)[0]
    return rigid(rotation_z(yaw), reach * torch.randn(3, generator=bits, dtype=torch.float64))


def camera_towards(yaw: float, place: tuple[float, float, float]) -> Tensor:
    """An ego_from_camera [4, 4] that looks along `yaw` from `place`."""
    forward_left_up = torch.tensor([[0.0, 0, 1], [-1, 0, 0], [0, -1, 0]])  # columns: right, down, forward
    return rigid(rotation_z(torch.tensor(yaw)) @ forward_left_up, torch.tensor(place))


def small_scene(seed: int = 0) -> LabelledScene:
    """Two frames, two cameras, random points, and cars whose voxels are exactly those of their boxes."""
    bits = numbers(seed)
    rig = CameraRig(
        ("CAM_FRONT_LEFT", "CAM_BACK"),
        torch.tensor([[[70.0, 0, 47], [0, 70, 31], [0, 0, 1]], [[50.0, 0, 55], [0, 50, 28], [0, 0, 1]]]),
        torch.stack([camera_towards(0.9, (1.0, 0.5, 1.5)), camera_towards(3.0, (-1.0, 0.1, 1.6))]),
        SIZE,
    )
    frames = tuple(
        Frame(
            timestamp=0.5 * t,
            images=torch.randint(0, 256, (2, 3, *SIZE), generator=bits, dtype=torch.uint8),
            world_from_ego=random_pose(bits, 3.0),
            points=torch.cat(
                [14 * torch.rand(400, 3, generator=bits) - 7, torch.rand(400, 1, generator=bits)], dim=-1
            ),
        )
        for t in range(2)
    )
    boxes = torch.tensor([[4.0, 4.0, 0.5, 3.8, 1.7, 1.5, 0.4], [-4.5, -3.0, 0.6, 4.1, 1.8, 1.6, -2.2]])
    occupied = voxels_in_box(boxes[0], GRID) | voxels_in_box(boxes[1], GRID)
    labels = SceneLabels(
        semantics=torch.where(occupied, CAR, FREE).to(torch.uint8),
        mask_lidar=torch.rand(GRID.shape, generator=bits) < 0.5,
        mask_camera=torch.rand(GRID.shape, generator=bits) < 0.5,
        boxes=boxes,
        classes=torch.tensor([0, 0]),
        colours=torch.tensor([0, 3]),
        velocities=torch.tensor([[3.0, 1.0], [0.0, -2.0]]),
        visibility=torch.tensor([1.0, 0.7]),
        num_points=points_in_boxes(frames[-1].points[:, :3], boxes).sum(-1),  # type: ignore[index]
    )
    queries = (
        GroundingQuery("the red car on the left", (0,), False, answer="It is on the left, right behind us."),
        GroundingQuery("the rightmost car", (1,), False),
    )
    situations = (SituationQuery("I stand to the left of the red car", (2.0, 3.0), 0.5),)
    return LabelledScene(Scene(rig, frames, GRID), labels, queries, situations)


def relative_poses(scene: Scene) -> list[Tensor]:
    """Each frame's ego in the reference's."""
    reference = invert_rigid(scene.reference.world_from_ego)
    return [reference @ frame.world_from_ego for frame in scene.frames]


def pixels_at(scene: Scene, t: int, points: Tensor) -> tuple[Tensor, Tensor]:
    """Pixels [V, N, 2] and depths [V, N] in frame t of points [N, 3] of the reference ego."""
    local = points.double() @ invert_rigid(relative_poses(scene)[t])[:3, :3].T
    local = (local + invert_rigid(relative_poses(scene)[t])[:3, 3]).float()
    return project(local, scene.rig.intrinsics, scene.rig.ego_from_camera)


def assert_same(a: LabelledScene, b: LabelledScene, *, tolerance: float) -> None:
    """Everything but the names of world axes and of the scene is equal."""
    assert a.queries == b.queries and a.scene.rig.names == b.scene.rig.names
    for field in fields(SceneLabels):
        x, y = getattr(a.labels, field.name), getattr(b.labels, field.name)
        torch.testing.assert_close(x, y, atol=tolerance, rtol=0)
    for x, y in ((a.scene.rig, b.scene.rig),):
        torch.testing.assert_close(x.intrinsics, y.intrinsics, atol=tolerance, rtol=0)
        torch.testing.assert_close(x.ego_from_camera, y.ego_from_camera, atol=tolerance, rtol=0)
    for x, y in zip(a.scene.frames, b.scene.frames, strict=True):
        assert torch.equal(x.images, y.images)
        torch.testing.assert_close(x.points, y.points, atol=tolerance, rtol=0)
    for x, y in zip(relative_poses(a.scene), relative_poses(b.scene), strict=True):
        torch.testing.assert_close(x, y, atol=tolerance, rtol=0)
    for x, y in zip(a.situations, b.situations, strict=True):
        assert x.text == y.text
        assert np.allclose([*x.position, x.yaw], [*y.position, y.yaw], atol=tolerance)
