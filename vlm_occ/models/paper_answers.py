"""From what a paper's system says to answers: the box, and the voxels that its rule keeps."""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import Tensor

from vlm_occ.models.describe import describe
from vlm_occ.models.groundingocc_config import GroundingOccConfig
from vlm_occ.models.paper_batch import PaperState, SentenceOutput
from vlm_occ.types import GroundedObject, GroundingResult
from vlm_occ.voxels import voxels_in_box


def answers(
    state: PaperState,
    texts: Sequence[str],
    said: SentenceOutput,
    config: GroundingOccConfig,
    *,
    refine: bool,
) -> list[GroundingResult]:
    """One result a sentence, with one object, or none where the box's score is below the threshold.

    Without `refine` the answer are the referred voxels; with it, or without geometric supervision, the
    occupied (or with `refine_rule` "referred", the referred) voxels inside the box.
    """
    occupied, referred = (
        None if part is None else on_grid(part, state) for part in said.occupied(config.mask_threshold)
    )
    assert occupied is not None
    boxes, labels, scores = said.proposals.best()
    results = []
    for n, text in enumerate(texts):
        objects: list[GroundedObject] = []
        if float(scores[n]) >= config.score_threshold:
            voxels = occupied[n]
            if referred is not None and not (refine and config.refine_rule == "occupied"):
                voxels = referred[n]
            if refine or referred is None:
                voxels = voxels & voxels_in_box(boxes[n], state.grid)
            objects.append(GroundedObject(voxels, boxes[n], float(scores[n])))
        words = describe(objects, [int(labels[n])] * len(objects))
        results.append(GroundingResult(text, words, tuple(objects), occupied[n], state.grid))
    return results


def on_grid(voxels: Tensor, state: PaperState) -> Tensor:
    """Bool [N, M] of a scene's decoded voxels on the whole grid, [N, X, Y, Z]."""
    dense = voxels.new_zeros(len(voxels), math.prod(state.grid.shape))
    dense[:, state.view.voxels] = voxels
    return dense.unflatten(1, state.grid.shape)
