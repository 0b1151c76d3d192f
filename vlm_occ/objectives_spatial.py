"""Terms of Loc3R-VLM's joint objective (3.4): layout, position, orientation and the answer's words."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional

from vlm_occ.heads.anchored import REACH, STEP, ReadSituation
from vlm_occ.heads.situation import orientation_bins
from vlm_occ.losses.language import next_token_cross_entropy
from vlm_occ.losses.matching import inside_footprint
from vlm_occ.losses.occupancy import Term, term
from vlm_occ.losses.situation import (
    LAYOUT_WEIGHT,
    ORIENTATION_WEIGHT,
    SITUATION_WEIGHT,
    gaussian_nll,
    orientation_kl,
)
from vlm_occ.models.spatial import SpatialOutput
from vlm_occ.models.spatial_batch import scene_layout_targets
from vlm_occ.situated import FACINGS, MENTIONS, PLACE_FRAMES, SituationParts
from vlm_occ.types import SceneLabels

if TYPE_CHECKING:
    from vlm_occ.models.adapter import VLMOcc
    from vlm_occ.models.batch import Batch, GroundingOutput

SPATIAL_WEIGHTS = {
    "layout": LAYOUT_WEIGHT,
    "position": SITUATION_WEIGHT,
    "orientation": SITUATION_WEIGHT * ORIENTATION_WEIGHT,
    "answer": 1.0,
    "told": 1.0,
    "named": 1.0,
}
"""Weight of each spatial term: L = CE + 0.05 L_BEV + 0.075 (L_pos + 3.5 L_ori), and ours of the parts."""


def spatial_terms(
    model: VLMOcc, grounding: GroundingOutput, batch: Batch, labels: Sequence[SceneLabels]
) -> dict[str, Term]:
    """The terms of a batch, none without spatial heads; each scene's mean is one item, 0 where it has none of
    the kind.
    """
    output = grounding.spatial
    if output is None:
        return {}
    return {
        "layout": layout_term(output, batch),
        **situation_terms(output, batch),
        **part_terms(grounding, output, batch, labels),
        "answer": answer_term(model, output),
    }


def layout_term(output: SpatialOutput, batch: Batch) -> Term:
    """Gaussian negative log-likelihood of the vision tokens' bird's-eye positions (3.2)."""
    scenes = []
    for b, (estimate, depth) in enumerate(zip(output.layout, batch.depths, strict=True)):
        loss = output.objects[b].sum() * 0
        if estimate is not None:
            loss = loss + estimate.mean.sum() * 0 + estimate.log_variance.sum() * 0
        if estimate is not None and depth is not None and output.grids[b]:
            targets = scene_layout_targets(batch.frames[b], depth, batch.first_frames[b], output.grids[b])
            found = gaussian_nll(
                estimate.mean,
                estimate.log_variance,
                targets.position.to(loss.device),
                targets.valid.to(loss.device),
            )
            loss = loss + found.total / found.count.clamp(min=1)
        scenes.append(loss)
    return term(torch.stack(scenes))


def situation_terms(output: SpatialOutput, batch: Batch) -> dict[str, Term]:
    """Likelihood of the positions and divergence of the orientations (3.3), of turns where both are known."""
    positions, orientations = [], []
    for b, (estimate, logits) in enumerate(zip(output.position, output.orientation, strict=True)):
        where, facing, known = situation_truth(batch, b)
        zero = logits.sum() * 0 + estimate.mean.sum() * 0 + estimate.log_variance.sum() * 0
        device = zero.device
        known = known.to(device)
        place = gaussian_nll(estimate.mean, estimate.log_variance, where.to(device), known)
        bins = orientation_bins(logits.shape[-1], device=device)
        turn = orientation_kl(logits, facing.to(device), bins, known)
        positions.append(zero + place.total / place.count.clamp(min=1))
        orientations.append(zero + turn.total / turn.count.clamp(min=1))
    return {"position": term(torch.stack(positions)), "orientation": term(torch.stack(orientations))}


def part_terms(
    grounding: GroundingOutput, output: SpatialOutput, batch: Batch, labels: Sequence[SceneLabels]
) -> dict[str, Term]:
    """What situations are made of, where that is known: `told` of the words, `named` of the objects."""
    told, named = [], []
    for b, (read, objects) in enumerate(zip(output.read, output.objects, strict=True)):
        zero = objects.sum() * 0 + sum(logits.sum() for logits in vars(read).values()) * 0
        turns = batch.turns[b] if batch.turns else ()
        rows = [row for row, turn in enumerate(turns) if turn.parts is not None]
        if not rows:
            told.append(zero)
            named.append(zero)
            continue
        parts = [part for turn in turns if (part := turn.parts) is not None]
        roles = [roles for turn in output.turns[b] if (roles := turn.roles) is not None]
        told.append(zero + told_loss(read, rows, parts, roles))
        over = inside_footprint(grounding.perception.tokens[b].candidates.box, labels[b].boxes)
        named.append(zero + named_loss(objects, rows, parts, grounding.matches[b], over))
    return {"told": term(torch.stack(told)), "named": term(torch.stack(named))}


def told_loss(
    read: ReadSituation, rows: Sequence[int], parts: Sequence[SituationParts], roles: Sequence[Tensor]
) -> Tensor:
    """Cross-entropies of the words' roles, the frame, the amounts and the heading, and the share's error."""
    device, chosen = read.frame.device, torch.tensor(rows, device=read.frame.device)

    def of(name: str, values: Sequence[int]) -> Tensor:
        logits = getattr(read, name)[chosen]
        return functional.cross_entropy(logits, torch.tensor(values, device=device))

    spoken = torch.nn.utils.rnn.pad_sequence(list(roles), batch_first=True, padding_value=-1).to(device)
    words = read.roles[chosen, : spoken.shape[1]].flatten(0, 1)
    loss = functional.cross_entropy(words, spoken.flatten(), ignore_index=-1)
    loss = loss + of("frame", [PLACE_FRAMES.index(p.frame) for p in parts])
    loss = loss + of("facing", [FACINGS.index(p.facing) for p in parts])
    loss = loss + of("turn", [p.turn for p in parts])
    share = torch.tensor([p.share for p in parts], device=device)
    loss = loss + functional.smooth_l1_loss(read.share[chosen], share, beta=0.1)
    stated = [(row, p.metres) for row, p in zip(rows, parts, strict=True) if p.metres is not None]
    if stated:
        metres = torch.tensor([m for _, m in stated], device=device)
        steps = ((metres.clamp(-REACH, REACH) + REACH) / STEP).round().long()
        logits = read.metres[[row for row, _ in stated]]
        loss = loss + functional.cross_entropy(logits.flatten(0, 1), steps.flatten())
    return loss


def named_loss(
    objects: Tensor, rows: Sequence[int], parts: Sequence[SituationParts], match: Tensor, over: Tensor
) -> Tensor:
    """Cross-entropy of the token that each mention names, among all but others over its footprint.

    Logits [Q, M, N], the token of each box [B] (-1: none, then it is left out), and the tokens over each
    box's footprint, bool [B, N].
    """
    mentions = [(row, m) for row, part in zip(rows, parts, strict=True) for m in part.mentions]
    mentions = [(row, m) for row, m in mentions if int(match[m.row]) >= 0]
    if not mentions:
        return objects.sum() * 0
    columns = [MENTIONS.index(m.role) for _, m in mentions]
    meant = match[[m.row for _, m in mentions]]
    logits = objects[[row for row, _ in mentions], columns]
    ignored = over[[m.row for _, m in mentions]].scatter(1, meant[:, None], False)
    return functional.cross_entropy(logits.masked_fill(ignored, -1e4), meant)


def situation_truth(batch: Batch, b: int) -> tuple[Tensor, Tensor, Tensor]:
    """True positions [Q, 2] and yaws [Q] of scene b's turns in the first view's frame, and the known ones."""
    turns = batch.turns[b]
    known = torch.tensor([t.position is not None and t.yaw is not None for t in turns], dtype=torch.bool)
    where = torch.tensor([t.position or (0.0, 0.0) for t in turns]).reshape(-1, 2)
    facing = torch.tensor([t.yaw or 0.0 for t in turns]).reshape(-1)
    first_from_reference = torch.linalg.inv(batch.first_frames[b].double()).float()
    turn = torch.atan2(first_from_reference[1, 0], first_from_reference[0, 0])
    cos, sin = turn.cos(), turn.sin()
    rotation = torch.stack([torch.stack([cos, -sin]), torch.stack([sin, cos])])
    return where @ rotation.T + first_from_reference[:2, 3], facing + turn, known


def answer_term(model: VLMOcc, output: SpatialOutput) -> Term:
    """Cross-entropy of the answers' words (3.4), a mean over a scene's words."""
    scenes = []
    for b, (turns, states) in enumerate(zip(output.turns, output.states, strict=True)):
        kept, targets = [], []
        for turn, state in zip(turns, states, strict=True):
            if len(turn.ids) > turn.ground + 1:  # it has an answer
                kept.append(state[turn.ground : -1])
                targets.append(turn.ids[turn.ground + 1 :].to(state.device))
        loss = output.orientation[b].sum() * 0
        if kept:
            words = next_token_cross_entropy(model.backbone.logits(torch.cat(kept)), torch.cat(targets))
            loss = loss + words.total / words.count
        scenes.append(loss)
    return term(torch.stack(scenes))
