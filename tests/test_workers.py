"""Several processes at a contest: each run once, claims of the dead taken again, a clean stop on time."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
from tiny_paper import tiny_scene

from vlm_occ.config import PerceptionConfig
from vlm_occ.eval import contest as contests
from vlm_occ.eval import tables as tabling
from vlm_occ.eval.contest import Contest
from vlm_occ.eval.contest_config import ContestConfig
from vlm_occ.eval.workers import Run, claimed, planned, progress, work
from vlm_occ.models.references import RandomReference
from vlm_occ.train import OutOfTime

made: list[tuple[str, int]] = []
"""Names and seeds of the systems that were trained."""


@pytest.fixture
def contest(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Contest:
    """A contest whose systems are references; `no-such` seeds fail."""
    made.clear()

    def trained(self: Contest, name: str, *, seed: int = 0, steps: int | None = None) -> RandomReference:
        if name == "depth":
            raise RuntimeError("this one breaks")
        if name == "VLM-Occ" and seed == 1:
            raise OutOfTime("stopped")
        made.append((name, seed))
        return RandomReference("box_rand", seed=seed)

    monkeypatch.setattr(Contest, "scenes", lambda self, split: [tiny_scene(), tiny_scene(seed=1)])
    monkeypatch.setattr(Contest, "trained", trained)
    monkeypatch.setattr(contests, "trunk_config", lambda name, frames: PerceptionConfig())
    monkeypatch.setattr(contests, "trunk_digest", lambda name: f"weights of {name.split('/')[-1]}")
    monkeypatch.setattr(tabling, "costs", lambda contest: {})
    return Contest(ContestConfig("trunk", out=str(tmp_path / "contest"), steps=5, seeds=2, draws=20))


def test_the_most_wanted_runs_come_first_and_each_once(contest: Contest) -> None:
    runs = planned(contest.config)
    assert [run.name for run in runs[:5]] == [
        "GroundingOcc",
        "VLM-Occ",
        "M-baseline",
        "L-baseline",
        "C-baseline",
    ]
    assert len(runs) == len(set(runs)) == 12 and [run.seed for run in runs] == [0] * 10 + [1, 1]
    short = planned(replace(contest.config, ablation_steps=3))
    assert len(short) == 14 and {run.name for run in short if run.steps == 3} >= {
        "M-baseline",
        "GroundingOcc",
    }


def test_a_claim_is_exclusive_until_its_process_has_died(tmp_path: Path) -> None:
    assert claimed(tmp_path) and not claimed(tmp_path)
    gone = subprocess.run(
        [sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, text=True
    )
    (tmp_path / "claim" / "process").write_text(gone.stdout)
    assert claimed(tmp_path) and (tmp_path / "claim" / "process").read_text() == str(os.getpid())
    assert [path.name for path in tmp_path.iterdir()] == ["claim"]


def test_workers_go_on_after_a_failure_stop_on_time_and_leave_others_claims(contest: Contest) -> None:
    assert claimed(Run("L-baseline", 0, 5).folder(contest))  # by another one, which lives
    work(contest)
    assert ("L-baseline", 0) not in made and ("geo-scal", 0) in made and ("GroundingOcc", 1) not in made
    failures = list((Run("depth", 0, 5).folder(contest) / "failures").iterdir())
    assert len(failures) == 1 and "this one breaks" in failures[0].read_text()
    lines = progress(contest).splitlines()
    assert len(lines) == 12 and "done: Acc@0.25" in lines[0] and "failed 1 times" in "".join(lines)
    made.clear()
    work(Contest(replace(contest.config, until_time=time.time() - 1)))
    assert not made


def test_tables_of_what_is_done_tell_what_is_missing(contest: Contest) -> None:
    work(contest)
    result = tabling.tables(replace(contest.config, assemble=True, pictures=0))
    protocol, table3 = result["protocol"], result["table3"]
    assert isinstance(protocol, dict) and isinstance(table3, list)
    assert protocol["seeds"]["VLM-Occ"] == 1 and protocol["seeds_asked"] == 2
    assert [row["acc25"] is None for row in table3] == [False, False, True, False]  # no depth
    assert "+ depth predictor" in tabling.format_tables(result)
    records = Path(contest.config.out + "-records")  # a later session, on another machine, has these alone
    for path in contest.out.rglob("*.json"):
        (records / path.relative_to(contest.out)).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, records / path.relative_to(contest.out))
    moved = tabling.tables(replace(contest.config, out=str(records), assemble=True, pictures=0))
    same = ("table2", "table3", "table4", "intervals", "paired", "seeds")
    assert {key: moved[key] for key in same} == {key: result[key] for key in same}
    none = Contest(replace(contest.config, out=contest.config.out + "-other"))
    empty = tabling.tables(replace(none.config, assemble=True))
    assert set(empty["protocol"]["missing"]) >= {"GroundingOcc", "VLM-Occ"}  # type: ignore[index]
    tabling.format_tables(empty)
