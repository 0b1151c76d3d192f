"""`vlm-occ data simulate` and `vlm-occ data talk2occ`: same bytes, kills, and input of every bad kind."""

from __future__ import annotations

import functools
import hashlib
import json
import os
import resource
import shutil
import signal
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from test_export import SEEDS as TEN
from test_export import SETTINGS, digests, fake_drive

from vlm_occ.cli import main
from vlm_occ.data import export, talk2occ
from vlm_occ.data.export import ExportSettings, export_scenes, simulate_command
from vlm_occ.data.nuscenes import NuScenesTables
from vlm_occ.data.occ3d import read_labels
from vlm_occ.data.simulator import preview
from vlm_occ.data.talk2occ import build_talk2occ

SEEDS = [TEN[i] for i in (0, 4, 6, 9)]
SMALL = ExportSettings(num_frames=1, image_size=(32, 88), num_queries=3, num_situations=1)


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("export")
    export_scenes(out, SEEDS, settings=SETTINGS, produce=fake_drive, processes=1)
    return out


@pytest.fixture
def copy(exported: Path, tmp_path: Path) -> Path:
    """A copy of the export to damage."""
    shutil.copytree(exported, tmp_path / "sim")
    return tmp_path / "sim"


def build_words(root: Path, out: Path) -> list[str]:
    folders = ["--nuscenes", str(root), "--occ3d", str(root / "gts"), "--talk2car", str(root / "commands")]
    return ["data", "talk2occ", *folders, "--out", str(out), "--processes", "1"]


