"""nuScenes reader: a hand-written drive whose geometry is known, and damaged copies of it."""

import json
import math
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from vlm_occ.data.annotations import CATEGORY_CLASSES, class_of_category, load_boxes
from vlm_occ.data.keyframe import load_keyframe
from vlm_occ.data.nuscenes import NuScenesTables, load_scene
from vlm_occ.geometry import project, rotation_to_quaternion
from vlm_occ.types import TALK2OCC_CLASSES

REAL = Path(
    os.environ.get("VLM_OCC_REAL_DATA", Path(__file__).resolve().parents[1].joinpath("../shared/data"))
)
SPEED = 8.0  # m/s along world y: the vehicle looks along +y
HEADING = [math.cos(math.pi / 4), 0.0, 0.0, math.sin(math.pi / 4)]  # yaw 90 degrees
FORWARD_CAMERA = [0.5, -0.5, 0.5, -0.5]  # camera x = -y, y = -z, z = x of the ego frame
INTRINSICS = [[40.0, 0, 24], [0, 40.0, 16], [0, 0, 1]]
CAMERA_LEAD = 0.05  # the camera fires that much before the LiDAR, seconds


def drive(root: Path, version: str = "v1.0-mini", samples: int = 3) -> Path:
    """A root with one scene at 2 Hz: one camera, the LiDAR, one car that keeps ahead of us."""
    tables: dict[str, list[dict]] = {
        "sensor": [
            {"token": "s-cam", "channel": "CAM_FRONT", "modality": "camera"},
            {"token": "s-lidar", "channel": "LIDAR_TOP", "modality": "lidar"},
        ],
        "calibrated_sensor": [
            {
                "token": "c-cam",
                "sensor_token": "s-cam",
                "translation": [1.5, 0, 1.6],
                "rotation": FORWARD_CAMERA,
                "camera_intrinsic": INTRINSICS,
            },
            {
                "token": "c-lidar",
                "sensor_token": "s-lidar",
                "translation": [1.0, 0, 1.8],
                "rotation": HEADING,
                "camera_intrinsic": [],
            },
        ],
        "category": [{"token": "k-car", "name": "vehicle.car"}],
        "instance": [{"token": "i-car", "category_token": "k-car"}],
        "scene": [{"token": "scene", "name": "scene-0061", "first_sample_token": "t0"}],
        "sample": [],
        "sample_data": [],
        "ego_pose": [],
        "sample_annotation": [],
    }
    for i in range(samples):
        time = 0.5 * i
        link = {"prev": f"t{i - 1}" if i else "", "next": f"t{i + 1}" if i + 1 < samples else ""}
        tables["sample"].append(
            {"token": f"t{i}", "timestamp": int(time * 1e6), "scene_token": "scene", **link}
        )
        for name, moment in (("lidar", time), ("cam", time - CAMERA_LEAD)):
            file = f"samples/{name}-{i}." + ("jpg" if name == "cam" else "pcd.bin")
            tables["ego_pose"].append(
                {"token": f"p-{name}-{i}", "translation": [100, SPEED * moment, 0], "rotation": HEADING}
            )
            tables["sample_data"].append(
                {
                    "token": f"d-{name}-{i}",
                    "sample_token": f"t{i}",
                    "ego_pose_token": f"p-{name}-{i}",
                    "calibrated_sensor_token": f"c-{name}",
                    "timestamp": round(moment * 1e6),
                    "filename": file,
                    "is_key_frame": True,
                }
            )
        tables["sample_annotation"].append(
            {
                "token": f"a{i}",
                "sample_token": f"t{i}",
                "instance_token": "i-car",
                "translation": [100 + 3 * time, SPEED * time + 20, 1.0],
                "size": [2.0, 4.5, 1.6],
                "rotation": [1, 0, 0, 0],
                "num_lidar_pts": 7,
                "visibility_token": "4",
                "prev": f"a{i - 1}" if i else "",
                "next": f"a{i + 1}" if i + 1 < samples else "",
            }
        )
        write_files(root, i)
    tables["sample_data"].append(tables["sample_data"][0] | {"token": "sweep", "is_key_frame": False})
    (root / version).mkdir()
    for name, rows in tables.items():
        (root / version / f"{name}.json").write_text(json.dumps(rows))
    return root


def write_files(root: Path, i: int) -> None:
    (root / "samples").mkdir(exist_ok=True)
    Image.new("RGB", (48, 32), (10 * i, 100, 200)).save(root / "samples" / f"cam-{i}.jpg")
    points = np.array([[2.0, 5.0, -1.0, 51.0, 3.0], [0.0, 0.0, 0.0, 255.0, 0.0]], dtype="<f4")
    points.tofile(root / "samples" / f"lidar-{i}.pcd.bin")


def edit(root: Path, table: str, change) -> None:
    path = next(root.glob("v1.0-*")) / f"{table}.json"
    rows = json.loads(path.read_text())
    change(rows)
    path.write_text(json.dumps(rows))


