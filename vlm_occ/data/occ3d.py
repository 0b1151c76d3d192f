"""Occ3D-nuScenes labels: `gts/<scene>/<sample>/labels.npz`, in the ego frame at the keyframe's LiDAR time."""

from __future__ import annotations

import io
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from vlm_occ.types import FREE, OCC3D_CLASSES, VoxelGrid

_FIXED_DATE = (1980, 1, 1, 0, 0, 0)  # the zip format's zero: the same labels give the same bytes


@dataclass(frozen=True)
class OccupancyLabels:
    """The three volumes of a `labels.npz`."""

    semantics: Tensor  # uint8 [X, Y, Z], index in OCC3D_CLASSES
    mask_lidar: Tensor  # bool [X, Y, Z]
    mask_camera: Tensor  # bool [X, Y, Z]

    @property
    def occupied(self) -> Tensor:
        """bool [X, Y, Z]: everything that is not free."""
        return self.semantics != FREE


def labels_path(root: str | Path, scene_name: str, sample_token: str) -> Path:
    """Where Occ3D keeps a keyframe's labels below its `gts` folder."""
    return Path(root) / scene_name / sample_token / "labels.npz"


def read_labels(path: str | Path, *, grid: VoxelGrid | None = None) -> OccupancyLabels:
    """The labels of a file; nothing is unpickled.

    Raises ValueError that names the file where it is missing, truncated, lacks a volume, or holds another
    shape, dtype or value than Occ3D's.
    """
    path, shape = Path(path), (grid or VoxelGrid()).shape
    if not path.is_file():
        raise ValueError(f"Occ3D labels {path} are missing; download or export that scene's gts again")
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error, AttributeError) as error:
        raise ValueError(
            f"Occ3D labels {path} are truncated or no npz file of plain arrays ({error}); restore the file"
        ) from error
    return OccupancyLabels(
        semantics=_volume(arrays, "semantics", shape, FREE, path),
        mask_lidar=_volume(arrays, "mask_lidar", shape, 1, path).bool(),
        mask_camera=_volume(arrays, "mask_camera", shape, 1, path).bool(),
    )


def _volume(
    arrays: dict[str, np.ndarray], name: str, shape: tuple[int, int, int], highest: int, path: Path
) -> Tensor:
    """One checked volume of a labels file, uint8 [X, Y, Z]."""
    if name not in arrays:
        raise ValueError(f"Occ3D labels {path} lack {name!r}, they hold {sorted(arrays)}; restore the file")
    array = arrays[name]
    if array.shape != shape:
        raise ValueError(
            f"{name} of {path} has shape {list(array.shape)}, expected {list(shape)} (x, y, z); "
            "labels of another grid can't be used"
        )
    if array.dtype not in (np.dtype(np.uint8), np.dtype(bool)):
        raise ValueError(f"{name} of {path} has dtype {array.dtype}, expected uint8; restore the file")
    if array.max() > highest:
        raise ValueError(
            f"{name} of {path} holds the value {array.max()}, expected 0 to {highest}"
            + (f" ({len(OCC3D_CLASSES)} classes, {FREE} is free)" if highest == FREE else "")
        )
    return torch.from_numpy(array.astype(np.uint8))


def encode_labels(labels: OccupancyLabels) -> bytes:
    """The bytes of a `labels.npz`; equal labels give equal bytes."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name in ("semantics", "mask_lidar", "mask_camera"):
            array = io.BytesIO()
            volume = getattr(labels, name).to(torch.uint8).contiguous().cpu().numpy()
            np.lib.format.write_array(array, volume, allow_pickle=False)
            entry = zipfile.ZipInfo(f"{name}.npy", _FIXED_DATE)
            archive.writestr(entry, array.getvalue(), zipfile.ZIP_DEFLATED, 6)
    return buffer.getvalue()
