"""Deformable convolution against the plain one and a loop; the backbone's levels and frozen statistics."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from vlm_occ.encoders.resnet import MEAN, STD, DeformableConv2d, ImageResNet


def tiny(*, deformable: bool = True) -> ImageResNet:
    return ImageResNet(deformable=deformable, depths=(1, 1, 2, 1), widths=(16, 16, 32, 64))


def bilinear(image: Tensor, y: float, x: float) -> Tensor:
    """The value [C] of an image [C, H, W] at a place in pixels, zero outside."""
    total = torch.zeros(len(image))
    low_y, low_x = int(y // 1), int(x // 1)
    for row in (low_y, low_y + 1):
        for column in (low_x, low_x + 1):
            if 0 <= row < image.shape[1] and 0 <= column < image.shape[2]:
                total += (1 - abs(y - row)) * (1 - abs(x - column)) * image[:, row, column]
    return total


def test_a_fresh_deformable_convolution_is_the_plain_one() -> None:
    torch.manual_seed(0)
    x = torch.randn(2, 3, 7, 9)
    for stride in (1, 2):
        conv = DeformableConv2d(3, 5, stride=stride)
        plain = functional.conv2d(x, conv.weight, stride=stride, padding=1)
        torch.testing.assert_close(conv(x), plain, atol=1e-5, rtol=1e-4)


def test_moved_and_weighted_taps_equal_a_loop() -> None:
    torch.manual_seed(0)
    conv, x = DeformableConv2d(2, 3, stride=2), torch.randn(1, 2, 5, 6)
    nn.init.normal_(conv.shift.weight, std=0.3)
    shift = conv.shift(x)[0]
    found = conv(x)[0]
    for i in range(found.shape[1]):
        for j in range(found.shape[2]):
            expected = torch.zeros(3)
            for tap in range(9):
                dx, dy = shift[2 * tap, i, j].item(), shift[2 * tap + 1, i, j].item()
                value = bilinear(x[0], 2 * i + tap // 3 - 1 + dy, 2 * j + tap % 3 - 1 + dx)
                weight = 2 * shift[18 + tap, i, j].sigmoid()
                expected = expected + weight * conv.weight[:, :, tap // 3, tap % 3] @ value
            torch.testing.assert_close(found[:, i, j], expected, atol=1e-5, rtol=1e-4)


def test_maps_have_strides_8_16_and_32_and_equal_transformers_without_deformation() -> None:
    torch.manual_seed(0)
    network = tiny(deformable=False)
    images = torch.rand(2, 3, 64, 96)
    maps = network(images)
    assert [tuple(m.shape[1:]) for m in maps] == [(16, 8, 12), (32, 4, 6), (64, 2, 3)]
    mean, std = torch.tensor(MEAN)[:, None, None], torch.tensor(STD)[:, None, None]
    expected = network.model((images - mean) / std, output_hidden_states=True).hidden_states[2:]
    for ours, theirs in zip(maps, expected, strict=True):
        torch.testing.assert_close(ours, theirs)


def test_the_last_two_stages_deform_and_keep_pretrained_weights() -> None:
    torch.manual_seed(0)
    plain = tiny(deformable=False)
    torch.manual_seed(0)
    moved = tiny()
    names = [n for n, m in moved.named_modules() if isinstance(m, DeformableConv2d)]
    assert [n.split(".stages.")[1][0] for n in names] == ["2", "2", "3"]
    images = torch.rand(1, 3, 64, 64)
    for a, b in zip(plain(images), moved(images), strict=True):
        torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-3)


def test_training_never_moves_the_batch_statistics() -> None:
    network = tiny().train()
    before = [b.clone() for n, b in network.named_buffers() if "running" in n]
    network(torch.rand(2, 3, 64, 64))
    after = [b for n, b in network.named_buffers() if "running" in n]
    assert before and all(torch.equal(a, b) for a, b in zip(before, after, strict=True))


def test_resnet_101_has_its_published_size() -> None:
    with torch.device("meta"):
        network = ImageResNet(deformable=False)
        deformable = ImageResNet()
    assert sum(p.numel() for p in network.parameters()) == 44_549_160 - 2_049_000  # without the classifier
    extra = 23 * (256 * 27 * 9 + 27) + 3 * (512 * 27 * 9 + 27)
    assert sum(p.numel() for p in deformable.parameters()) - extra == 44_549_160 - 2_049_000
