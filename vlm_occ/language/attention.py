"""Attention of queries that share a prefix: no query looks at another, so none is computed that way."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

ATTENTION = "vlm_occ_shared_prefix"
"""The name under which transformers knows `shared_prefix_attention`."""


@dataclass(frozen=True)
class Turns:
    """Where the queries of one scene lie in a packed sequence, behind a prefix of `prefix` keys."""

    prefix: int
    place: Tensor  # long [R, l]: each query's tokens, counted from the first query's first; padded with 0
    valid: Tensor  # bool [R, l]

    @property
    def total(self) -> int:
        """Tokens of all queries."""
        return int(self.valid.sum())


def turns_of(prefix: int, lengths: list[int], device: torch.device) -> Turns:
    """Queries of the given lengths, packed one after another."""
    column = torch.arange(max(lengths), device=device)
    length = torch.tensor(lengths, device=device)[:, None]
    valid = column < length  # [R, l]
    place = (length.cumsum(0) - length + column) * valid
    return Turns(prefix, place, valid)


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
    parts.append(
        _queries(
            query[0, :, own:],
            (past_key, past_value),
            (key[0, :, turns.prefix :], value[0, :, turns.prefix :]),
            turns,
            scale,
        )
    )
    return torch.cat(parts)[None], None


def _queries(
    query: Tensor, past: tuple[Tensor, Tensor], own: tuple[Tensor, Tensor], turns: Turns, scale: float
) -> Tensor:
    """Attention [T, H, d] of queries [H, T, d] over the prefix [G, P, d] and their own past [G, T, d]."""
    groups, count, width = own[0].shape[0], *turns.place.shape
    rows = query[:, turns.place]  # [H, R, l, d]
    heads = len(query) // groups
    rows = rows.unflatten(0, (groups, heads)).transpose(1, 2)  # [G, R, H/G, l, d]
    rows = rows.reshape(groups, count, heads * width, -1)
    key, value = (x[:, turns.place] for x in own)  # [G, R, l, d]
    before = (rows.flatten(1, 2) @ past[0].transpose(-1, -2)).unflatten(1, (count, -1))  # [G, R, (H/G) l, P]
    here = rows @ key.transpose(-1, -2)  # [G, R, (H/G) l, l]
    causal = torch.ones(width, width, dtype=torch.bool, device=query.device).tril().repeat(heads, 1)
    here = here.masked_fill(~causal, torch.finfo(here.dtype).min)  # padding stands last: no token sees it
    weight = torch.cat([before, here], dim=-1).mul(scale).softmax(-1, dtype=torch.float32).to(query.dtype)
    seen = weight[..., : turns.prefix].flatten(1, 2) @ past[1]  # [G, R (H/G) l, d]
    result = seen.unflatten(1, (count, -1)) + weight[..., turns.prefix :] @ value
    result = result.unflatten(2, (heads, width)).permute(1, 3, 0, 2, 4).flatten(2, 3)  # [R, l, H, d]
    return result[turns.valid]


def use_shared_prefix_attention(language_model: nn.Module) -> None:
    """Let a transformers language model compute attention by `shared_prefix_attention`."""
    from transformers import AttentionInterface

    AttentionInterface.register(ATTENTION, shared_prefix_attention)
    language_model.config._attn_implementation = ATTENTION  # type: ignore[union-attr]
