"""Frames as CUT3R expects them, and camera tokens kept on disk for each clip."""

from __future__ import annotations

import dataclasses
import hashlib
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn import functional

from vlm_occ.encoders.cut3r import PATCH, Cut3r
from vlm_occ.weights import cached

Recipe = Literal["vlm3r", "cut3r"]

_SIGLIP_SIDE = 384  # what VLM-3R's vision tower sees
_VLM3R_SIDE = 432  # 27 x 27 patches, one for each of that tower's


def prepare_frames(images: Tensor, *, recipe: Recipe = "vlm3r", long_edge: int = 512) -> Tensor:
    """Frames uint8 [F, 3, H, W] to float32 [F, 3, H', W'] in [-1, 1], sides multiples of 16.

    `vlm3r`: bicubic to 384 x 384 (the aspect is lost), then bilinear to 432 x 432, as VLM-3R feeds CUT3R.
    `cut3r`: `long_edge` pixels along the long side (Lanczos; bicubic when enlarging), centre crop to
    multiples of 16, and a square picture to 4:3, as CUT3R's demo does.
    """
    if images.ndim != 4 or images.shape[1] != 3 or images.dtype != torch.uint8 or not len(images):
        raise ValueError(
            f"frames are {images.dtype} {list(images.shape)}, expected uint8 [F, 3, H, W] with F > 0"
        )
    pictures = [Image.fromarray(image) for image in images.permute(0, 2, 3, 1).cpu().numpy()]
    if recipe == "vlm3r":
        side = (_SIGLIP_SIDE, _SIGLIP_SIDE)
        resized = [picture.resize(side, Image.Resampling.BICUBIC) for picture in pictures]
    else:
        resized = [_resize_and_crop(picture, long_edge) for picture in pictures]
    frames = torch.from_numpy(np.stack([np.asarray(picture) for picture in resized]))  # [F, H', W', 3]
    frames = frames.to(images.device).permute(0, 3, 1, 2).float() / 127.5 - 1
    if recipe == "vlm3r":
        target = (_VLM3R_SIDE, _VLM3R_SIDE)
        frames = functional.interpolate(frames, size=target, mode="bilinear", align_corners=False)
    return frames


def _resize_and_crop(picture: Image.Image, long_edge: int) -> Image.Image:
    """CUT3R's own resizing of one picture."""
    longest = max(picture.size)
    filtering = Image.Resampling.LANCZOS if longest > long_edge else Image.Resampling.BICUBIC
    width, height = (round(side * long_edge / longest) for side in picture.size)
    if min(width, height) < PATCH:
        raise ValueError(
            f"a frame of {picture.size[0]}x{picture.size[1]} pixels becomes {width}x{height}, expected at "
            f"least {PATCH} pixels a side; give a less elongated picture"
        )
    picture = picture.resize((width, height), filtering)
    half_width, half_height = width // 2 // 8 * 8, height // 2 // 8 * 8
    if width == height:
        half_height = 3 * half_width // 4 // 8 * 8
    x, y = width // 2, height // 2
    return picture.crop((x - half_width, y - half_height, x + half_width, y + half_height))


@torch.no_grad()
def camera_tokens(
    model: Cut3r,
    images: Tensor,
    *,
    recipe: Recipe = "vlm3r",
    long_edge: int = 512,
    weights_name: str | None = None,
) -> Tensor:
    """Camera tokens [F, D] (float32) of a clip of frames uint8 [F, 3, H, W], in time order.

    With `weights_name` (such as the checkpoint's checksum) they are kept in the cache folder and read from
    there the next time the same frames come.
    """
    if weights_name is None:
        return _compute(model, images, recipe, long_edge)
    digest = hashlib.sha256()
    settings = (recipe, long_edge, weights_name, tuple(images.shape), dataclasses.astuple(model.config))
    digest.update(repr(settings).encode())
    digest.update(images.cpu().contiguous().numpy().tobytes())
    name = f"cut3r-tokens-{digest.hexdigest()[:32]}"

    def build(folder: Path) -> None:
        save_file(
            {"camera": _compute(model, images, recipe, long_edge).cpu()}, str(folder / "tokens.safetensors")
        )

    return load_file(cached(name, build) / "tokens.safetensors")["camera"].to(images.device)


def _compute(model: Cut3r, images: Tensor, recipe: Recipe, long_edge: int) -> Tensor:
    parameter = model.pose_token
    frames = prepare_frames(images, recipe=recipe, long_edge=long_edge).to(parameter)
    return model(frames[None]).camera[0].float().to(images.device)