def test_points_come_in_ego_axes_with_intensity_in_0_1(tmp_path):
    points = load_scene(drive(tmp_path), "t2").reference.points
    # The LiDAR is turned by 90 degrees: its x is ego y, its y is ego -x.
    assert points is not None
    assert points[0].tolist() == pytest.approx([1.0 - 5.0, 2.0, 0.8, 0.2], abs=1e-6)
    assert points[1].tolist() == pytest.approx([1.0, 0.0, 1.8, 1.0], abs=1e-6)


def test_frames_come_in_time_order_with_their_own_poses(tmp_path):
    scene = load_scene(drive(tmp_path), "t2", num_frames=2)
    assert [frame.timestamp for frame in scene.frames] == [0.5, 1.0]
    assert [frame.world_from_ego[1, 3].item() for frame in scene.frames] == pytest.approx([4.0, 8.0])
    assert scene.frames[0].world_from_ego.dtype == torch.float64
    assert scene.frames[1].images[0, 0].float().mean().item() == pytest.approx(20, abs=3)
    assert scene.rig.image_size == (32, 48)
    assert len(load_scene(tmp_path, "t1", num_frames=9).frames) == 2


def test_a_landmark_projects_alike_from_the_camera_time_and_through_the_rig(tmp_path):
    scene = load_scene(drive(tmp_path), "t2")
    landmark = [102.0, 30.0, 2.0]  # world
    # Directly: at the camera's time the vehicle stands at y = 8 * 0.95 and looks along world y.
    ahead = landmark[1] - SPEED * (1.0 - CAMERA_LEAD) - 1.5
    right, down = landmark[0] - 100.0, 1.6 - landmark[2]
    expected = [40 * right / ahead + 24, 40 * down / ahead + 16]
    ego = torch.tensor([[landmark[1] - SPEED * 1.0, 100.0 - landmark[0], landmark[2]]])  # at the LiDAR time
    pixels, depth = project(ego, scene.rig.intrinsics, scene.rig.ego_from_camera)
    assert pixels[0, 0].tolist() == pytest.approx(expected, abs=1e-4)
    assert depth.item() == pytest.approx(ahead, abs=1e-4)


def test_boxes_come_in_the_ego_frame_with_length_first(tmp_path):
    found = load_boxes(NuScenesTables(drive(tmp_path)), "t1")
    # The car looks to the right (world +x = ego -y), where it moves at 3 m/s, and keeps 20 m ahead of us.
    assert found.boxes[0].tolist() == pytest.approx([20, -1.5, 1, 4.5, 2.0, 1.6, -math.pi / 2], abs=1e-5)
    assert found.velocities[0].tolist() == pytest.approx([SPEED, -3.0], abs=1e-5)
    assert TALK2OCC_CLASSES[int(found.classes[0])] == "car"
    assert (found.num_points.tolist(), found.tokens) == ([7], ("a1",))


def test_the_first_annotation_takes_its_speed_from_the_next_one_and_a_lone_one_has_none(tmp_path):
    (tmp_path / "one").mkdir()
    assert load_boxes(NuScenesTables(drive(tmp_path)), "t0").velocities[0].tolist() == pytest.approx(
        [SPEED, -3]
    )
    lone = load_boxes(NuScenesTables(drive(tmp_path / "one", samples=1)), "t0")
    assert lone.velocities.isnan().all()


def test_a_sample_without_annotations_has_no_boxes(tmp_path):
    edit(drive(tmp_path), "sample_annotation", lambda rows: rows.clear())
    assert load_boxes(NuScenesTables(tmp_path), "t0").boxes.shape == (0, 7)


def test_sensors_can_be_left_out_and_are_then_not_read(tmp_path):
    drive(tmp_path)
    (tmp_path / "samples" / "lidar-2.pcd.bin").unlink()
    assert load_scene(tmp_path, "t2", lidar=False).reference.points is None
    (tmp_path / "samples" / "cam-1.jpg").unlink()
    scene = load_scene(tmp_path, "t1", cameras=[])
    assert scene.reference.images.shape[0] == len(scene.rig.names) == 0
    with pytest.raises(ValueError, match="no sensor"):
        load_scene(tmp_path, "t1", cameras=[], lidar=False)
    with pytest.raises(ValueError, match="CAM_BACK"):
        load_scene(tmp_path, "t1", cameras=["CAM_BACK"])


def test_a_version_folder_is_a_root_too_and_trainval_comes_first(tmp_path):
    drive(tmp_path)
    assert load_scene(tmp_path / "v1.0-mini", "t0").name == "t0"
    (tmp_path / "v1.0-trainval").mkdir()
    for path in (tmp_path / "v1.0-mini").iterdir():
        (tmp_path / "v1.0-trainval" / path.name).write_text(path.read_text())
    assert NuScenesTables(tmp_path).folder.name == "v1.0-trainval"
    with pytest.raises(ValueError, match="no nuScenes tables"):
        NuScenesTables(tmp_path / "samples")


