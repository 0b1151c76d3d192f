"""Transformer blocks of CUT3R; attribute names are the published state-dict keys."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

NORM_EPS = 1e-6
"""Of every LayerNorm."""


def rotate_by_position(x: Tensor, positions: Tensor, *, base: float = 100.0) -> Tensor:
    """Rotary position embedding over rows and columns.

    `x` [B, heads, N, E] with E divisible by 4, `positions` [N, 2] (row, column; any real number, -1
    included: the angles are computed, not looked up). The first half of a head turns by the row, the second
    by the column.
    """
    quarter = x.shape[-1] // 4
    exponent = torch.arange(quarter, device=x.device, dtype=torch.float32) / quarter
    angle = positions.to(x.device, torch.float32)[:, :, None] * base**-exponent  # [N, 2, E/4]
    cos, sin = angle.cos(), angle.sin()
    u, v = x.unflatten(-1, (2, 2, quarter)).unbind(-2)  # [B, heads, N, 2, E/4] each
    return torch.stack([u * cos - v * sin, v * cos + u * sin], dim=-2).flatten(-3).to(x.dtype)


def _split_heads(x: Tensor, heads: int) -> Tensor:
    return x.unflatten(-1, (heads, -1)).transpose(1, 2)  # [B, N, D] to [B, heads, N, E]


def _attend(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    return functional.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2)  # [B, N, D]


class SelfAttention(nn.Module):
    """Multi-head self-attention with rotary positions (none: without)."""

    def __init__(self, width: int, heads: int, *, half_rope: bool = False) -> None:
        super().__init__()
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)
        self.heads, self.half_rope = heads, half_rope

    def forward(self, x: Tensor, positions: Tensor | None) -> Tensor:
        """`x` [B, N, D], `positions` [N, 2]: [B, N, D]."""
        query, key, value = (_split_heads(part, self.heads) for part in self.qkv(x).chunk(3, dim=-1))
        if positions is not None:
            dtype = query.dtype
            if self.half_rope:
                query, key = query.half(), key.half()
            query = rotate_by_position(query, positions).to(dtype)
            key = rotate_by_position(key, positions).to(dtype)
        return self.proj(_attend(query, key, value))


class CrossAttention(nn.Module):
    """Multi-head attention from x to y with rotary positions of both (none: without)."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.projq = nn.Linear(width, width)
        self.projk = nn.Linear(width, width)
        self.projv = nn.Linear(width, width)
        self.proj = nn.Linear(width, width)
        self.heads = heads

    def forward(self, x: Tensor, y: Tensor, positions: tuple[Tensor, Tensor] | None) -> Tensor:
        """`x` [B, N, D], `y` [B, M, D], their positions [N, 2] and [M, 2]: [B, N, D]."""
        query = _split_heads(self.projq(x), self.heads)
        key, value = _split_heads(self.projk(y), self.heads), _split_heads(self.projv(y), self.heads)
        if positions is not None:
            query, key = rotate_by_position(query, positions[0]), rotate_by_position(key, positions[1])
        return self.proj(_attend(query, key, value))


class Mlp(nn.Module):
    """Two linear layers with a GELU between them."""

    def __init__(self, width: int, hidden: int, width_out: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, hidden)
        self.fc2 = nn.Linear(hidden, width_out)

    def forward(self, x: Tensor) -> Tensor:
        """[..., width] to [..., width_out]."""
        return self.fc2(functional.gelu(self.fc1(x)))


class EncoderBlock(nn.Module):
    """A pre-norm transformer block."""

    def __init__(self, width: int, heads: int, *, half_rope: bool) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=NORM_EPS)
        self.attn = SelfAttention(width, heads, half_rope=half_rope)
        self.norm2 = nn.LayerNorm(width, eps=NORM_EPS)
        self.mlp = Mlp(width, 4 * width, width)

    def forward(self, x: Tensor, positions: Tensor) -> Tensor:
        """`x` [B, N, D], `positions` [N, 2]: [B, N, D]."""
        x = x + self.attn(self.norm1(x), positions)
        return x + self.mlp(self.norm2(x))


class DecoderBlock(nn.Module):
    """A pre-norm block that looks at itself and then at another sequence."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=NORM_EPS)
        self.attn = SelfAttention(width, heads)
        self.norm2 = nn.LayerNorm(width, eps=NORM_EPS)
        self.norm_y = nn.LayerNorm(width, eps=NORM_EPS)
        self.cross_attn = CrossAttention(width, heads)
        self.norm3 = nn.LayerNorm(width, eps=NORM_EPS)
        self.mlp = Mlp(width, 4 * width, width)

    def forward(self, x: Tensor, y: Tensor, positions: tuple[Tensor, Tensor] | None = None) -> Tensor:
        """`x` [B, N, D], `y` [B, M, D], their positions: [B, N, D]."""
        x = x + self.attn(self.norm1(x), None if positions is None else positions[0])
        x = x + self.cross_attn(self.norm2(x), self.norm_y(y), positions)
        return x + self.mlp(self.norm3(x))
