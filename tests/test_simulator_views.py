"""Depth of simulated pictures and what came into view when: against the full renderer and the labels."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from vlm_occ.data.simulator.scene import Simulation, simulate_details
from vlm_occ.data.simulator.situations import write_situations
from vlm_occ.data.simulator.vague_bounds import allowed_poses
from vlm_occ.data.simulator.views import appearances, drive_views, kept_views
from vlm_occ.types import CAMERAS

SEED, SIZE = 5, (64, 176)


@pytest.fixture(scope="module")
def drive() -> Simulation:
    return simulate_details(SEED, num_frames=2, image_size=SIZE, lidar=False)


def test_coarse_depth_lies_between_the_depths_of_the_full_picture_s_pixels(drive: Simulation) -> None:
    views = drive_views(drive.world, num_frames=2, image_size=SIZE)
    assert views.depth.depth.shape == (2, 6, 16, 44) and drive.render is not None
    pixels = drive.render.depth.reshape(6, 16, 4, 44, 4).permute(0, 1, 3, 2, 4).flatten(3)  # of each cell
    coarse = views.depth.depth[-1].float()
    inside = (coarse >= 0.99 * pixels.amin(-1)) & (coarse <= 1.01 * pixels.amax(-1))
    assert inside.float().mean() > 0.99
    # A cell whose four by four pixels see one plane: its middle is the middle of the plane.
    inverse = 1 / pixels
    flat = (inverse.amax(-1) - inverse.amin(-1)) < 0.1 * inverse.amin(-1)
    middle = inverse.mean(-1)
    error = ((1 / coarse - middle).abs() / middle)[flat & coarse.isfinite()]
    assert error.quantile(0.95) < 0.01
    true = drive.labelled.scene.rig.intrinsics
    scaled = views.depth.intrinsics[-1].clone()
    scaled[:, :2] *= 4
    scaled[:, :2, 2] -= 0.5  # the simulator's pixels have their centres at whole numbers
    torch.testing.assert_close(scaled, true, atol=1e-3, rtol=1e-5)


def test_pixels_of_objects_are_those_of_the_full_picture_over_sixteen(drive: Simulation) -> None:
    views = drive_views(drive.world, num_frames=2, image_size=SIZE, first=1)
    assert drive.render is not None
    front = drive.render.instance[CAMERAS.index("CAM_FRONT")]
    full = torch.bincount(front[front >= 0].flatten(), minlength=len(drive.facts))
    large = full > 150
    assert large.any() and views.front_pixels.shape == (1, len(drive.facts))
    ratio = views.front_pixels[0][large] * 16 / full[large]
    assert ((ratio > 0.7) & (ratio < 1.3)).all()
    assert not views.front_pixels[0][full == 0].any()


def test_an_object_appears_with_its_first_clear_frame_and_unclear_ones_are_not_told() -> None:
    pixels = torch.tensor([[0, 9, 0, 3], [8, 9, 0, 9], [9, 0, 0, 9]])
    assert appearances(pixels) == [(1, 2), (0, 1), None, None]


def test_kept_views_are_read_again_and_a_damaged_file_is_made_anew(
    drive: Simulation, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from vlm_occ.data.simulator import views as module

    calls = []
    monkeypatch.setattr(module, "build_world", lambda *a, **k: calls.append(a) or drive.world)
    path = tmp_path / "views.safetensors"
    settings = {"num_frames": 2, "first": 0, "balanced": False, "image_size": SIZE}
    first = kept_views(SEED, path, **settings)  # type: ignore[arg-type]
    second = kept_views(SEED, path, **settings)  # type: ignore[arg-type]
    assert len(calls) == 1 and torch.equal(first.depth.depth, second.depth.depth)
    path.write_bytes(path.read_bytes()[:100])
    third = kept_views(SEED, path, **settings)  # type: ignore[arg-type]
    assert len(calls) == 2 and torch.equal(first.front_pixels, third.front_pixels)


def test_what_a_vague_sentence_allows_holds_the_truth_as_often_as_it_should(drive: Simulation) -> None:
    inside, total = 0, 0
    for seed in range(12):
        told = allowed_poses(drive.facts, seed=seed, count=8)
        assert [query for query, _ in told] == list(write_situations(drive.facts, seed=seed, count=8))
        for query, allowed in told:
            assert allowed is None or query.kind == "vague"
            if allowed is None:
                continue
            low, high = (torch.from_numpy(allowed.position).quantile(q, dim=0) for q in (0.05, 0.95))
            truth = torch.tensor(query.position, dtype=torch.float64)
            inside += int(((truth >= low) & (truth <= high)).sum())
            total += 2
    assert total >= 40
    assert 0.8 < inside / total <= 1.0  # 90 % are expected
