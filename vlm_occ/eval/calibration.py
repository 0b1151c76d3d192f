"""When is a voxel token an answer? The cut of the scores, set on a split that serves nothing else."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from vlm_occ.data.simulator.vocabulary import training_adjectives, training_nouns, training_words
from vlm_occ.data.store import SimulatedScenes
from vlm_occ.eval.evaluate import Scenes
from vlm_occ.language.counts import stated_count
from vlm_occ.language.known_words import measure_words
from vlm_occ.losses.matching import match_boxes
from vlm_occ.models.adapter import VLMOcc
from vlm_occ.models.checkpoint import load_checkpoint, save_checkpoint
from vlm_occ.models.decoding import chosen_rows

THRESHOLDS = (
    0.02,
    0.03,
    0.05,
    0.08,
    0.1,
    0.13,
    0.16,
    0.2,
    0.25,
    0.3,
    0.35,
    0.4,
    0.45,
    0.5,
    0.6,
    0.7,
    0.8,
    0.9,
)
RATIOS = (0.0, 0.3, 0.5, 0.6, 0.7, 0.8, 0.9)


@dataclass(frozen=True)
class Scored:
    """One sentence's scores and the tokens that it means."""

    scores: Tensor  # [N]
    wanted: frozenset[int]  # tokens of its targets
    complete: bool  # every target has a token
    count: int | None = None  # how many objects the sentence says that it means


@dataclass(frozen=True)
class Cut:
    """A choice of threshold and ratio, and what it gives on the calibration split."""

    threshold: float
    ratio: float
    exact: float  # share of the sentences answered by exactly the right tokens
    rejected: float  # of the sentences that mean nothing
    false_rejected: float  # of those that mean something


def scored_sentences(model: VLMOcc, scenes: Scenes) -> list[Scored]:
    """Every sentence of some scenes, scored by a model."""
    from tqdm import tqdm

    result = []
    for index in tqdm(range(len(scenes)), unit="scene", desc="calibration"):
        item = scenes[index]
        state = model.encode(item.scene)
        match = match_boxes(state.token_boxes.cpu(), item.labels.boxes).tolist()
        scores = model.token_scores(state, [query.text for query in item.queries]).cpu()
        for row, query in zip(scores, item.queries, strict=True):
            tokens = [match[target] for target in query.targets]
            wanted = frozenset(t for t in tokens if t >= 0)
            result.append(Scored(row, wanted, -1 not in tokens, stated_count(query.text)))
    return result


def measure_cut(sentences: Sequence[Scored], threshold: float, ratio: float) -> Cut:
    """What a threshold and a ratio to the best score give."""
    exact, rejected, wrongly, nothing = 0, 0, 0, 0
    for item in sentences:
        chosen = frozenset(chosen_rows(item.scores, threshold, ratio, count=item.count).tolist())
        means_nothing = item.complete and not item.wanted
        nothing += means_nothing
        rejected += means_nothing and not chosen
        wrongly += not means_nothing and not chosen
        exact += item.complete and chosen == item.wanted
    something = len(sentences) - nothing
    return Cut(
        threshold, ratio, exact / len(sentences), rejected / max(nothing, 1), wrongly / max(something, 1)
    )


def choose_cut(sentences: Sequence[Scored], *, max_false_rejected: float = 0.03) -> Cut:
    """The cut with most exact answers among those that reject at most `max_false_rejected` wrongly.

    Where none rejects so few, the one that rejects fewest. ValueError without sentences.
    """
    if not sentences:
        raise ValueError("no sentence to calibrate on; give at least one scene with sentences")
    cuts = [measure_cut(sentences, t, r) for t in THRESHOLDS for r in RATIOS]
    allowed = [cut for cut in cuts if cut.false_rejected <= max_false_rejected]
    return max(allowed, key=lambda c: c.exact) if allowed else min(cuts, key=lambda c: c.false_rejected)


def calibrate_command(name: str, out: Path, *, scenes: int = 60, half: bool = False) -> Cut:
    """`vlm-occ calibrate`: a checkpoint with its cut set on simulated scenes, saved in `out`.

    With it are kept the words of the simulator's training lexicon, by which others are understood.
    """
    model = load_checkpoint(name).eval()
    source = SimulatedScenes("calibration", scenes, num_frames=2, num_queries=12)
    cut = choose_cut(scored_sentences(model, source))
    model.config = replace(model.config, score_threshold=cut.threshold, score_ratio=cut.ratio)
    model.known = measure_words(model.backbone, training_words(), training_nouns(), training_adjectives())
    save_checkpoint(model, out, dtype=torch.bfloat16 if half else None)
    print(
        f"vlm-occ: score_threshold {cut.threshold:g}, score_ratio {cut.ratio:g}: {cut.exact:.1%} exact, "
        f"{cut.rejected:.1%} rejected rightly, {cut.false_rejected:.1%} wrongly",
        file=sys.stderr,
    )
    print(out.resolve())
    return cut
