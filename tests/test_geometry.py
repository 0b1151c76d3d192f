"""Geometry against Monte Carlo, polygons of another library, and symmetries."""

import math

import pytest
import torch
from shapely import affinity
from shapely.geometry import box as rectangle

from vlm_occ.geometry import (
    box_corners,
    box_iou_3d,
    check_rigid,
    invert_rigid,
    points_in_boxes,
    project,
    quaternion_to_rotation,
    rigid,
    rotation_to_quaternion,
    rotation_z,
    transform_boxes,
    transform_points,
    unproject,
    wrap_angle,
)


def random_boxes(count: int, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    centre = torch.rand(count, 3, generator=generator) * 6 - 3
    sizes = torch.rand(count, 3, generator=generator) * 4 + 0.3
    yaw = (torch.rand(count, 1, generator=generator) * 2 - 1) * math.pi
    return torch.cat([centre, sizes, yaw], dim=-1)


def random_transform(seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    quaternion = torch.randn(4, generator=generator, dtype=torch.float64)
    translation = torch.randn(3, generator=generator, dtype=torch.float64) * 10
    return rigid(quaternion_to_rotation(quaternion), translation)


def test_points_in_boxes_agrees_with_a_naive_loop():
    boxes = random_boxes(6, 0)
    points = torch.rand(500, 3, generator=torch.Generator().manual_seed(1)) * 8 - 4
    inside = points_in_boxes(points, boxes)
    for m, (x, y, z, dx, dy, dz, yaw) in enumerate(boxes.tolist()):
        for n, (px, py, pz) in enumerate(points.tolist()):
            along = (px - x) * math.cos(yaw) + (py - y) * math.sin(yaw)
            across = -(px - x) * math.sin(yaw) + (py - y) * math.cos(yaw)
            expected = abs(along) <= dx / 2 and abs(across) <= dy / 2 and abs(pz - z) <= dz / 2
            assert bool(inside[m, n]) == expected
    assert inside.any() and not inside.all()


def test_box_iou_agrees_with_polygons_of_shapely():
    a, b = random_boxes(300, 2), random_boxes(300, 3)
    iou = box_iou_3d(a, b)

    def footprint(box):
        x, y, _, dx, dy, _, yaw = box
        shape = rectangle(-dx / 2, -dy / 2, dx / 2, dy / 2)
        return affinity.translate(affinity.rotate(shape, math.degrees(yaw), origin=(0, 0)), x, y)

    for first, second, value in zip(a.tolist(), b.tolist(), iou.tolist(), strict=True):
        area = footprint(first).intersection(footprint(second)).area
        top = min(first[2] + first[5] / 2, second[2] + second[5] / 2)
        bottom = max(first[2] - first[5] / 2, second[2] - second[5] / 2)
        overlap = area * max(top - bottom, 0)
        union = math.prod(first[3:6]) + math.prod(second[3:6]) - overlap
        assert value == pytest.approx(overlap / union, abs=1e-5)
    assert (iou > 0.1).sum() > 10


def test_box_iou_agrees_with_monte_carlo():
    a = torch.tensor([[0.0, 0, 0, 4, 2, 1.5, 0.3]])
    b = torch.tensor([[0.5, 0.4, 0.2, 3, 2.5, 1.5, 1.1]])
    points = torch.rand(400_000, 3, generator=torch.Generator().manual_seed(4)) * 6 - 3
    in_a, in_b = points_in_boxes(points, a)[0], points_in_boxes(points, b)[0]
    estimate = (in_a & in_b).sum() / (in_a | in_b).sum()
    assert box_iou_3d(a, b).item() == pytest.approx(estimate.item(), abs=0.01)


@pytest.mark.parametrize("shift", [0.0, 1e-4, 4.0])
def test_box_iou_of_equal_and_shifted_boxes_is_exact(shift):
    a = torch.tensor([[1.0, 2, 0, 4, 2, 1.5, 0.0]])
    b = a.clone()
    b[0, 0] += shift
    overlap = max(4 - shift, 0) * 2 * 1.5
    assert box_iou_3d(a, b).item() == pytest.approx(overlap / (2 * 12 - overlap), abs=1e-6)


def test_everything_is_invariant_when_scene_and_boxes_move_together():
    boxes = random_boxes(8, 5).double()
    points = torch.rand(400, 3, generator=torch.Generator().manual_seed(6), dtype=torch.float64) * 8 - 4
    move = rigid(rotation_z(torch.tensor(1.2, dtype=torch.float64)), torch.tensor([30.0, -7, 2]).double())
    moved = transform_boxes(move, boxes)
    assert torch.equal(points_in_boxes(points, boxes), points_in_boxes(transform_points(move, points), moved))
    other = random_boxes(8, 7).double()
    torch.testing.assert_close(box_iou_3d(boxes, other), box_iou_3d(moved, transform_boxes(move, other)))
    torch.testing.assert_close(
        box_corners(moved), transform_points(move, box_corners(boxes).reshape(-1, 3)).reshape(8, 8, 3)
    )


def test_projection_round_trips_and_pixel_shifts_with_the_principal_point():
    intrinsics = torch.tensor([[1266.0, 0, 816], [0, 1266.0, 491], [0, 0, 1]], dtype=torch.float64)
    ego_from_camera = random_transform(8)
    local = torch.rand(50, 3, generator=torch.Generator().manual_seed(9), dtype=torch.float64) * 4 - 2
    local[:, 2] += 8
    points = transform_points(ego_from_camera, local)
    pixels, depth = project(points, intrinsics[None], ego_from_camera[None])
    torch.testing.assert_close(depth[0], local[:, 2])
    torch.testing.assert_close(pixels[0, :, 0], 1266 * local[:, 0] / local[:, 2] + 816)
    torch.testing.assert_close(unproject(pixels[0], depth[0], intrinsics, ego_from_camera), points)


def test_rigid_transforms_invert_and_quaternions_round_trip():
    for seed in range(5):
        transform = random_transform(seed)
        torch.testing.assert_close(invert_rigid(transform) @ transform, torch.eye(4, dtype=torch.float64))
        quaternion = rotation_to_quaternion(transform[:3, :3])
        torch.testing.assert_close(quaternion_to_rotation(quaternion), transform[:3, :3])
        assert quaternion[0] >= 0


def test_angles_wrap_into_the_half_open_interval():
    angles = torch.tensor([0.0, math.pi, -math.pi, 3 * math.pi + 0.1, -7.0])
    wrapped = wrap_angle(angles)
    assert ((wrapped >= -math.pi) & (wrapped < math.pi)).all()
    torch.testing.assert_close(torch.sin(wrapped), torch.sin(angles), atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda t: t[:3], "shape"),
        (lambda t: t * float("nan"), "NaN"),
        (lambda t: t * 2, "not a rigid"),
        (lambda t: torch.diag(torch.tensor([1.0, 1, -1, 1])), "not a rigid"),
    ],
)
def test_a_transform_that_is_not_rigid_is_refused(change, words):
    with pytest.raises(ValueError, match=words):
        check_rigid(change(torch.eye(4)), "ego_from_camera of CAM_FRONT")
    check_rigid(random_transform(1), "ego_from_camera of CAM_FRONT")
