"""The words of a query, as the heads read them: what they are, and what the language model made of them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional


@dataclass(frozen=True)
class QueryStates:
    """What the heads read of Q queries."""

    ground: Tensor  # [Q, D] normalised states of <|ground|>
    states: Tensor  # [Q, l, D] final states of the words up to <|ground|>; padded
    embeddings: Tensor  # [Q, l, D] their embeddings
    valid: Tensor  # bool [Q, l]

    def rows(self, chosen: Sequence[int]) -> QueryStates:
        """Some of the queries."""
        index = torch.tensor(chosen, dtype=torch.long, device=self.ground.device)
        return QueryStates(self.ground[index], self.states[index], self.embeddings[index], self.valid[index])


def read_queries(states: Sequence[Tensor], words: Sequence[Tensor], norm: nn.LayerNorm) -> QueryStates:
    """Queries with final states [>= l, D] and embeddings [l, D] of their words; <|ground|> is the last."""
    if not states:
        none = norm.weight.new_zeros(0, 1, norm.normalized_shape[0])
        return QueryStates(none[:, 0], none, none, none[..., 0].bool())
    ground = torch.stack([state[len(row) - 1] for state, row in zip(states, words, strict=True)])
    read = [state[: len(row)].float() for state, row in zip(states, words, strict=True)]
    length = torch.tensor([len(row) for row in words], device=ground.device)
    padded = nn.utils.rnn.pad_sequence(read, batch_first=True)  # [Q, l, D]
    embeddings = nn.utils.rnn.pad_sequence([row.float() for row in words], batch_first=True)
    valid = torch.arange(padded.shape[1], device=ground.device) < length[:, None]
    return QueryStates(norm(ground.float()), padded, embeddings, valid)


class WordLayer(nn.Module):
    """One pre-norm transformer layer over the words of each query."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norms = nn.ModuleList([nn.LayerNorm(width) for _ in range(2)])
        self.attention = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))

    def forward(self, x: Tensor, hidden: Tensor) -> Tensor:
        """Words [Q, l, W] of which `hidden` [Q, 1, 1, l] is -1e4 at padding and 0 elsewhere."""
        parts = self.attention(self.norms[0](x)).chunk(3, dim=-1)
        query, key, value = (part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in parts)
        logits = (query @ key.transpose(-1, -2)).float() * query.shape[-1] ** -0.5 + hidden
        x = x + self.out((logits.softmax(-1).to(value.dtype) @ value).transpose(1, 2).flatten(2))
        return x + self.mlp(self.norms[1](x))


class WordEncoder(nn.Module):
    """Words in the heads' width, each knowing its neighbours.

    States and embeddings of the language model are normalised apart, since states are about twenty times as
    large. States start without effect: stage "pointer" trains on embeddings alone. In training the
    embeddings of `drop` of the words are left out, so that their states have to say what they mean.
    """

    drop: float = 0.0

    def __init__(self, hidden: int, width: int, *, layers: int = 2, heads: int = 8) -> None:
        super().__init__()
        self.state = nn.Sequential(nn.LayerNorm(hidden), nn.Linear(hidden, width, bias=False))
        self.embedding = nn.Sequential(nn.LayerNorm(hidden), nn.Linear(hidden, width))
        self.layers = nn.ModuleList([WordLayer(width, heads) for _ in range(layers)])
        self.out = nn.LayerNorm(width)
        nn.init.zeros_(self.state[1].weight)  # type: ignore[arg-type]

    def forward(self, query: QueryStates) -> Tensor:
        """Words [Q, l, width]."""
        embeddings = query.embeddings
        if self.training and self.drop > 0:
            embeddings = embeddings.masked_fill(left_out(query.valid, self.drop)[..., None], 0.0)
        x = self.embedding(embeddings) + self.state(query.states)
        x = x + word_positions(x)
        hidden = torch.zeros_like(query.valid, dtype=torch.float32).masked_fill(~query.valid, -1e4)
        for layer in self.layers:
            x = layer(x, hidden[:, None, None])
        return self.out(x)


def left_out(valid: Tensor, share: float) -> Tensor:
    """Which words of queries, bool [Q, l], are to be known by what the language model made of them alone.

    Pairs of neighbours, as unknown words come in phrases; of some queries nearly none, of others up to twice
    the share.
    """
    rate = share * torch.rand(len(valid), 1, device=valid.device)
    first = torch.rand(valid.shape, device=valid.device) < rate
    return first | functional.pad(first[:, :-1], (1, 0))


def word_positions(words: Tensor) -> Tensor:
    """Sines and cosines of the places of words [Q, l, W] in their query: [l, W]."""
    half = words.shape[-1] // 2
    place = torch.arange(words.shape[1], device=words.device)[:, None]
    rates = torch.exp(torch.arange(half, device=words.device) * (-math.log(100.0) / half))
    return torch.cat([(place * rates).sin(), (place * rates).cos()], dim=-1).to(words.dtype)


class WordPool(nn.Module):
    """Vectors of a query, each read from the words that it is about by attention from a learned seed."""

    def __init__(self, width: int, seeds: int) -> None:
        super().__init__()
        self.seeds = nn.Parameter(0.5 * torch.randn(seeds, width))
        self.key = nn.Linear(width, width)
        self.value = nn.Linear(width, width)
        self.norm = nn.LayerNorm(width)

    def forward(self, words: Tensor, valid: Tensor) -> Tensor:
        """Words [Q, l, W], `valid` bool [Q, l], to vectors [Q, seeds, W]."""
        logits = self.key(words) @ self.seeds.T / math.sqrt(words.shape[-1])  # [Q, l, seeds]
        weight = logits.masked_fill(~valid[..., None], -1e4).softmax(1)
        return self.norm(weight.transpose(1, 2) @ self.value(words))
