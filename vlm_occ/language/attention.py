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
class Bucket:
    """Some queries of a packed sequence."""

    place: Tensor  # long [R, l]: each query's tokens, counted from the first query's first; padded with 0
    valid: Tensor  # bool [R, l]


@dataclass(frozen=True)
class Turns:
    """Where the queries of one scene lie in a packed sequence, behind a prefix of `prefix` keys."""

    prefix: int
    total: int  # tokens of all queries
    buckets: tuple[Bucket, ...]
    order: Tensor  # long [total]: where each token stands among those of the buckets one after another


def turns_of(prefix: int, lengths: list[int], device: torch.device) -> Turns:
    """Queries of the given lengths, packed one after another."""
    length = torch.tensor(lengths)
    start = length.cumsum(0) - length
    buckets = []
    for rows in length.argsort(stable=True).split(BUCKET):
        column = torch.arange(int(length[rows].max()))
        valid = column < length[rows, None]  # [R, l]
        buckets.append(Bucket(((start[rows, None] + column) * valid).to(device), valid.to(device)))
    places = torch.cat([bucket.place[bucket.valid] for bucket in buckets])
    return Turns(prefix, sum(lengths), tuple(buckets), places.argsort())


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
    past, here = (past_key, past_value), (key[0, :, turns.prefix :], value[0, :, turns.prefix :])
    asked = [_queries(query[0, :, own:], past, here, bucket, scale) for bucket in turns.buckets]
    parts.append(torch.cat(asked)[turns.order])
    return torch.cat(parts)[None], None


def _queries(
    query: Tensor, past: tuple[Tensor, Tensor], own: tuple[Tensor, Tensor], bucket: Bucket, scale: float
) -> Tensor:
    """Attention [t, H, d] of a bucket's queries [H, T, d] over the prefix [G, P, d] and their past [G, T, d]."""
    groups, count, width = own[0].shape[0], *bucket.place.shape
    size = past[0].shape[1]
    rows = query[:, bucket.place]  # [H, R, l, d]
    heads = len(query) // groups
    rows = rows.unflatten(0, (groups, heads)).transpose(1, 2)  # [G, R, H/G, l, d]
    rows = rows.reshape(groups, count, heads * width, -1)
    key, value = (x[:, bucket.place] for x in own)  # [G, R, l, d]
    before = (rows.flatten(1, 2) @ past[0].transpose(-1, -2)).unflatten(1, (count, -1))  # [G, R, (H/G) l, P]
    here = rows @ key.transpose(-1, -2)  # [G, R, (H/G) l, l]
    causal = torch.ones(width, width, dtype=torch.bool, device=query.device).tril().repeat(heads, 1)
    here = here.masked_fill(~causal, torch.finfo(here.dtype).min)  # padding stands last: no token sees it
    weight = torch.cat([before, here], dim=-1).mul(scale).softmax(-1, dtype=torch.float32).to(query.dtype)
    seen = weight[..., :size].flatten(1, 2) @ past[1]  # [G, R (H/G) l, d]
    result = seen.unflatten(1, (count, -1)) + weight[..., size:] @ value
    result = result.unflatten(2, (heads, width)).permute(1, 3, 0, 2, 4).flatten(2, 3)  # [R, l, H, d]
    return result[bucket.valid]


def use_shared_prefix_attention(language_model: nn.Module) -> None:
    """Let a transformers language model compute attention by `shared_prefix_attention`."""
    from transformers import AttentionInterface

    AttentionInterface.register(ATTENTION, shared_prefix_attention)
    language_model.config._attn_implementation = ATTENTION  # type: ignore[union-attr]
