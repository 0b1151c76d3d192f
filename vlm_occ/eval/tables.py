"""Tables II, III and IV of the Talk2Occ paper on our data, beside the paper's own figures."""

from __future__ import annotations

import hashlib
import itertools
import json
import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np

from vlm_occ.eval.contest import Contest
from vlm_occ.eval.contest_config import CONTENDING, ContestConfig, contest_config
from vlm_occ.eval.cost import costs
from vlm_occ.eval.evaluate import record, true_voxels
from vlm_occ.eval.figure6 import draw_figure6
from vlm_occ.eval.metrics import QueryRecord, bootstrap_intervals, paired_difference
from vlm_occ.eval.report import circumstances, write_json
from vlm_occ.models.references import RandomReference

Runs = list[tuple[QueryRecord, ...]]
"""The records of one system, a seed each."""

SYSTEMS = ("GT-Rand", "Box-Rand", "L-baseline", "C-baseline", "M-baseline")
TRAINED = (*SYSTEMS[2:], *CONTENDING)
CONTENDERS = ("GroundingOcc", "GroundingOcc-Refine", "VLM-Occ", "VLM-Occ-Refine")
GROUPS: dict[str, Callable[[QueryRecord], bool]] = {
    "unique": lambda r: r.unique,
    "multiple": lambda r: not r.unique,
    "overall": lambda _: True,
}
PAPER_TABLE2 = {  # Acc@0.25 and Acc@0.5 in percent: unique, multiple, overall
    "GT-Rand": (4.39, 3.29, 4.85, 3.50, 4.81, 3.48),
    "Box-Rand": (5.49, 5.49, 5.19, 4.97, 5.22, 5.02),
    "L-baseline": (3.29, 0.00, 11.86, 1.58, 11.06, 1.43),
    "C-baseline": (4.39, 1.09, 17.17, 1.80, 15.98, 1.74),
    "M-baseline": (7.69, 2.19, 22.48, 2.59, 21.10, 2.46),
    "GroundingOcc": (15.38, 4.39, 28.58, 7.68, 27.35, 7.47),
    "GroundingOcc-Refine": (19.78, 4.39, 34.01, 9.49, 32.68, 9.01),
}
TABLE3 = (  # row of the paper, our run, the paper's Acc@0.25 and Acc@0.5
    ("M-baseline", "M-baseline", 21.10, 2.46),
    ("+ multi frames", "multi-frame", 21.90, 3.07),
    ("+ depth predictor", "depth", 24.46, 5.40),
    ("+ 2D grounding head", "2d-head", 26.94, 5.94),
)
TABLE4 = (
    ("semantic supervision", "2d-head", 26.94, 5.94),
    ("geometric supervision", "geometric", 29.30, 8.07),
    ("+ geo scal", "geo-scal", 31.67, 8.68),
    ("+ sem scal", "GroundingOcc", 32.68, 9.01),
)


def figures(runs: Runs, test: Callable[[QueryRecord], bool]) -> dict[str, float | int | None]:
    """Sentences of a group, and the means of its accuracies over sentences and seeds."""
    values = [[float(r.iou > 0.25), float(r.iou > 0.5)] for run in runs for r in run if test(r)]
    count = sum(test(r) for r in runs[0]) if runs else 0
    if not values:
        return {"n": 0, "acc25": None, "acc50": None}
    low, high = np.mean(values, axis=0).tolist()
    return {"n": count, "acc25": low, "acc50": high}


def intervals(runs: Runs, draws: int) -> dict[str, dict[str, list[float]] | None]:
    """95 % intervals of each group's accuracies; a draw of a scene takes its sentences under all seeds."""
    result: dict[str, dict[str, list[float]] | None] = {}
    for group, test in GROUPS.items():
        some = [r for run in runs for r in run if test(r)]
        if not some:
            result[group] = None
            continue
        values = np.array([[float(r.iou > 0.25), float(r.iou > 0.5)] for r in some])
        pair = bootstrap_intervals(values, [r.scene for r in some], draws=draws)
        result[group] = dict(zip(("acc25", "acc50"), pair, strict=True))
    return result


def numbered(runs: Runs) -> list[QueryRecord]:
    """The records of all seeds, each with a number of its own."""
    return [replace(r, query=r.query + 10_000 * seed) for seed, run in enumerate(runs) for r in run]


