"""Situated turns as the language model reads them, and where their words name something."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from vlm_occ.heads.anchored import mention_spans
from vlm_occ.language.backbones import Backbone
from vlm_occ.models.batch import Batch, SpatialTurn
from vlm_occ.situated import MENTIONS, NO_SITUATION, Situation


@dataclass(frozen=True)
class TurnIds:
    """A situated turn as the language model reads it."""

    ids: Tensor  # [l]
    position: int  # of `<|pos|>`; the situation's words are before it
    orientation: int
    ground: int  # of `<|ground|>`, after which the answer's words stand
    roles: Tensor | None = None  # long [position]: 1 + index in MENTIONS of each word, where it is known

    @property
    def read(self) -> Tensor:
        """Ids that tell where somebody stands; what follows can't be seen from there."""
        return self.ids[: self.orientation + 1]


def turn_ids(backbone: Backbone, turn: SpatialTurn) -> TurnIds:
    """Ids of a turn: situation, `<|pos|>`, `<|ori|>`, question, and its answer where it has one (3.3)."""
    ids, position, orientation = backbone.situation_ids(turn.situation, turn.question, turn.answer or None)
    ground = int((ids == backbone.token_ids.ground).nonzero()[0])
    roles = None
    if turn.parts is not None:
        roles = torch.zeros(position, dtype=torch.long)
        for place, (start, end) in enumerate(backbone.processor.word_spans(turn.situation)):
            for mention in turn.parts.mentions:
                if start < mention.end and end > mention.start:
                    roles[place] = 1 + MENTIONS.index(mention.role)
    return TurnIds(ids, position, orientation, ground, roles)


def batch_turns(backbone: Backbone, batch: Batch) -> tuple[tuple[TurnIds, ...], ...]:
    """The situated turns of each scene of a batch, none where it has none: B x Q."""
    return tuple(tuple(turn_ids(backbone, turn) for turn in scene) for scene in batch.turns) or tuple(
        () for _ in batch.frames
    )


def named_spans(turn: TurnIds, roles: Tensor) -> list[tuple[int, int] | None]:
    """Where a turn's words name each of MENTIONS: as it is known, else as `roles` [>= l, 1 + M] say."""
    if turn.roles is None:
        return mention_spans(roles[: turn.position])
    spans: list[tuple[int, int] | None] = []
    for role in range(1, 1 + len(MENTIONS)):
        places = (turn.roles == role).nonzero()[:, 0].tolist()
        spans.append((places[0], places[-1] + 1) if places else None)
    return spans


def situation_text(situation: str | Situation | None) -> str:
    """The words of a situation: its own, those it was found from, or its place in words."""
    if situation is None:
        return NO_SITUATION
    if isinstance(situation, str):
        return situation
    if situation.text:
        return situation.text
    x, y = situation.position.tolist()
    front = f"{abs(x):.1f} metres {'in front of' if x >= 0 else 'behind'} your car"
    side = f"{abs(y):.1f} metres to its {'left' if y >= 0 else 'right'}"
    turn = round(torch.rad2deg(torch.tensor(situation.yaw)).item())
    facing = f"turned by {abs(turn)} degrees to the {'left' if turn >= 0 else 'right'} of its heading"
    return f"I am standing {front} and {side}, {facing}"
