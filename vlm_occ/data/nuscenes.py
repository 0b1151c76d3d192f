"""nuScenes v1.0 read directly from its JSON tables, everything in the ego frame at the LiDAR time.

Works on trainval, mini, test and on simulated exports (`v1.0-sim`). A row that names another row that is
not there is an error that gives table and token; it is never skipped.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from vlm_occ.data.keyframe import IMAGE_SIZE, check_intrinsics, choose_cameras, read_image, read_sweep
from vlm_occ.geometry import invert_rigid, quaternion_to_rotation, rigid, transform_points
from vlm_occ.types import CameraRig, Frame, Scene

Row = Mapping[str, object]
LIDAR = "LIDAR_TOP"
LIDAR_FIELDS = ("x", "y", "z", "intensity", "ring")


def version_folder(root: str | Path) -> Path:
    """The folder of tables: `root` itself, or its only `v1.0-*`, trainval first where there are several."""
    root = Path(root)
    if (root / "sample.json").is_file():
        return root
    folders = sorted(p for p in root.glob("v1.0-*") if (p / "sample.json").is_file())
    if not folders:
        raise ValueError(
            f"{root} holds no nuScenes tables (v1.0-*/sample.json); "
            "give the data root or the version's folder"
        )
    return next((p for p in folders if p.name == "v1.0-trainval"), folders[0])


class NuScenesTables:
    """The tables of one nuScenes root, read when first used; rows by token."""

    def __init__(self, root: str | Path) -> None:
        self.folder = version_folder(root)
        self.root = self.folder.parent
        self._tables: dict[str, dict[str, Row]] = {}
        self._keyframes: dict[str, dict[str, Row]] | None = None
        self._annotations: dict[str, list[Row]] | None = None

    def table(self, name: str) -> dict[str, Row]:
        """All rows of a table by token."""
        if name not in self._tables:
            path = self.folder / f"{name}.json"
            if not path.is_file():
                raise ValueError(f"nuScenes table {path} is missing; restore the metadata of this version")
            try:
                rows = json.loads(path.read_text(encoding="utf-8"))
                # Between two keyframes lie about ten sweeps of every sensor, which nothing here uses.
                if name == "sample_data":
                    rows = [row for row in rows if row["is_key_frame"]]
                elif name == "ego_pose":
                    used = {row.get("ego_pose_token") for row in self.table("sample_data").values()}
                    rows = [row for row in rows if row["token"] in used]
                self._tables[name] = {row["token"]: row for row in rows}
            except (json.JSONDecodeError, UnicodeDecodeError, TypeError, KeyError) as error:
                raise ValueError(
                    f"nuScenes table {path} is truncated or not a list of rows with tokens "
                    f"({error!r}); restore it"
                ) from error
        return self._tables[name]

    def get(self, table: str, token: object, *, asked_by: str) -> Row:
        """The row of a token, or ValueError that names table, token and who refers to it."""
        row = self.table(table).get(str(token))
        if row is None:
            raise ValueError(
                f"{asked_by} refers to {table} token {token!r}, which "
                f"{self.folder / (table + '.json')} lacks; the tables are incomplete or of another version"
            )
        return row

    def channel(self, sample_data: Row) -> str:
        """The sensor's name, such as CAM_FRONT, of a sample_data row."""
        name = f"sample_data {sample_data['token']}"
        calibrated = self.get("calibrated_sensor", sample_data["calibrated_sensor_token"], asked_by=name)
        sensor = self.get("sensor", calibrated["sensor_token"], asked_by=f"calibrated_sensor of {name}")
        return str(sensor["channel"])

    def keyframe(self, sample_token: str) -> dict[str, Row]:
        """The sample_data rows of a sample's keyframe by channel; needs its LiDAR, which sets the time."""
        self.get("sample", sample_token, asked_by="the scene asked for")
        if self._keyframes is None:
            self._keyframes = {}
            for row in self.table("sample_data").values():
                self._keyframes.setdefault(str(row["sample_token"]), {})[self.channel(row)] = row
        rows = self._keyframes.get(sample_token, {})
        if LIDAR not in rows:
            raise ValueError(
                f"sample {sample_token} has no {LIDAR} keyframe in {self.folder / 'sample_data.json'}; "
                "its time and ego frame are unknown"
            )
        return rows

    def annotations(self, sample_token: str) -> list[Row]:
        """The sample_annotation rows of a sample, in the order of the file."""
        if self._annotations is None:
            self._annotations = {}
            for row in self.table("sample_annotation").values():
                self._annotations.setdefault(str(row["sample_token"]), []).append(row)
        return self._annotations.get(sample_token, [])

    def world_from_ego(self, sample_data: Row) -> Tensor:
        """Pose float64 [4, 4] of the vehicle when this sensor fired."""
        name = f"sample_data {sample_data['token']}"
        return _pose(
            self.get("ego_pose", sample_data["ego_pose_token"], asked_by=name), f"ego_pose of {name}"
        )

    def ego_from_sensor(self, sample_data: Row) -> Tensor:
        """Calibration float64 [4, 4] of this sensor, in the ego frame of its own time."""
        name = f"calibrated_sensor of sample_data {sample_data['token']}"
        row = self.get("calibrated_sensor", sample_data["calibrated_sensor_token"], asked_by=name)
        return _pose(row, name)

    def intrinsics(self, sample_data: Row) -> Tensor:
        """Camera matrix float64 [3, 3]."""
        name = f"camera_intrinsic of sample_data {sample_data['token']}"
        row = self.get("calibrated_sensor", sample_data["calibrated_sensor_token"], asked_by=name)
        try:
            matrix = torch.tensor(row["camera_intrinsic"], dtype=torch.float64).reshape(3, 3)
        except (KeyError, TypeError, ValueError, RuntimeError) as error:
            raise ValueError(f"{name} is no 3 x 3 matrix; restore the table") from error
        check_intrinsics(matrix, name)
        return matrix

    def ego_from_camera(self, sample_token: str, channel: str) -> Tensor:
        """A camera's pose float64 [4, 4] in the ego frame at the LiDAR time: the drive between is undone."""
        rows = self.keyframe(sample_token)
        if channel not in rows:
            raise ValueError(f"sample {sample_token} has no {channel}; it has {', '.join(sorted(rows))}")
        ego_from_world = invert_rigid(self.world_from_ego(rows[LIDAR]))
        return ego_from_world @ self.world_from_ego(rows[channel]) @ self.ego_from_sensor(rows[channel])

    def path(self, sample_data: Row) -> Path:
        """The sensor file of a sample_data row."""
        return self.root / str(sample_data["filename"])


