"""A scene as the language model sees it: the tokens before any query, and their states."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import Tensor

if TYPE_CHECKING:
    from transformers import Cache


@dataclass(frozen=True)
class Prefix:
    """The tokens of a scene before any query, and the frames behind its vision tokens."""

    input_ids: Tensor  # [L]
    position_ids: Tensor  # [A, L]
    frames: dict[str, Tensor]  # inputs of the vision tower
    pose_index: Tensor  # [F] where the <|pose|> tokens stand; empty without them
    voxel_index: Tensor  # [N] where the <|voxel|> tokens stand
    next_position: int  # of a query's first token


@dataclass(frozen=True)
class PrefixState:
    """A prefix that has been through the model."""

    hidden: Tensor  # [L, D] final states
    cache: Cache
    next_position: int

    @property
    def length(self) -> int:
        """Tokens in the cache."""
        return self.hidden.shape[0]


@dataclass(frozen=True)
class JointStates:
    """Final states of one scene's prefix and of its queries."""

    prefix: Tensor  # [L, D]
    queries: list[Tensor]  # each [l, D]


def grown(cache: Cache) -> Cache:
    """A cache that starts as `cache` and can grow without changing it: growing makes new tensors."""
    other = copy.copy(cache)
    other.layers = [copy.copy(layer) for layer in cache.layers]
    return other