def error_of(words: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """The one line of error of a command that must fail with code 2."""
    assert main(words) == 2
    shown = capsys.readouterr()
    errors = [line for line in shown.err.splitlines() if line.startswith("vlm-occ: error: ")]
    assert len(errors) == 1 and shown.err.endswith(errors[0] + "\n") and "Traceback" not in shown.err
    return errors[0]


def edit(path: Path, change: Callable[[list], object]) -> None:
    rows = json.loads(path.read_text())
    change(rows)
    path.write_text(json.dumps(rows))


def write_wrong_grid(path: Path) -> None:
    labels = read_labels(path)
    names = ("semantics", "mask_lidar", "mask_camera")
    np.savez_compressed(path, **{n: getattr(labels, n).numpy().astype(np.uint8)[:, :, :8] for n in names})


def lose_box(path: Path) -> None:
    edit(path, lambda content: content["commands"][0].pop("translation"))  # type: ignore[call-overload]


def lose_pose(path: Path) -> None:
    edit(path, lambda rows: rows[0].update(ego_pose_token="lost"))


def test_sweeps_between_keyframes_and_their_poses_are_not_kept(copy: Path) -> None:
    def add(rows: list) -> None:
        rows.append(rows[0] | {"token": "between", "is_key_frame": False, "ego_pose_token": "between"})

    known = {name: set(NuScenesTables(copy).table(name)) for name in ("sample_data", "ego_pose")}
    for name in known:
        edit(copy / "v1.0-sim" / f"{name}.json", add)
    assert {name: set(NuScenesTables(copy).table(name)) for name in known} == known


DAMAGE: dict[str, tuple[str, Callable[[Path], object], str]] = {
    "truncated npz": (
        "gts/sim-0000006/*/labels.npz",
        lambda p: p.write_bytes(p.read_bytes()[:200]),
        "truncated",
    ),
    "wrong grid": (
        "gts/sim-0000006/*/labels.npz",
        write_wrong_grid,
        "[200, 200, 8], expected [200, 200, 16]",
    ),
    "missing labels": ("gts/sim-0000006/*/labels.npz", Path.unlink, "1 of 60 files are missing"),
    "dangling token": ("v1.0-sim/sample_data.json", lose_pose, "ego_pose token 'lost'"),
    "truncated table": (
        "v1.0-sim/sample.json",
        lambda p: p.write_bytes(p.read_bytes()[:-9]),
        "truncated",
    ),
    "command without a box": ("commands/train_commands.json", lose_box, "has no translation"),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_bad_input_is_one_line_that_names_the_file_and_a_rerun_completes(
    name: str, copy: Path, exported: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pattern, damage, said = DAMAGE[name]
    path, index = next(copy.glob(pattern)), tmp_path / "index"
    damage(path)
    error = error_of(build_words(copy, index), capsys)
    named = "ego_pose.json" if name == "dangling token" else str(path)
    assert said in error and named in error
    assert {p.name for p in index.glob("*")} <= {".parts"}  # no index, but what is finished of it
    path.write_bytes((exported / path.relative_to(copy)).read_bytes())
    assert main(build_words(copy, index)) == 0
    build_talk2occ(copy, copy / "gts", copy / "commands", tmp_path / "fresh")
    assert digests(index) == digests(tmp_path / "fresh")


def test_a_full_disk_is_one_line_and_a_rerun_completes_the_index(
    exported: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    index = tmp_path / "index"
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    size = max(p.stat().st_size for p in _index(exported, tmp_path).glob("*.parquet"))
    resource.setrlimit(resource.RLIMIT_FSIZE, (size - 1, hard))  # the parts fit, the largest table does not
    try:
        error = error_of(build_words(exported, index), capsys)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert "can't write" in error and str(index) in error
    assert not [p for p in index.rglob("*") if p.name.endswith(".tmp")]
    assert not (index / "talk2occ.json").exists()
    assert main(build_words(exported, index)) == 0
    assert digests(index).keys() == digests(tmp_path / "whole").keys()
    for name in ("train.parquet", "val.parquet", "frames.parquet"):
        assert (index / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def _index(exported: Path, tmp_path: Path) -> Path:
    build_talk2occ(exported, exported / "gts", exported / "commands", tmp_path / "whole", processes=1)
    return tmp_path / "whole"


def die_after(count: int, work: Callable, *arguments: object) -> object:
    """Do the work, and kill the own process by SIGKILL when it has been asked `count` times."""
    calls = die_after.__dict__["calls"] = die_after.__dict__.get("calls", 0) + 1
    if calls > count:
        os.kill(os.getpid(), signal.SIGKILL)
    return work(*arguments)


def killed(work: Callable[[], object]) -> bool:
    """Whether a child process that does the work was killed by SIGKILL."""
    child = os.fork()
    if child == 0:
        try:
            torch.set_num_threads(1)
            work()
        finally:
            os._exit(0)
    return os.WTERMSIG(os.waitpid(child, 0)[1]) == signal.SIGKILL


def test_a_build_killed_by_sigkill_goes_on_and_writes_the_same_bytes(
    exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    index = tmp_path / "index"
    build = functools.partial(build_talk2occ, exported, exported / "gts", exported / "commands", processes=1)
    with monkeypatch.context() as patch:
        patch.setattr(talk2occ, "label_item", functools.partial(die_after, 2, talk2occ.label_item))
        assert killed(lambda: build(index))
    assert len(list((index / ".parts").glob("*.json"))) == 2
    build(index)
    build(tmp_path / "fresh")
    assert digests(index) == digests(tmp_path / "fresh")


def test_an_export_killed_by_sigkill_between_two_files_goes_on(
    exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = functools.partial(export_scenes, settings=SETTINGS, produce=fake_drive, processes=1)
    with monkeypatch.context() as patch:
        patch.setattr(export, "write_atomic", functools.partial(die_after, 40, export.write_atomic))
        assert killed(lambda: run(tmp_path, SEEDS))
    assert 0 < len(list((tmp_path / ".scenes").iterdir())) < 4
    assert not (tmp_path / "v1.0-sim").exists()
    run(tmp_path, SEEDS)
    assert digests(tmp_path) == digests(exported)


def test_damaged_notes_of_a_finished_scene_have_it_written_again(exported: Path, copy: Path) -> None:
    note = copy / ".scenes" / "sim-0000006.json"
    note.write_bytes(note.read_bytes()[:100])  # as a crash of the machine may leave it
    report = export_scenes(copy, SEEDS, settings=SETTINGS, produce=fake_drive, processes=1)
    assert (report.written, report.kept) == (1, 3)
    assert digests(copy) == digests(exported)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--scenes", "0"], "scenes = 0"),
        (["--scenes", "1", "--seed", "-1"], "index -1"),
        (["--scenes", "1", "--processes", "0"], "processes = 0"),
        (["--scenes", "1", "--out", "{file}"], "can't write"),
    ],
)
def test_wrong_use_of_simulate_is_one_line(
    words: list[str],
    said: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setattr(export, "export_scenes", functools.partial(export_scenes, produce=fake_drive))
    monkeypatch.setattr(export, "ExportSettings", lambda: SETTINGS)
    given = [word.format(file=tmp_path / "file") for word in words]
    defaults = ["--out", str(tmp_path / "out"), "--seed", "0"]
    assert said in error_of(["data", "simulate", *defaults, *given], capsys)
    assert (tmp_path / "file").read_text() == "" and not (tmp_path / "out").exists()


def test_simulate_writes_the_same_bytes_again_and_a_contact_sheet_on_request(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(preview, "gallery_scenes", tuple)  # the close-ups take several seconds
    for name, sheet in (("a", True), ("b", False)):
        simulate_command(tmp_path / name, scenes=1, seed=3, split="val", preview=sheet, settings=SMALL)
    found, again = digests(tmp_path / "a"), digests(tmp_path / "b")
    assert found.keys() - again.keys() == {"preview.png"}
    assert {name: found[name] for name in again} == again
    rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["val", "1"] in [row[:2] for row in rows] and ["train", "0", "0", "0"] in rows
    digest = hashlib.sha256((tmp_path / "a" / "preview.png").read_bytes()).hexdigest()
    assert found["preview.png"] == digest
