"""Words meet voxel tokens: a small decoder in which each query rewrites what the heads know of the tokens.

The states of `<|ground|>` for different sentences differ little, and a pointer that reads them alone learns
slowly what "left", "red" and "nearest" mean. Here every token looks at the sentence's words and at the other
tokens, with where they lie to one another (as in ViL3DRel, Chen et al. 2022), before the state points.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional


@dataclass(frozen=True)
class QueryStates:
    """What the heads read of Q queries."""

    ground: Tensor  # [Q, D] normalised states of <|ground|>
    words: Tensor  # [Q, l, E] states of the words up to <|ground|>, beside their embeddings; padded
    valid: Tensor  # bool [Q, l]


def read_queries(states: Sequence[Tensor], words: Sequence[Tensor], norm: nn.LayerNorm) -> QueryStates:
    """Queries with final states [>= l, D] and embeddings [l, D] of their words, of which <|ground|> is last."""
    if not states:
        none = norm.weight.new_zeros(0, 1, norm.normalized_shape[0])
        return QueryStates(none[:, 0], none.repeat(1, 1, 2), none[..., 0].bool())
    ground = torch.stack([state[len(row) - 1] for state, row in zip(states, words, strict=True)])
    both = [torch.cat([s[: len(w)].float(), w], dim=-1) for s, w in zip(states, words, strict=True)]
    length = torch.tensor([len(row) for row in both], device=ground.device)
    padded = nn.utils.rnn.pad_sequence(both, batch_first=True)  # [Q, l, 2 D]
    valid = torch.arange(padded.shape[1], device=ground.device) < length[:, None]
    return QueryStates(norm(ground.float()), padded, valid)


PAIR_CHANNELS = 7


def pair_features(boxes: Tensor) -> Tensor:
    """Where box j [N, 7] lies to box i: offset, distance, difference of range, direction: [N, N, 7]."""
    centre = boxes[:, :2]
    offset = centre[None] - centre[:, None]  # [N, N, 2]
    distance = offset.norm(dim=-1, keepdim=True)
    span = centre.norm(dim=-1)
    further = (span[None] - span[:, None])[..., None]
    direction = offset / distance.clamp(min=0.1)
    return torch.cat([offset / 20, distance.log1p() / 2, further / 20, further.sign(), direction], dim=-1)


class FusionLayer(nn.Module):
    """Tokens look at words, then at one another, then pass a small network; each with a skip connection."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norms = nn.ModuleList([nn.LayerNorm(width) for _ in range(3)])
        self.to_words = nn.Linear(width, width)
        self.words = nn.Linear(width, 2 * width)
        self.from_words = nn.Linear(width, width)
        self.tokens = nn.Linear(width, 3 * width)
        self.from_tokens = nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))

    def forward(self, x: Tensor, words: Tensor, hidden: Tensor, bias: Tensor) -> Tensor:
        """Tokens [Q, N, W] with words [Q, l, W], `hidden` bool [Q, l] padding, `bias` [heads, N, N]."""
        key, value = self.words(words).chunk(2, dim=-1)
        mask = torch.zeros_like(hidden, dtype=x.dtype).masked_fill(hidden, -1e4)[:, None, None]
        x = x + self.from_words(self._attend(self.to_words(self.norms[0](x)), key, value, mask))
        query, key, value = self.tokens(self.norms[1](x)).chunk(3, dim=-1)
        x = x + self.from_tokens(self._attend(query, key, value, bias))
        return x + self.mlp(self.norms[2](x))

    def _attend(self, query: Tensor, key: Tensor, value: Tensor, bias: Tensor) -> Tensor:
        """Attention [Q, N, W] of several heads, with `bias` added to its logits."""
        query, key, value = (t.unflatten(-1, (self.heads, -1)).transpose(1, 2) for t in (query, key, value))
        logits = query @ key.transpose(-1, -2) * query.shape[-1] ** -0.5  # [Q, heads, N, S]
        weight = (logits.float() + bias).softmax(-1).to(value.dtype)
        return (weight @ value).transpose(1, 2).flatten(2)


class FusionDecoder(nn.Module):
    """Token states for each query; with no layer they stay as they are."""

    def __init__(self, word_width: int, width: int, *, layers: int = 3, heads: int = 8) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(word_width)
        self.words = nn.Linear(word_width, width)
        self.pairs = nn.Sequential(nn.Linear(PAIR_CHANNELS, 64), nn.GELU(), nn.Linear(64, layers * heads))
        self.layers = nn.ModuleList([FusionLayer(width, heads) for _ in range(layers)])
        self.out = nn.LayerNorm(width)

    def forward(self, tokens: Tensor, boxes: Tensor, query: QueryStates) -> Tensor:
        """Tokens [N, W] of boxes [N, 7] to [Q, N, W]."""
        x = tokens.expand(query.ground.shape[0], -1, -1)  # `len` would fix the number in an export
        if not len(self.layers) or not x.numel():
            return x
        words = functional.gelu(self.words(self.norm(query.words)))  # [Q, l, W]
        bias = self.pairs(pair_features(boxes.detach())).permute(2, 0, 1).float()  # [layers * heads, N, N]
        for layer, part in zip(self.layers, bias.chunk(len(self.layers)), strict=True):
            x = layer(x, words, ~query.valid, part)
        return self.out(x).float()
