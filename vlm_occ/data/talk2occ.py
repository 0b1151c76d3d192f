"""The Talk2Occ benchmark built from nuScenes, Occ3D and Talk2Car, real or simulated.

A sentence is kept if the centre of every box it means lies in the grid's range (borders included) and each
box touches at least one occupied voxel. Its ground truth is the occupied voxels of its boxes (Talk2Occ,
eq. 1), whatever their class: Occ3D has no animals, debris or bicycle racks.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import hashlib
import multiprocessing
import os
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import torch
from torch import Tensor
from tqdm import tqdm

from vlm_occ.data.nuscenes import NuScenesTables
from vlm_occ.data.occ3d import read_labels
from vlm_occ.data.storage import encode_json, read_json, write_atomic
from vlm_occ.data.talk2occ_frames import FrameFiles, collect_frames
from vlm_occ.data.talk2occ_index import Record, frame_schema, query_schema, write_summary, write_table
from vlm_occ.data.talk2occ_join import SPLIT_OF_SOURCE, SPLIT_RULE, Sentence, join_sentences
from vlm_occ.data.talk2occ_report import print_report, summarise_build
from vlm_occ.types import TALK2OCC_CLASSES, VoxelGrid
from vlm_occ.voxels import MembershipRule, ravel, voxel_indices_in_box
from vlm_occ.weights import require

CHUNK = 16
"""Keyframes that a process takes at a time."""


@dataclass(frozen=True)
class WorkItem:
    """A keyframe with its sentences and the boxes of all its objects; plain values."""

    sample_token: str
    labels: str  # path of its labels.npz
    sentences: tuple[Sentence, ...]
    boxes: tuple[tuple[float, ...], ...]  # [M][7]
    classes: tuple[int, ...]  # [M]

    @property
    def digest(self) -> str:
        """What a finished part must have been made from."""
        return hashlib.sha256(encode_json(dataclasses.asdict(self))).hexdigest()


def in_range(box: Sequence[float], grid: VoxelGrid) -> bool:
    """Whether a box's centre lies in the grid, borders included."""
    high = [o + n * grid.voxel_size for o, n in zip(grid.origin, grid.shape, strict=True)]
    return all(low - 1e-6 <= v <= top + 1e-6 for low, v, top in zip(grid.origin, box[:3], high, strict=True))


def grounding_voxels(
    occupied: Tensor, boxes: Tensor, grid: VoxelGrid, *, rule: MembershipRule = "touching"
) -> tuple[Tensor, Tensor]:
    """Flat indices (sorted) of the occupied voxels of boxes [K, 7], and how many each has [K] (eq. 1)."""
    keys, counts = [torch.zeros(0, dtype=torch.long)], []
    for box in boxes:
        index = voxel_indices_in_box(box, grid, rule=rule)
        index = index[occupied[index[:, 0], index[:, 1], index[:, 2]]]
        keys.append(ravel(index, grid.shape))
        counts.append(len(index))
    return torch.cat(keys).unique(), torch.tensor(counts, dtype=torch.long)


def label_item(item: WorkItem) -> list[Record]:
    """The rows of a keyframe's sentences; `removed` names the filter that drops one ("" where it stays)."""
    grid, labels = VoxelGrid(), read_labels(item.labels)
    occupied = labels.occupied
    ranged = [(b, c) for b, c in zip(item.boxes, item.classes, strict=True) if in_range(b, grid)]
    _, counts = grounding_voxels(occupied, torch.tensor([b for b, _ in ranged]).reshape(-1, 7), grid)
    referable = Counter(c for (_, c), count in zip(ranged, counts.tolist(), strict=True) if count)
    return [_label_sentence(sentence, occupied, referable, grid) for sentence in item.sentences]


def _label_sentence(sentence: Sentence, occupied: Tensor, referable: Counter[int], grid: VoxelGrid) -> Record:
    """One sentence's row."""
    boxes = torch.tensor(sentence.boxes).reshape(-1, 7)
    voxels, counts = grounding_voxels(occupied, boxes, grid)
    centre, centre_counts = grounding_voxels(occupied, boxes, grid, rule="centre")
    removed = ""
    if not all(in_range(box, grid) for box in sentence.boxes):
        removed = "range"
    elif bool((counts == 0).any()):
        removed = "voxels"
    names = [TALK2OCC_CLASSES[label] for label in sentence.labels]
    unique = sentence.unique
    if unique is None:
        unique = len(sentence.boxes) == 1 and referable[sentence.labels[0]] <= 1
    return {
        "removed": removed,
        "removed_centre": removed or ("voxels" if bool((centre_counts == 0).any()) else ""),
        "token": sentence.token,
        "query": sentence.text,
        "sample_token": sentence.sample_token,
        "source_split": sentence.source_split,
        "kind": sentence.kind,
        "lexicon": sentence.lexicon,
        "label": names[0] if names else "",
        "answer": sentence.answer,
        "unique": unique,
        "near_miss": sentence.near_miss,
        "boxes": boxes.tolist(),
        "box_tokens": list(sentence.box_tokens),
        "labels": names,
        "distance": boxes[:, :2].norm(dim=1).min().item() if len(boxes) else None,
        "num_voxels": len(voxels),
        "num_voxels_centre": len(centre),
        "voxels": voxels.tolist(),
    }


