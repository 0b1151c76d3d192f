"""Simulated drives in the real formats: nuScenes tables and sensor files, Occ3D labels, Talk2Car commands.

Every scene is written by itself and then named as finished in `.scenes`; the tables are put together from all
finished scenes at the end. So a killed run continues where it stopped, and the order of processes leaves no
trace.
"""

from __future__ import annotations

import functools
import io
import multiprocessing
import os
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Literal, cast

import torch
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from vlm_occ.data.export_rows import (
    Rows,
    lidar_records,
    map_table,
    sample_token,
    scene_name,
    scene_rows,
    sensor_file,
    shared_tables,
    token,
)
from vlm_occ.data.export_sentences import command_rows, query_rows, sample_row
from vlm_occ.data.nuscenes import LIDAR
from vlm_occ.data.occ3d import OccupancyLabels, encode_labels, labels_path
from vlm_occ.data.storage import encode_json, read_json, write_atomic
from vlm_occ.situated import Lexicon
from vlm_occ.types import LabelledScene

Split = Literal["train", "val", "test"]
SPLITS: tuple[Split, ...] = ("train", "val", "test")
LEXICONS: dict[Split, tuple[Lexicon, ...]] = {
    "train": ("train",),
    "val": ("train", "heldout"),
    "test": ("train", "heldout"),
}
"""Whose words the sentences of a split use: held-out ones never in training."""

_FOUR: tuple[Split, ...] = ("train",) * 4
DEALT: tuple[Split, ...] = (*_FOUR, "val", *_FOUR, "test")
"""How ten scenes in a row are dealt without a split: 80/10/10."""

FORMAT = 1
TABLES = (
    *("attribute", "calibrated_sensor", "category", "ego_pose", "instance", "log", "map", "sample"),
    *("sample_annotation", "sample_data", "scene", "sensor", "visibility"),
)
JPEG_QUALITY = 95
PREVIEW = 4
"""Scenes on a contact sheet."""


@dataclass(frozen=True)
class ExportSettings:
    """What a drive is simulated with."""

    num_frames: int = 4
    image_size: tuple[int, int] = (256, 704)
    num_queries: int = 10  # for each lexicon of the split
    num_situations: int = 2  # likewise
    balanced: bool = False


@dataclass(frozen=True)
class ExportReport:
    """What an export did."""

    written: int
    kept: int  # finished by an earlier run
    scenes: dict[str, int]  # all scenes of the folder by split
    commands: dict[str, int]
    queries: dict[str, int]


Producer = Callable[[int, Split, ExportSettings], LabelledScene]


def simulated(seed: int, split: Split, settings: ExportSettings) -> LabelledScene:
    """The drive of a seed with the sentences of a split."""
    from vlm_occ.data.simulator.scene import simulate_details, with_sentences

    simulation = simulate_details(
        seed, num_frames=settings.num_frames, image_size=settings.image_size, balanced=settings.balanced
    )
    told = [
        with_sentences(
            simulation,
            seed=seed,
            num_queries=settings.num_queries,
            num_situations=settings.num_situations,
            lexicon=lexicon,
        )
        for lexicon in LEXICONS[split]
    ]
    return replace(
        told[0],
        queries=tuple(query for item in told for query in item.queries),
        situations=tuple(situation for item in told for situation in item.situations),
    )


def deal(scenes: int, seed: int, split: Split | None = None) -> list[tuple[int, Split]]:
    """Seeds and splits of `scenes` scenes from `seed` on; without a split, 80/10/10 in each ten.

    Each split has a range of seeds of its own: no scene is ever in two, whatever the seeds of several runs.
    """
    from vlm_occ.data.simulator.scene import split_seed

    if scenes < 1:
        raise ValueError(f"scenes = {scenes}, expected at least 1")
    splits: list[Split] = [split or DEALT[i % len(DEALT)] for i in range(scenes)]
    return [(split_seed(own, seed + i), own) for i, own in enumerate(splits)]


def export_scenes(
    out: str | Path,
    seeds: Sequence[tuple[int, Split]],
    *,
    settings: ExportSettings | None = None,
    processes: int | None = None,
    produce: Producer = simulated,
) -> ExportReport:
    """Write drives below `out`, finished ones excepted, and the tables of all that are there.

    The same seeds and settings write the same bytes. `produce` runs in other processes, so it must be
    importable. Raises ValueError that names the file where the disk refuses; the next run continues.
    """
    out, settings = Path(out), settings or ExportSettings()
    wanted = [item for item in seeds if not _finished(out, item, settings)]
    work = functools.partial(_write_scene, out, settings, produce)
    count = _processes(processes, len(wanted))
    bar = tqdm(total=len(wanted), desc="simulating", unit="scene", disable=not wanted)
    with bar:
        if count == 1:
            for item in wanted:
                work(item)
                bar.update()
        else:
            _run_many(work, wanted, count, bar)
    return _write_tables(out, written=len(wanted), kept=len(seeds) - len(wanted))


