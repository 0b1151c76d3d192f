"""Frames for a vision tower without torchvision: resize, normalise, cut into patches."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
HALF = (0.5, 0.5, 0.5)


def resized(images: Tensor, size: tuple[int, int]) -> Tensor:
    """Images uint8 [F, 3, H, W] at `size` (h, w): uint8 [F, 3, h, w], antialiased bicubic as Pillow's."""
    if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[1] != 3:
        raise ValueError(f"images are {images.dtype} {list(images.shape)}, expected uint8 [F, 3, H, W]")
    if tuple(images.shape[-2:]) == size or not len(images):
        return images if len(images) else images.new_zeros(0, 3, *size)
    values = images if images.device.type == "cpu" else images.float()  # uint8 has no kernel elsewhere
    values = functional.interpolate(values, size=size, mode="bicubic", antialias=True, align_corners=False)
    return values if values.dtype == torch.uint8 else values.round().clamp(0, 255).to(torch.uint8)


def normalised(images: Tensor, mean: tuple[float, ...], std: tuple[float, ...]) -> Tensor:
    """uint8 [F, 3, H, W] as float32 (x / 255 - mean) / std."""
    center = torch.tensor(mean, device=images.device).view(3, 1, 1)
    scale = torch.tensor(std, device=images.device).view(3, 1, 1)
    return (images.float() / 255 - center) / scale


def fitting_size(height: int, width: int, *, factor: int, least: int, most: int) -> tuple[int, int]:
    """The size in multiples of `factor` nearest to an image's, of between `least` and `most` pixels.

    Qwen2-VL's rule: the aspect ratio is kept as far as the multiples allow.
    """
    tall, wide = (max(factor, round(side / factor) * factor) for side in (height, width))
    if tall * wide > most:
        scale = math.sqrt(height * width / most)
        tall, wide = (max(factor, math.floor(side / scale / factor) * factor) for side in (height, width))
    elif tall * wide < least:
        scale = math.sqrt(least / (height * width))
        tall, wide = (math.ceil(side * scale / factor) * factor for side in (height, width))
    return tall, wide


def patches(images: Tensor, *, patch: int, merge: int, repeats: int) -> Tensor:
    """Qwen2-VL's patches of single frames: float [F, 3, H, W] as [F * H/p * W/p, 3 * repeats * p * p].

    The patches of a merge x merge block stand together; a frame fills its temporal patch by being repeated.
    """
    frames, _, height, width = images.shape
    rows, columns = height // patch // merge, width // patch // merge
    blocks = images.reshape(frames, 3, rows, merge, patch, columns, merge, patch)
    blocks = blocks.permute(0, 2, 5, 3, 6, 1, 4, 7)  # [F, rows, columns, merge, merge, 3, p, p]
    blocks = blocks.unsqueeze(6).expand(-1, -1, -1, -1, -1, -1, repeats, -1, -1)
    return blocks.reshape(frames * rows * columns * merge**2, 3 * repeats * patch**2)