def _part_path(out: Path, sample_token: str) -> Path:
    """Where a finished keyframe's rows lie until the index is whole."""
    return out / ".parts" / f"{sample_token}.json"


def _process(out: Path, item: WorkItem) -> None:
    """Label one keyframe and keep its rows."""
    content = {"digest": item.digest, "rows": label_item(item)}
    write_atomic(_part_path(out, item.sample_token), encode_json(content))


def _rows_of(out: Path, item: WorkItem) -> list[Record] | None:
    """The rows of a keyframe that an earlier run finished from the same input."""
    try:
        content = read_json(_part_path(out, item.sample_token))
    except ValueError:  # missing, or damaged by a crash of the machine: it is labelled again
        return None
    if not isinstance(content, dict) or content.get("digest") != item.digest:
        return None
    return cast(list[Record], content["rows"])


def _run(work: Callable[[WorkItem], None], items: Sequence[WorkItem], processes: int | None) -> None:
    """Do the work on all items, in several processes where there are many."""
    if processes is not None and processes < 1:
        raise ValueError(f"processes = {processes}, expected at least 1")
    count = max(1, min(processes or os.cpu_count() or 1, len(items) // (1 if processes else 4 * CHUNK)))
    with tqdm(total=len(items), desc="labelling", unit="keyframe", disable=not items, file=sys.stderr) as bar:
        if count == 1:
            for item in items:
                work(item)
                bar.update()
            return
        context = multiprocessing.get_context("spawn")
        one_thread = functools.partial(torch.set_num_threads, 1)
        with ProcessPoolExecutor(count, mp_context=context, initializer=one_thread) as pool:
            for _ in pool.map(work, items, chunksize=CHUNK):
                bar.update()


def build_talk2occ(
    nuscenes: str | Path,
    occ3d: str | Path,
    talk2car: str | Path,
    out: str | Path,
    *,
    processes: int | None = None,
) -> dict[str, object]:
    """Build the index and return its summary (also `talk2occ.json`).

    Finished keyframes of a killed run are kept. Raises ValueError for missing files (all named on stderr),
    damaged labels, dangling tokens and malformed commands.
    """
    require("pyarrow", "train")
    out, occ3d = Path(out), Path(occ3d)
    tables = NuScenesTables(nuscenes)
    joined = join_sentences(tables, talk2car)
    frames = collect_frames(tables, joined, occ3d)
    _check_files(frames, tables.root, occ3d)
    by_sample: dict[str, list[Sentence]] = {}
    for sentence in joined.sentences:
        by_sample.setdefault(sentence.sample_token, []).append(sentence)
    items = [
        WorkItem(
            sample,
            str(occ3d / frames.labels[sample]),
            tuple(sentences),
            frames.boxes[sample],
            frames.classes[sample],
        )
        for sample, sentences in by_sample.items()
    ]
    _run(functools.partial(_process, out), [i for i in items if _rows_of(out, i) is None], processes)
    rows = [row for item in items for row in _rows_of(out, item) or ()]
    return _write_index(out, rows, frames, tables, occ3d, joined.outside)


def _check_files(frames: FrameFiles, nuscenes: Path, occ3d: Path) -> None:
    """Raise ValueError where files are missing; every one is named on stderr."""
    needed = [nuscenes / name for name in frames.sensor_files] + [occ3d / p for p in frames.labels.values()]
    missing = [path for path in needed if not path.is_file()]
    for path in missing:
        print(f"missing: {path}", file=sys.stderr)
    if missing:
        raise ValueError(
            f"{len(missing)} of {len(needed)} files are missing, such as {missing[0]} (all are named above); "
            "download or export them, or give another root"
        )


def _write_index(
    out: Path,
    rows: Sequence[Record],
    frames: FrameFiles,
    tables: NuScenesTables,
    occ3d: Path,
    outside: Record,
) -> dict[str, object]:
    """Write Parquet tables, card and summary; the parts are then needed no more."""
    place = {str(row["sample_token"]): row for row in frames.rows}
    columns = query_schema().names
    kept: dict[str, list[Record]] = {"train": [], "val": []}
    for row in rows:
        if not row["removed"]:
            frame = place[str(row["sample_token"])]
            full = {**row, "scene_token": frame["scene_token"], "scene_name": frame["scene_name"]}
            kept[SPLIT_OF_SOURCE[str(row["source_split"])]].append({name: full[name] for name in columns})
    for split, split_rows in kept.items():
        write_table(out / f"{split}.parquet", split_rows, query_schema())
    write_table(out / "frames.parquet", frames.rows, frame_schema())
    summary = {
        "nuscenes": os.path.relpath(tables.root, out),
        "occ3d": os.path.relpath(occ3d, out),
        "version": tables.folder.name,
        "split_rule": SPLIT_RULE,
        **summarise_build(rows, outside),
    }
    write_summary(out, summary, SPLIT_RULE)
    for path in (out / ".parts").glob("*.json"):
        path.unlink()
    with contextlib.suppress(OSError):
        (out / ".parts").rmdir()
    return summary


def talk2occ_command(
    nuscenes: str | Path,
    occ3d: str | Path,
    talk2car: str | Path,
    out: str | Path,
    *,
    processes: int | None = None,
) -> dict[str, object]:
    """`vlm-occ data talk2occ`: build the index, print Table I and what each filter removed."""
    summary = build_talk2occ(nuscenes, occ3d, talk2car, out, processes=processes)
    print_report(summary, Path(out))
    return summary
