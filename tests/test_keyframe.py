"""Keyframe folders and the names of scenes: what is read, and one-line errors for what is damaged."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from vlm_occ.data.keyframe import load_keyframe
from vlm_occ.data.scenes import check_query, load_scene, select_sensors
from vlm_occ.geometry import points_in_boxes, project
from vlm_occ.types import CAMERAS


def edit(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Apply `change` to the record of a keyframe folder."""
    path = folder / "keyframe.json"
    record = json.loads(path.read_text())
    change(record)
    path.write_text(json.dumps(record))


def put(folder: Path, *keys: str, value: object) -> None:
    """Set one nested value of a keyframe folder's record."""

    def change(record: dict[str, Any]) -> None:
        for key in keys[:-1]:
            record = record[key]
        record[keys[-1]] = value

    edit(folder, change)


def test_images_come_in_the_order_of_the_cameras_and_in_rgb(keyframe_folder: Path) -> None:
    scene = load_scene(keyframe_folder)
    assert scene.rig.names == CAMERAS  # the file lists them in reverse
    for view in range(6):
        expected = torch.tensor([40 * view, 100, 7], dtype=torch.uint8)[:, None, None].expand(3, 90, 160)
        assert torch.equal(scene.reference.images[view], expected)
    assert scene.rig.image_size == (90, 160)


def test_points_are_moved_to_the_ego_frame_one_by_one_and_intensity_is_scaled(keyframe_folder: Path) -> None:
    points = load_scene(keyframe_folder).reference.points
    raw = np.fromfile(keyframe_folder / "sweep.bin", dtype="<f4").reshape(-1, 5)
    assert points is not None and len(points) == len(raw)
    for row in range(0, 500, 50):
        x, y, z, intensity, _ = raw[row].tolist()
        expected = torch.tensor([y + 0.9, -x, z + 1.8, intensity / 255])  # lidar2ego of the folder, by hand
        assert torch.allclose(points[row], expected, atol=1e-5)


def test_a_point_ahead_of_a_camera_projects_to_its_principal_point(keyframe_folder: Path) -> None:
    rig = load_scene(keyframe_folder).rig
    ahead = torch.tensor([[11.0, 0.0, 1.6]])  # 10 m along the axis of the front camera
    pixels, depth = project(ahead, rig.intrinsics, rig.ego_from_camera)
    assert torch.allclose(pixels[0, 0], torch.tensor([80.0, 45.0])) and abs(depth[0, 0].item() - 10) < 1e-5
    assert depth[3, 0] < 0  # the back camera


def test_a_sensor_is_left_out_by_name_and_is_then_not_read(keyframe_folder: Path) -> None:
    (keyframe_folder / "0.png").unlink()
    (keyframe_folder / "sweep.bin").unlink()
    scene = load_scene(keyframe_folder, cameras=["CAM_BACK", "CAM_FRONT"], lidar=False)
    assert scene.rig.names == ("CAM_FRONT", "CAM_BACK")
    assert scene.reference.points is None and len(scene.reference.images) == len(scene.rig.intrinsics) == 2


def test_a_scene_without_cameras_or_without_listed_lidar_is_legal(keyframe_folder: Path) -> None:
    blind = load_scene(keyframe_folder, cameras=[])
    assert blind.rig.names == () and blind.reference.images.shape[0] == 0
    assert blind.reference.points is not None
    edit(keyframe_folder, lambda record: record.pop("lidar"))
    edit(keyframe_folder, lambda record: record["cams"].pop("CAM_BACK"))
    scene = load_scene(keyframe_folder)
    assert scene.reference.points is None and "CAM_BACK" not in scene.rig.names


def truncate(name: str, keep: float) -> Callable[[Path], None]:
    """A damage that cuts a file."""

    def damage(folder: Path) -> None:
        data = (folder / name).read_bytes()
        (folder / name).write_bytes(data[: int(len(data) * keep)])

    return damage


def set_value(*keys: str, value: object) -> Callable[[Path], None]:
    """A damage that replaces one value of the record."""
    return lambda folder: put(folder, *keys, value=value)


