"""Where a sentence's object is in each picture, and how that guides 3D queries (GroundingOcc, eq. 6 to 8).

The paper leaves open, and we choose: attention within each level of the pyramid with shared weights (eq. 6
has one level's index); positions of eq. 7 embedded by two layers; centerness is the score by which top-k
samples; the fusion of eq. 8 is one transformer decoder layer.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional


@dataclass(frozen=True)
class ImageGrounding:
    """What the head says at N places: all cells of all levels, finest level first, row by row."""

    features: Tensor  # [B, N, D] X_2d of eq. 6
    places: Tensor  # [N, 2] x, y of the cells' middles in [0, 1] (eq. 7)
    sizes: tuple[tuple[int, int], ...]  # (rows, columns) of each level
    boxes: Tensor  # [B, N, 4] left, top, right, bottom in [0, 1]
    centres: Tensor  # [B, N, 2] x, y of the object's centre in [0, 1]
    centerness_logits: Tensor  # [B, N]


@dataclass(frozen=True)
class SampledFeatures:
    """The k best places of each picture: TopK(F) of eq. 8."""

    features: Tensor  # [B, k, D]
    places: Tensor  # [B, k, 2] x, y in [0, 1]
    centres: Tensor  # [B, k, 2] x, y of the predicted centre in [0, 1]
    scores: Tensor  # [B, k] in [0, 1]
    index: Tensor  # [B, k] into the N places


def cell_places(
    sizes: Sequence[tuple[int, int]],
    strides: Sequence[int],
    padded: tuple[int, int],
    *,
    device: torch.device | str = "cpu",
) -> Tensor:
    """Normalised middles [N, 2] (x, y) of the cells of all levels (eq. 7).

    `sizes` (h, w) and `strides` (pixels) of the levels, `padded` (H, W) of the image that they cover.
    """
    places = []
    for (rows, columns), stride in zip(sizes, strides, strict=True):
        y = (torch.arange(rows, device=device) + 0.5) * stride / padded[0]
        x = (torch.arange(columns, device=device) + 0.5) * stride / padded[1]
        grid_y, grid_x = torch.meshgrid(y, x, indexing="ij")
        places.append(torch.stack([grid_x, grid_y], dim=-1).flatten(0, 1))
    return torch.cat(places)


class _Embedding(nn.Sequential):
    """Two layers from coordinates to the model's width."""

    def __init__(self, coordinates: int, width: int) -> None:
        super().__init__(nn.Linear(coordinates, width), nn.GELU(), nn.Linear(width, width))


class _Attention(nn.Module):
    """Multi-head attention, residual, then LayerNorm; positions are added to queries and keys only."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        if width % heads:
            raise ValueError(f"width {width} does not divide into {heads} heads")
        self.query, self.key = nn.Linear(width, width), nn.Linear(width, width)
        self.value, self.out = nn.Linear(width, width), nn.Linear(width, width)
        self.norm, self.heads = nn.LayerNorm(width), heads

    def forward(
        self, x: Tensor, y: Tensor, x_position: Tensor, y_position: Tensor, mask: Tensor | None
    ) -> Tensor:
        """From `x` [B, N, D] to `y` [B, M, D] where `mask` bool [B, M] allows: [B, N, D]."""
        parts = (self.query(x + x_position), self.key(y + y_position), self.value(y))
        query, key, value = (p.unflatten(-1, (self.heads, -1)).transpose(1, 2) for p in parts)
        allowed = None if mask is None else mask[:, None, None]  # [B, 1, 1, M]
        attended = functional.scaled_dot_product_attention(query, key, value, attn_mask=allowed)
        return self.norm(x + self.out(attended.transpose(1, 2).flatten(2)))


class _FeedForward(nn.Module):
    """Two layers, residual, then LayerNorm."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, width))
        self.norm = nn.LayerNorm(width)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(x + self.layers(x))


