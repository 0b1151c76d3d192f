"""Pictures: what is drawn lies where the geometry says."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from vlm_occ.data.scenes import load_scene
from vlm_occ.geometry import box_corners, project
from vlm_occ.render import draw_birds_eye, draw_camera, draw_cameras, top_view, whole_file
from vlm_occ.render.cameras import PANEL_WIDTH, clip_segments, visible_faces
from vlm_occ.render.files import REFERRED
from vlm_occ.types import GroundedObject, GroundingResult, VoxelGrid
from vlm_occ.voxels import voxels_in_box

GRID = VoxelGrid()


def answer(*boxes: tuple[float, ...], query: str = "the $x car") -> GroundingResult:
    """An answer whose objects fill their boxes, over a flat ground."""
    occupancy = torch.zeros(GRID.shape, dtype=torch.bool)
    occupancy[:, :, 2] = True
    objects = []
    for box in boxes:
        member = voxels_in_box(torch.tensor(box), GRID)
        occupancy |= member
        objects.append(GroundedObject(member, torch.tensor(box), 0.9))
    return GroundingResult(query, "It is ahead.", tuple(objects), occupancy, GRID)


def pinkness(pixels: np.ndarray) -> np.ndarray:
    """How far each pixel's red and blue exceed its green."""
    values = pixels.astype(int)
    return np.minimum(values[..., 0], values[..., 2]) - values[..., 1]


def test_the_view_from_above_is_pink_exactly_where_the_answer_has_voxels() -> None:
    result = answer((12.0, 5.0, 0.8, 4.5, 1.9, 1.6, 0.4), (-8.0, -3.0, 0.5, 1.0, 1.0, 1.0, 0.0))
    pink = pinkness(top_view(result) * 255) > 60
    expected = (result.occupancy == 2).any(2).numpy()
    inner = expected.copy()
    assert pink[inner].mean() > 0.95 and not pink[~expected].any()


def test_higher_columns_are_darker() -> None:
    occupancy = torch.zeros(GRID.shape, dtype=torch.bool)
    occupancy[:100, :, 2], occupancy[100:, :, 10] = True, True
    view = top_view(GroundingResult("q", "t", (), occupancy, GRID))
    assert view[50, 100].mean() > view[150, 100].mean() + 0.2


def test_the_birds_eye_file_shows_an_object_ahead_left_in_the_upper_left(tmp_path: Path) -> None:
    draw_birds_eye(answer((25.0, 20.0, 1.0, 8.0, 5.0, 2.0, 0.0)), tmp_path / "view.png")
    pixels = np.array(Image.open(tmp_path / "view.png").convert("RGB"))
    rows, columns = np.nonzero(pinkness(pixels) > 100)
    assert rows.mean() < pixels.shape[0] * 0.4 and columns.mean() < pixels.shape[1] * 0.4
    assert list(tmp_path.iterdir()) == [tmp_path / "view.png"]


def test_an_answer_of_nothing_draws_nothing_pink(tmp_path: Path, keyframe_folder: Path) -> None:
    draw_birds_eye(answer(), tmp_path / "view.png", scene=load_scene(keyframe_folder))
    draw_cameras(load_scene(keyframe_folder), answer(), tmp_path / "cameras.png")
    for name in ("view.png", "cameras.png"):
        pixels = np.array(Image.open(tmp_path / name).convert("RGB"))
        assert (np.abs(pixels.astype(int) - REFERRED).sum(-1) < 30).sum() == 0


def test_only_the_camera_that_sees_the_object_is_marked(keyframe_folder: Path) -> None:
    scene, result = load_scene(keyframe_folder), answer((-15.0, 0.0, 1.0, 4.0, 2.0, 1.6, 0.0))
    for name in scene.rig.names:
        corner = draw_camera(scene, result, name).getpixel((2, 2))
        assert (corner == REFERRED) == (name == "CAM_BACK")


def test_the_drawn_object_lies_inside_the_hull_of_its_projected_corners(keyframe_folder: Path) -> None:
    scene, result = load_scene(keyframe_folder), answer((16.0, 1.0, 1.2, 4.0, 2.0, 1.6, 0.7))
    pixels = np.array(draw_camera(scene, result, "CAM_FRONT"))
    rows, columns = np.nonzero(pinkness(pixels[100:-20, 20:-20]) > 60)
    grown = result.objects[0].box.clone()
    grown[3:6] += 2 * GRID.voxel_size * 2**0.5  # touching voxels reach beyond the box
    rig = scene.rig
    corners = project(box_corners(grown[None])[0], rig.intrinsics[:1], rig.ego_from_camera[:1])[0][0]
    corners *= 2 * PANEL_WIDTH / rig.image_size[1]
    low, high = corners.amin(0).tolist(), corners.amax(0).tolist()
    assert len(rows) > 500
    assert low[0] - 8 <= columns.min() + 20 and columns.max() + 20 <= high[0] + 8
    assert low[1] - 50 <= rows.min() + 100 and rows.max() + 100 <= high[1] + 8  # the tag stands above


