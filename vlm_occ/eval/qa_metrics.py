"""Scores of answers to spatial questions: exact match, VSI-Bench, and one table over categories."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

from vlm_occ.eval.text_overlap import bleu, cider, meteor_exact_stem, rouge_l, tokenize
from vlm_occ.types import NUMBER_WORDS

VSI_CHOICE_TYPES = (
    "object_rel_direction_easy",
    "object_rel_direction_medium",
    "object_rel_direction_hard",
    "object_rel_distance",
    "route_planning",
    "obj_appearance_order",
)
VSI_NUMBER_TYPES = (
    "object_abs_distance",
    "object_counting",
    "object_size_estimation",
    "room_size_estimation",
)
VSI_CATEGORIES = (
    "object_counting",
    "object_abs_distance",
    "object_size_estimation",
    "room_size_estimation",
    "object_rel_distance",
    "object_rel_direction",
    "route_planning",
    "obj_appearance_order",
)
"""VSI-Bench's eight categories, as its tables order them; relative direction is a mean of three levels."""


def normalise_answer(text: str) -> str:
    """An answer as the refined exact match reads it.

    Lower case, no punctuation but `,` `'` `-` `:`, single spaces, 0 to 20 as words, no article before a
    word, no index after a word (`mat2`). The published cleaning (LEO) also mends some spelling mistakes of
    its annotators.
    """
    text = re.sub(r"[^a-z0-9,'\s:-]+", "", text.lower().replace("\u2019", "'"))
    text = re.sub(r"\b([0-9]|1[0-9]|20)\b", lambda match: NUMBER_WORDS[int(match.group())], text)
    text = re.sub(r"\b([a-z]+)[0-9]\b", r"\1", text)
    text = re.sub(r"\b(?:a|an|the)\s+(?=[a-z])", "", text)
    text = re.sub(r"\bbackwards\b", "backward", text)
    return " ".join(text.split())


def exact_match(prediction: str, answers: Sequence[str]) -> tuple[bool, bool]:
    """Exact match, and the refined one, of a prediction with any of the right answers.

    The refined match also takes an answer that contains the other, spaces aside (LEO's EM-R); an empty
    prediction is never right.
    """
    ours = normalise_answer(prediction)
    truths = [normalise_answer(answer) for answer in answers]
    if ours in truths and ours:
        return True, True
    joined = ours.replace(" ", "")
    refined = bool(joined) and any(
        joined in truth or (truth and truth in joined) for truth in (t.replace(" ", "") for t in truths)
    )
    return False, refined


def mean_relative_accuracy(prediction: float | None, truth: float) -> float:
    """VSI-Bench's score of a number: share of the bounds 0.5, 0.45, ..., 0.05 that the relative error meets.

    No number, or one that is not finite, scores 0. ValueError where the truth is not positive.
    """
    if not truth > 0:
        raise ValueError(
            f"the true value is {truth}, expected one above 0; VSI-Bench asks for counts and sizes"
        )
    if prediction is None:
        return 0.0
    error = abs(prediction - truth) / truth
    return sum(error <= bound / 20 + 1e-12 for bound in range(1, 11)) / 10


def first_word(text: str) -> str:
    """What VSI-Bench reads of an answer: its first word without a full stop."""
    words = text.split()
    return words[0].rstrip(".") if words else ""


def read_number(text: str) -> float | None:
    """The number that an answer's first word is, or None."""
    try:
        return float(first_word(text))
    except ValueError:
        return None


def vsi_score(question_type: str, prediction: str, truth: str) -> float:
    """VSI-Bench's score in [0, 1] of one answer: accuracy of the letter, or the mean relative accuracy."""
    if question_type in VSI_CHOICE_TYPES:
        return float(first_word(prediction).lower() == truth.strip().lower())
    if question_type in VSI_NUMBER_TYPES:
        return mean_relative_accuracy(read_number(prediction), float(truth))
    known = ", ".join((*VSI_CHOICE_TYPES, *VSI_NUMBER_TYPES))
    raise ValueError(f"VSI-Bench question type {question_type!r}, expected one of {known}")


@dataclass(frozen=True)
class CategoryScores:
    """A mean over categories, and what it is made of; shares in [0, 1]."""

    mean: float
    by_category: Mapping[str, float]
    counts: Mapping[str, int]


def vsi_scores(question_types: Sequence[str], scores: Sequence[float]) -> CategoryScores:
    """VSI-Bench's eight categories and their mean from the scores of single answers.

    Categories without a question are left out of the mean; relative direction is the mean over its levels.
    """
    grouped = _group(question_types, scores)
    counts = {name: len(values) for name, values in grouped.items()}
    means = {name: fmean(values) for name, values in grouped.items()}
    levels = [name for name in means if name.startswith("object_rel_direction_")]
    if levels:
        means["object_rel_direction"] = fmean([means.pop(name) for name in levels])
        counts["object_rel_direction"] = sum(counts.pop(name) for name in levels)
    order = [name for name in VSI_CATEGORIES if name in means]
    if unknown := sorted(set(means) - set(VSI_CATEGORIES)):
        raise ValueError(f"VSI-Bench has no question type {unknown[0]!r}")
    by_category = {name: means[name] for name in order}
    return CategoryScores(
        mean=fmean(by_category.values()),
        by_category=by_category,
        counts={name: counts[name] for name in order},
    )


def scores_by_category(categories: Sequence[str], scores: Sequence[float]) -> CategoryScores:
    """Mean score over all answers (not over categories), and of each category."""
    grouped = _group(categories, scores)
    return CategoryScores(
        mean=fmean(scores),
        by_category={name: fmean(values) for name, values in sorted(grouped.items())},
        counts={name: len(values) for name, values in sorted(grouped.items())},
    )


def _group(names: Sequence[str], scores: Sequence[float]) -> dict[str, list[float]]:
    if not scores or len(names) != len(scores):
        raise ValueError(
            f"{len(names)} categories and {len(scores)} scores; give as many of both, at least one"
        )
    grouped: dict[str, list[float]] = defaultdict(list)
    for name, score in zip(names, scores, strict=True):
        grouped[name].append(float(score))
    return grouped


def sqa3d_category(question: str) -> str:
    """SQA3D's kind of a question, by its first word: what, is, how, can, which or others."""
    words = tokenize(question)
    return words[0] if words and words[0] in ("what", "is", "how", "can", "which") else "others"


def answer_metrics(predictions: Sequence[str], answers: Sequence[Sequence[str]]) -> dict[str, float]:
    """Every text metric of ScanQA and SQA3D over a set of questions, each in [0, 1] but CIDEr.

    `meteor_exact_stem` is not the METEOR of the papers; see `text_overlap`.
    """
    matches = [exact_match(p, a) for p, a in zip(predictions, answers, strict=True)]
    ours = [tokenize(prediction) for prediction in predictions]
    theirs = [[tokenize(answer) for answer in options] for options in answers]
    bleus = bleu(ours, theirs)
    return {
        "em": fmean(exact for exact, _ in matches),
        "em_refined": fmean(refined for _, refined in matches),
        **{f"bleu_{order}": score for order, score in enumerate(bleus, start=1)},
        "rouge_l": rouge_l(ours, theirs),
        "cider": cider(ours, theirs),
        "meteor_exact_stem": meteor_exact_stem(ours, theirs),
    }
