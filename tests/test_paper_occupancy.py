"""The occupancy head's deconvolution against torch's, its priors, and the voxel decoder."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional

from vlm_occ.heads.paper_occupancy import (
    PaperOccupancyHead,
    VoxelDecoder,
    deconvolution_rows,
    upsampling,
)

COARSE, STRIDE, FINE = (3, 2, 2), (4, 2, 1), (12, 4, 2)


def test_features_are_those_of_a_3d_deconvolution_at_all_and_at_chosen_voxels() -> None:
    torch.manual_seed(0)
    head = PaperOccupancyHead(6, 8, STRIDE)
    voxels = torch.randn(2, 6, *COARSE)
    # Linear [taps * D', D] to the layout of ConvTranspose3d, [D, D', sx, sy, sz]
    weight = head.upsample.weight.reshape(*STRIDE, 8, 6).permute(4, 3, 0, 1, 2)
    bias = head.upsample.bias.reshape(*STRIDE, 8).permute(3, 0, 1, 2)
    raised = functional.conv_transpose3d(voxels, weight, stride=STRIDE)
    raised = raised + bias.repeat(1, *COARSE)
    expected = functional.gelu(head.norm(raised.flatten(2).transpose(1, 2)))  # [2, M, 8]
    everywhere = torch.arange(12 * 4 * 2)
    found = head.features(voxels, deconvolution_rows(everywhere, FINE, STRIDE))
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)
    chosen = torch.tensor([0, 17, 40, 95])
    found = head.features(voxels, deconvolution_rows(chosen, FINE, STRIDE))
    torch.testing.assert_close(found, expected[:, chosen], atol=1e-5, rtol=1e-4)


def test_fine_features_of_the_scene_are_added_before_the_norm() -> None:
    torch.manual_seed(0)
    head, voxels, fine = PaperOccupancyHead(6, 8, STRIDE), torch.randn(1, 6, *COARSE), torch.randn(96, 8)
    rows = deconvolution_rows(torch.arange(96), FINE, STRIDE)
    with torch.no_grad():
        head.upsample.weight.zero_()
        head.upsample.bias.zero_()
    torch.testing.assert_close(head.features(voxels, rows, fine)[0], functional.gelu(head.norm(fine)))


def test_strides_must_be_whole() -> None:
    assert upsampling((50, 50, 16), (200, 200, 16)) == (4, 4, 1)
    with pytest.raises(ValueError, match=r"\[50, 50, 5\] do not divide the grid \[200, 200, 16\]"):
        upsampling((50, 50, 5), (200, 200, 16))


@pytest.mark.parametrize(("semantic", "geometric"), [(True, False), (False, True), (True, True)])
def test_heads_exist_where_they_are_supervised(semantic: bool, geometric: bool) -> None:
    head = PaperOccupancyHead(6, 8, STRIDE, hidden=4, semantic=semantic, geometric=geometric)
    classes, labels, mask = head(torch.randn(2, 5, 8))
    assert (classes is not None) == semantic and (labels is not None) == geometric
    assert mask.shape == (2, 5)
    if classes is not None:
        assert classes.shape == (2, 5, 18)
    if labels is not None:
        assert labels.shape == (2, 5, 3)


def test_a_fresh_head_repeats_the_prior() -> None:
    torch.manual_seed(0)
    head = PaperOccupancyHead(6, 8, STRIDE, semantic=True, has_prior=True)
    for name in ("mask", "semantic", "geometric"):
        torch.nn.init.zeros_(getattr(head, name).weight)
    torch.nn.init.zeros_(head.semantic.bias)  # type: ignore[union-attr]
    prior = torch.tensor([-3.0, 0.5, 4.0])
    semantic, geometric, mask = head(torch.randn(1, 3, 8), prior)
    torch.testing.assert_close(mask[0], prior)
    assert semantic is not None and geometric is not None
    torch.testing.assert_close(geometric[0, :, 1] - geometric[0, :, 0], prior)  # the log odds of "occupied"
    torch.testing.assert_close(semantic[0, :, 4] - semantic[0, :, 17], prior)
    assert (geometric[0, :, 2] < geometric[0, :, 1]).all()


def test_words_reach_every_voxel_and_padding_none() -> None:
    torch.manual_seed(0)
    decoder = VoxelDecoder(8, heads=2)
    voxels, words = torch.randn(1, 8, 4, 4, 2), torch.randn(1, 3, 8)
    mask = torch.tensor([[True, True, False]])
    out = decoder(voxels, words, mask)
    padded, changed = words.clone(), words.clone()
    padded[:, 2], changed[:, 0] = 9.0, 9.0
    torch.testing.assert_close(decoder(voxels, padded, mask), out)
    assert ((decoder(voxels, changed, mask) - out).abs().amax(1) > 1e-5).all()


def test_distant_voxels_speak_through_the_coarse_scale() -> None:
    torch.manual_seed(0)
    decoder = VoxelDecoder(8, heads=2)
    for block in (decoder.fine, decoder.out):  # without the fine scale's own reach of three voxels each
        torch.nn.init.zeros_(block.conv.weight)
    voxels = torch.randn(1, 8, 12, 4, 1)
    words, mask = torch.randn(1, 3, 8), torch.ones(1, 3, dtype=torch.bool)
    moved = voxels.clone()
    moved[:, :, 0] += 5 * torch.randn(8, 4, 1)
    difference = (decoder(moved, words, mask) - decoder(voxels, words, mask)).abs().amax(1)[0, :, 0, 0]
    assert difference[4] > 1e-5
