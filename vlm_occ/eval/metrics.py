"""Scores of grounding answers, with intervals; pure functions of plain records.

Acc@t is the share of queries with IoU strictly above t (FACTS 2.4). Sentences of one scene are not
independent, so intervals resample scenes; Wilson's interval, which assumes independence, stands beside them.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from vlm_occ.geometry import box_iou_3d
from vlm_occ.types import QueryKind

DISTANCE_EDGES = (0.0, 10.0, 20.0, 30.0, math.inf)
"""Bins of the target's horizontal distance in metres, lower edge included."""

Interval = list[float]
Summary = dict[str, object]


@dataclass(frozen=True)
class QueryRecord:
    """What happened to one query; everything that the summary needs, and no tensors."""

    scene: str
    query: int  # index within the scene
    label: str  # the targets' class, or the class that the sentence names where there is no target
    distance: float  # metres from the ego origin to the nearest target, in x-y; NaN without one
    unique: bool
    iou: float  # occupancy IoU over the union of the targets' voxels
    box_iou: float  # see `matched_box_iou`
    num_predicted: int
    num_true: int
    score: float = 0.0  # confidence of the best candidate, in [0, 1]
    kind: QueryKind = "expression"
    lexicon: str = "train"
    near_miss: bool = False


def occupancy_iou(predicted: Tensor, true: Tensor) -> float:
    """IoU of two masks, bool [X, Y, Z]; 1.0 where both are empty. For several targets give unions."""
    if predicted.shape != true.shape:
        raise ValueError(
            f"predicted mask {list(predicted.shape)} and true mask {list(true.shape)} differ in shape; "
            "evaluate both on one grid"
        )
    predicted, true = predicted.bool(), true.bool()
    union = (predicted | true).sum().item()
    return (predicted & true).sum().item() / union if union else 1.0


def matched_box_iou(predicted: Tensor, true: Tensor) -> float:
    """Box IoU of an answer, predicted [K, 7] against true [M, 7]: the best matching's sum over max(K, M).

    One box against one box is the plain rotated IoU; a missing or a superfluous box counts as zero.
    """
    count = max(len(predicted), len(true))
    if count == 0:
        return 1.0
    if min(len(predicted), len(true)) == 0:
        return 0.0
    pairs = torch.cartesian_prod(torch.arange(len(predicted)), torch.arange(len(true)))  # [K * M, 2]
    iou = box_iou_3d(predicted.cpu().double()[pairs[:, 0]], true.cpu().double()[pairs[:, 1]])
    table = iou.reshape(len(predicted), len(true)).numpy()  # [K, M]
    rows, columns = linear_sum_assignment(-table)
    return float(table[rows, columns].sum()) / count


