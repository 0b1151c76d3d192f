"""Frames without torchvision: against Pillow, transformers' processors, and torchvision where it loads."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from vlm_occ.language.frames import CLIP_MEAN, CLIP_STD, fitting_size, normalised, patches, resized
from vlm_occ.weights import hide_broken_torchvision

SIZES = [(168, 168), (56, 84), (300, 500)]


@pytest.fixture
def images() -> Tensor:
    """Smooth colours, edges and noise, [2, 3, 225, 400]."""
    generator = torch.Generator().manual_seed(0)
    noise = torch.randint(0, 256, (2, 3, 225, 400), generator=generator)
    ramp = torch.linspace(0, 255, 400).expand(2, 3, 225, 400)
    edges = torch.where(torch.arange(400) // 37 % 2 == 0, 255.0, 0.0).expand(2, 3, 225, 400)
    rows = torch.arange(225)[:, None] // 75
    mixed = torch.where(rows == 0, noise.float(), torch.where(rows == 1, ramp, edges))
    return mixed.to(torch.uint8)


def pillow(images: Tensor, size: tuple[int, int]) -> Tensor:
    """The same resize by Pillow."""
    pictures = [Image.fromarray(image.permute(1, 2, 0).numpy()) for image in images]
    small = [np.array(picture.resize((size[1], size[0]), Image.Resampling.BICUBIC)) for picture in pictures]
    return torch.from_numpy(np.stack(small)).permute(0, 3, 1, 2)


@pytest.mark.parametrize("size", SIZES)
def test_resizing_is_within_one_level_of_pillow(images: Tensor, size: tuple[int, int]) -> None:
    difference = (resized(images, size).int() - pillow(images, size).int()).abs()
    assert difference.max() <= 1 and difference.float().mean() < 0.02


@pytest.mark.parametrize("size", SIZES)
def test_resizing_is_near_torchvision_where_it_loads(images: Tensor, size: tuple[int, int]) -> None:
    hide_broken_torchvision()
    functional = pytest.importorskip(
        "torchvision.transforms.v2.functional", reason="no torchvision that loads"
    )
    bicubic = functional.InterpolationMode.BICUBIC
    other = functional.resize(images, list(size), interpolation=bicubic, antialias=True)
    assert (resized(images, size).int() - other.int()).abs().max() <= 4


def test_qwen_patches_are_those_of_its_own_processor(images: Tensor) -> None:
    hide_broken_torchvision()
    module = pytest.importorskip("transformers.models.qwen2_vl.image_processing_pil_qwen2_vl")
    unit = 28**2
    processor = module.Qwen2VLImageProcessorPil(min_pixels=4 * unit, max_pixels=64 * unit)
    pictures = [Image.fromarray(image.permute(1, 2, 0).numpy()) for image in images]
    expected = processor(images=pictures, return_tensors="pt")
    height, width = fitting_size(225, 400, factor=28, least=4 * unit, most=64 * unit)
    assert expected["image_grid_thw"].tolist() == [[1, height // 14, width // 14]] * 2
    frames = normalised(resized(images, (height, width)), CLIP_MEAN, CLIP_STD)
    mine = patches(frames, patch=14, merge=2, repeats=2)
    torch.testing.assert_close(mine, expected["pixel_values"], atol=0.035, rtol=0)  # two levels of 255


@pytest.mark.parametrize("given", [(900, 1600), (1600, 900), (30, 2000), (10, 12), (448, 448)])
def test_fitting_sizes_keep_to_their_limits(given: tuple[int, int]) -> None:
    least, most = 4 * 28**2, 256 * 28**2
    height, width = fitting_size(*given, factor=28, least=least, most=most)
    assert height % 28 == 0 and width % 28 == 0 and least <= height * width <= most
    if min(given) >= 448:
        assert abs(height / width / (given[0] / given[1]) - 1) < 0.12


def test_images_of_another_type_or_shape_are_refused() -> None:
    with pytest.raises(ValueError, match="expected uint8"):
        resized(torch.zeros(1, 3, 8, 8), (4, 4))
    with pytest.raises(ValueError, match="expected uint8"):
        resized(torch.zeros(1, 8, 8, 3, dtype=torch.uint8), (4, 4))