@pytest.mark.parametrize(
    ("table", "column", "named"),
    [
        ("sample_data", "ego_pose_token", "ego_pose"),
        ("sample_data", "calibrated_sensor_token", "calibrated_sensor"),
        ("calibrated_sensor", "sensor_token", "sensor"),
        ("sample_annotation", "instance_token", "instance"),
        ("instance", "category_token", "category"),
        ("sample", "prev", "sample"),
        ("sample_annotation", "prev", "sample_annotation"),
    ],
)
def test_a_dangling_token_is_named_with_its_table(tmp_path, table, column, named):
    edit(drive(tmp_path), table, lambda rows: [row.update({column: "lost"}) for row in rows])
    tables = NuScenesTables(tmp_path)
    with pytest.raises(ValueError, match=rf"{named} token 'lost', which .*{named}\.json lacks"):
        load_scene(tables, "t2", num_frames=2)
        load_boxes(tables, "t2")


def test_an_unknown_sample_is_named(tmp_path):
    with pytest.raises(ValueError, match="sample token 'nowhere'"):
        load_scene(drive(tmp_path), "nowhere")


def test_a_truncated_or_missing_table_is_named(tmp_path):
    path = drive(tmp_path) / "v1.0-mini" / "ego_pose.json"
    path.write_text(path.read_text()[:-30])
    with pytest.raises(ValueError, match=r"ego_pose\.json is truncated"):
        load_scene(tmp_path, "t0")
    path.unlink()
    with pytest.raises(ValueError, match=r"ego_pose\.json is missing"):
        load_scene(tmp_path, "t0")


@pytest.mark.parametrize("file", ["cam-0.jpg", "lidar-0.pcd.bin"])
def test_a_missing_or_truncated_sensor_file_is_named(tmp_path, file):
    path = drive(tmp_path) / "samples" / file
    path.write_bytes(path.read_bytes()[:-7])
    with pytest.raises(ValueError, match=file):
        load_scene(tmp_path, "t0")
    path.unlink()
    with pytest.raises(ValueError, match=file):
        load_scene(tmp_path, "t0")


def test_a_sample_without_its_lidar_keyframe_is_an_error(tmp_path):
    edit(drive(tmp_path), "sample_data", lambda rows: rows.__delitem__(0))
    with pytest.raises(ValueError, match="no LIDAR_TOP keyframe"):
        load_scene(tmp_path, "t0")


def test_all_23_object_categories_map_onto_all_15_classes():
    assert len(CATEGORY_CLASSES) == 23
    assert {class_of_category(name) for name in CATEGORY_CLASSES} == set(range(15))
    assert class_of_category("vehicle.ego") == -1


def keyframe_root(root: Path) -> Path:
    """nuScenes tables around the files of the real keyframe; every sensor shares the LiDAR's ego pose."""
    folder, version = REAL / "nuscenes_keyframe", root / "v1.0-mini"
    record = json.loads((folder / "keyframe.json").read_text())
    sensors = {n: (c["file"], c["cam2ego"], c["K"]) for n, c in record["cams"].items()}
    sensors["LIDAR_TOP"] = (record["lidar"]["file"], record["lidar2ego"], [])

    def pose(matrix: list) -> dict:
        t = torch.tensor(matrix, dtype=torch.float64)
        return {"translation": t[:3, 3].tolist(), "rotation": rotation_to_quaternion(t[:3, :3]).tolist()}

    tables: dict[str, list[dict]] = {
        "sample": [{"token": "t", "timestamp": 0, "prev": "", "next": ""}],
        "ego_pose": [{"token": "p", **pose(record["ego2global"])}],
        "sensor": [{"token": n, "channel": n} for n in sensors],
        "calibrated_sensor": [
            {"token": n, "sensor_token": n, "camera_intrinsic": matrix, **pose(place)}
            for n, (_, place, matrix) in sensors.items()
        ],
        "sample_data": [
            {
                "token": n,
                "sample_token": "t",
                "ego_pose_token": "p",
                "calibrated_sensor_token": n,
                "timestamp": 0,
                "filename": str(folder / file),
                "is_key_frame": True,
            }
            for n, (file, _, _) in sensors.items()
        ],
    }
    version.mkdir()
    for name, rows in tables.items():
        (version / f"{name}.json").write_text(json.dumps(rows))
    return root


@pytest.mark.skipif(not (REAL / "nuscenes_keyframe").is_dir(), reason=f"no real samples in {REAL}")
def test_the_real_keyframe_reads_alike_from_tables_and_from_its_folder(tmp_path):
    ours, other = load_scene(keyframe_root(tmp_path), "t"), load_keyframe(REAL / "nuscenes_keyframe")
    assert ours.rig.names == other.rig.names
    assert torch.equal(ours.reference.images, other.reference.images)
    torch.testing.assert_close(ours.rig.ego_from_camera, other.rig.ego_from_camera, atol=1e-5, rtol=0)
    assert ours.reference.points is not None and other.reference.points is not None
    torch.testing.assert_close(ours.reference.points, other.reference.points, atol=1e-4, rtol=0)