def truncated_percent(hits: int, total: int) -> float:
    """Percentage cut (not rounded) to two decimals, as Talk2Occ's tables print it (FACTS 2.4)."""
    return (10_000 * hits // total) / 100


def wilson_interval(hits: int, total: int, *, z: float = 1.959963984540054) -> Interval:
    """Wilson's 95 % score interval [low, high] of a share; [0, 1] without observations."""
    if total == 0:
        return [0.0, 1.0]
    share = hits / total
    scale = 1 + z * z / total
    centre = (share + z * z / (2 * total)) / scale
    half = z / scale * math.sqrt(share * (1 - share) / total + z * z / (4 * total * total))
    return [max(0.0, centre - half), min(1.0, centre + half)]


def _scene_draws(scenes: Sequence[str], draws: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """How often each resample takes each scene [draws, S], and each record's scene row [N]."""
    names, row = np.unique(np.asarray(scenes), return_inverse=True)
    generator = np.random.default_rng(seed)
    return generator.multinomial(len(names), np.full(len(names), 1 / len(names)), size=draws), row


def bootstrap_intervals(
    values: np.ndarray, scenes: Sequence[str], *, draws: int = 2000, seed: int = 0
) -> list[Interval]:
    """95 % percentile intervals of the mean of each column of values [N, M], resampling whole scenes."""
    weights, row = _scene_draws(scenes, draws, seed)  # [draws, S]
    sums = np.zeros((weights.shape[1], values.shape[1]))
    np.add.at(sums, row, values)  # [S, M]
    counts = np.bincount(row, minlength=weights.shape[1])  # [S], every one at least 1
    means = (weights @ sums) / (weights @ counts)[:, None]  # [draws, M]
    return [[float(low), float(high)] for low, high in np.percentile(means, [2.5, 97.5], axis=0).T]


def paired_difference(
    first: Sequence[QueryRecord],
    second: Sequence[QueryRecord],
    metric: Callable[[QueryRecord], float],
    *,
    draws: int = 2000,
    seed: int = 0,
) -> dict[str, float | Interval]:
    """Mean of metric(second) - metric(first) over the same queries, with an interval over scenes.

    `share_positive` is the share of resamples in which the second is strictly better.
    """
    left = {(r.scene, r.query): r for r in first}
    right = {(r.scene, r.query): r for r in second}
    odd = sorted(left.keys() ^ right.keys())
    if odd or not left:
        raise ValueError(
            f"{len(left)} and {len(right)} queries, {len(odd)} in one list only (first: {odd[:1]}); "
            "evaluate both models on the same queries"
        )
    keys = sorted(left)
    values = np.array([metric(right[key]) - metric(left[key]) for key in keys])
    weights, row = _scene_draws([key[0] for key in keys], draws, seed)
    sums = np.bincount(row, weights=values)
    means = (weights @ sums) / (weights @ np.bincount(row))
    low, high = np.percentile(means, [2.5, 97.5])
    return {
        "difference": float(values.mean()),
        "interval": [float(low), float(high)],
        "share_positive": float((means > 0).mean()),
    }


def calibration(scores: Sequence[float], correct: Sequence[bool], *, bins: int = 10) -> Summary:
    """Expected calibration error and its reliability bins: mean score against share correct, equal widths."""
    score, hit = np.asarray(scores, dtype=float), np.asarray(correct, dtype=float)
    if len(score) and (not np.isfinite(score).all() or score.min() < 0 or score.max() > 1):
        raise ValueError(f"scores span [{score.min()}, {score.max()}], expected [0, 1]; give probabilities")
    row = np.minimum((score * bins).astype(int), bins - 1)
    table: list[dict[str, float | int]] = []
    error = 0.0
    for index in range(bins):
        inside = row == index
        if not inside.any():
            continue
        confidence, accuracy = float(score[inside].mean()), float(hit[inside].mean())
        error += inside.mean() * abs(confidence - accuracy)
        table.append(
            {
                "low": index / bins,
                "high": (index + 1) / bins,
                "n": int(inside.sum()),
                "score": confidence,
                "accuracy": accuracy,
            }
        )
    return {"ece": float(error) if len(score) else None, "bins": table}


_COLUMNS: dict[str, Callable[[QueryRecord], float]] = {
    "acc25": lambda r: r.iou > 0.25,
    "acc50": lambda r: r.iou > 0.5,
    "miou": lambda r: r.iou,
    "box_acc25": lambda r: r.box_iou > 0.25,
    "box_acc50": lambda r: r.box_iou > 0.5,
    "box_miou": lambda r: r.box_iou,
}


def _group(records: Sequence[QueryRecord], draws: int, seed: int) -> Summary:
    """Means of a group of queries with targets, each with its interval; None where the group is empty."""
    out: Summary = {"n": len(records), "scenes": len({r.scene for r in records})}
    if not records:
        return out | dict.fromkeys(_COLUMNS) | {f"{name}_interval": None for name in _COLUMNS}
    values = np.array([[float(column(r)) for column in _COLUMNS.values()] for r in records])  # [N, M]
    intervals = bootstrap_intervals(values, [r.scene for r in records], draws=draws, seed=seed)
    for name, mean, interval in zip(_COLUMNS, values.mean(0), intervals, strict=True):
        out[name], out[f"{name}_interval"] = float(mean), interval
    for name in ("acc25", "acc50"):
        hits = int(values[:, list(_COLUMNS).index(name)].sum())
        out[f"{name}_hits"], out[f"{name}_wilson"] = hits, wilson_interval(hits, len(records))
    return out


def _no_target(records: Sequence[QueryRecord]) -> Summary:
    """How well "there is none" is told: shares rejected, and precision and recall of that answer."""

    def share(hits: int, total: int) -> float | None:
        return hits / total if total else None

    none = [r for r in records if r.num_true == 0]
    some = [r for r in records if r.num_true > 0]
    near = [r for r in none if r.near_miss]
    rejected = sum(r.num_predicted == 0 for r in none)
    false_rejected = sum(r.num_predicted == 0 for r in some)
    near_rejected = sum(r.num_predicted == 0 for r in near)
    return {
        "n": len(none),
        "rejected": share(rejected, len(none)),
        "rejected_wilson": wilson_interval(rejected, len(none)),
        "false_rejected": share(false_rejected, len(some)),
        "false_rejected_wilson": wilson_interval(false_rejected, len(some)),
        "precision": share(rejected, rejected + false_rejected),
        "recall": share(rejected, len(none)),
        "near_miss_n": len(near),
        "near_miss_rejected": share(near_rejected, len(near)),
    }


def distance_name(distance: float) -> str:
    """Name of the distance bin of `distance` metres, such as "10-20"."""
    for low, high in itertools.pairwise(DISTANCE_EDGES):
        if low <= distance < high:
            return f"{low:g}+" if math.isinf(high) else f"{low:g}-{high:g}"
    raise ValueError(f"distance {distance} of a query with a target; expected metres >= 0")


def summarise(records: Sequence[QueryRecord], *, draws: int = 2000, seed: int = 0) -> Summary:
    """Everything that a results file says about a list of records, fit for JSON.

    Groups hold queries with at least one target: `overall`, `unique`, `multiple`, `train_words`,
    `heldout_words`, `several_targets`, `per_class`, `per_distance`; macro means run over occurring classes.
    """
    some = [r for r in records if r.num_true > 0]
    tests: dict[str, Callable[[QueryRecord], bool]] = {
        "overall": lambda _: True,
        "unique": lambda r: r.unique,
        "multiple": lambda r: not r.unique,
        "train_words": lambda r: r.lexicon == "train",
        "heldout_words": lambda r: r.lexicon == "heldout",
        "several_targets": lambda r: r.num_true > 1,
    }
    out: Summary = {name: _group([r for r in some if test(r)], draws, seed) for name, test in tests.items()}
    labels = sorted({r.label for r in some})
    per_class = {label: _group([r for r in some if r.label == label], draws, seed) for label in labels}
    bins = [distance_name(low) for low in DISTANCE_EDGES[:-1]]
    names = [distance_name(r.distance) for r in some]
    for metric in ("acc25", "acc50", "miou"):
        values = [float(str(group[metric])) for group in per_class.values()]
        out[f"macro_{metric}"] = sum(values) / len(values) if values else None
    out["per_class"] = per_class
    out["per_distance"] = {
        name: _group([r for r, own in zip(some, names, strict=True) if own == name], draws, seed)
        for name in bins
    }
    out["no_target"] = _no_target(records)
    out["calibration"] = calibration(
        [r.score for r in records], [r.num_true > 0 and r.iou > 0.25 for r in records]
    )
    out["intervals"] = {
        "method": "percentile bootstrap over scenes",
        "draws": draws,
        "seed": seed,
        "level": 0.95,
    }
    return out
