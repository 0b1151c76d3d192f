"""Voxels against loops and against points sampled densely."""

import math

import pytest
import torch
from shapely import affinity
from shapely.geometry import box as rectangle

from vlm_occ.geometry import points_in_boxes, rigid, rotation_z, transform_boxes
from vlm_occ.types import GroundedObject, GroundingResult, VoxelGrid
from vlm_occ.voxels import coarsen, ravel, refine, unravel, voxelize, voxels_in_box

SMALL = VoxelGrid(origin=(-4.0, -4.0, -1.0), voxel_size=0.5, shape=(16, 16, 6))


def test_voxelisation_agrees_with_a_triple_loop():
    points = torch.rand(300, 4, generator=torch.Generator().manual_seed(0)) * 10 - 5
    index, rows = voxelize(points, SMALL)
    voxels = {tuple(v) for v in index.tolist()}
    expected = set()
    for i in range(16):
        for j in range(16):
            for k in range(6):
                low = torch.tensor([-4 + i * 0.5, -4 + j * 0.5, -1 + k * 0.5])
                if ((points[:, :3] >= low) & (points[:, :3] < low + 0.5)).all(-1).any():
                    expected.add((i, j, k))
    assert voxels == expected
    for point, row in zip(points, rows.tolist(), strict=True):
        cell = torch.floor((point[:3] - torch.tensor([-4.0, -4, -1])) / 0.5).long().tolist()
        assert (row == -1) == (tuple(cell) not in voxels)
        assert row == -1 or index[row].tolist() == cell


def test_the_default_grid_is_that_of_occ3d():
    grid = VoxelGrid()
    centers = grid.centers()
    assert centers.shape == (200, 200, 16, 3)
    torch.testing.assert_close(centers[0, 0, 0], torch.tensor([-39.8, -39.8, -0.8]))
    index, inside = grid.index_of(centers.reshape(-1, 3))
    assert inside.all()
    assert torch.equal(ravel(index, grid.shape), torch.arange(200 * 200 * 16))
    assert torch.equal(unravel(torch.arange(640_000), grid.shape), index)


@pytest.mark.parametrize("yaw", [0.0, 0.4, math.pi / 4, 2.0, -2.9])
def test_touching_voxels_are_those_whose_square_meets_the_footprint(yaw):
    box = torch.tensor([0.3, -0.2, 0.4, 3.1, 1.2, 1.3, yaw])
    footprint = affinity.translate(
        affinity.rotate(rectangle(-1.55, -0.6, 1.55, 0.6), math.degrees(yaw), origin=(0, 0)), 0.3, -0.2
    )
    member = voxels_in_box(box, SMALL)
    for i in range(16):
        for j in range(16):
            square = rectangle(-4 + i * 0.5, -4 + j * 0.5, -3.5 + i * 0.5, -3.5 + j * 0.5)
            area = footprint.intersection(square).area
            for k in range(6):
                low = -1 + k * 0.5
                overlap = min(low + 0.5, 0.4 + 0.65) - max(low, 0.4 - 0.65)
                if area > 1e-4 and overlap > 1e-4:
                    assert member[i, j, k]
                if area == 0 or overlap < -1e-4:
                    assert not member[i, j, k]


def test_centre_rule_agrees_with_points_in_boxes_and_lies_within_touching():
    generator = torch.Generator().manual_seed(3)
    for _ in range(20):
        values = torch.rand(7, generator=generator)
        box = torch.cat([values[:3] * 6 - 3, values[3:6] * 3 + 0.1, values[6:] * 6 - 3])
        centre = voxels_in_box(box, SMALL, rule="centre")
        inside = points_in_boxes(SMALL.centers().reshape(-1, 3), box[None])[0].reshape(SMALL.shape)
        assert torch.equal(centre, inside)
        assert not (centre & ~voxels_in_box(box, SMALL)).any()


def test_membership_moves_with_the_box_by_whole_voxels_and_quarter_turns():
    box = torch.tensor([0.3, -0.2, 0.4, 2.1, 1.2, 1.3, 0.5])
    shift = rigid(rotation_z(torch.tensor(0.0)), torch.tensor([1.0, -0.5, 0.5]))
    moved = voxels_in_box(transform_boxes(shift, box[None])[0], SMALL)
    assert torch.equal(moved, voxels_in_box(box, SMALL).roll((2, -1, 1), (0, 1, 2)))
    turn = rigid(rotation_z(torch.tensor(math.pi / 2)), torch.zeros(3))
    turned = voxels_in_box(transform_boxes(turn, box[None])[0], SMALL)
    assert torch.equal(turned, voxels_in_box(box, SMALL).rot90(1, (0, 1)))


def test_a_box_outside_the_grid_has_no_voxels():
    assert not voxels_in_box(torch.tensor([50.0, 0, 0, 4, 2, 2, 0]), SMALL).any()


def test_coarsen_keeps_every_occupied_voxel_and_refine_repeats():
    fine = torch.rand(16, 16, 6, generator=torch.Generator().manual_seed(4)) > 0.97
    coarse = coarsen(fine, (4, 4, 1))
    for i, j, k in coarse.nonzero().tolist():
        assert fine[4 * i : 4 * i + 4, 4 * j : 4 * j + 4, k].any()
    assert not (fine & ~refine(coarse, (4, 4, 1))).any()
    with pytest.raises(ValueError, match="divisible"):
        coarsen(fine, (5, 4, 1))


def test_a_result_has_three_values_and_no_object_is_an_answer():
    occupied = torch.rand(16, 16, 6, generator=torch.Generator().manual_seed(5)) > 0.5
    car = torch.zeros_like(occupied)
    car[2:4, 2:4] = occupied[2:4, 2:4]
    item = GroundedObject(car, torch.zeros(7), 0.9)
    result = GroundingResult("the car", "It is a car.", (item,), occupied, SMALL)
    assert torch.equal(result.occupancy == 2, car)
    assert torch.equal(result.occupancy > 0, occupied)
    assert set(GroundingResult("x", "", (), occupied, SMALL).occupancy.unique().tolist()) == {0, 1}
