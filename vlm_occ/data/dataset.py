"""Talk2Occ from its index: labelled scenes with all their sentences, ready for training and evaluation."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal, cast

import torch
from torch import Tensor
from torch.utils.data import Dataset

from vlm_occ.data.keyframe import choose_cameras
from vlm_occ.data.nuscenes import read_images, read_points
from vlm_occ.data.occ3d import read_labels
from vlm_occ.data.talk2occ_frames import HISTORY
from vlm_occ.data.talk2occ_index import Record, read_summary, read_table
from vlm_occ.situated import SituationQuery
from vlm_occ.types import (
    COLOURS,
    TALK2OCC_CLASSES,
    CameraRig,
    Frame,
    GroundingQuery,
    LabelledScene,
    QueryKind,
    Scene,
    SceneLabels,
)

IndexSplit = Literal["train", "val", "test"]


class Talk2OccDataset(Dataset[LabelledScene]):
    """The keyframes of a split, each with all its sentences; an item is read from files when asked for.

    `train` and `val` are Talk2Occ's; `test` is Talk2Car's test part, which Talk2Occ's `train` includes.
    Roots of nuScenes and Occ3D are those of the build unless given.
    """

    def __init__(
        self,
        folder: str | Path,
        split: IndexSplit = "train",
        *,
        num_frames: int = 1,
        nuscenes: str | Path | None = None,
        occ3d: str | Path | None = None,
        cameras: Sequence[str] | None = None,
        lidar: bool = True,
    ) -> None:
        folder = Path(folder)
        if not 1 <= num_frames <= HISTORY:
            raise ValueError(f"num_frames = {num_frames}, expected 1 to {HISTORY}, which the index holds")
        if split not in ("train", "val", "test"):
            raise ValueError(f"split {split!r}, expected train, val or test")
        summary = read_summary(folder)
        self.nuscenes = Path(nuscenes) if nuscenes else folder / str(summary["nuscenes"])
        self.occ3d = Path(occ3d) if occ3d else folder / str(summary["occ3d"])
        self.num_frames, self.cameras, self.lidar = num_frames, cameras, lidar
        rows = read_table(folder / ("val.parquet" if split == "val" else "train.parquet"))
        if split == "test":
            rows = [row for row in rows if row["source_split"] == "test"]
        self.queries: dict[str, list[Record]] = {}  # rows of the index by sample token
        for row in rows:
            self.queries.setdefault(str(row["sample_token"]), []).append(row)
        self.samples = tuple(self.queries)  # sample tokens, in the order of the index
        self._frames = {str(row["sample_token"]): row for row in read_table(folder / "frames.parquet")}

    def __len__(self) -> int:
        """Number of keyframes with sentences."""
        return len(self.samples)

    def __getitem__(self, index: int) -> LabelledScene:
        """A keyframe with its labels and sentences; ValueError names a missing or damaged file."""
        token = self.samples[index]
        row = self._frames[token]
        boxes, labels = self._labels(row, self.queries[token])
        queries = tuple(_query(entry, boxes) for entry in self.queries[token])
        situations = tuple(_situation(entry) for entry in cast(list[Record], row["situations"]))
        return LabelledScene(self._scene(row), labels, queries, situations)

    def __getitems__(self, indices: Sequence[int]) -> list[LabelledScene]:
        """Several keyframes."""
        return [self[index] for index in indices]

    def _scene(self, row: Record) -> Scene:
        """The sensor data of a keyframe and those before it."""
        rows = [row]
        while len(rows) < self.num_frames and rows[0]["prev"]:
            rows.insert(0, self._frames[str(rows[0]["prev"])])
        cameras = {str(c["name"]): c for c in cast(list[Record], row["cameras"])}
        names = choose_cameras(tuple(cameras), self.cameras)
        frames = tuple(self._frame(entry, names) for entry in rows)
        rig = CameraRig(
            names,
            _matrices([cameras[name]["intrinsics"] for name in names], 3).float(),
            _matrices([cameras[name]["ego_from_camera"] for name in names], 4).float(),
            (frames[-1].images.shape[2], frames[-1].images.shape[3]),
        )
        return Scene(rig, frames, name=str(row["sample_token"]))

    def _frame(self, row: Record, names: Sequence[str]) -> Frame:
        """One keyframe's images and points."""
        images = {str(c["name"]): str(c["image"]) for c in cast(list[Record], row["cameras"])}
        missing = [name for name in names if name not in images]
        if missing:
            raise ValueError(
                f"keyframe {row['sample_token']} has no {missing[0]}; leave it out with cameras="
            )
        ego_from_lidar = _matrices([row["ego_from_lidar"]], 4)[0]
        return Frame(
            float(str(row["timestamp"])),
            read_images([self.nuscenes / images[name] for name in names]),
            _matrices([row["world_from_ego"]], 4)[0],
            read_points(self.nuscenes / str(row["lidar"]), ego_from_lidar) if self.lidar else None,
        )

    def _labels(self, row: Record, queries: Sequence[Record]) -> tuple[dict[str, int], SceneLabels]:
        """The labels of a keyframe, and each object's row in them by annotation token.

        A box that a sentence means is that of the sentence, which made the ground truth of the index; a
        Talk2Car box may differ a little from the annotation.
        """
        objects = {str(o["token"]): dict(o) for o in cast(list[Record], row["objects"])}
        for entry in queries:
            parts = (entry["box_tokens"], entry["boxes"], entry["labels"])
            for token, box, label in zip(*(cast(list, part) for part in parts), strict=True):
                objects.setdefault(token, dict(_UNKNOWN, label=label))["box"] = box
        things = list(objects.values())
        volumes = read_labels(self.occ3d / str(row["labels"]))
        labels = SceneLabels(
            semantics=volumes.semantics,
            mask_lidar=volumes.mask_lidar,
            mask_camera=volumes.mask_camera,
            boxes=torch.tensor([o["box"] for o in things], dtype=torch.float32).reshape(-1, 7),
            classes=torch.tensor([TALK2OCC_CLASSES.index(str(o["label"])) for o in things], dtype=torch.long),
            colours=torch.tensor([_colour(str(o["colour"])) for o in things], dtype=torch.long),
            velocities=torch.tensor([o["velocity"] for o in things], dtype=torch.float32).reshape(-1, 2),
            visibility=torch.tensor([o["visibility"] for o in things], dtype=torch.float32),
            num_points=torch.tensor([o["num_points"] for o in things], dtype=torch.long),
        )
        return {token: i for i, token in enumerate(objects)}, labels


