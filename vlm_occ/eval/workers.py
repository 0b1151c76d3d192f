"""A contest by several processes on one machine: scenes and features first, then each takes the next run.

`scripts/benchmark.py contest-prepare` and `contest-worker` take the fields of `tables`, with `--worker I` and
`--workers N`; `contest-references` draws GT-Rand and Box-Rand; `contest-progress` prints a line a run,
`contest-pace` seconds a step. A run is claimed by a folder that appears at once; the claim of a process that
has died may be taken by another.
"""

from __future__ import annotations

import contextlib
import gc
import json
import os
import shutil
import sys
import tempfile
import time
import traceback
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch

from vlm_occ.encoders.inputs import prepare_scene
from vlm_occ.eval.contest import Contest
from vlm_occ.eval.contest_config import ContestConfig, contest_config
from vlm_occ.eval.evaluate import Scenes
from vlm_occ.eval.tables import TABLE3, TABLE4, keep_references
from vlm_occ.models.kept_features import KeptDepth, KeptFeatures
from vlm_occ.models.paper_terms import true_depth
from vlm_occ.paper_train import PaperTrainConfig, initial_system, train_paper
from vlm_occ.timing import default_device
from vlm_occ.train import OutOfTime
from vlm_occ.types import LabelledScene

MOST_FAILURES = 2
"""Times that a run is tried before all processes leave it."""
FIRST = ("GroundingOcc", "VLM-Occ", "M-baseline", "L-baseline", "C-baseline")


@dataclass(frozen=True)
class Run:
    """One training run and its scores."""

    name: str
    seed: int
    steps: int

    def folder(self, contest: Contest) -> Path:
        """Where it is kept."""
        return contest.folder(self.name, seed=self.seed, steps=self.steps)

    def done(self, contest: Contest) -> bool:
        """Whether it has been scored."""
        return (self.folder(contest) / "scores.json").exists()


def planned(config: ContestConfig) -> list[Run]:
    """All runs of Tables II to IV, the most wanted first: an early end still leaves a table."""
    runs = [Run(name, 0, config.steps) for name in FIRST]
    steps = config.ablation_steps or config.steps
    rows = ["2d-head", "GroundingOcc", "M-baseline", *(run for _, run, *_ in (*TABLE3, *TABLE4))]
    runs += [Run(name, 0, steps) for name in rows]
    for seed in range(1, config.seeds):
        runs += [Run("VLM-Occ", seed, config.steps), Run("GroundingOcc", seed, config.steps)]
    return list(dict.fromkeys(runs))


def claimed(folder: Path) -> bool:
    """Take a run for this process; False where a process that lives has it."""
    folder.mkdir(parents=True, exist_ok=True)
    claim = folder / "claim"
    mine = Path(tempfile.mkdtemp(prefix=".claim-", dir=folder))
    (mine / "process").write_text(str(os.getpid()))
    with contextlib.suppress(FileNotFoundError):
        if claim.is_dir() and not lives(owner(claim)):
            stale = Path(tempfile.mkdtemp(prefix=".stale-", dir=folder))
            os.rename(claim, stale / "claim")  # one process only succeeds
            shutil.rmtree(stale, ignore_errors=True)
    try:
        os.rename(mine, claim)  # fails where a claim is: it is not empty
    except OSError:
        shutil.rmtree(mine, ignore_errors=True)
        return False
    return True


def owner(claim: Path) -> int | None:
    """The process that holds a claim."""
    try:
        return int((claim / "process").read_text())
    except (OSError, ValueError):
        return None


def lives(process: int | None) -> bool:
    """Whether a process of this machine is running."""
    if process is None:
        return False
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def work(contest: Contest) -> None:
    """Do undone runs, one by one, until none is left for this process or the time is over."""
    for run in planned(contest.config):
        folder = run.folder(contest)
        failures = folder / "failures"
        late = contest.config.until_time and time.time() >= contest.config.until_time
        if late:
            print("the time is over", flush=True)
            return
        if run.done(contest) or len(list(failures.glob("*"))) >= MOST_FAILURES or not claimed(folder):
            continue
        start = time.time()
        print(f"{time.strftime('%X')} {run} begins", flush=True)
        try:
            contest.scored(run.name, seed=run.seed, steps=run.steps)
        except OutOfTime as error:
            print(f"{run} stopped: {error}", flush=True)
            return
        except Exception:  # one run's failure must not end the others
            failures.mkdir(exist_ok=True)
            (failures / f"{time.time():.0f}-{os.getpid()}.txt").write_text(traceback.format_exc())
            traceback.print_exc()
        else:
            print(f"{time.strftime('%X')} {run} took {time.time() - start:.0f} s", flush=True)
        finally:
            shutil.rmtree(folder / "claim", ignore_errors=True)
        gc.collect()  # a finished run's model and what was kept for it
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


