"""The grounding head: queries over the bird's-eye view become one box each (eq. 12 and the text below it).

The paper gives three layers and a width; ours besides: reference points that move with each layer's box
(iterative refinement of Deformable DETR), attention to the words in every layer. They start on a regular
grid, or, on a trunk that was pretrained to find objects, at its candidates, whose boxes the layers correct.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, cast

import torch
from torch import Tensor, nn

from vlm_occ.types import TALK2OCC_CLASSES, VoxelGrid

MEAN_SIZE = (3.0, 1.7, 1.6)
"""Metres that a fresh head answers, between a person and a car."""
ABSENT = -20.0
"""Class logits where there is no candidate."""


class MapAttention(Protocol):
    """Attention from queries at places to feature maps; `vlm_occ.encoders.voxel_queries` has one."""

    def __call__(
        self, query: Tensor, place: Tensor, levels: Sequence[Tensor], projections: Sequence[nn.Conv2d], /
    ) -> Tensor: ...


@dataclass(frozen=True)
class QueryStarts:
    """Candidate objects at which a scene's G grounding queries start."""

    boxes: Tensor  # [G, 7] ego frame
    known: Tensor  # [G, K]: what is known of each, its score last; a score of 0: there is no candidate

    @property
    def present(self) -> Tensor:
        """Whether there is a candidate: bool [G]."""
        return self.known[:, -1] > 0


@dataclass(frozen=True)
class BoxProposals:
    """G boxes for each of N sentences, after every layer (the last one answers)."""

    boxes: tuple[Tensor, ...]  # [N, G, 7]
    class_logits: tuple[Tensor, ...]  # [N, G, 15]

    def best(self) -> tuple[Tensor, Tensor, Tensor]:
        """Box [N, 7], class [N] and score [N] of each sentence's surest query."""
        score, label = self.class_logits[-1].sigmoid().max(-1)  # [N, G]
        row = score.argmax(-1)  # [N]
        n = torch.arange(len(row), device=row.device)
        return self.boxes[-1][n, row], label[n, row], score[n, row]


def birds_eye(features: Tensor, voxels: Tensor, shape: tuple[int, int, int]) -> Tensor:
    """Eq. 12: features [N, M, D] averaged over height, [N, D, X, Y].

    `voxels` long [M]: flat indices (x, y, z) of a grid of `shape`; voxels left out count as zero.
    """
    columns = features.new_zeros(len(features), shape[0] * shape[1], features.shape[2])
    columns = columns.index_add(1, voxels // shape[2], features) / shape[2]
    return columns.transpose(1, 2).unflatten(2, shape[:2])


class _Layer(nn.Module):
    """Queries look at each other, at the words and at the map; LayerNorm after each."""

    def __init__(self, width: int, *, heads: int, hidden: int) -> None:
        super().__init__()
        self.queries = nn.MultiheadAttention(width, heads, batch_first=True)
        self.words = nn.MultiheadAttention(width, heads, batch_first=True)
        self.feed_forward = nn.Sequential(nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, width))
        self.norms = nn.ModuleList([nn.LayerNorm(width) for _ in range(4)])

    def forward(
        self,
        x: Tensor,
        position: Tensor,
        place: Tensor,
        maps: Sequence[Tensor],
        projections: Sequence[nn.Conv2d],
        attend: MapAttention,
        words: Tensor,
        mask: Tensor,
        absent: Tensor | None,
    ) -> Tensor:
        """Queries [N, G, D] at `place` [N, G, 2] of `maps` [N, C_i, h, w], read through `projections`;
        nobody looks at those that are `absent` [N, G].
        """
        query = x + position
        seen, _ = self.queries(query, query, x, key_padding_mask=absent, need_weights=False)
        x = self.norms[0](x + seen)
        attended, _ = self.words(x + position, words, words, key_padding_mask=~mask, need_weights=False)
        x = self.norms[1](x + attended)
        x = self.norms[2](x + attend(x + position, place, maps, projections))
        return self.norms[3](x + self.feed_forward(x))


