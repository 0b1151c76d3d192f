"""Augmentations of sensors: crop, GridMask, colours, calibration, missing sensors; and all together."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import groupby

import numpy as np
import pytest
import torch
from small_scenes import GRID, SIZE, assert_same, numbers, small_scene

from vlm_occ.config import DataConfig
from vlm_occ.data.augment import (
    augment,
    crop,
    crop_cameras,
    drop_sensor,
    grid_mask,
    jitter_calibration,
)
from vlm_occ.geometry import check_rigid
from vlm_occ.types import (
    CameraRig,
)


def test_a_crop_shows_at_a_points_new_pixel_what_its_old_one_showed() -> None:
    rows, columns = torch.arange(SIZE[0]), torch.arange(SIZE[1])
    ramp = torch.stack(torch.meshgrid(2 * rows, 2 * columns, indexing="ij"))  # colour says where a pixel was
    images = torch.cat([ramp, ramp[:1]])[None].to(torch.uint8)
    matrix = torch.tensor([[[70.0, 0, 47], [0, 70, 31], [0, 0, 1]]])
    cropped, moved = crop(images, matrix, 1.3, 0.8)
    assert cropped.shape == images.shape and cropped.dtype == torch.uint8
    rays = torch.tensor([[0.0, 0.1, 1], [0.2, -0.1, 1], [0.3, 0.12, 1], [0.05, -0.2, 1]])
    for ray in rays:
        u, v = (matrix[0] @ ray)[:2].tolist()
        x, y = (moved[0] @ ray)[:2].tolist()
        assert 1 < x < SIZE[1] - 1 and 1 < y < SIZE[0] - 1
        patch = cropped[0, :2, int(y - 0.5) : int(y - 0.5) + 2, int(x - 0.5) : int(x - 0.5) + 2].float()
        a, b = (y - 0.5) % 1, (x - 0.5) % 1
        weights = torch.tensor([[(1 - a) * (1 - b), (1 - a) * b], [a * (1 - b), a * b]])
        row, column = ((patch * weights).sum((1, 2)) / 2).tolist()
        assert row == pytest.approx(v - 0.5, abs=0.5) and column == pytest.approx(u - 0.5, abs=0.5)


def test_what_a_crop_cuts_away_counts_as_unseen_by_cameras() -> None:
    item = small_scene()
    cut = crop_cameras(item, 1.6, 0.0)
    centres = GRID.centers()
    index = torch.randint(0, 40, (400, 2), generator=numbers(4))
    kept = 0
    for x, y in index.tolist():
        z = (x + y) % 8
        visible = False
        for v in range(2):
            pose = cut.scene.rig.ego_from_camera[v].numpy()
            local = pose[:3, :3].T @ (centres[x, y, z].numpy() - pose[:3, 3])
            if local[2] > 0:
                u, w, _ = cut.scene.rig.intrinsics[v].numpy() @ (local / local[2])
                visible |= bool(0 <= u < SIZE[1] and 0 <= w < SIZE[0])
        expected = visible and bool(item.labels.mask_camera[x, y, z])
        assert bool(cut.labels.mask_camera[x, y, z]) == expected
        kept += expected
    assert 0 < kept < int(item.labels.mask_camera[index[:, 0], index[:, 1], index.sum(-1) % 8].sum())
    assert torch.equal(cut.labels.mask_lidar, item.labels.mask_lidar)
    # The first car is ahead on the left, where the first camera looks; nothing looks at a box on the right.
    away = replace(
        item.labels, boxes=torch.tensor([[4.0, 4.0, 0.5, 3.8, 1.7, 1.5, 0.4], [0, -7, 0, 1, 1, 1, 0]])
    )
    assert crop_cameras(replace(item, labels=away), 1.0, 0.0).labels.visibility.tolist() == [1.0, 0.0]


def test_a_grid_mask_removes_equal_squares_at_equal_distances_a_quarter_of_the_picture() -> None:
    shares = []
    for seed in range(30):
        removed = grid_mask(256, 704, numbers(seed)) == 0
        rows, columns = removed.any(1), removed.any(0)
        assert torch.equal(removed, rows[:, None] & columns[None])
        runs = [[len(list(run)) for _, run in groupby(line.tolist())][1:-1] for line in (rows, columns)]
        assert max(runs[0] + runs[1]) - min(runs[0] + runs[1]) <= 1  # squares, and gaps as wide
        shares.append(removed.float().mean().item())
    assert np.mean(shares) == pytest.approx(0.25, abs=0.02)


def test_calibration_errors_are_rigid_and_as_large_as_asked_about_every_axis() -> None:
    count = 600
    rig = CameraRig(
        ("CAM",) * count, torch.eye(3).expand(count, 3, 3), torch.eye(4).expand(count, 4, 4), SIZE
    )
    moved = jitter_calibration(rig, numbers(0), degrees=0.5, metres=0.02).ego_from_camera.double()
    check_rigid(moved[0], "jittered camera", tolerance=1e-5)
    skew = (moved[:, :3, :3] - moved[:, :3, :3].transpose(1, 2)) / 2
    angles = torch.stack([skew[:, 2, 1], skew[:, 0, 2], skew[:, 1, 0]], dim=-1)  # small: sine is the angle
    assert np.allclose(angles.std(0) / math.radians(0.5), 1, atol=0.12)
    assert np.allclose(moved[:, :3, 3].std(0) / 0.02, 1, atol=0.12)


def test_a_dropped_sensor_leaves_no_label_that_only_it_could_know() -> None:
    item = small_scene()
    blind, deaf = drop_sensor(item, lidar=False), drop_sensor(item, lidar=True)
    assert not len(blind.scene.reference.images) and not blind.scene.rig.names
    assert not blind.labels.mask_camera.any() and not blind.labels.visibility.any()
    assert torch.equal(blind.labels.mask_lidar, item.labels.mask_lidar)
    assert all(frame.points is None for frame in deaf.scene.frames)
    assert not deaf.labels.mask_lidar.any() and not deaf.labels.num_points.any()
    assert torch.equal(deaf.labels.visibility, item.labels.visibility)


def test_the_last_sensor_is_never_dropped() -> None:
    item = small_scene()
    for lidar in (False, True):
        once = drop_sensor(item, lidar=lidar)
        for again in (False, True):
            twice = drop_sensor(once, lidar=again)
            assert twice.scene.reference.points is not None or len(twice.scene.reference.images)


def test_the_same_numbers_give_the_same_variant_and_others_another() -> None:
    item, data = small_scene(), DataConfig(drop_sensor=0.0)
    first, again, other = (augment(item, numbers(seed), data, turn=20) for seed in (5, 5, 6))
    assert_same(first, again, tolerance=0.0)
    assert not torch.equal(first.labels.boxes, other.labels.boxes)
    before = small_scene()
    assert_same(item, before, tolerance=0.0)  # the original is left as it was


def test_variants_have_one_to_all_frames_and_always_the_reference() -> None:
    item = small_scene()
    counts = set()
    for seed in range(12):
        variant = augment(item, numbers(seed), DataConfig(drop_sensor=0.5))
        assert variant.scene.reference.timestamp == item.scene.reference.timestamp
        counts.add(len(variant.scene.frames))
    assert counts == {1, 2}


def test_without_geometry_points_boxes_and_sentences_stay() -> None:
    item = small_scene()
    variant = augment(item, numbers(1), DataConfig(drop_sensor=0.0), geometric=False)
    assert variant.queries == item.queries
    assert torch.equal(variant.labels.boxes, item.labels.boxes)
    assert torch.equal(variant.scene.reference.points, item.scene.reference.points)  # type: ignore[arg-type]


def test_recoloured_pictures_keep_their_grey_nearly_grey() -> None:
    item = small_scene()
    grey = torch.full((2, 3, *SIZE), 120, dtype=torch.uint8)
    frames = tuple(replace(frame, images=grey) for frame in item.scene.frames)
    item = replace(item, scene=replace(item.scene, frames=frames))
    for seed in range(8):
        variant = augment(item, numbers(seed), DataConfig(drop_sensor=0.0))
        for frame in variant.scene.frames:
            pixels = frame.images.float().permute(0, 2, 3, 1).flatten(0, 2)
            lit = pixels[pixels.amin(-1) > 80]  # GridMask and the crop's interpolation of it are dark
            assert len(lit) > len(pixels) / 3
            assert (lit.amax(-1) / lit.amin(-1)).max() < 1.13  # tint: 0.95 to 1.05 in each channel
            assert 120 * 0.74 <= lit.median() <= 120 * 1.28  # brightness 0.8 to 1.2, tint
