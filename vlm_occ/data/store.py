"""Labelled scenes as one safetensors file each, and a pool of simulated ones kept on disk."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from vlm_occ.data.simulator.grammar import write_queries
from vlm_occ.data.simulator.objects import ObjectFacts
from vlm_occ.data.simulator.questions import write_questions
from vlm_occ.data.simulator.scene import simulate_details, split_seed
from vlm_occ.data.simulator.situations import write_situations
from vlm_occ.data.simulator.views import appearances, drive_views, kept_views, save_views
from vlm_occ.situated import Lexicon, Mention, SituationParts, SituationQuery
from vlm_occ.types import (
    CameraRig,
    Frame,
    GroundingQuery,
    LabelledScene,
    QueryPart,
    Scene,
    SceneLabels,
    VoxelGrid,
)

LABEL_FIELDS = tuple(field.name for field in dataclasses.fields(SceneLabels))


def save_scene(item: LabelledScene, path: Path, *, facts: Sequence[ObjectFacts] = ()) -> None:
    """Write a labelled scene, and a simulated one's facts, whole or not at all (ValueError)."""
    scene = item.scene
    tensors = {
        "intrinsics": scene.rig.intrinsics,
        "ego_from_camera": scene.rig.ego_from_camera,
        **{f"labels.{name}": getattr(item.labels, name) for name in LABEL_FIELDS},
    }
    for t, frame in enumerate(scene.frames):
        tensors[f"frame{t}.images"] = frame.images
        tensors[f"frame{t}.world_from_ego"] = frame.world_from_ego
        if frame.points is not None:
            tensors[f"frame{t}.points"] = frame.points
    about = {
        "name": scene.name,
        "cameras": scene.rig.names,
        "image_size": scene.rig.image_size,
        "timestamps": [frame.timestamp for frame in scene.frames],
        "grid": dataclasses.asdict(scene.grid),
        "queries": [dataclasses.asdict(query) for query in item.queries],
        "situations": [dataclasses.asdict(situation) for situation in item.situations],
        "facts": [dataclasses.asdict(fact) for fact in facts],
    }
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        save_file({k: v.contiguous() for k, v in tensors.items()}, temporary, {"scene": json.dumps(about)})
        os.replace(temporary, path)
    except (OSError, SafetensorError) as error:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise ValueError(
            f"can't write {path}: {error}; free the disk or choose another folder, and run the same command "
            "again: finished scenes are kept"
        ) from error


class DamagedScene(ValueError):
    """A scene file that cannot be read."""


def load_scene_file(path: Path) -> tuple[LabelledScene, tuple[ObjectFacts, ...]]:
    """Read what `save_scene` wrote; DamagedScene (a ValueError) where the file is damaged."""
    try:
        with safe_open(path, framework="pt") as file:
            about = json.loads(file.metadata()["scene"])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError, KeyError, TypeError, json.JSONDecodeError) as error:
        raise DamagedScene(
            f"scene file {path} is damaged ({error}); delete it to have it made again"
        ) from error
    rig = CameraRig(
        tuple(about["cameras"]),
        tensors["intrinsics"],
        tensors["ego_from_camera"],
        (about["image_size"][0], about["image_size"][1]),
    )
    frames = tuple(
        Frame(
            time,
            tensors[f"frame{t}.images"],
            tensors[f"frame{t}.world_from_ego"],
            tensors.get(f"frame{t}.points"),
        )
        for t, time in enumerate(about["timestamps"])
    )
    grid = VoxelGrid(
        tuple(about["grid"]["origin"]), about["grid"]["voxel_size"], tuple(about["grid"]["shape"])
    )
    facts = [
        {**fact, "box": tuple(fact["box"]), "velocity": tuple(fact["velocity"])} for fact in about["facts"]
    ]
    try:
        item = LabelledScene(
            Scene(rig, frames, grid, about["name"]),
            SceneLabels(**{name: tensors[f"labels.{name}"] for name in LABEL_FIELDS}),
            tuple(_query(values) for values in about["queries"]),
            tuple(_situation(values) for values in about["situations"]),
        )
        return item, tuple(ObjectFacts(**fact) for fact in facts)
    except TypeError as error:
        raise ValueError(
            f"scene file {path} was written by another version of vlm-occ ({error}); use another folder"
        ) from error


def _query(values: dict[str, Any]) -> GroundingQuery:
    """A query as `dataclasses.asdict` and JSON left it."""
    parts = tuple(QueryPart(**part) for part in values.get("parts", ()))
    return GroundingQuery(**{**values, "targets": tuple(values["targets"]), "parts": parts})


def _situation(values: dict[str, Any]) -> SituationQuery:
    """A situation as `dataclasses.asdict` and JSON left it."""
    parts = values.get("parts")
    if parts is not None:
        mentions = tuple(Mention(**mention) for mention in parts["mentions"])
        metres = parts["metres"] and tuple(parts["metres"])
        share = tuple(parts["share"])
        parts = SituationParts(**{**parts, "mentions": mentions, "metres": metres, "share": share})
    return SituationQuery(**{**values, "position": tuple(values["position"]), "parts": parts})


LEXICONS: tuple[Lexicon, ...] = ("train", "heldout")