def _processes(asked: int | None, scenes: int) -> int:
    """How many processes to start: one for a handful of scenes, as each takes seconds to import torch."""
    if asked is not None and asked < 1:
        raise ValueError(f"processes = {asked}, expected at least 1")
    return max(1, min(asked or os.cpu_count() or 1, scenes if asked else scenes // 4))


def _run_many(
    work: Callable[[tuple[int, Split]], None], items: Sequence[tuple[int, Split]], count: int, bar: tqdm
) -> None:
    """Run `work` on all items in processes of one thread each; the first error stops the rest."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(
        count, mp_context=context, initializer=torch.set_num_threads, initargs=(1,)
    ) as pool:
        futures: list[Future[None]] = [pool.submit(work, item) for item in items]
        try:
            for future in as_completed(futures):
                future.result()
                bar.update()
        finally:
            for future in futures:
                future.cancel()


def _fragment_path(out: Path, seed: int) -> Path:
    """Where a finished scene's rows lie."""
    return out / ".scenes" / f"{scene_name(seed)}.json"


def _stamp(item: tuple[int, Split], settings: ExportSettings) -> dict[str, object]:
    """What a finished scene was made with."""
    values = asdict(settings) | {"image_size": list(settings.image_size)}
    return {"format": FORMAT, "seed": item[0], "split": item[1], **values}


def _finished(out: Path, item: tuple[int, Split], settings: ExportSettings) -> bool:
    """Whether a scene was written by an earlier run with the same settings."""
    path = _fragment_path(out, item[0])
    try:
        content = read_json(path)
    except ValueError:  # missing, or damaged by a crash of the machine: it is written again
        return False
    return isinstance(content, dict) and content.get("stamp") == _stamp(item, settings)


def _write_scene(out: Path, settings: ExportSettings, produce: Producer, item: tuple[int, Split]) -> None:
    """Simulate and write one drive; its fragment comes last and says that it is whole."""
    seed, split = item
    drive = produce(seed, split, settings)
    for i, frame in enumerate(drive.scene.frames):
        for channel, image in zip(drive.scene.rig.names, frame.images, strict=True):
            write_atomic(out / sensor_file(seed, i, channel), _encode_image(image))
        if frame.points is not None:
            records = lidar_records(frame.points.cpu()).numpy().astype("<f4")
            write_atomic(out / sensor_file(seed, i, LIDAR), records.tobytes())
    labels = OccupancyLabels(drive.labels.semantics, drive.labels.mask_lidar, drive.labels.mask_camera)
    sample = sample_token(seed, len(drive.scene.frames) - 1)
    write_atomic(labels_path(out / "gts", scene_name(seed), sample), encode_labels(labels))
    fragment = {
        "stamp": _stamp(item, settings),
        "tables": scene_rows(seed, drive),
        "commands": command_rows(seed, drive),
        "queries": query_rows(seed, drive),
        "sample": sample_row(seed, drive),
    }
    write_atomic(_fragment_path(out, seed), encode_json(fragment))


def _encode_image(image: Tensor) -> bytes:
    """JPEG of an image uint8 [3, H, W]; full chroma, so that small things keep their colour."""
    buffer = io.BytesIO()
    pixels = image.permute(1, 2, 0).contiguous().cpu().numpy()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=JPEG_QUALITY, subsampling=0)
    return buffer.getvalue()


def _write_tables(out: Path, *, written: int, kept: int) -> ExportReport:
    """Put the tables, commands and queries of all finished scenes of a folder together."""
    tables: Rows = {name: [] for name in TABLES} | shared_tables()
    commands: Rows = {split: [] for split in SPLITS}
    queries: Rows = {split: [] for split in SPLITS}
    samples: Rows = {split: [] for split in SPLITS}
    for path in sorted((out / ".scenes").glob("*.json")):
        fragment = cast(dict[str, dict], read_json(path))
        split = str(fragment["stamp"]["split"])
        for name, rows in fragment["tables"].items():
            tables[name].extend(rows)
        commands[split].extend(cast(list, fragment["commands"]))
        queries[split].extend(cast(list, fragment["queries"]))
        samples[split].append(fragment["sample"])
    tables["sensor"] = list({row["token"]: row for row in tables["sensor"]}.values())
    tables["map"] = map_table(tables["log"])
    buffer = io.BytesIO()
    Image.new("L", (16, 16)).save(buffer, "PNG")
    write_atomic(out / "maps" / "sim.png", buffer.getvalue())
    for name in TABLES:
        write_atomic(out / "v1.0-sim" / f"{name}.json", encode_json(tables[name]))
    for split in SPLITS:
        scenes = sorted({token("scene", row["seed"]) for row in samples[split]})
        folder = out / "commands"
        write_atomic(
            folder / f"{split}_commands.json",
            encode_json({"scene_tokens": scenes, "commands": commands[split]}),
        )
        content = {"format": FORMAT, "split": split, "queries": queries[split], "samples": samples[split]}
        write_atomic(folder / f"queries_{split}.json", encode_json(content))
    return ExportReport(
        written,
        kept,
        {split: len(rows) for split, rows in samples.items()},
        {split: len(rows) for split, rows in commands.items()},
        {split: len(rows) for split, rows in queries.items()},
    )


def simulate_command(
    out: str | Path,
    *,
    scenes: int,
    seed: int,
    split: Split | None = None,
    preview: bool = False,
    settings: ExportSettings | None = None,
    processes: int | None = None,
) -> ExportReport:
    """`vlm-occ data simulate`: write scenes and print what the folder holds.

    `preview` also draws the first scenes and every class close up on a contact sheet, `preview.png`.
    """
    seeds, settings = deal(scenes, seed, split), settings or ExportSettings()
    report = export_scenes(out, seeds, settings=settings, processes=processes)
    if preview:
        from vlm_occ.data.simulator import preview as sheet

        shown = [simulated(*item, settings) for item in seeds[:PREVIEW]]
        sheet.contact_sheet(shown, Path(out) / "preview.png", gallery=sheet.gallery_scenes())
    print(f"{report.written} scenes written, {report.kept} already there; {out} now holds:")
    print(f"{'split':<8}{'scenes':>8}{'commands':>10}{'queries':>9}")
    for name in SPLITS:
        print(f"{name:<8}{report.scenes[name]:>8}{report.commands[name]:>10}{report.queries[name]:>9}")
    return report