def test_missing_cameras_stay_empty_and_a_scene_without_cameras_is_refused(
    tmp_path: Path, keyframe_folder: Path
) -> None:
    draw_cameras(load_scene(keyframe_folder, cameras=["CAM_BACK"]), answer(), tmp_path / "one.png")
    draw_cameras(load_scene(keyframe_folder), answer(), tmp_path / "six.png")
    one, six = np.array(Image.open(tmp_path / "one.png")), np.array(Image.open(tmp_path / "six.png"))
    assert one.shape == six.shape
    middle, half = one.shape[1] // 2, one.shape[0] // 2
    assert (one[half + 200, middle] == six[half + 200, middle]).all()  # the back camera: lower row, middle
    assert (one[half - 100, middle] != six[half - 100, middle]).any()  # the front camera is not used
    with pytest.raises(ValueError, match="no cameras"):
        draw_cameras(load_scene(keyframe_folder, cameras=[]), answer(), tmp_path / "none.png")


def test_clipped_segments_equal_the_visible_samples_of_the_segment() -> None:
    generator = torch.Generator().manual_seed(3)
    intrinsics = torch.tensor([[300.0, 0, 160], [0, 300, 90], [0, 0, 1]])
    a, b = (torch.rand(200, 3, generator=generator) * 20 - 10 for _ in range(2))  # half lie behind the camera
    pixels, exists = clip_segments(a @ intrinsics.T, b @ intrinsics.T, (320, 180))
    steps = torch.linspace(0, 1, 4001)[:, None]
    hits = 0
    for i in range(200):
        samples = (a[i] + steps * (b[i] - a[i])) @ intrinsics.T  # [4001, 3]
        uv = samples[:, :2] / samples[:, 2:]
        seen = (samples[:, 2] > 0.1) & (uv >= 0).all(-1) & (uv <= torch.tensor([320.0, 180.0])).all(-1)
        if seen.sum() > 3:
            hits += 1
            assert exists[i]
            ends = uv[seen][[0, -1]]
            allowed = (uv[seen].diff(dim=0).norm(dim=-1).max() * 1.5 + 0.1).item()
            assert (pixels[i] - ends).norm(dim=-1).max() < allowed
        elif not seen.any():
            length = (pixels[i, 0] - pixels[i, 1]).norm()
            assert not exists[i] or length < 5  # a corner cut shorter than the samples' distance
    assert hits > 20


def test_the_outer_faces_of_voxels_are_those_that_a_loop_finds() -> None:
    grid = VoxelGrid(origin=(0.0, 0.0, 0.0), voxel_size=1.0, shape=(5, 4, 3))
    occupancy = torch.rand(grid.shape, generator=torch.Generator().manual_seed(1)) > 0.5
    corners, normals = visible_faces(occupancy, grid)
    expected = set()
    for x, y, z in occupancy.nonzero().tolist():
        for axis in range(3):
            for sign in (1, -1):
                other = [x, y, z]
                other[axis] += sign
                free = not (0 <= other[axis] < grid.shape[axis]) or not occupancy[tuple(other)]
                if free:
                    centre = [x + 0.5, y + 0.5, z + 0.5]
                    centre[axis] += sign / 2
                    expected.add((*centre, axis, sign))
    found = {
        (*corner.mean(0).tolist(), int(normal.abs().argmax()), int(normal.sum()))
        for corner, normal in zip(corners, normals, strict=True)
    }
    assert found == expected and len(corners) == len(expected)
    edges = (corners - corners.roll(1, dims=1)).norm(dim=-1)
    assert torch.allclose(edges, torch.ones_like(edges))


def test_a_file_that_fails_half_way_leaves_the_old_one_and_no_remains(tmp_path: Path) -> None:
    path = tmp_path / "answer.txt"
    path.write_text("old")
    with pytest.raises(RuntimeError), whole_file(path) as temporary:
        temporary.write_text("half")
        raise RuntimeError
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]
    with whole_file(path) as temporary:
        temporary.write_text("new")
    assert path.read_text() == "new" and list(tmp_path.iterdir()) == [path]


def test_the_voxels_of_a_real_truck_cover_its_lidar_points_in_the_image(real_keyframe: Path) -> None:
    scene = load_scene(real_keyframe, cameras=["CAM_FRONT"])
    truck = (16.27, 4.56, 1.9, 10.2, 2.9, 3.6, 0.02)
    assert scene.reference.points is not None
    inside = scene.reference.points[:, :3]
    member = (inside[:, 0] > 11.5) & (inside[:, 0] < 12.5) & ((inside[:, 1] - truck[1]).abs() < 1.2)
    member &= (inside[:, 2] > 0.7) & (inside[:, 2] < 3)
    pixels = project(inside[member], scene.rig.intrinsics, scene.rig.ego_from_camera)[0][0]
    picture = np.array(draw_camera(scene, answer(truck), "CAM_FRONT"))
    scaled = (pixels * 2 * PANEL_WIDTH / 1600).long().numpy()
    assert member.sum() > 20
    assert (pinkness(picture)[scaled[:, 1], scaled[:, 0]] > 25).mean() > 0.9