class ImageGroundingHead(nn.Module):
    """Attention within each level and to the words, then box, centre and centerness at each cell."""

    def __init__(
        self, width: int, *, heads: int = 8, hidden: int = 512, strides: Sequence[int] = (8, 16, 32, 64)
    ):
        super().__init__()
        self.strides = tuple(strides)
        self.embed_place = _Embedding(2, width)
        self.self_attention = _Attention(width, heads)
        self.cross_attention = _Attention(width, heads)
        self.feed_forward = _FeedForward(width, hidden)
        self.convolution = nn.Sequential(
            nn.Conv2d(width, width, 3, padding=1, bias=False), nn.GroupNorm(8, width), nn.GELU()
        )
        self.output = nn.Conv2d(width, 7, 1)
        nn.init.zeros_(self.output.weight)
        with (
            torch.no_grad()
        ):  # a box of a tenth of the picture around the cell; centerness at the focal prior
            self.output.bias.copy_(  # type: ignore[union-attr]
                torch.tensor([math.log(math.expm1(0.05))] * 4 + [0.0, 0.0, -math.log(99.0)])
            )

    def forward(self, levels: Sequence[Tensor], text: Tensor, text_mask: Tensor) -> ImageGrounding:
        """Levels [B, D, h, w] (finest first, a picture an entry), words [B, L, D] and their mask [B, L]."""
        if len(levels) != len(self.strides):
            raise ValueError(
                f"{len(levels)} feature levels, expected {len(self.strides)} of strides {self.strides}"
            )
        sizes = [(level.shape[2], level.shape[3]) for level in levels]
        padded = (sizes[0][0] * self.strides[0], sizes[0][1] * self.strides[0])
        places = cell_places(sizes, self.strides, padded, device=text.device)
        features, outputs = [], []
        for level, where in zip(levels, places.split([h * w for h, w in sizes]), strict=True):
            x = self._attend(level.flatten(2).transpose(1, 2), where, text, text_mask)  # [B, h*w, D]
            maps = x.transpose(1, 2).unflatten(2, level.shape[2:])  # [B, D, h, w]
            features.append(x)
            outputs.append(self.output(self.convolution(maps)).flatten(2).transpose(1, 2))  # [B, h*w, 7]
        distances, offsets, centerness = torch.cat(outputs, dim=1).float().split([4, 2, 1], dim=-1)
        distances = functional.softplus(distances)  # left, right, top, bottom of eq. 6's text
        left, right, top, bottom = distances.unbind(-1)
        x, y = places[:, 0], places[:, 1]
        return ImageGrounding(
            features=torch.cat(features, dim=1),
            places=places,
            sizes=tuple(sizes),
            boxes=torch.stack([x - left, y - top, x + right, y + bottom], dim=-1),
            centres=places + offsets,
            centerness_logits=centerness[..., 0],
        )

    def _attend(self, x: Tensor, places: Tensor, text: Tensor, text_mask: Tensor) -> Tensor:
        """Eq. 6 on one level [B, h*w, D]."""
        position = self.embed_place(places.to(x.dtype)).expand_as(x)
        x = self.self_attention(x, x, position, position, None)
        x = self.cross_attention(x, text, position, torch.zeros_like(text), text_mask)
        return self.feed_forward(x)


def sample_best(grounding: ImageGrounding, number: int) -> SampledFeatures:
    """The `number` places of highest centerness of each picture; features times score, for its gradient."""
    scores, index = grounding.centerness_logits.sigmoid().topk(min(number, len(grounding.places)), dim=1)
    rows = index[..., None]  # [B, k, 1]
    features = grounding.features.gather(1, rows.expand(-1, -1, grounding.features.shape[-1]))
    return SampledFeatures(
        features=features * scores[..., None].to(features.dtype),
        places=grounding.places[index],
        centres=grounding.centres.gather(1, rows.expand(-1, -1, 2)),
        scores=scores,
        index=index,
    )


class QueryFusion(nn.Module):
    """Grounding queries look at the sampled features, which know their place in space (eq. 8)."""

    def __init__(self, width: int, *, heads: int = 8, hidden: int = 512) -> None:
        super().__init__()
        self.embed_point = _Embedding(3, width)
        self.self_attention = _Attention(width, heads)
        self.cross_attention = _Attention(width, heads)
        self.feed_forward = _FeedForward(width, hidden)

    def forward(
        self, content: Tensor, position: Tensor, sampled: Tensor, points: Tensor, mask: Tensor | None = None
    ) -> Tensor:
        """Fused queries [B, G, D].

        `content` Q_g and `position` Q_pos [B, G, D]; `sampled` [B, K, D] of all pictures of a scene at
        `points` [B, K, 3], in [0, 1] over the occupancy grid; `mask` bool [B, K]: the points that lie in
        it.
        """
        x = self.self_attention(content, content, position, position, None)
        where = self.embed_point(points.to(sampled.dtype))
        if mask is None:
            return self.feed_forward(self.cross_attention(x, sampled, position, where, None))
        # Where no point is left, attention would divide zero by zero; such scenes keep their queries.
        some = mask.any(dim=1)  # [B]
        attended = self.cross_attention(x, sampled, position, where, mask | ~some[:, None])
        return self.feed_forward(torch.where(some[:, None, None], attended, x))


def lift_places(
    places: Tensor, depth: Tensor, intrinsics: Tensor, ego_from_camera: Tensor, image_size: tuple[int, int]
) -> Tensor:
    """Ego points [B, k, 3] of places [B, k, 2] (x, y in [0, 1]) at depths [B, k] along the optical axis.

    One camera an entry: `intrinsics` [B, 3, 3] of the padded image of `image_size` (H, W),
    `ego_from_camera` [B, 4, 4].
    """
    height, width = image_size
    pixels = places.float() * places.new_tensor([width, height], dtype=torch.float32)
    rays = torch.cat([pixels, torch.ones_like(pixels[..., :1])], -1) @ torch.linalg.inv(intrinsics.float()).mT
    local = rays * depth.float()[..., None]  # [B, k, 3]
    pose = ego_from_camera.float()
    return local @ pose[:, :3, :3].mT + pose[:, None, :3, 3]
