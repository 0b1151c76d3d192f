"""Talk2Car commands and simulated queries joined with nuScenes: boxes in the ego frame at the LiDAR time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch

from vlm_occ.data.annotations import category_of, class_of_category
from vlm_occ.data.nuscenes import NuScenesTables
from vlm_occ.data.storage import read_json
from vlm_occ.data.talk2car import Talk2CarCommand, box_in_ego, read_commands

SOURCE_SPLITS = ("train", "val", "test")
SPLIT_OF_SOURCE = {"train": "train", "test": "train", "val": "val"}
SPLIT_RULE = (
    "Talk2Occ train = Talk2Car train + test, Talk2Occ val = Talk2Car val: Table I has 8,949 training "
    "samples, but Talk2Car train has 8,349. Scenes are split, never sentences of one scene."
)
SAME_BOX = 0.05
"""Metres by which a command's box may differ from that of the query with the same token."""


@dataclass(frozen=True)
class Sentence:
    """One sentence about a keyframe, before any filter; plain values that travel between processes."""

    token: str
    text: str
    sample_token: str
    source_split: str
    boxes: tuple[tuple[float, ...], ...]  # [K][7], ego frame at the LiDAR time
    box_tokens: tuple[str, ...]  # sample_annotation of each box
    labels: tuple[int, ...]  # index in TALK2OCC_CLASSES of each box
    unique: bool | None = None  # None: to be counted from the annotations
    lexicon: str = "train"
    kind: str = "command"
    near_miss: bool = False
    answer: str = ""


@dataclass
class Joined:
    """All sentences of a folder, and what queries files say about their keyframes."""

    sentences: list[Sentence] = field(default_factory=list)
    samples: dict[str, Mapping[str, object]] = field(default_factory=dict)  # by sample token
    outside: dict[str, int] = field(default_factory=dict)  # sentences of frames that this version lacks
    files: list[str] = field(default_factory=list)


def join_sentences(tables: NuScenesTables, folder: str | Path) -> Joined:
    """Every sentence of `{split}_commands.json` and `queries_{split}.json` in a folder.

    A sentence that stands in both is one, its box the command's. Frames that mini or another partial version
    lacks are counted; in v1.0-trainval they are an error, as is a command that contradicts its query.
    """
    folder, joined = Path(folder), Joined()
    for split in SOURCE_SPLITS:
        commands, queries = folder / f"{split}_commands.json", folder / f"queries_{split}.json"
        found: dict[str, Sentence] = {}
        outside = 0
        if queries.is_file():
            joined.files.append(queries.name)
            for sentence in _read_queries(tables, queries, split, joined):
                found[sentence.token] = sentence
        if commands.is_file():
            joined.files.append(commands.name)
            for command in read_commands(commands):
                sentence = _from_command(tables, command, split, str(commands))
                if sentence is None:
                    outside += 1
                    continue
                found[sentence.token] = _merge(found.get(sentence.token), sentence, str(commands))
        joined.sentences.extend(found.values())
        joined.outside[split] = outside
    if not joined.files:
        raise ValueError(
            f"{folder} holds no train_, val_ or test_commands.json; give Talk2Car's commands folder"
        )
    return joined


def _from_command(
    tables: NuScenesTables, command: Talk2CarCommand, split: str, where: str
) -> Sentence | None:
    """The sentence of a command, or None where its frame is not in a partial version of nuScenes."""
    row = tables.table("sample_data").get(command.sample_data_token)
    if row is None:
        if tables.folder.name == "v1.0-trainval":
            raise ValueError(
                f"command {command.command_token} of {where} refers to sample_data token "
                f"{command.sample_data_token!r}, which {tables.folder / 'sample_data.json'} lacks among its "
                "keyframes; the tables are incomplete"
            )
        return None
    sample = str(row["sample_token"])
    box = box_in_ego(command, tables.ego_from_camera(sample, tables.channel(row)))
    return Sentence(
        token=command.command_token,
        text=command.text,
        sample_token=sample,
        source_split=split,
        boxes=(tuple(box.double().tolist()),),
        box_tokens=(command.box_token,),
        labels=(command.label,),
    )


def _merge(query: Sentence | None, command: Sentence, where: str) -> Sentence:
    """A command with what the query of the same token adds; both must mean the same object."""
    if query is None:
        return command
    same = query.sample_token == command.sample_token and query.box_tokens == command.box_tokens
    offset = torch.tensor(query.boxes)[..., :6] - torch.tensor(command.boxes)[..., :6] if same else None
    if offset is None or offset.abs().max() > SAME_BOX:
        raise ValueError(
            f"command {command.token} of {where} means {command.boxes}, the query of the same token "
            f"{query.boxes}; the two files are of different exports"
        )
    return replace(query, boxes=command.boxes)


def _read_queries(tables: NuScenesTables, path: Path, split: str, joined: Joined) -> list[Sentence]:
    """The sentences of a queries file; its samples are noted in `joined`."""
    content = read_json(path)
    sentences = []
    try:
        if not isinstance(content, dict):
            raise TypeError(f"a {type(content).__name__}, expected an object with 'queries' and 'samples'")
        for sample in content["samples"]:
            joined.samples[str(sample["sample_token"])] = sample
        for row in content["queries"]:
            tables.get("sample", row["sample_token"], asked_by=f"query {row['token']} of {path}")
            sentences.append(_from_query(tables, row, split))
    except (KeyError, TypeError) as error:
        raise ValueError(
            f"{path} is no queries file of `vlm-occ data simulate` ({error!r}); export it anew"
        ) from error
    return sentences


def _from_query(tables: NuScenesTables, row: Mapping[str, object], split: str) -> Sentence:
    """One sentence of a queries file."""
    tokens, boxes = row["box_tokens"], row["boxes"]
    if not isinstance(tokens, Sequence) or not isinstance(boxes, Sequence) or len(tokens) != len(boxes):
        raise TypeError(f"query {row['token']} has {boxes!r} for the box tokens {tokens!r}")
    annotations = [tables.get("sample_annotation", t, asked_by=f"query {row['token']}") for t in tokens]
    return Sentence(
        token=str(row["token"]),
        text=str(row["query"]),
        sample_token=str(row["sample_token"]),
        source_split=split,
        boxes=tuple(tuple(float(v) for v in box) for box in boxes),
        box_tokens=tuple(map(str, tokens)),
        labels=tuple(class_of_category(category_of(tables, a)) for a in annotations),
        unique=bool(row["unique"]),
        lexicon=str(row["lexicon"]),
        kind=str(row["kind"]),
        near_miss=bool(row["near_miss"]),
        answer=str(row["answer"]),
    )
