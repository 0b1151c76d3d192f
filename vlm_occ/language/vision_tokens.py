"""Where the vision tokens of a prefix stand, frame by frame, and how they lie in their pictures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from vlm_occ.language.prefixes import Prefix

if TYPE_CHECKING:
    from vlm_occ.language.backbones import Backbone


@dataclass(frozen=True)
class VisionTokens:
    """The tokens that stand for a cell of a picture; newlines and other marks are none."""

    index: Tensor  # long [N] places in the prefix, frame by frame, row by row
    grids: tuple[tuple[int, int], ...]  # rows and columns of each frame's tokens, which cover the picture


def vision_tokens(backbone: Backbone, prefix: Prefix) -> VisionTokens:
    """The vision tokens of a prefix; none where it has no frames."""
    family = backbone._family
    places = (prefix.input_ids == family.vision_id).nonzero()[:, 0]  # [N']
    chosen, grids, start = [], [], 0
    for pieces in family.frame_pieces(prefix.frames) if prefix.frames else []:
        for piece in pieces:
            count = sum(index == family.vision_id for index in piece.ids)
            if piece.grid is not None and count:
                rows, columns = piece.grid
                cells = torch.arange(start, start + count).reshape(rows, -1)  # one more a row: its newline
                if cells.shape[1] not in (columns, columns + 1):
                    raise ValueError(f"{count} vision tokens for a picture of {rows} x {columns} tokens")
                chosen.append(cells[:, :columns].flatten())
                grids.append((rows, columns))
            start += count
    index = torch.cat(chosen) if chosen else torch.zeros(0, dtype=torch.long)
    return VisionTokens(places[index.to(places.device)], tuple(grids))


def added_to_vision(
    backbone: Backbone, prefixes: Sequence[Prefix], rows: Tensor, added: Sequence[Tensor | None]
) -> Tensor:
    """The vision features `rows` [N', D] of a batch of prefixes, with `added` [N, D] on each one's tokens.

    Newlines and other marks get nothing. ValueError where a scene's numbers of rows and of tokens differ.
    """
    start = 0
    for prefix, own in zip(prefixes, added, strict=True):
        places = (prefix.input_ids == backbone._family.vision_id).nonzero()[:, 0]
        if own is not None:
            index = vision_tokens(backbone, prefix).index
            if len(index) != len(own):
                raise ValueError(f"{len(own)} rows are added to {len(index)} vision tokens; expected as many")
            order = start + torch.searchsorted(places, index)
            rows = rows.float().index_add(0, order.to(rows.device), own.to(rows.device).float())
        start += len(places)
    return rows
