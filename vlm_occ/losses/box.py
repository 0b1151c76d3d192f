"""Box losses and the heat-map targets of object centres."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from vlm_occ.types import TALK2OCC_CLASSES, VoxelGrid


def box_l1(predicted: Tensor, target: Tensor) -> Tensor:
    """Smooth L1 [K] between boxes [K, 7]: centres in metres, log sizes, sine and cosine of the yaw."""
    difference = [
        predicted[:, :3] - target[:, :3],
        predicted[:, 3:6].clamp(min=0.05).log() - target[:, 3:6].clamp(min=0.05).log(),
        torch.sin(predicted[:, 6:]) - torch.sin(target[:, 6:]),
        torch.cos(predicted[:, 6:]) - torch.cos(target[:, 6:]),
    ]
    delta = torch.cat(difference, dim=-1)
    return functional.smooth_l1_loss(delta, torch.zeros_like(delta), reduction="none", beta=0.1).sum(-1)


def generalized_iou(a: Tensor, b: Tensor) -> Tensor:
    """GIoU [K] of axis-aligned boxes a, b [K, 2 * n] as (low corner, high corner) (Rezatofighi et al.
    2019).
    """
    n = a.shape[-1] // 2
    size_a, size_b = (a[:, n:] - a[:, :n]).clamp(min=0), (b[:, n:] - b[:, :n]).clamp(min=0)
    overlap = (torch.minimum(a[:, n:], b[:, n:]) - torch.maximum(a[:, :n], b[:, :n])).clamp(min=0).prod(-1)
    union = size_a.prod(-1) + size_b.prod(-1) - overlap
    hull = (torch.maximum(a[:, n:], b[:, n:]) - torch.minimum(a[:, :n], b[:, :n])).prod(-1)
    return overlap / union.clamp(min=1e-9) - (hull - union) / hull.clamp(min=1e-9)


def centre_cells(boxes: Tensor, grid: VoxelGrid) -> tuple[Tensor, Tensor]:
    """Bird's-eye cells [M, 2] of box centres [M, 7] and whether they lie in the grid [M]."""
    index, _ = grid.index_of(boxes[:, :3])
    origin = boxes.new_tensor(grid.origin[:2])
    extent = boxes.new_tensor(grid.shape[:2]) * grid.voxel_size
    inside = ((boxes[:, :2] >= origin) & (boxes[:, :2] < origin + extent)).all(-1)
    return index[:, :2], inside


def draw_heatmap(boxes: Tensor, classes: Tensor, grid: VoxelGrid) -> Tensor:
    """Target heat map [15, X, Y]: a Gaussian at each box centre [M, 7] in its class's channel [M].

    Standard deviation: a sixth of the footprint's smaller side plus 0.3 m, so that small neighbours stay
    apart.
    """
    heatmap = boxes.new_zeros(len(TALK2OCC_CLASSES), *grid.shape[:2])
    cells, inside = centre_cells(boxes, grid)
    reach = 6
    offsets = torch.arange(-reach, reach + 1, device=boxes.device)
    dx, dy = torch.meshgrid(offsets, offsets, indexing="ij")
    cells, classes, sizes = cells[inside], classes[inside], boxes[inside, 3:5]
    sigma = (sizes.amin(1) / 6 + 0.3) / grid.voxel_size  # [M]
    x, y = cells[:, 0, None, None] + dx, cells[:, 1, None, None] + dy  # [M, 13, 13]
    valid = (x >= 0) & (x < grid.shape[0]) & (y >= 0) & (y < grid.shape[1])
    value = torch.exp(-(dx.square() + dy.square()) / (2 * sigma[:, None, None].square()))
    place = (classes[:, None, None] * grid.shape[0] + x) * grid.shape[1] + y
    flat = heatmap.flatten().scatter_reduce(0, place[valid], value[valid], "amax")
    return flat.reshape(heatmap.shape)
