"""Checkpoints of a run: whole or absent, damaged ones skipped; and real kills."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tiny_runs import prepare, tiny_config, tiny_scenes

from vlm_occ.run_check import check_resume, run_process
from vlm_occ.run_state import newest_state, remove_leftovers
from vlm_occ.train import train


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the tiny base model and two scenes."""
    return prepare(tmp_path_factory.getbasetemp() / "tiny")


@pytest.fixture(scope="module")
def saved(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run with the checkpoints of steps 1 and 2."""
    out = tmp_path_factory.mktemp("saved") / "run"
    config = replace(tiny_config(tiny, out), stage="grounding", steps=2, save_every=1)
    train(config, source=tiny_scenes(tiny))
    return out


def cut_short(folder: Path) -> None:
    """Half of the first weight file."""
    path = folder / "weights-00.safetensors"
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def overwrite(folder: Path) -> None:
    """Zeros at the end of a weight file, whose length stays, as after a power cut."""
    path = folder / "weights-00.safetensors"
    path.write_bytes(path.read_bytes()[:-100] + bytes(100))


def without_weights(folder: Path) -> None:
    (folder / "weights-00.safetensors").unlink()


def without_step(folder: Path) -> None:
    (folder / "step.json").unlink()


def half_a_step(folder: Path) -> None:
    path = folder / "step.json"
    path.write_text(path.read_text()[:20])


@pytest.mark.parametrize("damage", [cut_short, overwrite, without_weights, without_step, half_a_step])
def test_a_damaged_newest_checkpoint_is_skipped_with_a_message(
    saved: Path, tmp_path: Path, damage, capsys: pytest.CaptureFixture[str]
) -> None:
    out = Path(shutil.copytree(saved, tmp_path / "run"))
    state = newest_state(out)
    assert state is not None and state.step == 2
    damage(out / "step-0000002")
    state = newest_state(out)
    assert state is not None and state.step == 1
    errors = capsys.readouterr().err
    assert f"skipping {out / 'step-0000002'}: " in errors and "from step 1" in errors


def test_a_run_goes_on_from_the_checkpoint_before_a_damaged_one(
    saved: Path, tiny: Path, tmp_path: Path
) -> None:
    out = Path(shutil.copytree(saved, tmp_path / "run"))
    cut_short(out / "step-0000002")
    shutil.rmtree(out / "final")
    config = replace(tiny_config(tiny, out), stage="grounding", steps=2, save_every=1)
    train(config, source=tiny_scenes(tiny))
    for name in ("step-0000002", "final"):
        for path in (saved / name).glob("weights*"):
            assert path.read_bytes() == (out / name / path.name).read_bytes()


def test_half_a_folder_does_not_count_and_is_cleared_away(saved: Path, tmp_path: Path) -> None:
    out = Path(shutil.copytree(saved, tmp_path / "run"))
    shutil.copytree(out / "step-0000002", out / ".step-0000003.abc")
    (out / "step-0000002").rename(out / ".step-0000002.xyz.old")
    state = newest_state(out)
    assert state is not None and state.step == 1
    remove_leftovers(out)
    assert {path.name for path in out.iterdir() if "step" in path.name} == {"step-0000001"}


def test_no_checkpoint_is_a_start_from_the_beginning(tmp_path: Path) -> None:
    assert newest_state(tmp_path) is None


def test_weights_of_another_model_are_an_error_not_a_start_from_the_beginning(
    saved: Path, tiny: Path, tmp_path: Path
) -> None:
    out = Path(shutil.copytree(saved, tmp_path / "run"))
    config = replace(tiny_config(tiny, out), stage="grounding", steps=3)
    with pytest.raises(ValueError, match="shape"):
        train(replace(config, model=replace(config.model, head_width=8)), source=tiny_scenes(tiny))


def test_a_killed_process_ends_as_one_that_was_left_alone(tiny: Path, tmp_path: Path) -> None:
    config = replace(tiny_config(tiny, tmp_path / "run"), stage="grounding", steps=4, save_every=1, ema=0.9)
    report = check_resume(config, tiny_scenes(tiny), kills=2, seed=1)
    assert report["identical"] == report["killed"] == 2


def test_a_kill_within_a_write_leaves_the_checkpoint_before_whole(tiny: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    config = replace(tiny_config(tiny, out), stage="grounding", steps=60, save_every=1, keep_checkpoints=1)
    process = run_process(config, tiny_scenes(tiny))
    while not list(out.glob("step-*")) or not list(out.glob(".step-*")):
        assert process.is_alive()
    process.kill()
    process.join()
    state = newest_state(out)
    assert state is not None
    step = json.loads((out / f"step-{state.step:07d}" / "step.json").read_text())["step"]
    assert step == state.step and all(torch.isfinite(value).all() for value in state.weights.values())