def prepare(contest: Contest, worker: int, workers: int) -> None:
    """This process's share of the scenes, and of what the frozen trunk says of them to each system."""
    keepers = _keepers(contest) if contest.config.keep_features else []
    done, start = 0, time.time()
    for scenes in (contest.scenes("val"), contest.scenes("train")):
        for index in range(worker, len(scenes), workers):
            _prepare_scene(scenes, index, keepers)
            done += 1
            if done % 10 == 0:
                print(f"{time.strftime('%X')} {done} scenes in {time.time() - start:.0f} s", flush=True)
    print(f"{time.strftime('%X')} prepared {done} scenes in {time.time() - start:.0f} s", flush=True)


def _keepers(contest: Contest) -> list[tuple[KeptFeatures, KeptDepth, torch.nn.Module]]:
    """One for each set of sensors and frames."""
    device = default_device()
    folder, keepers = str(contest.features()), []
    for name in ("L-baseline", "C-baseline", "M-baseline", "GroundingOcc"):
        config = contest.paper_systems()[name]
        system = initial_system(PaperTrainConfig(system=config, trunk=contest.config.trunk)).eval()
        keepers.append((KeptFeatures(folder, system), KeptDepth(folder, config), system.to(device)))
    return keepers


@torch.no_grad()
def _prepare_scene(
    scenes: Scenes, index: int, keepers: list[tuple[KeptFeatures, KeptDepth, torch.nn.Module]]
) -> LabelledScene:
    item = scenes[index]
    for features, depths, system in keepers:
        config, device = system.config, system.device  # type: ignore[union-attr]
        inputs = prepare_scene(item.scene, config.inputs()).to(device)  # type: ignore[union-attr,operator,arg-type]
        seen = features([inputs], [item.scene.name])
        if config.depth:  # type: ignore[union-attr]
            (view,) = system.observe(inputs, seen=seen)  # type: ignore[operator]
            labels = replace(item.labels, semantics=item.labels.semantics.to(device))  # type: ignore[arg-type]
            made = true_depth(view, labels, config, system.grid)  # type: ignore[arg-type]
            depths(item.scene.name, lambda made=made: made, torch.device("cpu"))
            depths.seen.clear()
    return item


class _Timed:
    """Scenes that remember when they were asked for: once a step."""

    def __init__(self, scenes: Scenes) -> None:
        self.scenes, self.times = scenes, list[float]()

    def __len__(self) -> int:
        return len(self.scenes)

    def __getitem__(self, index: int) -> LabelledScene:
        self.times.append(time.perf_counter())
        return self.scenes[index]


def pace(contest: Contest, name: str, steps: int) -> float:
    """Seconds a step of a system of the paper, the first half of `steps` left out; nothing of it is kept."""
    with tempfile.TemporaryDirectory() as folder:
        run = contest.paper_run(Path(folder), contest.paper_systems()[name], seed=0, steps=steps)
        scenes = _Timed(contest.scenes("train"))
        train_paper(replace(run, until_time=0.0), source=scenes)
    some = scenes.times[steps // 2 :]
    return (some[-1] - some[0]) / max(len(some) - 1, 1)


def progress(contest: Contest) -> str:
    """A line a run: its state, the steps that it has done, its newest loss, its accuracy."""
    return "\n".join(_line(contest, run) for run in planned(contest.config))


def _line(contest: Contest, run: Run) -> str:
    folder = run.folder(contest)
    logs = [path for path in (folder / "pointer" / "log.jsonl", folder / "log.jsonl") if path.exists()]
    steps = sum(len(path.read_text().splitlines()) for path in logs)
    line = f"{run.name:14s} seed {run.seed}  {steps:6d} / {run.steps}  "
    if run.done(contest):
        scores = contest.scored(run.name, seed=run.seed, steps=run.steps)
        plain, refined = (
            100 * sum(r.iou > 0.25 for r in part) / max(len(part), 1)
            for part in (scores.plain, scores.refined)
        )
        return f"{line}done: Acc@0.25 {plain:.2f} %, refined {refined:.2f} %"
    failed = len(list((folder / "failures").glob("*")))
    state = "runs" if lives(owner(folder / "claim")) else "waits"
    newest = logs[-1].read_text().splitlines()[-2:-1] if logs else []
    return f"{line}{state}{f', failed {failed} times' if failed else ''}  {newest[0][:150] if newest else ''}"


def workers_command(what: str, fields: dict[str, str]) -> None:
    """`scripts/benchmark.py contest-worker` and its like: fields of ContestConfig, --worker, --workers."""
    worker, workers = int(fields.pop("worker", "0")), int(fields.pop("workers", "1"))
    steps = int(fields.pop("pace-steps", "60"))
    config = contest_config(fields)
    contest = Contest(config)
    if what == "contest-prepare":
        prepare(contest, worker, workers)
    elif what == "contest-worker":
        print(json.dumps(asdict(config)), file=sys.stderr, flush=True)
        work(contest)
    elif what == "contest-references":
        keep_references(contest)
    elif what == "contest-pace":
        print(f"pace {pace(contest, 'GroundingOcc', steps):.4f}")
    else:
        print(progress(contest))
