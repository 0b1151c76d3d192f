"""Feature pyramids of images, and the Vision-Language PAN that lets words choose where to look (eq. 5)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from vlm_occ.encoders.camera import FeaturePyramid


def language_gate(features: Tensor, words: Tensor, mask: Tensor) -> Tensor:
    """Eq. 5: `X + X * sigmoid(max over words of X . F)`.

    `features` [B, D, h, w] of B pictures, `words` [B, L, D] of the sentence about each, `mask` bool [B, L] of
    the words that count; a picture without a word stays as it is.
    """
    similarity = torch.einsum("bdhw,bld->blhw", features, words.to(features.dtype))
    similarity = similarity.masked_fill(~mask[..., None, None], -torch.inf)
    if not words.shape[1]:
        return features
    return features + features * similarity.amax(1, keepdim=True).sigmoid()


def pyramid_levels(pyramid: FeaturePyramid, maps: Sequence[Tensor]) -> list[Tensor]:
    """All three levels [F, width, h, w] of a trunk's pyramid, finest first; its forward gives one."""
    result: list[Tensor] = []
    for level in reversed(range(len(pyramid.lateral))):
        here = pyramid.lateral[level](maps[level])
        if result:
            here = here + functional.interpolate(result[-1], size=here.shape[-2:], mode="nearest")
        result.append(functional.gelu(pyramid.norm[level](pyramid.smooth[level](here))))
    return result[::-1]


class TopDownPyramid(nn.Module):
    """Four levels of one width (strides 8 to 64) from an image network's three, summed top down."""

    def __init__(self, channels: Sequence[int], width: int) -> None:
        super().__init__()
        self.lateral = nn.ModuleList([nn.Conv2d(c, width, 1) for c in channels])
        self.top = nn.Conv2d(channels[-1], width, 3, stride=2, padding=1)
        self.smooth = nn.ModuleList([nn.Conv2d(width, width, 3, padding=1, bias=False) for _ in channels])
        self.norm = nn.ModuleList([nn.GroupNorm(8, width) for _ in range(len(channels) + 1)])

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """Maps [F, C_i, h_i, w_i], finest first, to levels [F, width, h_i, w_i] and a coarser one."""
        levels = [self.norm[-1](self.top(maps[-1]))]
        for number in reversed(range(len(maps))):
            here = self.lateral[number](maps[number])
            here = here + functional.interpolate(levels[0], size=here.shape[-2:], mode="nearest")
            levels.insert(0, self.norm[number](self.smooth[number](here)))
        return levels


class VisionLanguagePAN(nn.Module):
    """Gates each level of a pyramid by the words (eq. 5), then passes it on bottom up (Liu et al. 2018).

    Eq. 5 holds neither the scale nor the bias of YOLO-World; the projection of the words starts so small that
    the similarity of a feature of unit variance has unit variance.
    """

    def __init__(self, width: int, *, levels: int = 4) -> None:
        super().__init__()
        self.words = nn.Linear(width, width)
        nn.init.normal_(self.words.weight, std=1 / width)
        nn.init.zeros_(self.words.bias)
        self.down = nn.ModuleList(
            [nn.Conv2d(width, width, 3, stride=2, padding=1) for _ in range(levels - 1)]
        )
        self.norm = nn.ModuleList([nn.GroupNorm(8, width) for _ in range(levels - 1)])

    def forward(self, levels: Sequence[Tensor], words: Tensor, mask: Tensor) -> list[Tensor]:
        """Levels [B, D, h, w] (finest first), `words` [B, L, D] and `mask` [B, L] of the sentence of each."""
        words = self.words(words)
        gated = [language_gate(level, words, mask) for level in levels]
        result = [gated[0]]
        for level, down, norm in zip(gated[1:], self.down, self.norm, strict=True):
            result.append(level + functional.gelu(norm(down(result[-1]))))
        return result
