"""A keyframe folder: `keyframe.json` with calibration, one image a camera and one LiDAR sweep.

`keyframe.json` holds `timestamp` (s), `ego2global` [4][4], `cams` {name: {file, K [3][3], cam2ego [4][4]}},
and for the LiDAR `lidar` {file, fields, dtype} and `lidar2ego` [4][4]; matrices are rows, in metres. `boxes`
are optional labels.
A sensor that is listed must be whole: a missing or damaged file is an error, never a default.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from vlm_occ.geometry import check_rigid, points_in_boxes, transform_points
from vlm_occ.types import CAMERAS, CameraRig, Frame, Scene

IMAGE_SIZE = (900, 1600)
"""(H, W) that a scene without cameras states; the size of nuScenes images."""


def load_keyframe(folder: str | Path, *, cameras: Sequence[str] | None = None, lidar: bool = True) -> Scene:
    """The scene of a keyframe folder: one frame, images in the order of CAMERAS, points in ego axes.

    `cameras` keeps only these (none for an empty sequence), `lidar=False` leaves the sweep out; what is
    left out is not read. Raises ValueError for anything missing, damaged or of the wrong shape.
    """
    folder = Path(folder)
    record = read_record(folder)
    listed = _listed_cameras(record, folder)
    names = choose_cameras(listed, cameras)
    use_lidar = lidar and record.get("lidar") is not None
    if not names and not use_lidar:
        raise ValueError(
            f"no sensor: {folder} lists {len(listed)} cameras and "
            f"{'a' if record.get('lidar') else 'no'} LiDAR, and none is used; list at least one camera "
            "or the LiDAR, and check --cameras and --no-lidar"
        )
    world_from_ego = _matrix(record, "ego2global", (4, 4), folder / "keyframe.json").double()
    check_rigid(world_from_ego, f"ego2global in {folder / 'keyframe.json'}")
    rig, images = _read_cameras(record, folder, names)
    points = _read_lidar(record, folder) if use_lidar else None
    frame = Frame(_timestamp(record, folder), images, world_from_ego, points)
    return Scene(rig, (frame,), name=str(record.get("token", folder.name)))


def read_record(folder: Path) -> dict[str, object]:
    """The values of `keyframe.json`, or ValueError where it is missing or not a JSON object."""
    path = folder / "keyframe.json"
    if not path.is_file():
        raise ValueError(
            f"{folder} has no keyframe.json; give a keyframe folder, sim:SEED or nuscenes:ROOT:TOKEN"
        )
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not valid JSON ({error}); restore the file") from error
    if not isinstance(record, dict):
        raise ValueError(
            f"{path} holds a {type(record).__name__}, expected an object with cams, lidar and ego2global"
        )
    return record


def choose_cameras(listed: Sequence[str], wanted: Sequence[str] | None) -> tuple[str, ...]:
    """The wanted of the listed cameras (all where None), those of nuScenes in the order of CAMERAS first."""
    unknown = [name for name in wanted or () if name not in listed]
    if unknown:
        raise ValueError(
            f"unknown camera {unknown[0]!r}; this scene has {', '.join(listed) or 'no cameras'} "
            "(names are separated by commas)"
        )
    kept = [name for name in listed if wanted is None or name in wanted]
    return tuple(sorted(kept, key=lambda name: CAMERAS.index(name) if name in CAMERAS else len(CAMERAS)))


def read_image(path: Path) -> Tensor:
    """The image uint8 [3, H, W] (RGB) of a file, or ValueError where it is missing, truncated or no image."""
    if not path.is_file():
        raise ValueError(f"image {path} is missing; restore it, or leave its camera out with --cameras")
    try:
        with Image.open(path) as image:
            pixels = np.array(image.convert("RGB"))  # [H, W, 3]
    except (
        OSError,
        SyntaxError,
        ValueError,
        Image.DecompressionBombError,
    ) as error:  # PIL's ways to say "damaged"
        raise ValueError(
            f"image {path} is truncated or damaged ({error}); restore it, or leave its camera out with "
            "--cameras"
        ) from error
    return torch.from_numpy(pixels).permute(2, 0, 1).contiguous()


def read_sweep(path: Path, fields: Sequence[str], dtype: str = "float32") -> Tensor:
    """A LiDAR sweep float32 [N, F] of a raw file of records, or ValueError where the file is not whole."""
    if not path.is_file():
        raise ValueError(f"LiDAR file {path} is missing; restore it, or leave the LiDAR out with --no-lidar")
    try:
        kind = np.dtype(dtype).newbyteorder("<")
    except TypeError as error:
        raise ValueError(
            f"LiDAR dtype {dtype!r} is unknown; expected a numpy name such as 'float32'"
        ) from error
    record, size = len(fields) * kind.itemsize, path.stat().st_size
    if size == 0 or record == 0 or size % record:
        raise ValueError(
            f"LiDAR file {path} has {size} bytes, expected a positive multiple of {record} ({len(fields)} "
            f"fields {dtype}); is it truncated? Restore it, or leave the LiDAR out with --no-lidar"
        )
    return torch.from_numpy(np.fromfile(path, dtype=kind).reshape(-1, len(fields)).astype(np.float32))


def _listed_cameras(record: dict[str, object], folder: Path) -> tuple[str, ...]:
    """Names of the cameras that a record lists."""
    cams = record.get("cams", {})
    if not isinstance(cams, dict):
        raise ValueError(
            f"cams in {folder / 'keyframe.json'} is a {type(cams).__name__}, "
            "expected {name: {file, K, cam2ego}}"
        )
    return tuple(str(name) for name in cams)


def _timestamp(record: dict[str, object], folder: Path) -> float:
    """The time of the keyframe in seconds."""
    value = record.get("timestamp")
    if not isinstance(value, int | float):
        raise ValueError(
            f"timestamp in {folder / 'keyframe.json'} is {value!r}, expected seconds as a number"
        )
    return float(value)


def _section(record: dict[str, object], key: str, where: Path) -> dict[str, object]:
    """An object inside a JSON object."""
    value = record.get(key)
    if not isinstance(value, dict):
        raise ValueError(f"{key} in {where} is {type(value).__name__}, expected an object")
    return value


def _file(section: dict[str, object], folder: Path, owner: str) -> Path:
    """The path of a sensor's file."""
    name = section.get("file")
    if not isinstance(name, str) or not name:
        raise ValueError(f"{owner} in {folder / 'keyframe.json'} has no file name; add its 'file'")
    return folder / name


