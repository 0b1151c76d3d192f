"""Losses of the pointer: which voxel tokens a sentence means, and which factors of it they have."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional

from vlm_occ.heads.factors import ROLES, Factors
from vlm_occ.losses.matching import inside_footprint
from vlm_occ.losses.occupancy import Term, sigmoid_focal, term
from vlm_occ.types import UNARY, GroundingQuery, SceneLabels

if TYPE_CHECKING:
    from vlm_occ.models.batch import Batch, GroundingOutput

STATED = (*UNARY, *(f"anchor {kind}" for kind in UNARY), "relation", "order")
"""Kinds of `QueryPart` in the order of `Factors.stated`."""
LEARNED = (*STATED, "anchor", "filter")
FALSE_OF_NOTHING = ("noun", "anchor noun", "anchor", "filter", "order")
"""Kinds that a token without an object surely lacks."""


TERMS = ("pointer", "ranking", "several", "factors", "stated")


def pointer_terms(output: GroundingOutput, batch: Batch, labels: Sequence[SceneLabels]) -> dict[str, Term]:
    """Focal loss of every token for every query, a mean over a scene's queries.

    A token over a target's footprint that was not matched to it is neither right nor wrong; a query with a
    target that no token stands for is left out. `ranking` is the cross-entropy of the targets among all
    tokens and "none" with logit 0, which pulls sentences apart long before the scores are sharp. `several`:
    see `several_loss`, `factors` and `stated`: `factor_losses`.
    """
    values: dict[str, list[Tensor]] = {name: [] for name in TERMS}
    for scores, match, queries, tokens, item in zip(
        output.scores, output.matches, batch.queries, output.perception.tokens, labels, strict=True
    ):
        truth = scene_truth(match, queries, inside_footprint(tokens.candidates.box, item.boxes))
        kept = truth.rows
        losses = pointer_losses(scores.logits[kept], truth.target, truth.ignore)
        values["pointer"].append(losses[0].sum() / max(len(kept), 1))
        values["ranking"].append(losses[1].sum() / max(len(kept), 1))
        factors, stated = factor_losses(scores, match, queries, truth)
        values["several"].append(several_loss(scores, queries))
        values["factors"].append(factors)
        values["stated"].append(stated)
    return {name: term(torch.stack(scenes)) for name, scenes in values.items()}


@dataclass(frozen=True)
class SceneTruth:
    """The right answers of those K queries of a scene whose targets all have a token."""

    rows: Tensor  # long [K]
    target: Tensor  # float [K, N]
    ignore: Tensor  # bool [K, N]


def scene_truth(match: Tensor, queries: Sequence[GroundingQuery], over: Tensor) -> SceneTruth:
    """From the token of each box [M] (-1: none) and the tokens over each box's footprint, bool [M, N]."""
    rows, targets, ignores = [], [], []
    for row, query in enumerate(queries if over.shape[1] else ()):
        chosen = list(query.targets)
        if not (match[chosen] < 0).any():
            target = torch.zeros(over.shape[1], device=over.device).index_fill(0, match[chosen], 1.0)
            rows.append(row)
            targets.append(target)
            ignores.append(over[chosen].any(0) & (target == 0))
    if not rows:
        none = torch.zeros(0, over.shape[1], device=over.device)
        return SceneTruth(torch.zeros(0, dtype=torch.long, device=over.device), none, none.bool())
    return SceneTruth(torch.tensor(rows, device=over.device), torch.stack(targets), torch.stack(ignores))


def pointer_losses(logits: Tensor, target: Tensor, ignore: Tensor) -> tuple[Tensor, Tensor]:
    """Focal and ranking loss of each of K queries from logits and truth [K, N]."""
    focal = sigmoid_focal(logits, target, alpha=0.5).masked_fill(ignore, 0.0).sum(1)
    none = logits.new_zeros(len(logits), 1)
    others = torch.cat([none, logits.masked_fill(ignore, -1e4)], dim=1)
    meant = torch.cat([none.masked_fill(target.any(1, keepdim=True), -1e4), logits], dim=1)
    meant = meant.masked_fill(functional.pad(target == 0, (1, 0)), -1e4)
    return focal, others.logsumexp(1) - meant.logsumexp(1)


