"""Does a killed run end with the same weights? Training processes are killed with SIGKILL and resumed."""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import shutil
import signal
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch

from vlm_occ.config import TrainConfig
from vlm_occ.models.checkpoint import read_shards
from vlm_occ.types import LabelledScene


@dataclass(frozen=True)
class Kill:
    """One run that was killed and resumed."""

    step: int  # steps that were logged when the signal came
    saved: int  # the newest checkpoint's step then, 0 without one
    half_written: bool  # a checkpoint was being written
    identical: bool  # the resumed run's weights are those of the run that was left alone, bit for bit


def run_process(config: TrainConfig, scenes: Sequence[LabelledScene]) -> multiprocessing.Process:
    """A forked process that trains on `scenes`, its messages in `out`.err."""
    context = multiprocessing.get_context("fork")  # shares the loaded packages: a start takes milliseconds
    process = context.Process(target=_train_quietly, args=(config, scenes))
    process.start()
    return process  # type: ignore[return-value]


def _train_quietly(config: TrainConfig, scenes: Sequence[LabelledScene]) -> None:
    from vlm_occ.train import train

    with Path(f"{config.out}.err").open("a") as errors:
        os.dup2(errors.fileno(), sys.stderr.fileno())
        torch.set_num_threads(1)
        train(config, source=scenes)


def logged_steps(out: Path) -> int:
    """How many whole lines a run's log has."""
    path = out / "log.jsonl"
    return path.read_text().count("\n") if path.exists() else 0


def kill_once(
    config: TrainConfig,
    scenes: Sequence[LabelledScene],
    expected: dict[str, torch.Tensor],
    pause: random.Random,
) -> Kill | None:
    """Kill a run at a random moment, resume it, and compare; None if it ended before the signal came."""
    out = Path(config.out)
    process = run_process(config, scenes)
    target, begin = pause.randrange(config.steps), time.monotonic()
    while logged_steps(out) < target and process.is_alive():
        time.sleep(0.002)
    if target:
        a_step = (time.monotonic() - begin) / target  # its start included: the moment may be far into a step
        time.sleep(pause.random() * a_step)
    else:
        time.sleep(pause.random())
    if not process.is_alive():
        return None
    os.kill(process.pid or 0, signal.SIGKILL)
    process.join()
    steps, half = logged_steps(out), any(out.glob(".step-*"))
    saved = max((int(path.name.split("-")[1]) for path in out.glob("step-*")), default=0)
    again = run_process(config, scenes)
    again.join()
    if again.exitcode:
        raise RuntimeError(f"the resumed run of {out} ended with code {again.exitcode}; see {out}.err")
    found = read_shards(out / "final")
    same = found.keys() == expected.keys() and all(torch.equal(found[name], expected[name]) for name in found)
    return Kill(steps, saved, half, same)


def check_resume(
    config: TrainConfig, scenes: Sequence[LabelledScene], *, kills: int, seed: int = 0
) -> dict[str, object]:
    """Kill a run `kills` times at random moments; how many resumed runs end bit-identical, and each of them.

    Runs are made in folders beside `config.out`, which holds the run that is left alone.
    """
    config = replace(config, log_every=1)
    alone = run_process(config, scenes)
    alone.join()
    if alone.exitcode:
        raise RuntimeError(f"the run ended with code {alone.exitcode}; see {config.out}.err")
    expected = read_shards(Path(config.out) / "final")
    pause, done, early = random.Random(seed), list[Kill](), 0
    while len(done) < kills:
        out = Path(f"{config.out}-killed")
        shutil.rmtree(out, ignore_errors=True)
        kill = kill_once(replace(config, out=str(out)), scenes, expected, pause)
        if kill is None:
            early += 1
            continue
        done.append(kill)
        print(f"{len(done)} of {kills}: {kill}", file=sys.stderr, flush=True)
    return {
        "killed": len(done),
        "identical": sum(kill.identical for kill in done),
        "half_written": sum(kill.half_written for kill in done),
        "ended_before_the_signal": early,
        "steps": config.steps,
        "save_every": config.save_every,
        "kills": [asdict(kill) for kill in done],
    }


def write_report(report: dict[str, object], path: Path) -> None:
    """Write a report as JSON, with what it was measured with."""
    about = {"torch": torch.__version__, "threads": 1, "device": "cpu"}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({**report, "measured_with": about}, indent=2) + "\n")
