"""What each part of VLM-Occ brings: the same budget without it (`scripts/benchmark.py ablations`)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np

from vlm_occ.eval.contest import Contest
from vlm_occ.eval.contest_config import ContestConfig, contest_config
from vlm_occ.eval.metrics import QueryRecord, bootstrap_intervals, paired_difference
from vlm_occ.eval.report import circumstances, write_json
from vlm_occ.eval.tables import numbered

ROWS = (
    ("VLM-Occ", "whole"),
    ("no-pose-tokens", "without pose tokens"),
    ("no-voxel-tokens", "without voxel tokens in the language model"),
    ("no-lora", "without LoRA (frozen language model)"),
    ("random-language", "language model from random weights"),
    ("all-frames", "four frames of images instead of one"),
)
"""The name of a system of the contest, and its row."""

GROUPS: dict[str, Callable[[QueryRecord], bool]] = {
    "known_words": lambda r: r.lexicon != "heldout",
    "heldout_words": lambda r: r.lexicon == "heldout",
}


def ablations(config: ContestConfig) -> dict[str, object]:
    """Everything that `results/ablations.json` holds; a folder's finished systems are not trained again."""
    contest = Contest(config)
    runs = {
        name: numbered([contest.scored(name, seed=seed).plain for seed in range(config.seeds)])
        for name, _ in ROWS
    }
    rows = []
    for name, title in ROWS:
        figures = {group: _figures(runs[name], test, config.draws) for group, test in GROUPS.items()}
        rows.append({"row": title, **figures, **_compared(runs["VLM-Occ"], runs[name], config.draws)})
    steps = {"pointer": round(config.pointer_share * config.steps)}
    steps["grounding"] = config.steps - steps["pointer"]
    return {
        "ablations": rows,
        "protocol": {
            "config": asdict(config),
            "steps": steps,
            "sentences_seen": config.steps * config.queries_per_scene,
            "validation_scenes": len(contest.validation),
            "rule": "one target a sentence, the surest candidate answers; strict > thresholds; unrefined",
            "difference": "row minus whole, same sentences and seeds, paired over scenes",
            "intervals": f"95 % percentile bootstrap over scenes, {config.draws} draws, seeds pooled",
            "train_seconds": {name: contest.made(name)["train_seconds"] for name, _ in ROWS},
            **circumstances(),
        },
    }


def _figures(
    records: Sequence[QueryRecord], test: Callable[[QueryRecord], bool], draws: int
) -> dict[str, object]:
    some = [r for r in records if test(r)]
    if not some:
        return {"n": 0, "acc25": None, "acc50": None}
    values = np.array([[float(r.iou > 0.25), float(r.iou > 0.5)] for r in some])
    low, high = bootstrap_intervals(values, [r.scene for r in some], draws=draws)
    names = ("acc25", "acc50")
    means = dict(zip(names, values.mean(0).round(4).tolist(), strict=True))
    return {"n": len(some), **means, "acc25_interval": low, "acc50_interval": high}


def _compared(whole: Sequence[QueryRecord], other: Sequence[QueryRecord], draws: int) -> dict[str, object]:
    """How much a row differs from the whole system in Acc@0.25, by lexicon."""
    result = {}
    for group, test in GROUPS.items():
        pair = [r for r in whole if test(r)], [r for r in other if test(r)]
        if pair[0]:
            result[f"{group}_difference"] = paired_difference(
                *pair, lambda r: float(r.iou > 0.25), draws=draws
            )
    return result


def format_ablations(result: dict) -> str:
    """The table as text, in percent."""
    lines = [f"{'Acc@0.25 and Acc@0.5 in percent':44s} known words      unseen words"]
    for row in result["ablations"]:
        cells = []
        for group in GROUPS:
            part = row[group]
            cells.append("-" if not part["n"] else f"{100 * part['acc25']:5.1f} {100 * part['acc50']:5.1f}")
        lines.append(f"{row['row']:44s} {cells[0]:16s} {cells[1]}")
    return "\n".join(lines)


def ablations_command(fields: dict[str, str], results: Path) -> dict[str, object]:
    """`scripts/benchmark.py ablations --trunk CHECKPOINT [--field value]`: fields of ContestConfig."""
    config = contest_config(
        fields,
        out="runs/ablations",
        num_frames=4,
        camera_frames=4,
        lexicon="both",
        pointer_share=0.3,
        vlm_pointer_rate=2e-4,
    )
    result = ablations(config)
    write_json(result, results)
    print(format_ablations(result))
    return result