@dataclasses.dataclass(frozen=True)
class SimulatedScenes:
    """Scenes of a split of the simulator by index; kept in `folder` once made, if one is given.

    Images are rendered for the reference frame and `camera_frames - 1` before it. An index beyond `count` is
    the same scene as index modulo count with other sentences: an epoch has sentences of its own.
    """

    split: Literal["train", "calibration", "val", "test"]
    count: int
    num_frames: int = 1
    camera_frames: int = 1
    num_queries: int = 10
    num_situations: int = 0
    num_questions: int = 0
    views: bool = False  # exact depth of the pictures; without it no question is about appearance order
    balanced: bool = False
    lexicon: Lexicon | Literal["both"] = "train"  # both: first those of "train", then of "heldout"
    folder: Path | None = None
    image_size: tuple[int, int] = (256, 704)  # (H, W)
    first: int = 0  # index in the split of the scene with index 0 here

    def __post_init__(self) -> None:
        """ValueError where `folder` keeps scenes of other settings."""
        if self.folder is not None:
            names = ("num_frames", "camera_frames", "balanced", "image_size")
            keep_settings(self.folder, {name: getattr(self, name) for name in names})

    def __len__(self) -> int:
        """Number of scenes."""
        return self.count

    def __getitem__(self, index: int) -> LabelledScene:
        """Scene `index`, simulated or read."""
        return self.with_facts(index)[0]

    def with_facts(self, index: int) -> tuple[LabelledScene, tuple[ObjectFacts, ...]]:
        """Scene `index` and the facts that its sentences speak of."""
        epoch, place = divmod(index, self.count)
        place += self.first
        item, facts = self._scene(place, split_seed(self.split, place))
        words = split_seed(self.split, place) + 100_000_000 * epoch
        lexicons = LEXICONS if self.lexicon == "both" else (self.lexicon,)
        queries = [
            write_queries(facts, seed=words, count=self.num_queries, lexicon=name) for name in lexicons
        ]
        told = [
            write_situations(facts, seed=words, count=self.num_situations, lexicon=name) for name in lexicons
        ]
        item = dataclasses.replace(item, queries=sum(queries, ()), situations=sum(told, ()))
        if self.num_questions or self.views:
            item = self._with_questions(item, facts, place, words)
        return item, facts

    def _with_questions(
        self, item: LabelledScene, facts: tuple[ObjectFacts, ...], place: int, words: int
    ) -> LabelledScene:
        """The scene with its spatial questions and the depth of its pictures."""
        depth, seen = None, ()
        if self.views:
            path = self.folder / f"{self.split}-{place:06d}.safetensors" if self.folder else None
            views = kept_views(
                split_seed(self.split, place),
                path and self._views_path(path),
                num_frames=self.num_frames,
                first=self.num_frames - self.camera_frames,
                balanced=self.balanced,
                image_size=self.image_size,
            )
            depth, seen = views.depth, appearances(views.front_pixels)
        questions = [
            write_questions(
                facts,
                seed=words,
                count=self.num_questions,
                lexicon=name,
                scene=item.scene.name,
                appearances=seen,
            )
            for name in (LEXICONS if self.lexicon == "both" else (self.lexicon,))
        ]
        return dataclasses.replace(item, questions=sum(questions, ()), depth=depth)

    def _views_path(self, path: Path) -> Path:
        """Where the views of the scene at `path` are kept."""
        return path.with_suffix(".views.safetensors")

    def _scene(self, place: int, seed: int) -> tuple[LabelledScene, tuple[ObjectFacts, ...]]:
        """The scene without sentences, and its facts."""
        path = self.folder / f"{self.split}-{place:06d}.safetensors" if self.folder else None
        if path is not None and path.exists():
            try:
                return load_scene_file(path)
            except DamagedScene as error:
                print(f"making {path.name} again: {error}", file=sys.stderr)
        made = simulate_details(
            seed,
            num_frames=self.num_frames,
            image_size=self.image_size,
            balanced=self.balanced,
            camera_frames=self.camera_frames,
        )
        if path is not None:
            save_scene(made.labelled, path, facts=made.facts)
            if self.views:  # from the same world, which takes seconds to build
                first = self.num_frames - self.camera_frames
                size, count = self.image_size, self.num_frames
                views = drive_views(made.world, num_frames=count, image_size=size, first=first)
                save_views(views, self._views_path(path))
        return made.labelled, made.facts


def keep_settings(folder: Path, settings: dict[str, object]) -> None:
    """Write the settings of a folder's scenes into it, or raise ValueError where it has others."""
    path, ours = folder / "settings.json", json.loads(json.dumps(settings))
    folder.mkdir(parents=True, exist_ok=True)
    if not path.exists():
        temporary = path.with_name(f".{path.name}.{os.getpid()}")
        temporary.write_text(json.dumps(ours) + "\n")
        os.replace(temporary, path)
    theirs = json.loads(path.read_text())
    for name, value in ours.items():
        if theirs.get(name) != value:
            raise ValueError(
                f"the scenes in {folder} were made with {name} = {theirs.get(name)}, this run asks for "
                f"{value}; give another folder as data.keep, or delete this one"
            )


def random_bits(seed: int, step: int) -> torch.Generator:
    """A generator that depends on the run's seed and the step alone, so that a resumed run draws the same."""
    return torch.Generator().manual_seed((seed * 1_000_003 + step) % (2**63))


def permutation(count: int, seed: int, epoch: int) -> Tensor:
    """The order of `count` items in an epoch [count]."""
    return torch.randperm(count, generator=random_bits(seed, epoch))
