"""Eq. 5 against a loop over cells and words, and the pyramids around it."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from vlm_occ.encoders.camera import FeaturePyramid
from vlm_occ.encoders.language_pan import TopDownPyramid, VisionLanguagePAN, language_gate, pyramid_levels


def _words() -> tuple[Tensor, Tensor]:
    torch.manual_seed(1)
    return torch.randn(2, 5, 8), torch.tensor([[True] * 5, [True, True, False, False, False]])


def test_the_gate_is_equation_5_cell_by_cell() -> None:
    torch.manual_seed(0)
    features, (words, mask) = torch.randn(2, 8, 3, 4), _words()
    gated = language_gate(features, words, mask)
    for b in range(2):
        for i in range(3):
            for j in range(4):
                x = features[b, :, i, j]
                best = max(float(x @ words[b, k]) for k in range(5) if mask[b, k])
                expected = x + x / (1 + math.exp(-best))
                torch.testing.assert_close(gated[b, :, i, j], expected, atol=1e-5, rtol=1e-5)


def test_a_picture_without_words_stays_as_it_is() -> None:
    features = torch.randn(1, 8, 3, 4)
    nothing = language_gate(features, torch.randn(1, 2, 8), torch.zeros(1, 2, dtype=torch.bool))
    assert torch.equal(nothing, features)
    assert torch.equal(language_gate(features, torch.zeros(1, 0, 8), torch.zeros(1, 0).bool()), features)


def test_the_pan_passes_fine_levels_to_coarse_ones_and_not_back() -> None:
    torch.manual_seed(0)
    pan = VisionLanguagePAN(8, levels=3)
    words, mask = _words()
    levels = [torch.randn(2, 8, 8 >> i, 16 >> i) for i in range(3)]
    out = pan(levels, words, mask)
    assert [o.shape for o in out] == [level.shape for level in levels]
    torch.testing.assert_close(out[0], language_gate(levels[0], pan.words(words), mask))
    changed = pan([levels[0], levels[1] + 1, levels[2]], words, mask)
    assert torch.equal(changed[0], out[0]) and not torch.equal(changed[2], out[2])


def test_fresh_words_leave_room_for_the_gate_to_move() -> None:
    torch.manual_seed(0)
    pan = VisionLanguagePAN(256)
    words = torch.nn.functional.layer_norm(torch.randn(4, 12, 256), (256,))
    similarity = torch.einsum("bdhw,bld->blhw", torch.randn(4, 256, 8, 8), pan.words(words))
    assert 0.5 < similarity.std() < 2.0  # without a small start it would be 16


def test_other_sentences_change_features_and_padding_does_not() -> None:
    torch.manual_seed(0)
    pan = VisionLanguagePAN(8, levels=2)
    words, mask = _words()
    levels = [torch.randn(2, 8, 4, 4), torch.randn(2, 8, 2, 2)]
    out = pan(levels, words, mask)
    padded = words.clone()
    padded[1, 2:] = 50.0
    assert all(torch.equal(a, b) for a, b in zip(out, pan(levels, padded, mask), strict=True))
    padded[1, 0] += 1.0
    assert not torch.equal(out[0], pan(levels, padded, mask)[0])


def test_the_trunks_levels_end_with_what_its_own_forward_gives() -> None:
    torch.manual_seed(0)
    pyramid = FeaturePyramid((4, 6, 8), width=16)
    maps = [torch.randn(2, c, 8 >> i, 16 >> i) for i, c in enumerate((4, 6, 8))]
    levels = pyramid_levels(pyramid, maps)
    assert [level.shape[2:] for level in levels] == [(8, 16), (4, 8), (2, 4)]
    assert torch.equal(levels[0], pyramid(maps))


def test_the_top_down_pyramid_adds_a_coarser_level_that_all_others_see() -> None:
    torch.manual_seed(0)
    pyramid = TopDownPyramid((4, 6, 8), 16)
    maps = [torch.randn(1, c, 11 >> i, 16 >> i) for i, c in enumerate((4, 6, 8))]
    levels = pyramid(maps)
    assert [level.shape[2:] for level in levels] == [(11, 16), (5, 8), (2, 4), (1, 2)]
    maps[2] = maps[2] + 1
    assert all(not torch.equal(a, b) for a, b in zip(levels, pyramid(maps), strict=True))
