"""Figures of localisation, layout and question answering from records, with intervals; fit for JSON."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from vlm_occ.eval.localisation import coverage, error_correlation, localisation_errors, localisation_score
from vlm_occ.eval.metrics import Interval, bootstrap_intervals, wilson_interval
from vlm_occ.eval.qa_metrics import exact_match, mean_relative_accuracy, normalise_answer, read_number
from vlm_occ.eval.spatial import Answered, LaidOut, Located
from vlm_occ.geometry import wrap_angle

LEVELS = (0.5, 0.8, 0.9, 0.95)
"""Shares of truths that ellipses of predicted uncertainty should hold."""
LAYOUT_RANGE = 30.0
"""Metres from the ego origin within which layout counts."""
Figures = dict[str, object]


def localisation_figures(records: Sequence[Located]) -> Figures:
    """Accuracy of exact situations of known words at the top; held-out words and vague ones below."""
    exact = [r for r in records if r.kind == "exact"]
    result = _accuracy([r for r in exact if r.lexicon == "train"])
    result["heldout_words"] = _accuracy([r for r in exact if r.lexicon == "heldout"])
    result["uncertainty"] = uncertainty_figures([r for r in exact if r.lexicon == "train"])
    result["vague"] = uncertainty_figures([r for r in records if r.kind == "vague" and r.lexicon == "train"])
    return result


def _accuracy(records: Sequence[Located]) -> Figures:
    """SQA3D's accuracies with intervals over scenes, and median errors."""
    if not records:
        return {"n": 0}
    truth = torch.stack([r.true_position for r in records]), torch.tensor([r.true_yaw for r in records])
    positions, yaws = [r.position[None] for r in records], [torch.tensor([r.yaw]) for r in records]
    result: Figures = dict(localisation_score(positions, yaws, *truth).as_dict())
    distance, turn = localisation_errors(torch.cat(positions), torch.cat(yaws), *truth)
    columns = {
        "acc_0.5m": distance < 0.5,
        "acc_1m": distance < 1.0,
        "acc_15deg": turn < 15.0,
        "acc_30deg": turn < 30.0,
    }
    values = torch.stack(list(columns.values()), dim=1).double().numpy()
    intervals = bootstrap_intervals(values, [r.scene for r in records])
    result |= {f"{name}_interval": interval for name, interval in zip(columns, intervals, strict=True)}
    return result | {"median_error_m": distance.median().item(), "median_error_deg": turn.median().item()}


def uncertainty_figures(records: Sequence[Located]) -> Figures:
    """Whether predicted spreads are honest: likelihoods, coverage of the ellipses, and their order."""
    if not records:
        return {"n": 0}
    mean, std = torch.stack([r.position for r in records]), torch.stack([r.position_std for r in records])
    truth = torch.stack([r.true_position for r in records])
    density = -(std.log() + 0.5 * ((truth - mean) / std).square()).sum(-1) - math.log(2 * math.pi)
    chances = torch.stack([r.yaw_probabilities for r in records])  # [N, B]
    bins = chances.shape[1]
    yaw = torch.tensor([r.true_yaw for r in records])
    row = ((wrap_angle(yaw) + math.pi) / (2 * math.pi) * bins).long().clamp(0, bins - 1)
    angle = chances.gather(1, row[:, None])[:, 0].clamp(min=1e-12).log() - math.log(2 * math.pi / bins)
    error = (truth - mean).norm(dim=-1)
    scenes = [r.scene for r in records]
    values = torch.stack([-density, -angle], dim=1).double().numpy()
    intervals = bootstrap_intervals(values, scenes)
    return {
        "n": len(records),
        "position_nll": -density.mean().item(),  # nats, of a density per square metre
        "position_nll_interval": intervals[0],
        "yaw_nll": -angle.mean().item(),  # nats, of a density per radian; log(2 pi) = 1.84 knows nothing
        "yaw_nll_interval": intervals[1],
        "coverage": dict(zip(map(str, LEVELS), coverage(mean, std, truth, LEVELS), strict=True)),
        "median_std_m": std.prod(-1).sqrt().median().item(),
        "median_error_m": error.median().item(),
        "spread_error_rank_correlation": _order(std.prod(-1).sqrt(), error),
    }


def _order(spread: Tensor, error: Tensor) -> float | None:
    """Rank correlation of spreads and errors [N]; None of fewer than 3, or where one of them is constant."""
    if len(spread) < 3 or len(spread.unique()) == 1 or len(error.unique()) == 1:
        return None
    return error_correlation(spread, error)


def layout_figures(records: Sequence[LaidOut]) -> Figures:
    """Median error of the vision tokens' bird's-eye positions within 30 m, with its interval over scenes."""
    near = [(r.scene, r.error[r.distance <= LAYOUT_RANGE].numpy()) for r in records]
    near = [(scene, error) for scene, error in near if len(error)]
    if not near:
        return {"n": 0, "median_error_m": None}
    error = np.concatenate([e for _, e in near])
    chi = torch.cat([r.normalised[r.distance <= LAYOUT_RANGE] for r in records]).double()
    inside = [(chi <= -2 * math.log1p(-level)).double().mean().item() for level in LEVELS]
    return {
        "n": len(error),
        "scenes": len(near),
        "range_m": LAYOUT_RANGE,
        "median_error_m": float(np.median(error)),
        "median_error_m_interval": _median_interval([e for _, e in near]),
        "mean_error_m": float(error.mean()),
        "coverage": dict(zip(map(str, LEVELS), inside, strict=True)),
    }


def _median_interval(groups: Sequence[np.ndarray], *, draws: int = 500, seed: int = 0) -> Interval:
    """95 % percentile interval of the median over all groups' values, resampling groups."""
    generator = np.random.default_rng(seed)
    medians = [
        np.median(np.concatenate([groups[i] for i in generator.integers(0, len(groups), len(groups))]))
        for _ in range(draws)
    ]
    low, high = np.percentile(medians, [2.5, 97.5])
    return [float(low), float(high)]


def qa_figures(records: Sequence[Answered]) -> Figures:
    """Exact match by category of known words, numbers' relative accuracy, and held-out words overall."""
    known = [r for r in records if r.question.lexicon == "train"]
    names = sorted({r.question.category for r in known})
    result: Figures = {name: _scores([r for r in known if r.question.category == name]) for name in names}
    result["overall"] = _scores(known)
    result["heldout_words"] = _scores([r for r in records if r.question.lexicon == "heldout"])
    return result


def _scores(records: Sequence[Answered]) -> Figures:
    """Exact match with its interval, what one constant answer would score, numbers by VSI-Bench's rule."""
    if not records:
        return {"n": 0}
    matches = [exact_match(r.prediction, r.question.answers) for r in records]
    right = [exact for exact, _ in matches]
    commonest = Counter(normalise_answer(r.question.answers[0]) for r in records).most_common(1)[0][1]
    scenes = [r.question.scene for r in records]
    values = np.array([[float(hit)] for hit in right])
    result: Figures = {
        "n": len(records),
        "accuracy": sum(right) / len(right),
        "accuracy_interval": bootstrap_intervals(values, scenes)[0],
        "accuracy_wilson": wilson_interval(sum(right), len(right)),
        "accuracy_refined": sum(refined for _, refined in matches) / len(matches),
        "commonest_answer": commonest / len(records),
    }
    numbers = [
        mean_relative_accuracy(read_number(r.prediction), truth)
        for r in records
        if (truth := read_number(r.question.answers[0])) is not None and truth > 0
    ]
    if numbers:
        result["mean_relative_accuracy"] = sum(numbers) / len(numbers)
        result["numbers"] = len(numbers)
    return result
