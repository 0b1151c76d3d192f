"""Overlap of answers with references: BLEU, ROUGE-L, CIDEr-D and METEOR without synonyms.

BLEU, ROUGE-L and CIDEr-D give the numbers of the COCO caption evaluation (tested against pycocoevalcap) for
the same words; our tokens are plain words, where that package runs the Penn Treebank tokenizer in Java.
METEOR here knows exact and stem matches only, with the parameters of Banerjee and Lavie (2005): it is lower
than the METEOR 1.5 that papers report, which also knows synonyms and paraphrases, and must not be compared
with it.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Sequence
from itertools import pairwise

from vlm_occ.eval.stemming import stem

Tokens = Sequence[str]

_MAX_ORDER = 4


def tokenize(text: str) -> list[str]:
    """Lower-case words and numbers, without punctuation."""
    return re.findall(r"[a-z0-9]+(?:['.][a-z0-9]+)*", text.lower().replace("\u2019", "'"))


def _ngrams(tokens: Tokens, order: int) -> Counter[tuple[str, ...]]:
    return Counter(tuple(tokens[i : i + order]) for i in range(len(tokens) - order + 1))


def _check(predictions: Sequence[Tokens], references: Sequence[Sequence[Tokens]]) -> None:
    if not predictions or len(predictions) != len(references) or not all(references):
        raise ValueError(
            f"{len(predictions)} predictions and {len(references)} lists of references; "
            "give as many of both, at least one, and one reference at least for each"
        )


def bleu(predictions: Sequence[Tokens], references: Sequence[Sequence[Tokens]]) -> tuple[float, ...]:
    """BLEU-1 to BLEU-4 of a corpus of tokens (Papineni et al. 2002), closest reference length.

    An order without any n-gram counts as 1e-6, as in the COCO caption evaluation.
    """
    _check(predictions, references)
    matched, total, length, reference_length = [0] * _MAX_ORDER, [0] * _MAX_ORDER, 0, 0
    for prediction, options in zip(predictions, references, strict=True):
        length += len(prediction)
        reference_length += min((abs(len(o) - len(prediction)), len(o)) for o in options)[1]
        for order in range(1, _MAX_ORDER + 1):
            counts, allowed = _ngrams(prediction, order), Counter[tuple[str, ...]]()
            for option in options:
                allowed |= _ngrams(option, order)
            matched[order - 1] += (counts & allowed).total()
            total[order - 1] += counts.total()
    tiny, small = 1e-15, 1e-9
    ratio = (length + tiny) / (reference_length + small)
    penalty = math.exp(1 - 1 / ratio) if ratio < 1 else 1.0
    scores, product = [], 1.0
    for order in range(_MAX_ORDER):
        product *= (matched[order] + tiny) / (total[order] + small)
        scores.append(product ** (1 / (order + 1)) * penalty)
    return tuple(scores)


def _longest_common_subsequence(a: Tokens, b: Tokens) -> int:
    row = [0] * (len(b) + 1)
    for word in a:
        diagonal = 0
        for j, other in enumerate(b):
            diagonal, row[j + 1] = row[j + 1], diagonal + 1 if word == other else max(row[j], row[j + 1])
    return row[-1]


def rouge_l(predictions: Sequence[Tokens], references: Sequence[Sequence[Tokens]]) -> float:
    """Mean ROUGE-L (Lin 2004): F (beta 1.2) of the best precision and the best recall over the references."""
    _check(predictions, references)
    beta, total = 1.2, 0.0
    for prediction, options in zip(predictions, references, strict=True):
        common = [_longest_common_subsequence(option, prediction) for option in options]
        precision = max(common) / max(len(prediction), 1)
        recall = max(c / max(len(option), 1) for c, option in zip(common, options, strict=True))
        if precision > 0 and recall > 0:
            total += (1 + beta**2) * precision * recall / (recall + beta**2 * precision)
    return total / len(predictions)


def cider(predictions: Sequence[Tokens], references: Sequence[Sequence[Tokens]]) -> float:
    """Mean CIDEr-D (Vedantam et al. 2015), in the usual scale where 1.0 is printed as 100.

    Document frequencies come from these references, so the number belongs to this set of questions.
    """
    _check(predictions, references)
    frequency: Counter[tuple[str, ...]] = Counter()
    for options in references:
        frequency.update({gram for o in options for n in range(1, _MAX_ORDER + 1) for gram in _ngrams(o, n)})
    documents = math.log(len(references))

    def weigh(tokens: Tokens) -> list[dict[tuple[str, ...], float]]:
        return [
            {g: c * (documents - math.log(max(1, frequency[g]))) for g, c in _ngrams(tokens, n).items()}
            for n in range(1, _MAX_ORDER + 1)
        ]

    total = 0.0
    for prediction, options in zip(predictions, references, strict=True):
        ours = weigh(prediction)
        scores = [_cider_similarity(ours, weigh(o), len(prediction), len(o)) for o in options]
        total += 10 * sum(scores) / len(scores)
    return total / len(predictions)


def _cider_similarity(
    a: list[dict[tuple[str, ...], float]], b: list[dict[tuple[str, ...], float]], length_a: int, length_b: int
) -> float:
    """Mean clipped cosine over the orders, times the penalty on the difference in length (in bigrams)."""
    total = 0.0
    for x, y in zip(a, b, strict=True):
        norm = math.sqrt(sum(v * v for v in x.values())) * math.sqrt(sum(v * v for v in y.values()))
        product = sum(min(value, y.get(gram, 0.0)) * y.get(gram, 0.0) for gram, value in x.items())
        total += product / norm if norm > 0 else product
    difference = max(length_a - 1, 0) - max(length_b - 1, 0)
    return total / len(a) * math.exp(-(difference**2) / 72)


def meteor_exact_stem(predictions: Sequence[Tokens], references: Sequence[Sequence[Tokens]]) -> float:
    """Mean METEOR with exact and stem matches only; see the module about what it may be compared with."""
    _check(predictions, references)
    scores = [max(_meteor(p, o) for o in options) for p, options in zip(predictions, references, strict=True)]
    return sum(scores) / len(scores)


def _meteor(prediction: Tokens, reference: Tokens) -> float:
    pairs = _align(prediction, reference)
    if not pairs:
        return 0.0
    precision, recall = len(pairs) / len(prediction), len(pairs) / len(reference)
    mean = precision * recall / (0.9 * precision + 0.1 * recall)
    follows = sum(1 for (i, j), (k, m) in pairwise(pairs) if (k, m) == (i + 1, j + 1))
    return mean * (1 - 0.5 * ((len(pairs) - follows) / len(pairs)) ** 3)


def _align(prediction: Tokens, reference: Tokens) -> list[tuple[int, int]]:
    """Pairs of positions, by the prediction's: equal words first, then equal stems, each from the end."""
    pairs: list[tuple[int, int]] = []
    left, right = list(range(len(prediction))), list(range(len(reference)))
    for key in (str, stem):
        for i in left[::-1]:
            j = next((j for j in right[::-1] if key(reference[j]) == key(prediction[i])), None)
            if j is not None:
                pairs.append((i, j))
                left.remove(i)
                right.remove(j)
    return sorted(pairs)
