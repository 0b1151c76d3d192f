"""When is a voxel token an answer? The cut of the scores, set on a split that serves nothing else."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from vlm_occ.data.simulator.vocabulary import training_vocabulary
from vlm_occ.data.store import SimulatedScenes
from vlm_occ.eval.evaluate import Scenes
from vlm_occ.language.counts import presupposes, stated_count
from vlm_occ.language.known_words import measure_words
from vlm_occ.losses.matching import match_boxes
from vlm_occ.models.adapter import VLMOcc
from vlm_occ.models.checkpoint import load_checkpoint, save_checkpoint
from vlm_occ.models.decoding import chosen_rows
from vlm_occ.situated import Lexicon

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
    presupposes: bool = True  # it takes for granted that there are any
    text: str = ""

    @property
    def means_nothing(self) -> bool:
        """Whether the right answer is none."""
        return self.complete and not self.wanted


@dataclass(frozen=True)
class Cut:
    """A choice of thresholds and ratio, and what it gives on the calibration split."""

    threshold: float  # of sentences that presuppose what they mean
    existence: float  # of the others
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
            said = stated_count(query.text), presupposes(query.text)
            result.append(Scored(row, wanted, -1 not in tokens, *said, query.text))
    return result


def measure_cut(
    sentences: Sequence[Scored], threshold: float, ratio: float, existence: float | None = None
) -> Cut:
    """What thresholds and a ratio to the best score give; without `existence` all have the same threshold."""
    existence = threshold if existence is None else existence
    granted, asked = _by_presupposition(sentences)
    return _cut(
        sentences,
        threshold,
        existence,
        ratio,
        _counts(granted, threshold, ratio),
        _counts(asked, existence, ratio),
    )


def choose_cut(sentences: Sequence[Scored], *, max_false_rejected: float = 0.03) -> Cut:
    """The cut with most exact answers among those that reject at most `max_false_rejected` wrongly.

    Where none rejects so few, the one that rejects fewest. ValueError without sentences.
    """
    if not sentences:
        raise ValueError("no sentence to calibrate on; give at least one scene with sentences")
    granted, asked = _by_presupposition(sentences)
    cuts = []
    for ratio in RATIOS:
        known = [(t, _counts(granted, t, ratio), _counts(asked, t, ratio)) for t in THRESHOLDS]
        cuts += [
            _cut(sentences, t, e, ratio, own, other) for t, own, _ in known for e, _, other in known if e >= t
        ]
    allowed = [cut for cut in cuts if cut.false_rejected <= max_false_rejected]
    return max(allowed, key=lambda c: c.exact) if allowed else min(cuts, key=lambda c: c.false_rejected)


def _by_presupposition(sentences: Sequence[Scored]) -> tuple[list[Scored], list[Scored]]:
    """Those that take for granted that what they mean is there, and the others."""
    return [s for s in sentences if s.presupposes], [s for s in sentences if not s.presupposes]


def _counts(sentences: Sequence[Scored], threshold: float, ratio: float) -> tuple[int, int, int]:
    """How many are answered exactly, rejected rightly and rejected wrongly."""
    exact, rejected, wrongly = 0, 0, 0
    for item in sentences:
        chosen = frozenset(chosen_rows(item.scores, threshold, ratio, count=item.count).tolist())
        rejected += item.means_nothing and not chosen
        wrongly += not item.means_nothing and not chosen
        exact += item.complete and chosen == item.wanted
    return exact, rejected, wrongly


def _cut(
    sentences: Sequence[Scored],
    threshold: float,
    existence: float,
    ratio: float,
    *counts: tuple[int, int, int],
) -> Cut:
    """A cut whose counts over disjoint parts of the sentences are given."""
    exact, rejected, wrongly = (sum(part) for part in zip(*counts, strict=True))
    nothing = sum(item.means_nothing for item in sentences)
    something = len(sentences) - nothing
    return Cut(
        threshold,
        existence,
        ratio,
        exact / len(sentences),
        rejected / max(nothing, 1),
        wrongly / max(something, 1),
    )


def calibrate_command(
    name: str, out: Path, *, scenes: int = 60, half: bool = False, lexicon: Lexicon = "train"
) -> Cut:
    """`vlm-occ calibrate`: a checkpoint with its cut set on simulated scenes, saved in `out`.

    With it are kept the words of the `lexicon` that it was trained on, by which others are understood.
    """
    model = load_checkpoint(name).eval()
    source = SimulatedScenes("calibration", scenes, num_frames=2, num_queries=12)
    sentences = scored_sentences(model, source)
    cut = choose_cut(sentences)
    model.config = replace(
        model.config,
        score_threshold=cut.threshold,
        existence_threshold=cut.existence,
        score_ratio=cut.ratio,
    )
    texts = [sentence.text for sentence in sentences]
    model.known = measure_words(model.backbone, training_vocabulary(lexicon), texts)
    save_checkpoint(model, out, dtype=torch.bfloat16 if half else None)
    print(
        f"vlm-occ: score_threshold {cut.threshold:g}, existence_threshold {cut.existence:g}, "
        f"score_ratio {cut.ratio:g}: {cut.exact:.1%} exact, "
        f"{cut.rejected:.1%} rejected rightly, {cut.false_rejected:.1%} wrongly",
        file=sys.stderr,
    )
    print(out.resolve())
    return cut
