"""Depth sources: projection of points and the judgement of maps, on cases with known answers."""

import pytest
import torch

from vlm_occ.eval.depth_truth import judge, lidar_depth, merged_points
from vlm_occ.geometry import rigid, rotation_z
from vlm_occ.types import CameraRig, Frame, Scene

AHEAD = torch.tensor([[0.0, 0, 1, 0], [-1, 0, 0, 0], [0, -1, 0, 0], [0, 0, 0, 1]])
RIG = CameraRig(("CAM_FRONT",), torch.tensor([[[10.0, 0, 4], [0, 10.0, 3], [0, 0, 1]]]), AHEAD[None], (7, 9))


def test_the_nearest_point_of_a_pixel_counts_and_points_behind_do_not():
    points = torch.tensor([[10.0, 0, 0], [20.0, 0, 0], [-5.0, 0, 0], [10.0, -4.0, 3.0], [10.0, -6.0, 0.0]])
    depth = lidar_depth(points, RIG)
    assert depth[0, 3, 4] == 10.0
    assert depth[0, 0, 8] == 10.0
    assert int(torch.isfinite(depth).sum()) == 2


def test_sweeps_are_merged_in_the_reference_frame():
    turn = rotation_z(torch.tensor(0.5, dtype=torch.float64))
    poses = [rigid(turn, torch.tensor([x, 1.0, 0.0], dtype=torch.float64)) for x in (100.0, 104.0)]
    landmark = torch.tensor([[120.0, 9.0, 2.0]], dtype=torch.float64)
    frames = [
        Frame(0.0, torch.zeros(0, 3, 7, 9, dtype=torch.uint8), pose, torch.cat([local, torch.ones(1, 1)], 1))
        for pose in poses
        for local in [((landmark - pose[:3, 3]) @ pose[:3, :3]).float()]
    ]
    merged = merged_points(Scene(RIG, tuple(frames)))
    torch.testing.assert_close(merged[0], merged[1], atol=1e-5, rtol=0)


def test_completeness_and_errors_of_a_map():
    truth = torch.tensor([[[10.0, 10.0, 20.0, 60.0]]])
    depth = torch.tensor([[[10.5, torch.inf, 25.0, 1.0]]])
    assert judge(truth, depth) == {
        "completeness": pytest.approx(2 / 3),
        "mean_error_m": pytest.approx(2.75),
        "median_error_m": pytest.approx(0.5),
        "wrong": 0.5,
    }
