"""Camera features: image preparation, a feature pyramid, and features at 3D points seen by several cameras.

Pixel coordinates are continuous: pixel (i, j) covers [i, i + 1) x [j, j + 1), so resizing scales intrinsics.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.autograd.function import FunctionCtx
from torch.nn import functional

from vlm_occ.geometry import project
from vlm_occ.types import VoxelGrid

if TYPE_CHECKING:
    from vlm_occ.encoders.inputs import SceneInputs

COARSE_GRID = VoxelGrid(voxel_size=0.8, shape=(100, 100, 8))
"""The grid of the volume in which camera and LiDAR features meet."""

NEAREST = 0.5
"""Metres in front of a camera below which a point does not count as seen."""


def prepare_images(images: Tensor, intrinsics: Tensor, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Images [F, 3, h, w] in 0..1 of `size` (h, w) and their intrinsics [F, 3, 3].

    `images` uint8 [F, 3, H, W] are resized to the width w; then rows are cut off (or black ones added) at the
    top, where the sky is. Images of the right size stay as they are.
    """
    height, width = size
    if not len(images):
        return torch.zeros(0, 3, height, width, device=images.device), intrinsics
    old_height, old_width = images.shape[-2:]
    resized_height = round(old_height * width / old_width)
    if (resized_height, width) != (old_height, old_width):
        if images.device.type != "cpu":
            images = images.float()  # only the CPU resizes bytes
        images = functional.interpolate(
            images, size=(resized_height, width), mode="bilinear", antialias=True, align_corners=False
        )
    extra = height - resized_height  # black rows to add at the top; negative: rows to cut off
    images = functional.pad(images, (0, 0, extra, 0))  # [F, 3, h, w]
    scale = intrinsics.new_tensor([width / old_width, resized_height / old_height, 1.0])[:, None]
    shift = intrinsics.new_tensor([0.0, extra, 0.0])[:, None]
    return images.float() / 255, scale * intrinsics + shift * intrinsics[:, 2:]  # autocast rounds matmuls


class FeaturePyramid(nn.Module):
    """One map at stride 8 from three (strides 8, 16, 32), summed top down (after Lin et al. 2017)."""

    def __init__(self, channels: tuple[int, int, int], width: int = 64) -> None:
        super().__init__()
        self.lateral = nn.ModuleList([nn.Conv2d(c, width, 1) for c in channels])
        self.smooth = nn.ModuleList([nn.Conv2d(width, width, 3, padding=1, bias=False) for _ in channels])
        self.norm = nn.ModuleList([nn.GroupNorm(8, width) for _ in channels])

    def forward(self, maps: list[Tensor]) -> Tensor:
        """[F, width, H/8, W/8] of maps [F, C_i, H/s, W/s], finest first."""
        result: Tensor | None = None
        for level in reversed(range(len(self.lateral))):
            here = self.lateral[level](maps[level])
            if result is not None:
                here = here + functional.interpolate(result, size=here.shape[-2:], mode="nearest")
            result = functional.gelu(self.norm[level](self.smooth[level](here)))
        assert result is not None
        return result


PIXEL_CHANNELS = 12
"""Channels of `pixel_means`."""


