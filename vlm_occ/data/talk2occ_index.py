"""The files of a built Talk2Occ: Parquet tables of queries and frames, a dataset card and a summary."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from vlm_occ.data.storage import encode_json, read_json, write_atomic
from vlm_occ.weights import require

if TYPE_CHECKING:
    import pyarrow

FORMAT = 1
Record = Mapping[str, object]

CARD = """---
configs:
- config_name: queries
  default: true
  data_files:
  - split: train
    path: train.parquet
  - split: val
    path: val.parquet
- config_name: frames
  data_files:
  - split: frames
    path: frames.parquet
---
# Talk2Occ, built by `vlm-occ data talk2occ`
{rule}

`train.parquet` and `val.parquet` hold one row a sentence: `boxes` [K][7] (x, y, z, dx, dy, dz, yaw; metres,
radians, ego frame at the LiDAR time) and `voxels`, the ground truth of equation 1 as flat indices
(x * 200 + y) * 16 + z into the 200 x 200 x 16 grid of Occ3D: occupied voxels that touch a box.
`frames.parquet` holds one row a keyframe: paths of its sensor files below the nuScenes root, calibration,
pose and, where sentences refer to it, its objects and the path of its labels below the Occ3D root.
`talk2occ.json` holds the roots, the counts and what each filter removed.
"""


def query_schema() -> pyarrow.Schema:
    """Columns of `train.parquet` and `val.parquet`."""
    import pyarrow as pa

    numbers = pa.list_(pa.float32())
    return pa.schema(
        [
            *[
                (name, pa.string())
                for name in ("token", "query", "sample_token", "scene_token", "scene_name")
            ],
            *[(name, pa.string()) for name in ("source_split", "kind", "lexicon", "label", "answer")],
            *[(name, pa.bool_()) for name in ("unique", "near_miss")],
            ("boxes", pa.list_(numbers)),
            ("box_tokens", pa.list_(pa.string())),
            ("labels", pa.list_(pa.string())),
            ("distance", pa.float32()),  # metres from the ego origin to the nearest target, null without one
            ("num_voxels", pa.int32()),
            ("num_voxels_centre", pa.int32()),
            ("voxels", pa.list_(pa.int32())),
        ]
    )


def frame_schema() -> pyarrow.Schema:
    """Columns of `frames.parquet`; matrices are rows, float64."""
    import pyarrow as pa

    matrix, numbers = pa.list_(pa.float64()), pa.list_(pa.float32())
    camera = pa.struct(
        [("name", pa.string()), ("image", pa.string()), ("intrinsics", matrix), ("ego_from_camera", matrix)]
    )
    thing = pa.struct(
        [
            *[(name, pa.string()) for name in ("token", "label", "colour")],
            *[(name, numbers) for name in ("box", "velocity")],
            ("visibility", pa.float32()),
            ("num_points", pa.int32()),
        ]
    )
    situation = pa.struct(
        [("text", pa.string()), ("position", matrix), ("yaw", pa.float64())]
        + [(name, pa.string()) for name in ("kind", "lexicon")]
    )
    return pa.schema(
        [
            *[(name, pa.string()) for name in ("sample_token", "prev", "scene_token", "scene_name")],
            ("timestamp", pa.float64()),  # seconds
            ("world_from_ego", matrix),
            ("ego_from_lidar", matrix),
            ("lidar", pa.string()),
            ("cameras", pa.list_(camera)),
            ("labels", pa.string()),  # empty where nothing refers to the keyframe
            ("objects", pa.list_(thing)),
            ("situations", pa.list_(situation)),
        ]
    )


def write_table(path: Path, rows: Sequence[Record], schema: pyarrow.Schema) -> None:
    """Write rows as Parquet, whole or not at all; the same rows give the same bytes."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    buffer = io.BytesIO()
    pq.write_table(
        pa.Table.from_pylist([dict(row) for row in rows], schema=schema), buffer, compression="zstd"
    )
    write_atomic(path, buffer.getvalue())


def read_table(path: Path) -> list[dict[str, object]]:
    """The rows of a Parquet file, or ValueError that names it."""
    require("pyarrow", "train")
    import pyarrow as pa
    import pyarrow.parquet as pq

    if not path.is_file():
        raise ValueError(f"{path} is missing; build the index with `vlm-occ data talk2occ`")
    try:
        return pq.read_table(path).to_pylist()
    except (pa.ArrowInvalid, OSError) as error:
        raise ValueError(
            f"{path} is truncated or no Parquet file ({error}); build the index again"
        ) from error


def write_summary(folder: Path, summary: Record, rule: str) -> None:
    """Write `talk2occ.json` and the card; the summary comes last and says that the index is whole."""
    write_atomic(folder / "README.md", CARD.format(rule=rule).encode())
    content = json.loads(encode_json({"format": FORMAT, **summary}))
    write_atomic(folder / "talk2occ.json", json.dumps(content, indent=1).encode())


def read_summary(folder: Path) -> dict[str, object]:
    """`talk2occ.json` of a built folder, or ValueError where it is missing or of another format."""
    path = folder / "talk2occ.json"
    if not path.is_file():
        raise ValueError(
            f"{folder} holds no talk2occ.json; build it with `vlm-occ data talk2occ --out {folder}`"
        )
    content = read_json(path)
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise ValueError(f"{path} is of another format than {FORMAT}; build the index again")
    return content
