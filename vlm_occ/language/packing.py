"""Several queries in one forward: packed sequences and the block mask that keeps queries apart."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

PREFIX, PADDING = 0, -1
"""Segments of a packed sequence; queries are numbered from 1."""


@dataclass(frozen=True)
class Packed:
    """A padded batch of packed sequences."""

    input_ids: Tensor  # [B, L]
    position_ids: Tensor  # [A, B, L], A axes of the rotary embedding
    segments: Tensor  # [B, L]: 0 prefix, 1 .. Q queries, -1 padding


def packed_queries(queries: list[Tensor], start: int, axes: int) -> tuple[Tensor, Tensor, Tensor]:
    """Ids [L], positions [A, L] and segments [L] of queries in a row; each starts at position `start`."""
    lengths = [len(query) for query in queries]
    device = queries[0].device
    positions = torch.cat([torch.arange(start, start + length, device=device) for length in lengths])
    counts = torch.tensor(lengths, device=device)
    segments = torch.repeat_interleave(torch.arange(1, len(queries) + 1, device=device), counts)
    return torch.cat(queries), positions.expand(axes, -1), segments


def padded(
    rows: list[tuple[Tensor, Tensor, Tensor]], *, pad: int, side: Literal["left", "right"] = "right"
) -> Packed:
    """One batch of rows (ids [L], positions [A, L], segments [L]) of different lengths."""
    longest = max(len(ids) for ids, _, _ in rows)
    ids_, positions_, segments_ = [], [], []
    for ids, positions, segments in rows:
        extra = longest - len(ids)
        shape = (extra, 0) if side == "left" else (0, extra)
        ids_.append(torch.nn.functional.pad(ids, shape, value=pad))
        positions_.append(torch.nn.functional.pad(positions, shape, value=0))
        segments_.append(torch.nn.functional.pad(segments, shape, value=PADDING))
    return Packed(torch.stack(ids_), torch.stack(positions_, dim=1), torch.stack(segments_))


def block_mask(segments: Tensor, *, rows: int, dtype: torch.dtype) -> Tensor:
    """Additive attention mask [B, 1, rows, L] of the last `rows` tokens of packed sequences [B, L].

    A token sees itself and what came before it in the prefix and in its own query. The mask is of floats: a
    boolean one is silently wrong with eager attention.
    """
    length = segments.shape[1]
    query, key = segments[:, length - rows :, None], segments[:, None, :]
    order = torch.arange(length, device=segments.device)
    before = order[None, :] <= order[length - rows :, None]  # [rows, L]
    itself = order[None, :] == order[length - rows :, None]  # padding sees itself, so that no row is empty
    allowed = ((key == PREFIX) | (key == query)) & (query != PADDING) & before | itself  # [B, rows, L]
    blocked = torch.zeros(allowed.shape, dtype=dtype, device=segments.device)
    return blocked.masked_fill_(~allowed, torch.finfo(dtype).min)[:, None]


def check_length(start: int, queries: list[Tensor], *, most: int) -> None:
    """Raise ValueError where a query from position `start` on would leave the `most` that a model knows."""
    longest = max((len(query) for query in queries), default=0)
    if start + longest > most:
        raise ValueError(
            f"the scene takes {start} positions and the query {longest}, together more than the {most} of "
            "the language model; use fewer frames or a shorter query"
        )