def pixel_means(images: Tensor) -> Tensor:
    """Plain colours [F, 12, H/8, W/8] of images [F, 3, H, W] in 0..1: means of 4x4 pixels, about -2 to 2.

    A pretrained network forgets how red a red is; sentences ask for it.
    """
    pooled = functional.avg_pool2d((images.float() - 0.5) / 0.25, 4)
    count, colours, height, width = pooled.shape
    cells = pooled.reshape(count, colours, height // 2, 2, width // 2, 2)  # pixel_unshuffle fails for F = 0
    return cells.permute(0, 1, 3, 5, 2, 4).reshape(count, 4 * colours, height // 2, width // 2)


class _WeightedRows(torch.autograd.Function):
    """Rows of a table summed with fixed weights in segments: a sparse matrix product, also backward."""

    @staticmethod
    def forward(ctx: FunctionCtx, table: Tensor, row: Tensor, begin: Tensor, weight: Tensor) -> Tensor:
        """Sums [P, C] of `table` [R, C] rows `row` [Q] times `weight` [Q]; segment p begins at begin[p]."""
        ctx.save_for_backward(row, begin, weight)  # type: ignore[attr-defined]
        ctx.rows = len(table)  # type: ignore[attr-defined]
        return functional.embedding_bag(row, table, begin, mode="sum", per_sample_weights=weight)

    @staticmethod
    def backward(ctx: FunctionCtx, *gradients: Tensor) -> tuple[Tensor, None, None, None]:
        """The gradient of the table [R, C]: the transposed product, as segments sorted by row."""
        row, begin, weight = ctx.saved_tensors  # type: ignore[attr-defined]
        rows: int = ctx.rows  # type: ignore[attr-defined]
        ends = torch.cat([begin[1:], begin.new_tensor([len(row)])])
        segment = torch.repeat_interleave(ends - begin)  # [Q]
        order = torch.argsort(row, stable=True)
        count = torch.bincount(row, minlength=rows)
        gradient = functional.embedding_bag(
            segment[order],
            gradients[0].contiguous(),
            count.cumsum(0) - count,
            mode="sum",
            per_sample_weights=weight[order],
        )
        return gradient, None, None, None


def sample_cameras(
    features: Tensor,
    points: Tensor,
    intrinsics: Tensor,
    ego_from_camera: Tensor,
    image_size: tuple[int, int],
) -> tuple[Tensor, Tensor]:
    """Features [P, C] at ego points [P, 3] and by how many cameras each is seen [P] (float); 0 where by none.

    `features` [V, C, h, w] belong to images of `image_size` (H, W) with `intrinsics` [V, 3, 3] and poses
    `ego_from_camera` [V, 4, 4]. Bilinear, edges repeated, averaged over the cameras that see a point.
    Gradients reach the features only.
    """
    sampled, seen, _ = sample_with_depth(features, points, intrinsics, ego_from_camera, image_size)
    return sampled, seen


def sample_with_depth(
    features: Tensor,
    points: Tensor,
    intrinsics: Tensor,
    ego_from_camera: Tensor,
    image_size: tuple[int, int],
) -> tuple[Tensor, Tensor, Tensor]:
    """As `sample_cameras`, and the mean depth [P] in metres over the cameras that see a point (0: none)."""
    cameras, channels, height, width = features.shape
    if not cameras or not len(points):
        nothing = features.new_zeros(len(points))
        return features.new_zeros(len(points), channels) + 0 * features.sum(), nothing, nothing
    with torch.no_grad(), torch.autocast(features.device.type, enabled=False):
        pixels, depth = project(points, intrinsics, ego_from_camera)  # [V, P, 2], [V, P]
        limit = pixels.new_tensor([image_size[1], image_size[0]])
        visible = (depth > NEAREST) & ((pixels >= 0) & (pixels < limit)).all(-1)  # [V, P]
        point, camera = visible.T.nonzero(as_tuple=True)  # [Q], sorted by point
        count = visible.sum(0)  # [P]
        cell = pixels[camera, point] * (pixels.new_tensor([width, height]) / limit) - 0.5  # [Q, 2]
        rows, weights = _corners(cell, width, height)  # [Q, 4]
        rows = rows + (camera * height * width)[:, None]
        weights = weights / count[point][:, None]
        mean_depth = (depth * visible).sum(0) / count.clamp(min=1)
    table = features.permute(0, 2, 3, 1).reshape(-1, channels)  # [V h w, C]
    begin = 4 * (count.cumsum(0) - count)
    sampled = _WeightedRows.apply(table, rows.flatten(), begin, weights.flatten().to(table.dtype))
    return sampled, count.to(points.dtype), mean_depth  # type: ignore[return-value]


def _corners(cell: Tensor, width: int, height: int) -> tuple[Tensor, Tensor]:
    """The four cells [Q, 4] (row * width + column) around positions [Q, 2] and their bilinear weights."""
    low = cell.floor()
    x1, y1 = (cell - low).unbind(-1)
    x0, y0 = 1 - x1, 1 - y1
    column = torch.stack([low[:, 0], low[:, 0] + 1], dim=-1).clamp(0, width - 1).long()  # [Q, 2]
    row = torch.stack([low[:, 1], low[:, 1] + 1], dim=-1).clamp(0, height - 1).long()
    cells = row[:, [0, 0, 1, 1]] * width + column[:, [0, 1, 0, 1]]
    return cells, torch.stack([x0 * y0, x1 * y0, x0 * y1, x1 * y1], dim=-1)


class CameraVolume(nn.Module):
    """Camera features at the centres of a coarse volume; each voxel reads the pixels that show it.

    A voxel's feature is a small network of the pixel's feature, the voxel's depth in that camera and its
    height; frames are averaged with a learned exp(-decay * age). Voxels that no camera sees are zero.
    """

    def __init__(self, width_in: int, width_out: int, *, grid: VoxelGrid = COARSE_GRID) -> None:
        super().__init__()
        self.grid, self.width_out = grid, width_out
        self.pixel = nn.Conv2d(width_in, 2 * width_out, 1)  # first: there are fewer pixels than voxels
        self.depth = nn.Linear(DEPTH_CHANNELS, 2 * width_out, bias=False)
        self.height = nn.Parameter(torch.randn(grid.shape[2], 2 * width_out) * 0.1)
        self.out = nn.Linear(2 * width_out, width_out)
        self.decay = nn.Parameter(torch.tensor(0.0))  # its softplus, 1/s

    def forward(self, features: Tensor, inputs: SceneInputs) -> Tensor:
        """[B, width_out, X, Y, Z] of features [F, width_in, h, w] of the images that `inputs` describes."""
        pixels = self.pixel(features)  # [F, 2D, h, w]
        scenes = [self._scene(pixels, inputs, b) for b in range(inputs.batch_size)]
        return torch.stack(scenes).unflatten(1, self.grid.shape).movedim(-1, 1)

    def _scene(self, pixels: Tensor, inputs: SceneInputs, b: int) -> Tensor:
        """Features [X Y Z, width_out] of scene b."""
        centers = self.grid.centers(device=pixels.device).flatten(0, 2)  # [P, 3]
        mine = inputs.scene == b
        looks = []
        for age in inputs.age[mine].unique().tolist() or [0.0]:
            chosen = (mine & (inputs.age == age)).nonzero()[:, 0]
            sampled, seen, depth = sample_with_depth(
                pixels.index_select(0, chosen),
                centers,
                inputs.intrinsics[chosen],
                inputs.ego_from_camera[chosen],
                inputs.image_size,
            )
            share = torch.exp(-functional.softplus(self.decay) * age) * (seen > 0)  # [P]
            looks.append((share, sampled, depth))
        weight = torch.stack([share for share, _, _ in looks]).sum(0)  # [P]
        divisor = torch.where(weight > 0, weight, 1.0)
        parts = [((share / divisor)[:, None] * sampled, share * depth) for share, sampled, depth in looks]
        depth = torch.stack([depth for _, depth in parts]).sum(0).detach() / divisor.detach()
        hidden = sum(sampled for sampled, _ in parts) + self.depth(depth_features(depth))  # [P, 2D]
        hidden = hidden.unflatten(0, (-1, self.grid.shape[2])) + self.height  # [X Y, Z, 2D]
        return self.out(functional.gelu(hidden)).flatten(0, 1) * (weight > 0)[:, None]


DEPTH_CHANNELS = 18


def depth_features(depth: Tensor) -> Tensor:
    """[R, 18] of depths [R] in metres: linear, logarithmic, and waves of 80 m down to 0.6 m."""
    waves = depth[:, None] * (2 * math.pi / 80) * 2.0 ** torch.arange(8, device=depth.device)
    plain = torch.stack([depth / 40, torch.log(depth.clamp(min=NEAREST)) / 4], dim=-1)
    return torch.cat([plain, waves.sin(), waves.cos()], dim=-1)
