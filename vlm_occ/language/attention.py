"""Attention of queries that share a prefix: no query looks at another, so none is computed that way."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

ATTENTION = "vlm_occ_shared_prefix"
"""The name under which transformers knows `shared_prefix_attention`."""


BUCKET = 8
"""Queries of about one length that are computed together: padding costs more than a few calls."""


@dataclass(frozen=True)
class Turns:
    """Where the queries of one scene lie in a packed sequence of T tokens, behind a prefix of `prefix` keys.

    Queries of about one length form a bucket, padded to its longest: [R, l] tokens, P in all buckets.
    """

    prefix: int
    total: int  # T
    shapes: tuple[tuple[int, int], ...]  # R, l of each bucket
    place: Tensor  # long [P]: the packed token of each bucketed one; 0 where it is padding
    back: Tensor  # long [T]: the bucketed token of each packed one


def turns_of(prefix: int, lengths: list[int], device: torch.device) -> Turns:
    """Queries of the given lengths, packed one after another."""
    length = torch.tensor(lengths)
    start = length.cumsum(0) - length
    shapes, places, valid = [], [], []
    for rows in length.argsort(stable=True).split(BUCKET):
        column = torch.arange(int(length[rows].max()))
        inside = column < length[rows, None]  # [R, l]
        shapes.append((len(rows), len(column)))
        places.append(((start[rows, None] + column) * inside).flatten())
        valid.append(inside.flatten())
    place, filled = torch.cat(places), torch.cat(valid).nonzero()[:, 0]
    back = filled[place[filled].argsort()]
    return Turns(prefix, sum(lengths), tuple(shapes), place.to(device), back.to(device))


def shared_prefix_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    turns: Turns | None = None,
    scaling: float | None = None,
    dropout: float = 0.0,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Attention [B, L, H, d] of queries [B, H, L, d] over keys and values [B, G, S, d] for transformers.

    With `turns` (B = 1, no mask) the last tokens are packed queries: each sees the prefix's keys and its own
    past. That is dense attention under a block mask without the blocks that the mask removes: with 32 queries
    on a short prefix a tenth of the work. Without `turns` it is torch's attention under the mask.
    """
    if turns is None:
        from transformers.integrations.sdpa_attention import sdpa_attention_forward

        return sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **kwargs
        )
    scale = scaling if scaling is not None else query.shape[-1] ** -0.5
    own = query.shape[2] - turns.total  # the prefix's own tokens, none where it is cached
    past_key, past_value = key[0, :, : turns.prefix], value[0, :, : turns.prefix]  # [G, P, d]
    parts = []
    if own:
        first = functional.scaled_dot_product_attention(
            query[:, :, :own], past_key[None], past_value[None], is_causal=True, scale=scale, enable_gqa=True
        )
        parts.append(first[0].transpose(0, 1))  # [P, H, d]
    queries, keys, values = (_in_buckets(x, turns) for x in (query, key, value))
    asked = [
        _bucket(q, k, v, (past_key, past_value), scale) for q, k, v in zip(queries, keys, values, strict=True)
    ]
    parts.append(torch.cat(asked).index_select(0, turns.back))
    return torch.cat(parts)[None], None


def _in_buckets(x: Tensor, turns: Turns) -> list[Tensor]:
    """The last tokens of [1, H, L, d], bucket by bucket: each [R, l, H, d]."""
    rows = x[0].transpose(0, 1).index_select(0, turns.place + x.shape[2] - turns.total)
    parts = rows.split([count * width for count, width in turns.shapes])
    return [part.unflatten(0, shape) for part, shape in zip(parts, turns.shapes, strict=True)]


def _bucket(query: Tensor, key: Tensor, value: Tensor, past: tuple[Tensor, Tensor], scale: float) -> Tensor:
    """Attention [R l, H, d] of queries [R, l, H, d] over a prefix [G, S, d] and own past [R, l, G, d]."""
    count, width, groups = key.shape[:3]
    heads = query.shape[2] // groups
    rows = query.unflatten(2, (groups, heads)).permute(2, 0, 3, 1, 4)  # [G, R, H/G, l, d]
    rows = rows.reshape(groups, count, heads * width, -1)
    key, value = (x.permute(2, 0, 1, 3) for x in (key, value))  # [G, R, l, d]
    before = (rows.flatten(1, 2) @ past[0].transpose(-1, -2)).unflatten(1, (count, -1))  # [G, R, (H/G) l, S]
    here = rows @ key.transpose(-1, -2)  # [G, R, (H/G) l, l]
    causal = torch.ones(width, width, dtype=torch.bool, device=query.device).tril().repeat(heads, 1)
    here = here.masked_fill(~causal, torch.finfo(here.dtype).min)  # padding stands last: no token sees it
    weight = torch.cat([before, here], dim=-1).mul(scale).softmax(-1, dtype=torch.float32).to(query.dtype)
    size = past[0].shape[1]
    seen = weight[..., :size].flatten(1, 2) @ past[1]  # [G, R (H/G) l, d]
    result = seen.unflatten(1, (count, -1)) + weight[..., size:] @ value
    return result.unflatten(2, (heads, width)).permute(1, 3, 0, 2, 4).flatten(2, 3).flatten(0, 1)


def use_shared_prefix_attention(language_model: nn.Module) -> None:
    """Let a transformers language model compute attention by `shared_prefix_attention`."""
    from transformers import AttentionInterface

    AttentionInterface.register(ATTENTION, shared_prefix_attention)
    language_model.config._attn_implementation = ATTENTION  # type: ignore[union-attr]