def _pose(row: Row, name: str) -> Tensor:
    """Transform float64 [4, 4] of a row with a quaternion (w, x, y, z) and a translation."""
    try:
        rotation = torch.tensor(row["rotation"], dtype=torch.float64).reshape(4)
        translation = torch.tensor(row["translation"], dtype=torch.float64).reshape(3)
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise ValueError(f"{name} lacks a rotation [4] or translation [3]; restore the table") from error
    if not (torch.isfinite(rotation).all() and torch.isfinite(translation).all()) or rotation.norm() < 1e-6:
        raise ValueError(f"{name} holds no finite pose; restore the table")
    return rigid(quaternion_to_rotation(rotation), translation)


def previous_samples(tables: NuScenesTables, sample_token: str, count: int) -> list[str]:
    """At most `count` sample tokens in time order, the last being `sample_token`."""
    tokens = [sample_token]
    while len(tokens) < count:
        before = tables.get("sample", tokens[0], asked_by="the chain of samples")["prev"]
        if not before:
            break
        tokens.insert(0, str(before))
    return tokens


def load_scene(
    root: str | Path | NuScenesTables,
    sample_token: str,
    *,
    cameras: Sequence[str] | None = None,
    lidar: bool = True,
    num_frames: int = 1,
) -> Scene:
    """The scene that ends with a sample: at most `num_frames` keyframes 0.5 s apart, fewer at its start.

    Poses are those at the LiDAR time; the rig is the reference frame's, moved to that time. Raises
    ValueError for a missing file, a dangling token or an unknown camera.
    """
    tables = root if isinstance(root, NuScenesTables) else NuScenesTables(root)
    reference = tables.keyframe(sample_token)
    names = choose_cameras([name for name in reference if name.startswith("CAM_")], cameras)
    if not names and not lidar:
        raise ValueError(f"no sensor of sample {sample_token} is left; keep a camera or the LiDAR")
    frames = [
        _frame(tables, token, names, lidar) for token in previous_samples(tables, sample_token, num_frames)
    ]
    rows = [reference[name] for name in names]
    poses = [tables.ego_from_camera(sample_token, name) for name in names]
    rig = CameraRig(
        names,
        torch.stack([tables.intrinsics(row) for row in rows]).float() if rows else torch.zeros(0, 3, 3),
        torch.stack(poses).float() if poses else torch.zeros(0, 4, 4),
        (frames[-1].images.shape[2], frames[-1].images.shape[3]),
    )
    return Scene(rig, tuple(frames), name=sample_token)


def _frame(tables: NuScenesTables, sample_token: str, names: Sequence[str], lidar: bool) -> Frame:
    """One keyframe's images and points."""
    rows = tables.keyframe(sample_token)
    missing = [name for name in names if name not in rows]
    if missing:
        raise ValueError(f"sample {sample_token} has no {missing[0]}; leave it out with --cameras")
    return Frame(
        timestamp=float(str(rows[LIDAR]["timestamp"])) * 1e-6,
        images=read_images([tables.path(rows[name]) for name in names]),
        world_from_ego=tables.world_from_ego(rows[LIDAR]),
        points=read_points(tables.path(rows[LIDAR]), tables.ego_from_sensor(rows[LIDAR])) if lidar else None,
    )


def read_images(paths: Sequence[Path]) -> Tensor:
    """Images uint8 [V, 3, H, W] of one size."""
    if not paths:
        return torch.zeros(0, 3, *IMAGE_SIZE, dtype=torch.uint8)
    images = [read_image(path) for path in paths]
    for path, image in zip(paths, images, strict=True):
        if image.shape != images[0].shape:
            raise ValueError(
                f"image {path} is {list(image.shape[1:])} but {paths[0]} is "
                f"{list(images[0].shape[1:])} (H, W); all cameras need one size"
            )
    return torch.stack(images)


def read_points(path: Path, ego_from_lidar: Tensor) -> Tensor:
    """A `.pcd.bin` sweep as float32 [N, 4]: ego x, y, z in metres, intensity in [0, 1]."""
    sweep = read_sweep(path, LIDAR_FIELDS)
    if not torch.isfinite(sweep).all() or sweep[:, 3].min() < 0 or sweep[:, 3].max() > 255:
        raise ValueError(
            f"LiDAR file {path} holds values that are no points (NaN or intensity not in 0..255)"
        )
    return torch.cat([transform_points(ego_from_lidar, sweep[:, :3]), sweep[:, 3:4] / 255], dim=-1)