def drop(*keys: str) -> Callable[[Path], None]:
    """A damage that removes one key of the record."""

    def change(record: dict[str, Any]) -> None:
        for key in keys[:-1]:
            record = record[key]
        del record[keys[-1]]

    return lambda folder: edit(folder, change)


def nan_points(folder: Path) -> None:
    """A damage that puts one NaN into the sweep."""
    raw = np.fromfile(folder / "sweep.bin", dtype="<f4")
    raw[7] = np.nan
    raw.tofile(folder / "sweep.bin")


MIRROR = [[1, 0, 0, 0], [0, 1, 0, 0], [0, 0, -1, 0], [0, 0, 0, 1]]
STRETCH = [[1.1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]]
DAMAGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "missing image": (lambda folder: (folder / "0.png").unlink(), "image .*0.png is missing"),
    "truncated image": (truncate("0.png", 0.6), "0.png is truncated or damaged"),
    "empty image": (truncate("0.png", 0), "0.png is truncated or damaged"),
    "missing LiDAR": (lambda folder: (folder / "sweep.bin").unlink(), "LiDAR file .*sweep.bin is missing"),
    "truncated LiDAR": (truncate("sweep.bin", 0.777), "has 7770 bytes, expected a positive multiple of 20"),
    "empty LiDAR": (truncate("sweep.bin", 0), "has 0 bytes"),
    "wrong fields": (set_value("lidar", "fields", value=["x", "y", "z"]), "fields of the LiDAR"),
    "wrong dtype": (set_value("lidar", "dtype", value="float99"), "dtype 'float99' is unknown"),
    "NaN points": (nan_points, "NaN or infinite values in 1 of 500 points"),
    "no intrinsics": (drop("cams", "CAM_BACK", "K"), "K of CAM_BACK is missing"),
    "no extrinsics": (drop("cams", "CAM_BACK", "cam2ego"), "cam2ego of CAM_BACK is missing"),
    "no LiDAR pose": (drop("lidar2ego"), "lidar2ego is missing"),
    "no ego pose": (drop("ego2global"), "ego2global is missing"),
    "no timestamp": (drop("timestamp"), "timestamp"),
    "intrinsics 2x3": (set_value("cams", "CAM_BACK", "K", value=[[1, 0, 0], [0, 1, 0]]), r"shape \[2, 3\]"),
    "zero focal length": (set_value("cams", "CAM_BACK", "K", value=[[0] * 3] * 3), "focal lengths 0, 0"),
    "ragged matrix": (set_value("lidar2ego", value=[[1, 0], [0]]), "not a matrix of numbers"),
    "stretched pose": (set_value("lidar2ego", value=STRETCH), "lidar2ego .* is not a rigid transform"),
    "mirrored pose": (set_value("cams", "CAM_BACK", "cam2ego", value=MIRROR), "cam2ego of CAM_BACK .* rigid"),
    "cams is a list": (set_value("cams", value=[1]), "cams .* is a list"),
    "half a record": (truncate("keyframe.json", 0.5), "not valid JSON"),
    "no record": (lambda folder: (folder / "keyframe.json").unlink(), "no keyframe.json"),
    "not an object": (lambda folder: (folder / "keyframe.json").write_text("[]"), "holds a list"),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_damage_is_an_error_that_names_the_file_or_value(name: str, keyframe_folder: Path) -> None:
    damage, message = DAMAGES[name]
    load_scene(keyframe_folder)  # sound before
    damage(keyframe_folder)
    with pytest.raises(ValueError, match=message) as caught:
        load_scene(keyframe_folder)
    assert len(str(caught.value).splitlines()) == 1


def test_images_of_two_sizes_are_an_error(keyframe_folder: Path) -> None:
    from PIL import Image

    Image.new("RGB", (100, 90)).save(keyframe_folder / "2.png")
    with pytest.raises(ValueError, match="90 x 100 but that of CAM_FRONT is 90 x 160"):
        load_scene(keyframe_folder)