def _matrix(
    section: dict[str, object], key: str, shape: tuple[int, int], where: Path, owner: str = ""
) -> Tensor:
    """A float64 matrix of calibration, or ValueError where it is missing or of another shape."""
    label = f"{key} of {owner}" if owner else key
    if section.get(key) is None:
        raise ValueError(f"{label} is missing in {where}; a sensor without calibration can't be used: add it")
    try:
        matrix = torch.tensor(section[key], dtype=torch.float64)
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"{label} in {where} is not a matrix of numbers ({error}); expected {list(shape)}"
        ) from error
    if tuple(matrix.shape) != shape:
        raise ValueError(f"{label} in {where} has shape {list(matrix.shape)}, expected {list(shape)}")
    return matrix


def check_intrinsics(matrix: Tensor, label: str) -> None:
    """Raise ValueError unless `matrix` [3, 3] is a finite camera matrix with positive focal lengths."""
    if not torch.isfinite(matrix).all() or matrix[0, 0] <= 0 or matrix[1, 1] <= 0:
        raise ValueError(
            f"{label} has focal lengths {matrix[0, 0]:.4g}, {matrix[1, 1]:.4g}; expected positive pixels"
        )
    if (matrix[2] - matrix.new_tensor([0.0, 0.0, 1.0])).abs().max() > 1e-6 or matrix[1, 0].abs() > 1e-6:
        raise ValueError(f"{label} is no camera matrix; expected rows [fx s cx], [0 fy cy], [0 0 1]")


