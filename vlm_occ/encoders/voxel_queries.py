"""Voxel queries look into camera images by deformable attention and into the sentence (section IV-B b).

Deformable DETR's multi-scale sampling comes from transformers, in pure torch. A query is one cell of a coarse
grid over the scene; it looks at the images that show the middle of its cell.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from vlm_occ.encoders.camera import NEAREST
from vlm_occ.geometry import project
from vlm_occ.types import VoxelGrid
from vlm_occ.weights import hide_broken_torchvision

QueryShape = tuple[int, int, int]


def query_points(grid: VoxelGrid, shape: QueryShape, *, device: torch.device | str = "cpu") -> Tensor:
    """Middles [x * y * z, 3] in metres of the cells of a `shape` grid over the same space."""
    axes = [
        grid.origin[i]
        + (torch.arange(shape[i], device=device) + 0.5) * (grid.shape[i] * grid.voxel_size / shape[i])
        for i in range(3)
    ]
    return torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=-1).flatten(0, 2)


@dataclass(frozen=True)
class CameraHits:
    """Which of P queries each of V images shows, padded to the most of any."""

    query: Tensor  # long [V, n]
    place: Tensor  # [V, n, 2] x, y in [0, 1]
    valid: Tensor  # bool [V, n]


@torch.no_grad()
def camera_hits(
    points: Tensor, intrinsics: Tensor, ego_from_camera: Tensor, image_size: tuple[int, int]
) -> CameraHits:
    """The queries at ego `points` [P, 3] that images of `image_size` (H, W) with `intrinsics` [V, 3, 3] and
    `ego_from_camera` [V, 4, 4] show.
    """
    with torch.autocast(points.device.type, enabled=False):
        pixels, depth = project(points, intrinsics, ego_from_camera)  # [V, P, 2], [V, P]
        place = pixels / pixels.new_tensor([image_size[1], image_size[0]])
    visible = (depth > NEAREST) & ((place >= 0) & (place < 1)).all(-1)
    most = max(int(visible.sum(1).amax()), 1) if len(visible) else 1
    query = visible.int().argsort(dim=1, descending=True, stable=True)[:, :most]  # [V, n]
    valid = visible.gather(1, query)
    place = place.gather(1, query[..., None].expand(-1, -1, 2))
    return CameraHits(query, torch.where(valid[..., None], place, 0.5), valid)


class DeformableAttention(nn.Module):
    """Each query samples `points` places around its own on each level (Zhu et al. 2021, eq. 3)."""

    def __init__(self, width: int, *, heads: int = 8, levels: int = 4, points: int = 4) -> None:
        super().__init__()
        if width % heads:
            raise ValueError(f"width {width} does not divide into {heads} heads")
        self.splits = (heads, levels, points)
        self.offsets = nn.Linear(width, heads * levels * points * 2)
        self.weights = nn.Linear(width, heads * levels * points)
        self.value, self.out = nn.Linear(width, width), nn.Linear(width, width)
        nn.init.zeros_(self.offsets.weight)
        nn.init.zeros_(self.weights.weight)
        nn.init.zeros_(self.weights.bias)
        angle = torch.arange(heads) * (2 * math.pi / heads)  # each head looks in a direction of its own
        ring = torch.stack([angle.cos(), angle.sin()], dim=-1)
        ring = ring / ring.abs().amax(-1, keepdim=True)
        steps = torch.arange(1, points + 1)[:, None]
        start = (ring[:, None, None] * steps).expand(heads, levels, points, 2)
        with torch.no_grad():
            self.offsets.bias.copy_(start.reshape(-1))

    def forward(
        self,
        query: Tensor,
        place: Tensor,
        levels: Sequence[Tensor],
        projections: Sequence[nn.Conv2d] | None = None,
    ) -> Tensor:
        """From `query` [B, Q, D] at `place` [B, Q, 2] (x, y in [0, 1]) to `levels` [B, D, h, w].

        With `projections` (1x1 convolutions to D channels) levels [B, C_i, h, w] are looked at through them.
        """
        heads, count, points = self.splits
        if len(levels) != count:
            raise ValueError(f"{len(levels)} feature levels, this attention is built for {count}")
        sizes = [(level.shape[2], level.shape[3]) for level in levels]
        offsets = self.offsets(query).unflatten(-1, (heads, count, points, 2)).float()
        weights = self.weights(query).unflatten(-1, (heads, count * points)).softmax(-1)
        weights = weights.unflatten(-1, (count, points))
        extent = place.new_tensor([[w, h] for h, w in sizes])[:, None]  # [levels, 1, 2]
        locations = place[:, :, None, None, None] + offsets / extent  # [B, Q, heads, levels, points, 2]
        if query.shape[1] * heads * count * points < sum(h * w for h, w in sizes):
            return self.out(self._sampled_first(levels, projections, locations, weights))
        if projections is not None:
            levels = [project(level) for project, level in zip(projections, levels, strict=True)]
        value = torch.cat([level.flatten(2).transpose(1, 2) for level in levels], dim=1)  # [B, cells, D]
        value = self.value(value).unflatten(-1, (heads, -1))
        return self.out(sample_levels(value, sizes, locations, weights))

    def _sampled_first(
        self,
        levels: Sequence[Tensor],
        projections: Sequence[nn.Conv2d] | None,
        locations: Tensor,
        weights: Tensor,
    ) -> Tensor:
        """What `sample_levels` gives of the values, [B, Q, D], by projecting the samples and not the cells.

        Sampling is linear, so both are equal; places outside a map give zero and no bias. With few queries on
        a large map it is a small part of the work.
        """
        heads = weights.shape[2]
        places = locations.transpose(1, 2).flatten(1, 2) * 2 - 1  # [B, heads Q, levels, points, 2]
        shares = weights.transpose(1, 2).flatten(1, 2).float()  # [B, heads Q, levels, points]
        summed, inside = places.new_zeros(()), places.new_zeros(())
        with torch.autocast(places.device.type, enabled=False):
            for number, level in enumerate(levels):
                spots, share = places[:, :, number], shares[:, None, :, number]
                seen = functional.grid_sample(level.float(), spots, align_corners=False)
                seen = (seen * share).sum(-1)  # [B, C, heads Q]
                ones = torch.ones(1, 1, *level.shape[2:], device=level.device).expand(len(level), -1, -1, -1)
                share = (functional.grid_sample(ones, spots, align_corners=False) * share).sum(-1)
                if projections is not None:
                    project = projections[number]
                    assert project.bias is not None
                    seen = torch.einsum("bcq,dc->bdq", seen, project.weight[:, :, 0, 0])
                    seen = seen + project.bias[:, None] * share
                summed, inside = summed + seen, inside + share
            summed = summed.unflatten(2, (heads, -1))  # [B, D, heads, Q]
            weight = self.value.weight.unflatten(0, (heads, -1))  # [heads, d, D]
            bias = self.value.bias.unflatten(0, (heads, -1))
            value = torch.einsum("bchq,hdc->bqhd", summed, weight)
            value = value + bias * inside[:, 0].unflatten(1, (heads, -1)).transpose(1, 2)[..., None]
        return value.flatten(2)


def sample_levels(
    value: Tensor, sizes: Sequence[tuple[int, int]], locations: Tensor, weights: Tensor
) -> Tensor:
    """Weighted bilinear samples [B, Q, heads * d]; places outside a map give zero.

    `value` [B, cells of all levels, heads, d], `sizes` (h, w) of the levels, `locations`
    [B, Q, heads, levels, points, 2] (x, y in [0, 1]), `weights` [B, Q, heads, levels, points].
    """
    hide_broken_torchvision()
    from transformers.models.deformable_detr.modeling_deformable_detr import MultiScaleDeformableAttention

    shapes = torch.tensor(sizes, device=value.device)
    ends = shapes.prod(1).cumsum(0)
    starts = torch.cat([ends.new_zeros(1), ends[:-1]])
    with torch.autocast(value.device.type, enabled=False):
        return MultiScaleDeformableAttention()(
            value.float(), shapes, list(sizes), starts, locations.float(), weights.float(), 64
        )


class VoxelEncoderLayer(nn.Module):
    """Queries look into the images, then at the words, then think; LayerNorm after each."""

    def __init__(self, width: int, *, heads: int, levels: int, points: int, hidden: int) -> None:
        super().__init__()
        self.images = DeformableAttention(width, heads=heads, levels=levels, points=points)
        self.words = nn.MultiheadAttention(width, heads, batch_first=True)
        self.feed_forward = nn.Sequential(nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, width))
        self.norms = nn.ModuleList([nn.LayerNorm(width) for _ in range(3)])

    def forward(
        self,
        x: Tensor,
        position: Tensor,
        levels: Sequence[Tensor],
        hits: CameraHits,
        words: Tensor,
        mask: Tensor,
    ) -> Tensor:
        """Queries [N, P, D] of N sentences about one scene; see `VoxelEncoder.forward`."""
        x = self.norms[0](x + self._look(x + position, levels, hits))
        attended, _ = self.words(x + position, words, words, key_padding_mask=~mask, need_weights=False)
        x = self.norms[1](x + attended)
        return self.norms[2](x + self.feed_forward(x))

    def _look(self, query: Tensor, levels: Sequence[Tensor], hits: CameraHits) -> Tensor:
        """What the images say [N, P, D], averaged over the images that show a query; zero where none does."""
        sentences, number, width = query.shape
        images, most = hits.query.shape
        if not images:
            return torch.zeros_like(query)
        seen = query[:, hits.query]  # [N, V, n, D]
        place = hits.place.expand(sentences, -1, -1, -1)  # [N, V, n, 2]
        if len(levels[0]) == images:  # one pyramid for all sentences: ask all their queries at once
            seen = seen.transpose(0, 1).flatten(1, 2)  # [V, N n, D]
            answer = self.images(seen, place.transpose(0, 1).flatten(1, 2), levels)
            answer = answer.unflatten(1, (sentences, most)).transpose(0, 1)  # [N, V, n, D]
        else:
            answer = self.images(seen.flatten(0, 1), place.flatten(0, 1), levels)
            answer = answer.unflatten(0, (sentences, images))
        answer = answer * hits.valid[..., None]
        row = hits.query.flatten()  # [V n]
        total = answer.new_zeros(sentences, number, width).index_add(1, row, answer.flatten(1, 2))
        count = torch.zeros(number, device=row.device).index_add(0, row, hits.valid.flatten().float())
        return total / count.clamp(min=1)[:, None]


class VoxelEncoder(nn.Module):
    """Learned voxel queries, refined by layers of deformable attention to images and attention to words."""

    def __init__(
        self,
        width: int,
        shape: QueryShape,
        *,
        layers: int = 3,
        heads: int = 8,
        levels: int = 4,
        points: int = 4,
        hidden: int = 512,
    ) -> None:
        super().__init__()
        self.shape, self.recomputes = shape, False  # whether layers forget their activations
        self.content = nn.Parameter(torch.randn(math.prod(shape), width) * 0.02)
        self.axes = nn.ParameterList([nn.Parameter(torch.randn(size, width) * 0.3) for size in shape])
        self.layers = nn.ModuleList(
            [
                VoxelEncoderLayer(width, heads=heads, levels=levels, points=points, hidden=hidden)
                for _ in range(layers)
            ]
        )

    def position(self) -> Tensor:
        """Learned embedding [P, D] of each query's place: the sum of its row's, column's and height's."""
        x, y, z = self.axes
        return (x[:, None, None] + y[None, :, None] + z[None, None]).flatten(0, 2)

    def forward(
        self,
        levels: Sequence[Tensor],
        hits: CameraHits,
        words: Tensor,
        mask: Tensor,
        start: Tensor | None = None,
    ) -> Tensor:
        """Voxel features [N, P, D] for N sentences about the V images of one moment of one scene.

        `levels` [V, D, h, w], or [N * V, D, h, w] where the words changed them; `words` [N, L, D], `mask`
        bool [N, L]; `start` [P, D] is added to the learned queries.
        """
        content = self.content if start is None else self.content + start
        x = content.expand(len(words), -1, -1)
        for layer in self.layers:
            inputs = (x, self.position(), levels, hits, words, mask)
            x = checkpoint(layer, *inputs, use_reentrant=False) if self.recomputes else layer(*inputs)
        return x


class FrameFusion(nn.Module):
    """Voxel features of several moments, already in the reference frame, joined into one."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.score = nn.Linear(2 * width + 1, 1, bias=False)
        self.norm, self.mix = nn.LayerNorm(width), nn.Linear(width, width)

    def forward(self, frames: Tensor, age: Tensor) -> Tensor:
        """`frames` [N, T, P, D] (the reference first) of `age` [T] seconds: [N, P, D]."""
        agreement = frames * frames[:, :1]
        ages = age.to(frames.dtype)[:, None, None].expand(*frames.shape[:3], 1)
        weight = self.score(torch.cat([frames, agreement, ages], dim=-1)).softmax(1)  # [N, T, P, 1]
        return frames[:, 0] + self.mix(self.norm((weight * frames).sum(1)))
