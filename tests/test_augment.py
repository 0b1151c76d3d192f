"""Augmentations of geometry: pictures, points, voxels, boxes and sentences stay true to each other."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from random_facts import random_facts
from small_scenes import CAR, GRID, SIZE, assert_same, numbers, pixels_at, relative_poses, small_scene
from test_anchored import oracle
from torch import Tensor

from vlm_occ.data.augment import (
    mirror,
    turn_and_scale,
)
from vlm_occ.data.simulator.scene import simulate
from vlm_occ.data.simulator.situations import write_situations
from vlm_occ.geometry import check_rigid, points_in_boxes, rotation_z
from vlm_occ.heads.anchored import anchored_pose
from vlm_occ.heads.situation import circular_mean
from vlm_occ.types import (
    FREE,
    LabelledScene,
)
from vlm_occ.voxels import voxels_in_box

FLIP = torch.diag(torch.tensor([1.0, -1.0, 1.0]))


def test_a_mirrored_point_lands_on_the_mirrored_pixel_in_every_frame() -> None:
    item = small_scene()
    flipped = mirror(item)
    points = 16 * torch.rand(300, 3, generator=numbers(1)) - 8
    for t in range(2):
        before, depth = pixels_at(item.scene, t, points)
        after, depth_after = pixels_at(flipped.scene, t, points @ FLIP)
        ahead = depth > 0.5
        assert ahead.sum() > 50
        torch.testing.assert_close(depth_after, depth, atol=1e-4, rtol=0)
        expected = torch.stack([SIZE[1] - before[..., 0], before[..., 1]], dim=-1)
        torch.testing.assert_close(after[ahead], expected[ahead], atol=2e-2, rtol=1e-4)


def test_what_a_pixel_shows_is_found_at_the_mirrored_place() -> None:
    item = small_scene()
    flipped = mirror(item)
    points = 16 * torch.rand(400, 3, generator=numbers(2)) - 8
    before, depth = pixels_at(item.scene, 1, points)
    after, _ = pixels_at(flipped.scene, 1, points @ FLIP)
    compared = 0
    for v in range(2):
        for n in range(400):
            (u, w), (x, y) = before[v, n].tolist(), after[v, n].tolist()
            edge = min(u % 1, 1 - u % 1, w % 1, 1 - w % 1) < 0.05  # rounding may choose the neighbour
            if depth[v, n] > 0.5 and 0 <= u < SIZE[1] and 0 <= w < SIZE[0] and not edge:
                seen = item.scene.reference.images[v, :, int(w), int(u)]
                assert torch.equal(flipped.scene.reference.images[v, :, int(y), int(x)], seen)
                compared += 1
    assert compared > 20


def test_mirroring_twice_changes_nothing() -> None:
    item = small_scene()
    assert_same(mirror(mirror(item)), item, tolerance=1e-5)


def test_a_mirrored_camera_has_the_name_of_the_other_side_and_stays_right_handed() -> None:
    flipped = mirror(small_scene())
    assert flipped.scene.rig.names == ("CAM_FRONT_RIGHT", "CAM_BACK")
    for pose in flipped.scene.rig.ego_from_camera:
        check_rigid(pose, "mirrored camera")
    for frame in flipped.scene.frames:
        check_rigid(frame.world_from_ego, "mirrored ego")


def test_the_voxels_of_a_box_are_mirrored_with_it_and_its_points_stay_in_it() -> None:
    item = small_scene()
    flipped = mirror(item)
    occupied = voxels_in_box(flipped.labels.boxes[0], GRID) | voxels_in_box(flipped.labels.boxes[1], GRID)
    assert torch.equal(flipped.labels.semantics == CAR, occupied)
    points = flipped.scene.reference.points
    assert points is not None
    inside = points_in_boxes(points[:, :3], flipped.labels.boxes).sum(-1)
    assert torch.equal(inside, item.labels.num_points) and inside.sum() > 0


def test_mirrored_velocities_point_to_the_other_side() -> None:
    assert mirror(small_scene()).labels.velocities.tolist() == [[3.0, -1.0], [0.0, 2.0]]


def test_left_becomes_right_in_sentences_and_idioms_stay() -> None:
    flipped = mirror(small_scene())
    assert [q.text for q in flipped.queries] == ["the red car on the right", "the leftmost car"]
    assert flipped.queries[0].answer == "It is on the right, right behind us."
    assert flipped.situations[0].text == "I stand to the right of the red car"
    assert flipped.situations[0].position == (2.0, -3.0) and flipped.situations[0].yaw == -0.5


def test_a_grid_that_is_not_symmetric_is_refused() -> None:
    item = small_scene()
    grid = replace(GRID, origin=(-8.0, -6.0, -1.0))
    with pytest.raises(ValueError, match=r"middle is at y = 2\.000 m, expected 0"):
        mirror(replace(item, scene=replace(item.scene, grid=grid)))


@pytest.fixture(scope="module")
def simulated() -> LabelledScene:
    """A simulated scene with many sentences."""
    return simulate(3, image_size=(32, 88), num_queries=40)


@pytest.mark.parametrize("change", ["mirror", "turn"])
def test_answers_that_name_a_side_name_the_one_where_the_moved_box_is(
    simulated: LabelledScene, change: str
) -> None:
    item = mirror(simulated) if change == "mirror" else turn_and_scale(simulated, math.radians(2), 1.03)
    sides = {"left": 0, "right": 0}
    for query in item.queries:
        for side, sign in (("left", 1), ("right", -1)):
            if f"on the {side}" in query.answer:
                assert sign * item.labels.boxes[query.targets[0], 1] > 0, query
                sides[side] += 1
    assert min(sides.values()) > 0


def test_a_turned_and_scaled_point_stays_on_its_pixel_in_every_frame() -> None:
    item = small_scene()
    linear = 1.1 * rotation_z(torch.tensor(0.7))
    moved = turn_and_scale(item, 0.7, 1.1)
    points = 16 * torch.rand(300, 3, generator=numbers(1)) - 8
    for t in range(2):
        before, depth = pixels_at(item.scene, t, points)
        after, depth_after = pixels_at(moved.scene, t, points @ linear.T)
        ahead = depth > 0.5
        torch.testing.assert_close(depth_after, 1.1 * depth, atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(after[ahead], before[ahead], atol=2e-2, rtol=1e-4)


def test_sweeps_of_all_frames_are_turned_and_scaled_together() -> None:
    item = small_scene()
    linear = 0.9 * rotation_z(torch.tensor(-0.4)).double()
    moved = turn_and_scale(item, -0.4, 0.9)
    pairs = zip(item.scene.frames, moved.scene.frames, strict=True)
    poses = zip(relative_poses(item.scene), relative_poses(moved.scene), strict=True)
    for (old, new), (pose, new_pose) in zip(pairs, poses, strict=True):
        assert old.points is not None and new.points is not None
        before = old.points[:, :3].double() @ pose[:3, :3].T + pose[:3, 3]
        after = new.points[:, :3].double() @ new_pose[:3, :3].T + new_pose[:3, 3]
        torch.testing.assert_close(after, before @ linear.T, atol=1e-4, rtol=0)
        assert torch.equal(new.points[:, 3], old.points[:, 3])


def test_turned_voxels_are_those_that_a_loop_over_all_centres_finds() -> None:
    item = small_scene()
    moved = turn_and_scale(item, 0.5, 1.2)
    back = np.linalg.inv(1.2 * rotation_z(torch.tensor(0.5, dtype=torch.float64)).numpy())
    origin, semantics = np.array(GRID.origin), item.labels.semantics.numpy()
    found = moved.labels.semantics.numpy()
    different = 0
    for x, y, z in np.ndindex(*GRID.shape):
        centre = origin + (np.array([x, y, z]) + 0.5) * 0.4
        source = np.floor((back @ centre - origin) / 0.4).astype(int)
        inside = bool(((source >= 0) & (source < GRID.shape)).all())
        expected = semantics[tuple(source)] if inside else FREE
        different += int(found[x, y, z] != expected)
        assert inside or not moved.labels.mask_lidar[x, y, z]
    assert different <= 3  # a source on the border of two voxels, in float32


def test_points_stay_in_turned_and_scaled_boxes_and_most_voxels_too() -> None:
    item = small_scene()
    moved = turn_and_scale(item, 0.3, 1.05)
    points = moved.scene.reference.points
    assert points is not None
    assert torch.equal(points_in_boxes(points[:, :3], moved.labels.boxes).sum(-1), points_in_boxes_of(item))
    for box in moved.labels.boxes:
        members = voxels_in_box(box, GRID, rule="centre")
        assert (moved.labels.semantics[members] == CAR).float().mean() > 0.97
    inflated = moved.labels.boxes.clone()
    inflated[:, 3:6] += 2 * 0.4 * math.sqrt(3)  # "touching" plus a nearest neighbour: one voxel's diagonal
    centres = GRID.centers()[moved.labels.semantics == CAR]
    assert points_in_boxes(centres, inflated).any(0).all()
    speed = moved.labels.velocities.norm(dim=-1)
    torch.testing.assert_close(speed, 1.05 * item.labels.velocities.norm(dim=-1))


def points_in_boxes_of(item: LabelledScene) -> Tensor:
    """Points of the reference sweep in each box."""
    assert item.scene.reference.points is not None
    return points_in_boxes(item.scene.reference.points[:, :3], item.labels.boxes).sum(-1)


def test_a_situation_is_turned_like_a_point() -> None:
    moved = turn_and_scale(small_scene(), math.pi / 2, 2.0).situations[0]
    assert moved.position == pytest.approx((-6.0, 4.0), abs=1e-5)
    assert moved.yaw == pytest.approx(0.5 + math.pi / 2, abs=1e-5)


def test_a_situation_stays_what_its_text_says_where_the_world_is_turned_about_the_car() -> None:
    facts = random_facts(2)
    told = tuple(s for s in write_situations(facts, seed=2, count=60) if s.kind == "exact")
    yaw = math.radians(20)
    moved = turn_and_scale(replace(small_scene(), situations=told), yaw, 1.0)
    boxes = torch.tensor([item.box for item in facts])
    boxes[:, :2] = boxes[:, :2] @ rotation_z(torch.tensor(yaw))[:2, :2].T
    boxes[:, 6] += yaw
    estimate, logits = anchored_pose(*oracle(list(moved.situations), len(facts)), boxes, torch.zeros(3))
    heading = circular_mean(logits.softmax(-1))
    frames = set()
    for row, situation in enumerate(moved.situations):
        assert situation.parts is not None
        frames.add(situation.parts.frame)
        assert math.dist(estimate.mean[row].tolist(), situation.position) < 1e-3, situation.text
        assert math.cos(float(heading[row]) - situation.yaw) > math.cos(math.radians(1.5)), situation.text
    assert frames == {"car", "object", "line"}
