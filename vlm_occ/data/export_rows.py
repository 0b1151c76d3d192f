"""One simulated drive as rows of nuScenes tables, Talk2Car commands and queries; pure, no file is touched."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence

import torch
from torch import Tensor

from vlm_occ.data.annotations import CATEGORY_CLASSES
from vlm_occ.data.nuscenes import LIDAR
from vlm_occ.data.simulator.rig import LIDAR_POSITION, lidar_tangents
from vlm_occ.geometry import invert_rigid, rigid, rotation_to_quaternion, rotation_z, transform_points
from vlm_occ.types import TALK2OCC_CLASSES, LabelledScene

Rows = dict[str, list[dict[str, object]]]

CATEGORY_OF_CLASS = {
    "car": "vehicle.car",
    "pedestrian": "human.pedestrian.adult",
    "truck": "vehicle.truck",
    "bicycle": "vehicle.bicycle",
    "animal": "animal",
    "movable object": "movable_object.pushable_pullable",
    "traffic cone": "movable_object.trafficcone",
    "debris": "movable_object.debris",
    "construction vehicle": "vehicle.construction",
    "trailer": "vehicle.trailer",
    "emergency vehicle": "vehicle.emergency.police",
    "bicycle rack": "static_object.bicycle_rack",
    "barrier": "movable_object.barrier",
    "motorcycle": "vehicle.motorcycle",
    "bus": "vehicle.bus.rigid",
}
"""The nuScenes category under which a simulated object of each class is written."""

VISIBILITY_LEVELS = ("v0-40", "v40-60", "v60-80", "v80-100")
BASE_TIME = 1_600_000_000_000_000
"""Microseconds of the first simulated scene; the next seed starts 1,000 seconds later."""


def token(*parts: object) -> str:
    """A token of 32 hexadecimal digits, the same for the same parts."""
    return hashlib.md5("|".join(map(str, parts)).encode(), usedforsecurity=False).hexdigest()


def scene_name(seed: int) -> str:
    """Name of the scene of a seed, also its folder below `gts`."""
    return f"sim-{seed:07d}"


def sample_token(seed: int, frame: int) -> str:
    """Token of a keyframe of the scene of a seed."""
    return token("sample", seed, frame)


def sensor_file(seed: int, frame: int, channel: str) -> str:
    """Path of a sensor's file below the export's root."""
    suffix = "pcd.bin" if channel == LIDAR else "jpg"
    return f"samples/{channel}/{scene_name(seed)}__{channel}__{frame:02d}.{suffix}"


def ego_from_lidar() -> Tensor:
    """Calibration float64 [4, 4] of the LiDAR, mounted as in nuScenes: its x is right, its y forward."""
    yaw = torch.tensor(-math.pi / 2, dtype=torch.float64)
    return rigid(rotation_z(yaw), torch.tensor(LIDAR_POSITION, dtype=torch.float64))


def lidar_records(points: Tensor) -> Tensor:
    """Ego points [N, 4] as records float32 [N, 5] of a `.pcd.bin`: sensor x, y, z, intensity 0..255, ring.

    The ring is the beam whose elevation is nearest, seen from the LiDAR's nominal place.
    """
    place = transform_points(invert_rigid(ego_from_lidar()), points[:, :3].double())  # [N, 3]
    tangent = place[:, 2] / place[:, :2].norm(dim=1).clamp(min=1e-6)
    tangents = lidar_tangents().double()  # [32], rising
    ring = torch.bucketize(tangent, (tangents[1:] + tangents[:-1]) / 2)
    return torch.cat([place.float(), 255 * points[:, 3:4], ring[:, None].float()], dim=1)


def shared_tables() -> Rows:
    """The tables that do not depend on the scenes."""
    categories = sorted(CATEGORY_CLASSES)
    return {
        "category": [{"token": token("category", n), "name": n, "description": ""} for n in categories],
        "attribute": [
            {"token": token("attribute", n), "name": n, "description": ""}
            for n in ("vehicle.moving", "vehicle.stopped", "vehicle.parked")
        ],
        "visibility": [
            {"token": str(i + 1), "level": level, "description": f"visibility {level[1:]} %"}
            for i, level in enumerate(VISIBILITY_LEVELS)
        ],
    }


def map_table(logs: Sequence[dict[str, object]]) -> list[dict[str, object]]:
    """The one map, an empty mask, of all drives."""
    return [
        {
            "token": token("map"),
            "log_tokens": [row["token"] for row in logs],
            "category": "semantic_prior",
            "filename": "maps/sim.png",
        }
    ]


def scene_rows(seed: int, drive: LabelledScene) -> Rows:
    """All rows of one drive; annotations belong to its last keyframe, the only one with truth."""
    name, frames = scene_name(seed), drive.scene.frames
    start = BASE_TIME + seed % 1_000_000 * 1_000_000_000
    times = [start + round((frame.timestamp - frames[0].timestamp) * 1e6) for frame in frames]
    samples = [sample_token(seed, i) for i in range(len(frames))]
    rows: Rows = {
        "log": [
            {
                "token": token("log", seed),
                "logfile": name,
                "vehicle": "sim",
                "date_captured": "2020-09-13",
                "location": "simulated",
            }
        ],
        "scene": [
            {
                "token": token("scene", seed),
                "log_token": token("log", seed),
                "nbr_samples": len(frames),
                "first_sample_token": samples[0],
                "last_sample_token": samples[-1],
                "name": name,
                "description": f"simulated, sim:{seed}",
            }
        ],
        "sample": [
            {"token": own, "timestamp": time, **_links(samples, i), "scene_token": token("scene", seed)}
            for i, (own, time) in enumerate(zip(samples, times, strict=True))
        ],
    }
    for key, values in _sensor_rows(seed, drive, samples, times).items():
        rows[key] = values
    rows["instance"], rows["sample_annotation"] = _object_rows(seed, drive, samples[-1])
    return rows


def _links(tokens: Sequence[str], i: int) -> dict[str, object]:
    """The tokens before and after the i-th."""
    return {"prev": tokens[i - 1] if i else "", "next": tokens[i + 1] if i + 1 < len(tokens) else ""}


def _pose_row(own: str, transform: Tensor) -> dict[str, object]:
    """A row with a rotation (w, x, y, z) and a translation."""
    rotation = rotation_to_quaternion(transform[:3, :3].double())
    return {"token": own, "translation": transform[:3, 3].double().tolist(), "rotation": rotation.tolist()}


def _sensor_rows(seed: int, drive: LabelledScene, samples: Sequence[str], times: Sequence[int]) -> Rows:
    """sensor, calibrated_sensor, ego_pose and sample_data of a drive."""
    rig = drive.scene.rig
    rows: Rows = {"sensor": [], "calibrated_sensor": [], "ego_pose": [], "sample_data": []}
    for row, channel in enumerate((*rig.names, LIDAR)):
        camera = channel != LIDAR
        if not camera and drive.scene.reference.points is None:
            continue
        sensor, calibrated = token("sensor", channel), token("calibrated_sensor", seed, channel)
        rows["sensor"].append(
            {"token": sensor, "channel": channel, "modality": "camera" if camera else "lidar"}
        )
        pose = rig.ego_from_camera[row] if camera else ego_from_lidar()
        matrix = rig.intrinsics[row].double().tolist() if camera else []
        rows["calibrated_sensor"].append(
            {**_pose_row(calibrated, pose), "sensor_token": sensor, "camera_intrinsic": matrix}
        )
        data = [token("sample_data", seed, channel, i) for i in range(len(samples))]
        for i, frame in enumerate(drive.scene.frames):
            ego = token("ego_pose", seed, channel, i)
            rows["ego_pose"].append({**_pose_row(ego, frame.world_from_ego), "timestamp": times[i]})
            rows["sample_data"].append(
                {
                    "token": data[i],
                    "sample_token": samples[i],
                    "ego_pose_token": ego,
                    "calibrated_sensor_token": calibrated,
                    "timestamp": times[i],
                    "fileformat": "jpg" if camera else "pcd",
                    "is_key_frame": True,
                    "height": rig.image_size[0] if camera else 0,
                    "width": rig.image_size[1] if camera else 0,
                    "filename": sensor_file(seed, i, channel),
                    **_links(data, i),
                }
            )
    return rows


def _object_rows(seed: int, drive: LabelledScene, sample: str) -> tuple[list[dict[str, object]], ...]:
    """instance and sample_annotation of the objects in the reference frame (world axes, width first)."""
    labels, world_from_ego = drive.labels, drive.scene.reference.world_from_ego.double()
    instances: list[dict[str, object]] = []
    annotations: list[dict[str, object]] = []
    for i, box in enumerate(labels.boxes.double()):
        category = CATEGORY_OF_CLASS[TALK2OCC_CLASSES[int(labels.classes[i])]]
        own, instance = annotation_token(seed, i), token("instance", seed, i)
        world_from_box = world_from_ego @ rigid(rotation_z(box[6]), box[:3])
        level = sum(float(labels.visibility[i]) > edge for edge in (0.4, 0.6, 0.8)) + 1
        instances.append(
            {
                "token": instance,
                "category_token": token("category", category),
                "nbr_annotations": 1,
                "first_annotation_token": own,
                "last_annotation_token": own,
            }
        )
        annotations.append(
            {
                **_pose_row(own, world_from_box),
                "sample_token": sample,
                "instance_token": instance,
                "visibility_token": str(level),
                "attribute_tokens": [],
                "size": box[[4, 3, 5]].tolist(),
                "prev": "",
                "next": "",
                "num_lidar_pts": int(labels.num_points[i]),
                "num_radar_pts": 0,
            }
        )
    return instances, annotations


def annotation_token(seed: int, index: int) -> str:
    """Token of the annotation of an object of a scene's labels."""
    return token("sample_annotation", seed, index)
