"""Boxes: the dense objectness and box maps, and the box of a grounded object."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from vlm_occ.geometry import adjusted
from vlm_occ.types import COLOURS, TALK2OCC_CLASSES


class CentreHead(nn.Module):
    """Heat map of object centres and a box at every cell of the fine bird's-eye view.

    Heat-map logits start at the focal loss's prior of 0.01.
    """

    def __init__(self, channels: int, *, regression_channels: int = 10) -> None:
        super().__init__()
        self.shared = nn.Sequential(
            nn.Conv2d(channels, channels, 3, padding=1, bias=False), nn.GroupNorm(8, channels), nn.GELU()
        )
        self.heatmap = nn.Conv2d(channels, len(TALK2OCC_CLASSES), 1)
        self.regression = nn.Conv2d(channels, regression_channels, 1)
        nn.init.constant_(self.heatmap.bias, -math.log(99.0))  # type: ignore[arg-type]

    def forward(self, fine: Tensor) -> tuple[Tensor, Tensor]:
        """Features [B, F, X, Y] to heat-map logits [B, 15, X, Y] and regression [B, 10, X, Y]."""
        shared = self.shared(fine)
        return self.heatmap(shared).float(), self.regression(shared).float()


class AttributeHead(nn.Module):
    """Class and colour of a candidate: auxiliary supervision where labels exist."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.splits = (len(TALK2OCC_CLASSES), len(COLOURS))
        self.linear = nn.Linear(width, sum(self.splits))

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """Token features [N, W] to logits of class [N, 15] and colour [N, 9]."""
        labels, colours = self.linear(features).float().split(self.splits, dim=-1)
        return labels, colours


class TokenState(nn.Module):
    """What the heads know of a voxel token: its final state in the language model, its feature, what it is,
    and what the refiner saw in its box.

    Features start without effect, as in `VoxelProjector`, and so do codes, and states: stage "pointer" has
    none.
    """

    def __init__(
        self, state_width: int, feature_width: int, known_width: int, code_width: int, width: int
    ) -> None:
        super().__init__()
        self.state = nn.Sequential(nn.LayerNorm(state_width), nn.Linear(state_width, width))
        self.feature = nn.Linear(feature_width, width, bias=False)
        self.known = nn.Linear(known_width, width)
        self.code = nn.Linear(code_width, width, bias=False)
        self.norm = nn.LayerNorm(width)
        nn.init.zeros_(self.feature.weight)
        nn.init.zeros_(self.code.weight)
        nn.init.zeros_(self.state[1].weight)  # type: ignore[arg-type]

    def forward(self, states: Tensor, features: Tensor, known: Tensor, code: Tensor) -> Tensor:
        """States [N, D], features [N, F], attributes with positions [N, P] and codes [N, C] to [N, width]."""
        own = self.feature(features.float()) + self.known(known.float()) + self.code(code.float())
        return self.norm(self.state(states.float()) + own)


class JointState(nn.Module):
    """A grounding state, a token's state and what the refiner saw in its box, in the heads' width.

    What it saw starts without effect.
    """

    def __init__(self, state_width: int, token_width: int, code_width: int, width: int) -> None:
        super().__init__()
        self.state = nn.Linear(state_width, width)
        self.token = nn.Linear(token_width, width)
        self.code = nn.Linear(code_width, width, bias=False)
        nn.init.zeros_(self.code.weight)

    def forward(self, state: Tensor, token: Tensor, code: Tensor) -> Tensor:
        """States [K, D], tokens [K, W] and codes [K, C] of K grounded objects: [K, width]."""
        return functional.gelu(
            self.state(state.float()) + self.token(token.float()) + self.code(code.float())
        )


class BoxHead(nn.Module):
    """Refines a token's box: offset in metres along its axes, factors of the sizes, a turn of the heading
    (ARCHITECTURE 1 e).
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.mlp = nn.Sequential(nn.Linear(width, width), nn.GELU(), nn.Linear(width, 8))
        nn.init.zeros_(self.mlp[2].weight)  # type: ignore[arg-type]
        nn.init.zeros_(self.mlp[2].bias)  # type: ignore[arg-type]

    def forward(self, joint: Tensor, token_box: Tensor) -> Tensor:
        """Joint states [K, width] and the tokens' boxes [K, 7] to boxes [K, 7]; starts as the identity."""
        delta = self.mlp(joint).float()
        sine = torch.sin(token_box[:, 6]) + delta[:, 6]
        cosine = torch.cos(token_box[:, 6]) + delta[:, 7]
        return torch.cat([*adjusted(token_box, delta), torch.atan2(sine, cosine)[:, None]], dim=-1)


class PointerHead(nn.Module):
    """Scores every voxel token for a grounding state by a dot product (ARCHITECTURE 1 d).

    It starts at 0, as what it adds to: the factors of `vlm_occ.heads.factors` learn faster.
    """

    def __init__(self, state_width: int, token_width: int, width: int) -> None:
        super().__init__()
        self.query = nn.Linear(state_width, width)
        self.key = nn.Linear(token_width, width)
        nn.init.zeros_(self.query.weight)
        nn.init.zeros_(self.query.bias)

    def forward(self, states: Tensor, tokens: Tensor) -> Tensor:
        """Logits [Q, N] of grounding states [Q, D] against token states [N, W]."""
        query, key = self.query(states), self.key(tokens)
        return query @ key.T / math.sqrt(query.shape[-1])