class BoxDecoder(nn.Module):
    """Grounding queries, layer by layer, to boxes and classes."""

    def __init__(
        self,
        width: int,
        map_widths: Sequence[int],
        attentions: Sequence[nn.Module],
        *,
        queries: int = 100,
        heads: int = 8,
        hidden: int = 512,
        known: int = 0,
        grid: VoxelGrid | None = None,
    ) -> None:
        """`map_widths`: channels of the bird's-eye maps; `attentions`: one `MapAttention` a layer; `known`: K
        of the `QueryStarts` that it is given, 0 where its queries start on a grid.
        """
        super().__init__()
        self.grid = grid or VoxelGrid()
        if known:
            self.known = nn.Sequential(nn.Linear(known, hidden), nn.GELU(), nn.Linear(hidden, width))
        else:
            side = math.isqrt(queries)
            if side * side != queries:
                raise ValueError(f"{queries} grounding queries, expected a square number such as 64 or 100")
            middles = (torch.arange(side) + 0.5) / side
            self.places = nn.Parameter(torch.cartesian_prod(middles, middles))  # [G, 2] x, y over the grid
        self.content = nn.Parameter(torch.randn(1 if known else queries, width) * 0.02)
        self.position = nn.Sequential(nn.Linear(2, width), nn.GELU(), nn.Linear(width, width))
        self.sentence = nn.Linear(width, width)
        self.maps = nn.ModuleList([nn.Conv2d(channels, width, 1) for channels in map_widths])
        self.layers = nn.ModuleList([_Layer(width, heads=heads, hidden=hidden) for _ in attentions])
        self.attentions = nn.ModuleList(attentions)
        self.box = nn.ModuleList([_output(width, 8) for _ in attentions])
        self.label = nn.ModuleList([nn.Linear(width, len(TALK2OCC_CLASSES)) for _ in attentions])
        for box, label in zip(self.box, self.label, strict=True):
            nn.init.zeros_(box[2].weight)  # type: ignore[index]
            with torch.no_grad():
                mean = [0.8, *map(math.log, MEAN_SIZE)] if not known else [0.0] * 4
                start = [0.0, 0.0, *mean, 0.0, 1.0]
                box[2].bias.copy_(torch.tensor(start))  # type: ignore[index]
            nn.init.constant_(label.bias, -math.log(99.0))  # type: ignore[arg-type]

    def start(self, words: Tensor, mask: Tensor, starts: QueryStarts | None = None) -> tuple[Tensor, Tensor]:
        """Content Q_g (which knows the sentence) and position Q_pos of the queries, both [N, G, D]."""
        weight = mask[..., None].to(words.dtype)
        sentence = (words * weight).sum(1) / weight.sum(1).clamp(min=1)  # [N, D]
        content = self.content if starts is None else self.content + self.known(starts.known)
        content = content + self.sentence(sentence)[:, None]
        return content, self.position(self._places(starts)).expand_as(content)

    def _places(self, starts: QueryStarts | None) -> Tensor:
        """Where the queries start: shares x, y of the grid [G, 2]."""
        if starts is None:
            return self.places
        low, extent = self._area(starts.boxes)
        return ((starts.boxes[:, :2] - low) / extent).clamp(0, 1)

    def _area(self, like: Tensor) -> tuple[Tensor, Tensor]:
        """Lowest corner and extent [2] of the grid on the ground, metres."""
        low, shape = like.new_tensor(self.grid.origin[:2]), like.new_tensor(self.grid.shape[:2])
        return low, shape * self.grid.voxel_size

    def forward(
        self,
        content: Tensor,
        position: Tensor,
        maps: Sequence[Tensor],
        words: Tensor,
        mask: Tensor,
        starts: QueryStarts | None = None,
    ) -> BoxProposals:
        """Boxes of queries `content`, `position` [N, G, D]; `maps` [N, C_i, x_i, y_i], words [N, L, D]."""
        # A map's rows are x and its columns y, as in [N, C, X, Y]; places give the column first.
        projections = [cast(nn.Conv2d, project) for project in self.maps]
        low, extent = self._area(position)
        place = self._places(starts).expand(len(content), -1, -1)  # [N, G, 2]
        nothing = torch.tensor([[0.0, 0.0, 0.0, 1.0, 1.0, 1.0, 0.0]], device=position.device)
        base = nothing if starts is None else starts.boxes  # what a layer's output is added to
        absent = None if starts is None else ~starts.present.expand(len(content), -1)
        if absent is not None and bool(absent.all()):
            absent = None  # attention to nothing is not a number
        x, boxes, labels = content, [], []
        for layer, attend, box, label in zip(self.layers, self.attentions, self.box, self.label, strict=True):
            x = layer(x, position, place.flip(-1), maps, projections, attend, words, mask, absent)
            raw, logits = box(x).float(), label(x).float()  # [N, G, 8], [N, G, 15]
            centre = (low + place * extent if starts is None else base[:, :2]) + raw[..., :2]
            height = raw[..., 2:3] + base[:, 2:3]
            sizes = (raw[..., 3:6] + base[:, 3:6].clamp(min=0.05).log()).clamp(-3, 4).exp()
            yaw = torch.atan2(raw[..., 6], raw[..., 7]) + base[:, 6]
            if starts is not None:
                logits = logits.masked_fill(~starts.present[:, None], ABSENT)
            boxes.append(torch.cat([centre, height, sizes, yaw[..., None]], dim=-1))
            labels.append(logits)
            place = ((centre.detach() - low) / extent).clamp(0, 1)
        return BoxProposals(tuple(boxes), tuple(labels))


def _output(width: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(width, width), nn.GELU(), nn.Linear(width, outputs))