def _read_cameras(
    record: dict[str, object], folder: Path, names: tuple[str, ...]
) -> tuple[CameraRig, Tensor]:
    """The rig and the images uint8 [V, 3, H, W] of the chosen cameras."""
    where = folder / "keyframe.json"
    if not names:
        rig = CameraRig((), torch.zeros(0, 3, 3), torch.zeros(0, 4, 4), IMAGE_SIZE)
        return rig, torch.zeros(0, 3, *IMAGE_SIZE, dtype=torch.uint8)
    cams = _section(record, "cams", where)
    intrinsics, poses, images = [], [], []
    for name in names:
        section = _section(cams, name, where)
        intrinsics.append(_matrix(section, "K", (3, 3), where, name))
        poses.append(_matrix(section, "cam2ego", (4, 4), where, name))
        check_intrinsics(intrinsics[-1], f"K of {name} in {where}")
        check_rigid(poses[-1], f"cam2ego of {name} in {where}")
        images.append(read_image(_file(section, folder, name)))
    sizes = [tuple(image.shape[1:]) for image in images]
    for name, size in zip(names, sizes, strict=True):
        if size != sizes[0]:
            raise ValueError(
                f"image of {name} in {folder} is {size[0]} x {size[1]} but that of "
                f"{names[0]} is {sizes[0][0]} x {sizes[0][1]} (height x width); all cameras need one "
                "size: was a file replaced?"
            )
    height, width = sizes[0]
    rig = CameraRig(names, torch.stack(intrinsics).float(), torch.stack(poses).float(), (height, width))
    return rig, torch.stack(images)


def _read_lidar(record: dict[str, object], folder: Path) -> Tensor:
    """Points float32 [N, 4] (ego x, y, z in metres, intensity in [0, 1]) of the sweep."""
    where = folder / "keyframe.json"
    section = _section(record, "lidar", where)
    fields = section.get("fields", ("x", "y", "z", "intensity", "ring"))
    if not isinstance(fields, list | tuple) or any(
        name not in fields for name in ("x", "y", "z", "intensity")
    ):
        raise ValueError(
            f"fields of the LiDAR in {where} are {fields}, expected x, y, z, intensity among them"
        )
    ego_from_lidar = _matrix(record, "lidar2ego", (4, 4), where)
    check_rigid(ego_from_lidar, f"lidar2ego in {where}")
    path = _file(section, folder, "lidar")
    sweep = read_sweep(path, fields, str(section.get("dtype", "float32")))
    sweep = sweep[:, [fields.index(name) for name in ("x", "y", "z", "intensity")]]  # [N, 4]
    bad = ~torch.isfinite(sweep).all(-1)
    if bad.any():
        raise ValueError(
            f"LiDAR file {path} holds NaN or infinite values in {int(bad.sum())} of {len(sweep)} points; "
            "restore it, or leave the LiDAR out with --no-lidar"
        )
    if sweep[:, 3].min() < 0 or sweep[:, 3].max() > 255:
        raise ValueError(
            f"LiDAR file {path} has intensities from {sweep[:, 3].min():.4g} to {sweep[:, 3].max():.4g}, "
            "expected 0 to 255"
        )
    _check_count(record, sweep[:, :3], path)
    return torch.cat([transform_points(ego_from_lidar, sweep[:, :3]), sweep[:, 3:] / 255], dim=-1)


def _check_count(record: dict[str, object], points: Tensor, path: Path) -> None:
    """Raise ValueError where a sweep [N, 3] (LiDAR axes) lacks points that the labels counted in their boxes.

    A raw file that was cut between two records looks whole; only the counts of the boxes give it away.
    """
    boxes, counts = [], []
    labels = record.get("boxes")
    for box in labels if isinstance(labels, list) else []:
        if isinstance(box, dict) and all(
            key in box for key in ("center_lidar", "size_lwh", "yaw_lidar", "points_inside")
        ):
            boxes.append([*box["center_lidar"], *box["size_lwh"], box["yaw_lidar"]])
            counts.append(box["points_inside"])
    if not boxes:
        return
    found = int(points_in_boxes(points, torch.tensor(boxes, dtype=points.dtype)).sum())
    if found < 0.9 * sum(counts):
        raise ValueError(
            f"LiDAR file {path} has {found} points inside the labelled boxes, expected "
            f"{sum(counts)} (points_inside in keyframe.json); is it truncated? Restore it, or leave "
            "the LiDAR out with --no-lidar"
        )
