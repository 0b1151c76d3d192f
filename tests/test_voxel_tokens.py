"""Candidates, their boxes and features, fusion of the sensors."""

import math

import torch
from torch.nn import functional

from vlm_occ.encoders.fusion import AdaptiveFusion, BirdsEyeNetwork
from vlm_occ.encoders.voxel_tokens import (
    POSITION_CHANNELS,
    decode_regression,
    encode_regression,
    find_candidates,
    first_sights,
    position_features,
    sample_bev,
    sample_points,
)
from vlm_occ.geometry import points_in_boxes
from vlm_occ.types import VoxelGrid

GRID = VoxelGrid()


def test_regression_decodes_to_the_box_that_it_encodes():
    box = torch.tensor([[10.1, -3.3, 0.4, 4.5, 1.9, 1.6, 2.8], [-20.0, 39.0, 1.0, 0.6, 0.7, 1.8, -1.0]])
    cell = torch.tensor([[125, 91], [51, 196]])
    values = encode_regression(box, torch.zeros(2, 2), cell, GRID)
    torch.testing.assert_close(decode_regression(cell, values, GRID), box, atol=1e-5, rtol=1e-5)


def test_candidates_are_the_local_maxima_best_first():
    heat = torch.full((1, 15, 200, 200), -8.0)
    heat[0, 0, 50, 60], heat[0, 3, 52, 60], heat[0, 1, 100, 20] = 2.0, 3.0, 1.0
    heat[0, 0, 51, 60] = 1.5  # beside two peaks: not a maximum
    found = find_candidates(heat, torch.zeros(1, 10, 200, 200), GRID, max_tokens=8, threshold=0.05)[0]
    assert found.cell.tolist() == [[52, 60], [50, 60], [100, 20]]
    torch.testing.assert_close(found.score, torch.tensor([3.0, 2.0, 1.0]).sigmoid())
    few = find_candidates(heat, torch.zeros(1, 10, 200, 200), GRID, max_tokens=2, threshold=0.05)[0]
    assert few.cell.tolist() == [[52, 60], [50, 60]]


def test_candidate_scores_carry_gradients_to_the_heat_map():
    heat = torch.full((1, 15, 200, 200), -8.0)
    heat[0, 2, 70, 70] = 1.0
    heat.requires_grad_()
    found = find_candidates(heat, torch.zeros(1, 10, 200, 200), GRID, max_tokens=8, threshold=0.05)[0]
    found.score.sum().backward()
    assert heat.grad is not None and heat.grad[0, 2, 70, 70] > 0
    assert (heat.grad != 0).sum() == 1


def test_no_peak_gives_no_candidates():
    heat = torch.full((1, 15, 200, 200), -8.0)
    found = find_candidates(heat, torch.zeros(1, 10, 200, 200), GRID, max_tokens=8, threshold=0.05)[0]
    assert found.box.shape == (0, 7)
    assert position_features(found.box).shape == (0, POSITION_CHANNELS)


def test_sample_points_lie_in_their_box():
    boxes = torch.tensor([[5.0, 3, 1, 4, 2, 1.5, 0.7], [-8.0, 2, 0, 12, 3, 3.5, -2.0]])
    points = sample_points(boxes)
    for m in range(2):
        assert points_in_boxes(points[m], boxes)[m].all()


def test_sampling_the_birds_eye_view_reads_the_cell_of_the_point():
    features = torch.randn(3, 100, 100, generator=torch.Generator().manual_seed(0))
    cells = torch.tensor([[10, 70], [99, 0], [43, 44]])
    points = (cells.float() + 0.5) * 0.8 - 40
    expected = features[:, cells[:, 0], cells[:, 1]].T
    torch.testing.assert_close(sample_bev(features, points), expected, atol=1e-4, rtol=1e-4)


def test_positions_that_differ_have_different_features():
    boxes = torch.zeros(400, 7)
    boxes[:, 3:6] = 1
    boxes[:, :2] = torch.cartesian_prod(torch.linspace(-39, 39, 20), torch.linspace(-39, 39, 20))
    distance = torch.cdist(position_features(boxes), position_features(boxes)) + torch.eye(400) * 9
    assert distance.min() > 0.5
    assert position_features(boxes).shape[1] == POSITION_CHANNELS


def test_fusion_takes_the_only_sensor_and_lies_between_both():
    torch.manual_seed(0)
    fusion = AdaptiveFusion(8)
    lidar, camera = torch.randn(3, 8, 4, 4, 2), torch.randn(3, 8, 4, 4, 2)
    has_lidar, has_camera = torch.tensor([True, True, False]), torch.tensor([True, False, True])
    fused = fusion(lidar, camera, has_lidar, has_camera)
    normal = [functional.layer_norm(x.movedim(1, -1), (8,)).movedim(-1, 1) for x in (lidar, camera)]
    torch.testing.assert_close(fused[1], normal[0][1])
    torch.testing.assert_close(fused[2], normal[1][2])
    assert (fused[0] - normal[0][0]).abs().max() > 0.1 and (fused[0] - normal[1][0]).abs().max() > 0.1


def test_the_birds_eye_network_is_local_and_batches_do_not_mix():
    torch.manual_seed(0)
    network = BirdsEyeNetwork(volume_channels=8, lidar_channels=6, width=16, fine_width=16, depth=1)
    volume, lidar = torch.randn(2, 2, 40, 40, 4), torch.randn(2, 6, 80, 80)
    both = network(volume, lidar)
    alone = network(volume[1:], lidar[1:])
    torch.testing.assert_close(both.fine[1], alone.fine[0], atol=1e-4, rtol=1e-4)
    assert both.fine.shape == (2, 16, 80, 80) and both.coarse.shape == (2, 32, 20, 20)
    assert math.isfinite(both.fine.sum().item())


def test_a_second_sight_of_an_object_goes_and_a_neighbour_of_its_class_stays():
    boxes = torch.tensor(
        [
            [0.0, 0, 1, 4, 2, 1.5, math.pi / 2],  # the best, lying across
            [0.0, 1.8, 1, 4, 2, 1.5, 0.0],  # over its footprint only if its heading counts
            [1.8, 0.0, 1, 4, 2, 1.5, 0.0],  # beside it
            [0.2, -1.5, 1, 0.6, 0.6, 1.7, 0.0],  # over it, but of another class
            [1.9, 0.3, 1, 4, 2, 1.5, 0.0],  # over the third
        ]
    )
    assert first_sights(boxes, torch.tensor([0, 0, 0, 1, 0])).tolist() == [0, 2, 3]
    assert first_sights(boxes[:0], torch.zeros(0).long()).tolist() == []
