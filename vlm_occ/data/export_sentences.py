"""The sentences of one simulated drive: Talk2Car commands, and every query with its boxes."""

from __future__ import annotations

from torch import Tensor

from vlm_occ.data.export_rows import (
    CATEGORY_OF_CLASS,
    annotation_token,
    sample_token,
    scene_name,
    sensor_file,
    token,
)
from vlm_occ.data.talk2car import project_to_image
from vlm_occ.geometry import box_corners, invert_rigid, rotation_to_quaternion, rotation_z, transform_points
from vlm_occ.types import COLOURS, TALK2OCC_CLASSES, GroundingQuery, LabelledScene

FRONT = "CAM_FRONT"

MIN_SHARE_IN_IMAGE = 0.5
"""Share of a target's projected box that must lie in the CAM_FRONT image for a Talk2Car command."""


def query_token(seed: int, index: int) -> str:
    """Token of a sentence; its Talk2Car command, if it has one, bears the same."""
    return token("query", seed, index)


def query_rows(seed: int, drive: LabelledScene) -> list[dict[str, object]]:
    """Every sentence with its boxes (ego frame at the LiDAR time): none, one or several."""
    return [
        {
            "token": query_token(seed, i),
            "scene_token": token("scene", seed),
            "sample_token": sample_token(seed, len(drive.scene.frames) - 1),
            "query": query.text,
            "boxes": drive.labels.boxes[list(query.targets)].double().tolist(),
            "box_tokens": [annotation_token(seed, target) for target in query.targets],
            "unique": query.unique,
            "lexicon": query.lexicon,
            "kind": query.kind,
            "near_miss": query.near_miss,
            "answer": query.answer,
        }
        for i, query in enumerate(drive.queries)
    ]


def sample_row(seed: int, drive: LabelledScene) -> dict[str, object]:
    """What the simulator knows about a reference keyframe beyond nuScenes: colours, speeds, situations."""
    labels = drive.labels
    return {
        "sample_token": sample_token(seed, len(drive.scene.frames) - 1),
        "scene_name": scene_name(seed),
        "seed": seed,
        "objects": [
            {
                "box_token": annotation_token(seed, i),
                "colour": COLOURS[colour] if (colour := int(labels.colours[i])) >= 0 else "",
                "velocity": labels.velocities[i].double().tolist(),
                "visibility": float(labels.visibility[i]),
            }
            for i in range(len(labels.boxes))
        ],
        "situations": [
            {"text": s.text, "position": list(s.position), "yaw": s.yaw, "kind": s.kind, "lexicon": s.lexicon}
            for s in drive.situations
        ],
    }


def command_rows(seed: int, drive: LabelledScene) -> list[dict[str, object]]:
    """Talk2Car commands: the sentences with one target that CAM_FRONT shows, its box in camera axes."""
    if FRONT not in drive.scene.rig.names:
        return []
    return [
        row
        for i, query in enumerate(drive.queries)
        if len(query.targets) == 1 and (row := _command_row(seed, drive, i, query)) is not None
    ]


def _command_row(
    seed: int, drive: LabelledScene, index: int, query: GroundingQuery
) -> dict[str, object] | None:
    """One command, or None where CAM_FRONT does not show its target."""
    rig, labels, target = drive.scene.rig, drive.labels, query.targets[0]
    camera = rig.names.index(FRONT)
    camera_from_ego = invert_rigid(rig.ego_from_camera[camera].double())
    box = labels.boxes[target].double()
    box_2d = visible_box(box, camera_from_ego, rig.intrinsics[camera], rig.image_size)
    if box_2d is None or float(labels.visibility[target]) <= 0:
        return None
    rotation = rotation_to_quaternion(camera_from_ego[:3, :3] @ rotation_z(box[6]))
    last = len(drive.scene.frames) - 1
    return {
        "scene_token": token("scene", seed),
        "sample_token": token("sample_data", seed, FRONT, last),
        "translation": transform_points(camera_from_ego, box[None, :3])[0].tolist(),
        "size": box[[4, 3, 5]].tolist(),
        "rotation": [repr(value) for value in rotation.tolist()],
        "command": query.text,
        "obj_name": CATEGORY_OF_CLASS[TALK2OCC_CLASSES[int(labels.classes[target])]],
        "box_token": annotation_token(seed, target),
        "command_token": query_token(seed, index),
        "2d_box": box_2d,
        "t2c_img": sensor_file(seed, last, FRONT),
    }


def visible_box(
    box: Tensor, camera_from_ego: Tensor, intrinsics: Tensor, image_size: tuple[int, int]
) -> list[int] | None:
    """The 2D box (x, y, width, height) in pixels of a box [7], or None where too little of it is seen."""
    corners = transform_points(camera_from_ego, box_corners(box[None])[0])  # [8, 3]
    if bool((corners[:, 2] < 0.5).any()):
        return None
    seen = project_to_image(corners, intrinsics, image_size)
    pixels = corners @ intrinsics.double().T
    pixels = pixels[:, :2] / pixels[:, 2:]
    whole = (pixels.amax(0) - pixels.amin(0)).prod()
    area = (seen[2] - seen[0]) * (seen[3] - seen[1])
    if float(area) < MIN_SHARE_IN_IMAGE * float(whole):
        return None
    x0, y0, x1, y1 = (round(value) for value in seen.tolist())
    return [x0, y0, x1 - x0, y1 - y0]