def test_an_unknown_camera_and_no_sensor_are_errors(keyframe_folder: Path) -> None:
    with pytest.raises(ValueError, match="unknown camera 'CAM_TOP'; this scene has CAM_FRONT_LEFT"):
        load_scene(keyframe_folder, cameras=["CAM_TOP"])
    with pytest.raises(ValueError, match="no sensor"):
        load_scene(keyframe_folder, cameras=[], lidar=False)


def test_a_sweep_cut_between_two_points_is_found_by_the_counts_of_the_boxes(
    real_keyframe: Path, tmp_path: Path
) -> None:
    for path in real_keyframe.iterdir():
        (tmp_path / path.name).symlink_to(path)
    sweep = next(tmp_path.glob("*LIDAR_TOP*"))
    data = sweep.read_bytes()
    sweep.unlink()
    sweep.write_bytes(data[: len(data) // 40 * 20])  # half of the points, a whole number of records
    with pytest.raises(ValueError, match="points inside the labelled boxes"):
        load_keyframe(tmp_path, cameras=[])


def test_the_real_keyframe_has_the_points_in_its_boxes_that_its_annotation_counts(
    real_keyframe: Path,
) -> None:
    scene = load_keyframe(real_keyframe, cameras=["CAM_FRONT"])
    record = json.loads((real_keyframe / "keyframe.json").read_text())
    boxes = torch.tensor([[*b["center_ego"], *b["size_lwh"], b["yaw_ego"]] for b in record["boxes"]])
    counts = torch.tensor([b["points_inside"] for b in record["boxes"]])
    assert scene.reference.points is not None
    found = points_in_boxes(scene.reference.points[:, :3], boxes).sum(1)
    # The boxes tilt with the LiDAR (1.4 degrees), ours are upright: a few points at the faces differ.
    assert (found - counts).abs().float().mean() < 2 and found[18] > 100
    assert scene.reference.images.shape == (1, 3, 900, 1600) and len(scene.reference.points) == 34688


@pytest.mark.parametrize(
    "spec", ["sim:", "sim:x", "sim:-1", "sim:1.5", "nuscenes:", "nuscenes:r", "/nowhere"]
)
def test_a_scene_name_of_no_kind_is_an_error(spec: str) -> None:
    with pytest.raises(ValueError, match=r"sim:SEED|nuscenes:ROOT:SAMPLE_TOKEN"):
        load_scene(spec)


def test_selecting_sensors_of_a_loaded_scene_equals_loading_them(keyframe_folder: Path) -> None:
    names = ["CAM_BACK_LEFT", "CAM_FRONT_RIGHT"]
    selected = select_sensors(load_scene(keyframe_folder), cameras=names, lidar=False)
    loaded = load_scene(keyframe_folder, cameras=names, lidar=False)
    assert selected.rig.names == loaded.rig.names and selected.reference.points is None
    assert torch.equal(selected.rig.ego_from_camera, loaded.rig.ego_from_camera)
    assert torch.equal(selected.reference.images, loaded.reference.images)
    with pytest.raises(ValueError, match="no sensor"):
        select_sensors(loaded, cameras=[])


@pytest.mark.parametrize("query", ["", "   ", "?!", "word " * 10_000, "x" * 3000, "bad \udcff byte"])
def test_a_query_that_is_empty_endless_or_no_text_is_an_error(query: str) -> None:
    with pytest.raises(ValueError, match="query") as caught:
        check_query(query)
    assert len(str(caught.value).splitlines()) == 1


def test_a_query_keeps_its_words_and_loses_its_blanks() -> None:
    assert check_query("  the  red\ncar ") == "the red car"
    assert check_query("le camion à gauche") == "le camion à gauche"
    assert len(check_query("word " * 200).split()) == 200


def test_a_simulated_scene_is_named_by_its_seed_and_loses_sensors_by_name() -> None:
    from vlm_occ.data.simulator.scene import simulate

    scene = load_scene("sim:8", cameras=["CAM_BACK"], lidar=False)
    whole = simulate(8).scene
    assert scene.rig.names == ("CAM_BACK",) and scene.reference.points is None
    for frame, other in zip(scene.frames, whole.frames, strict=True):
        assert torch.equal(frame.images, other.images[[CAMERAS.index("CAM_BACK")]])