def paired(first: Runs, second: Runs, draws: int) -> dict[str, object]:
    """How much `second` is better than `first` on the same sentences, seed by seed, over scenes."""
    common = min(len(first), len(second))
    one, two = numbered(first[:common]), numbered(second[:common])
    return {
        "acc25": paired_difference(one, two, lambda r: float(r.iou > 0.25), draws=draws),
        "acc50": paired_difference(one, two, lambda r: float(r.iou > 0.5), draws=draws),
    }


def references(contest: Contest) -> dict[str, Runs]:
    """GT-Rand and Box-Rand over several seeds, kept once drawn."""
    path = keep_references(contest)
    records = json.loads(path.read_text())
    return {
        name: [tuple(QueryRecord(**row) for row in run) for run in runs] for name, runs in records.items()
    }


def keep_references(contest: Contest) -> Path:
    """The file that holds the records of GT-Rand and Box-Rand, written where it is not there yet."""
    seeds = range(contest.config.reference_seeds)
    path = contest.out / f"references-{len(seeds)}.json"
    if path.exists():
        return path
    models = {
        "GT-Rand": [RandomReference("gt_rand", seed=s) for s in seeds],
        "Box-Rand": [RandomReference("box_rand", seed=s) for s in seeds],
    }
    records: dict[str, list[list[dict[str, object]]]] = {name: [[] for _ in seeds] for name in models}
    for index in range(len(contest.validation)):
        item = contest.validation[index]
        texts = [query.text for query in item.queries]
        truths = [true_voxels(item, query.targets) for query in item.queries]
        state = models["GT-Rand"][0].encode(item.labels, item.scene.grid, name=item.scene.name)
        for name, seed in itertools.product(models, seeds):
            for n, result in enumerate(models[name][seed].ground(state, texts)):
                records[name][seed].append(asdict(record(item, n, result.objects, truths[n])))
    write_json(records, path)
    return path


def table2_runs(contest: Contest) -> dict[str, Runs]:
    """The records of every system of Table II, trained where they are not yet; none of what is missing."""
    runs = references(contest)
    for name in TRAINED:
        scores = [contest.scored(name, seed=seed) for seed in contest.seeds_of(name)]
        runs[name] = [s.plain for s in scores]
        if name in CONTENDING:
            runs[f"{name}-Refine"] = [s.refined for s in scores]
    return runs


def ablation(contest: Contest, rows: Sequence[tuple[str, str, float, float]]) -> list[dict[str, object]]:
    """Table III or IV in the paper's row order; all rows answer with the occupied voxels in the box."""
    steps = contest.config.ablation_steps or contest.config.steps
    result = []
    for name, run, *_ in rows:
        seeds = contest.seeds_of(run, steps=steps)[:1]
        records: Runs = [contest.scored(run, seed=seed, steps=steps).refined for seed in seeds]
        interval = intervals(records, contest.config.draws)["overall"] or {}
        spread = {f"{metric}_interval": value for metric, value in interval.items()}
        result.append({"row": name, **figures(records, GROUPS["overall"]), **spread})
    return result


def tables(config: ContestConfig) -> dict[str, object]:
    """Everything that `results/tables.json` holds."""

    def tell(text: str) -> None:
        print(f"vlm-occ: {text}", file=sys.stderr)

    contest = Contest(config).grown(tell)
    runs = table2_runs(contest)
    rivals = [name for name in (*SYSTEMS, *CONTENDERS) if not name.startswith("VLM-Occ")]
    return {
        "table2": {
            name: {group: figures(runs[name], test) for group, test in GROUPS.items()}
            for name in (*SYSTEMS, *CONTENDERS)
        },
        "table3": ablation(contest, TABLE3),
        "table4": ablation(contest, TABLE4),
        "protocol": protocol(contest, runs),
        "intervals": {name: intervals(records, config.draws) for name, records in runs.items()},
        "seeds": {
            name: [figures([run], GROUPS["overall"]) for run in records] for name, records in runs.items()
        },
        "paired": {
            f"{name} over {rival}": paired(runs[rival], runs[name], config.draws)
            for name in ("VLM-Occ", "VLM-Occ-Refine")
            for rival in rivals
            if runs[name] and runs[rival]
        },
        "cost": costs(contest) if config.costs else {},
        "pictures": [path.name for path in draw_figure6(contest, Path(config.out) / "figure6")],
    }