_UNKNOWN: dict[str, object] = {
    "colour": "",
    "velocity": [float("nan")] * 2,
    "visibility": 0.0,
    "num_points": 0,
}
"""What is known of an object that a command means and the annotations lack."""


def _matrices(values: Sequence[object], size: int) -> Tensor:
    """float64 [V, size, size] of flat rows."""
    return torch.tensor(values, dtype=torch.float64).reshape(-1, size, size)


def _colour(name: str) -> int:
    """Index in COLOURS, -1 where unknown."""
    return COLOURS.index(name) if name else -1


def _query(row: Record, objects: dict[str, int]) -> GroundingQuery:
    """The sentence of a row, its targets as rows of the labels."""
    return GroundingQuery(
        text=str(row["query"]),
        targets=tuple(objects[token] for token in cast(list[str], row["box_tokens"])),
        unique=bool(row["unique"]),
        lexicon="heldout" if row["lexicon"] == "heldout" else "train",
        kind=cast(QueryKind, row["kind"]),
        near_miss=bool(row["near_miss"]),
        answer=str(row["answer"]),
    )


def _situation(row: Record) -> SituationQuery:
    """A described situation of a row."""
    x, y = cast(list[float], row["position"])
    kind: Literal["exact", "vague"] = "vague" if row["kind"] == "vague" else "exact"
    lexicon: Literal["train", "heldout"] = "heldout" if row["lexicon"] == "heldout" else "train"
    return SituationQuery(str(row["text"]), (x, y), float(str(row["yaw"])), kind, lexicon)