def part_truth(match: Tensor, queries: Sequence[GroundingQuery], truth: SceneTruth) -> Tensor:
    """What is known of LEARNED factors, int8 [K, P, N]: 1 has it, 0 has it not, 2 borderline, -1 not stated.

    Tokens that stand for no box have none of the nouns and are not what a sentence relates to; where they
    lie, and what colour they have, they may share with what is meant.
    """
    known = torch.full((len(truth.rows), len(LEARNED), truth.target.shape[1]), -1, dtype=torch.int8)
    objects = (match >= 0).nonzero()[:, 0].tolist()
    tokens = match[objects].cpu()
    for k, row in enumerate(truth.rows.tolist()):
        for part in queries[row].parts:
            values = [1 if part.sure >> i & 1 else 2 * (part.possible >> i & 1) for i in objects]
            nothing = 0 if part.kind in FALSE_OF_NOTHING else 2
            one = torch.full((known.shape[2],), nothing, dtype=torch.int8)
            one[tokens] = torch.tensor(values, dtype=torch.int8)
            known[k, LEARNED.index(part.kind)] = one
    known = known.to(truth.target.device)
    return torch.where(truth.ignore[:, None] & (known >= 0), 2, known)


def several_loss(scores: Factors, queries: Sequence[GroundingQuery]) -> Tensor:
    """Cross-entropy of whether a sentence means one object or several, a mean over those that mean any."""
    rows = [row for row, query in enumerate(queries) if query.targets]
    if not rows:
        return scores.several.sum() * 0
    truth = scores.several.new_tensor([float(len(queries[row].targets) > 1) for row in rows])
    return functional.binary_cross_entropy_with_logits(scores.several[rows], truth)


def factor_losses(
    scores: Factors, match: Tensor, queries: Sequence[GroundingQuery], truth: SceneTruth
) -> tuple[Tensor, Tensor]:
    """Losses of a scene's factors and of what its sentences state; zeros where no sentence has parts.

    Unary factors and the relation: cross-entropy, tokens that have it weighing as much together as those that
    have it not. The related object and the order: cross-entropy among all tokens, or those to choose from.
    """
    told = [k for k, row in enumerate(truth.rows.tolist()) if queries[row].parts]
    nothing = scores.logits.sum() * 0
    if not told:
        return nothing, nothing
    known = part_truth(match, queries, truth)[told]  # [K, P, N]
    rows = truth.rows[told]
    stated = (known >= 0).any(2)[:, : len(STATED)].float()
    spoken = functional.binary_cross_entropy_with_logits(scores.stated[rows], stated)
    single = torch.cat([scores.unary[rows].flatten(1, 2), scores.relation[rows, None]], dim=1)  # [K, 17, N]
    losses = _balanced(single, known[:, : ROLES * len(UNARY) + 1]).sum()
    order, anchor, choice = (known[:, LEARNED.index(name)] for name in ("order", "anchor", "filter"))
    losses = losses + _among(scores.anchor[rows], anchor == 1, anchor != 2)
    losses = losses + _among(scores.order[rows], order == 1, choice == 1)
    return losses / len(UNARY), spoken


def _balanced(logits: Tensor, known: Tensor) -> Tensor:
    """For each factor the mean loss of those that have it plus that of those that have it not: [P]."""
    loss = functional.binary_cross_entropy_with_logits(logits, (known == 1).float(), reduction="none")
    parts = []
    for value in (1, 0):
        chosen = (known == value).float()
        parts.append((loss * chosen).sum((0, 2)) / chosen.sum((0, 2)).clamp(min=1))
    return parts[0] + parts[1]


def _among(logits: Tensor, right: Tensor, allowed: Tensor) -> Tensor:
    """Cross-entropy of the right tokens among the allowed ones, a mean over queries that have both."""
    rows = (right & allowed).any(1)
    among = logits[rows].masked_fill(~allowed[rows], -1e4)
    loss = among.logsumexp(1) - among.masked_fill(~right[rows], -1e4).logsumexp(1)
    return loss.sum() / rows.sum().clamp(min=1)