def protocol(contest: Contest, runs: dict[str, Runs]) -> dict[str, object]:
    """What is needed to run the contest again and to know that it is the same one."""
    config, digest = contest.config, hashlib.sha256()
    for index in range(min(len(contest.validation), 20)):
        for query in contest.validation[index].queries:
            digest.update(repr((query.text, query.targets)).encode())
    return {
        "config": asdict(config),
        "steps": config.steps,
        "sentences_seen_by_each_system": config.steps * config.queries_per_scene,
        "ablation_steps": config.ablation_steps or config.steps,
        "seeds": {name: len(records) for name, records in runs.items()},
        "validation_scenes": len(contest.validation),
        "validation_sentences": len(runs["GT-Rand"][0]),
        "sentences_sha256_of_first_20_scenes": digest.hexdigest(),
        "rule": "one target a sentence, one object an answer (VLM-Occ: its surest candidate, no threshold); "
        "iou over the whole grid, strict > thresholds; truth: occupied voxels that touch the box",
        "intervals": f"95 % percentile bootstrap over scenes, {config.draws} draws, seeds pooled",
        "ablation_answers": "occupied voxels in the predicted box (docs/paper-notes.md)",
        "multi_frame": config.camera_frames,
        "train_seconds": {
            name: contest.made(name, seed=contest.seeds_of(name)[0])["train_seconds"]
            for name in TRAINED
            if contest.seeds_of(name)
        },
        "runs": [
            {"system": name, "seed": seed, "steps": steps, **contest.made(name, seed=seed, steps=steps)}
            for name, seed, steps in finished(contest)
        ],
        "seeds_asked": config.seeds,
        "missing": [name for name, records in runs.items() if not records],
        "paper": {"table2": PAPER_TABLE2, "table3": TABLE3, "table4": TABLE4},
        **circumstances(),
    }


def finished(contest: Contest) -> list[tuple[str, int, int]]:
    """System, seed and steps of each run that the tables rest on."""
    steps = contest.config.ablation_steps or contest.config.steps
    runs = [(name, seed, contest.config.steps) for name in TRAINED for seed in contest.seeds_of(name)]
    for _, name, *_ in (*TABLE3, *TABLE4):
        runs += [(name, seed, steps) for seed in contest.seeds_of(name, steps=steps)[:1]]
    return list(dict.fromkeys(runs))


def percent(value: object) -> str:
    """A share as the tables print it."""
    return "   -  " if value is None else f"{100 * float(str(value)):6.2f}"


def format_tables(result: dict) -> str:
    """The three tables as text, ours beside the paper's."""
    lines = [
        "Table II: Acc@0.25 and Acc@0.5 in percent, ours | the paper's; 95 % interval of overall Acc@0.25"
    ]
    for name, groups in result["table2"].items():
        ours = "  ".join(f"{percent(g['acc25'])} {percent(g['acc50'])}" for g in groups.values())
        paper = PAPER_TABLE2.get(name)
        theirs = "  ".join(f"{v:6.2f}" for v in paper) if paper else "-"
        low, high = (result["intervals"][name]["overall"] or {"acc25": (None, None)})["acc25"]
        lines.append(f"{name:20s} {ours} | {theirs}   [{percent(low)}, {percent(high)}]")
    for title, key, rows in (("III", "table3", TABLE3), ("IV", "table4", TABLE4)):
        lines.append(f"Table {title}: Acc@0.25 and Acc@0.5 in percent, ours | the paper's")
        for ours, (name, _, low, high) in zip(result[key], rows, strict=True):
            figure = f"{percent(ours['acc25'])} {percent(ours['acc50'])}"
            lines.append(f"{name:24s} {figure} | {low:6.2f} {high:6.2f}")
    lines.append("Cost: parameters (in the checkpoint), s to encode, s a sentence, peak GiB, s of training")
    for name, cost in result["cost"].items():
        size = f"{cost['parameters'] / 1e6:7.2f} M ({cost['trained_parameters'] / 1e6:.2f} M)"
        wall = result["protocol"]["train_seconds"].get(name.removesuffix("-Refine"), math.nan)
        parts = (
            f"{cost['encode_s']:.3f}",
            f"{cost['query_s']:.3f}",
            f"{cost['peak_gib']:.2f}",
            f"{wall:.0f}",
        )
        lines.append(f"{name:20s} {size}  {'  '.join(parts)}")
    return "\n".join(lines)


def tables_command(fields: dict[str, str], results: Path) -> dict[str, object]:
    """`scripts/benchmark.py tables --trunk CHECKPOINT [--field value]`: fields of ContestConfig."""
    result = tables(contest_config(fields))
    write_json(result, results)
    print(format_tables(result))
    return result
