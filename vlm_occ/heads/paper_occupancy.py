"""The paper's voxel decoder and occupancy head: words meet voxels, 3D deconvolution, classes and a mask."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from vlm_occ.types import OCC3D_CLASSES

GROUNDING_CLASSES = ("free", "occupied", "referred")
"""The labels {0, 1, 2} of section IV-A, which geometric supervision teaches."""


class _Block(nn.Module):
    """3x3x3 convolution, GroupNorm, GELU; residual where the shape allows."""

    def __init__(self, width_in: int, width_out: int, *, stride: tuple[int, int, int] = (1, 1, 1)) -> None:
        super().__init__()
        self.conv = nn.Conv3d(width_in, width_out, 3, stride=stride, padding=1, bias=False)
        self.norm = nn.GroupNorm(8, width_out)
        self.residual = stride == (1, 1, 1) and width_in == width_out

    def forward(self, x: Tensor) -> Tensor:
        """[N, width_in, x, y, z] to [N, width_out, ...]."""
        if x.shape[-1] == 1:  # neighbours above and below are padding: a third of the work says the same
            stride, weight = self.conv.stride[:2], self.conv.weight[..., 1]
            y = functional.conv2d(x[..., 0], weight, stride=stride, padding=1)[..., None]
        else:
            y = self.conv(x)
        y = functional.gelu(self.norm(y))
        return x + y if self.residual else y


class VoxelDecoder(nn.Module):
    """Voxels look at the words, then 3D convolutions at two scales mix neighbours (section IV-B a)."""

    def __init__(self, width: int, *, heads: int = 8) -> None:
        super().__init__()
        self.words = nn.MultiheadAttention(width, heads, batch_first=True)
        self.norm = nn.LayerNorm(width)
        self.fine = _Block(width, width)
        self.down = _Block(width, width, stride=(2, 2, 1))
        self.coarse = _Block(width, width)
        self.out = _Block(width, width)

    def forward(self, voxels: Tensor, words: Tensor, mask: Tensor) -> Tensor:
        """Voxels [N, D, x, y, z], words [N, L, D] with mask [N, L] to voxels [N, D, x, y, z]."""
        flat = voxels.flatten(2).transpose(1, 2)  # [N, P, D]
        attended, _ = self.words(flat, words, words, key_padding_mask=~mask, need_weights=False)
        x = self.norm(flat + attended).transpose(1, 2).unflatten(2, voxels.shape[2:])
        x = self.fine(x)
        coarse = self.coarse(self.down(x))
        return self.out(x + functional.interpolate(coarse, size=x.shape[2:], mode="trilinear"))


def upsampling(coarse: tuple[int, int, int], fine: tuple[int, int, int]) -> tuple[int, int, int]:
    """The stride of the deconvolution from a `coarse` to a `fine` grid; ValueError where it is not whole."""
    if any(f % c for c, f in zip(coarse, fine, strict=True)):
        raise ValueError(
            f"voxel queries {list(coarse)} do not divide the grid {list(fine)}; choose factors of it"
        )
    return fine[0] // coarse[0], fine[1] // coarse[1], fine[2] // coarse[2]


def deconvolution_rows(voxels: Tensor, fine: tuple[int, int, int], stride: tuple[int, int, int]) -> Tensor:
    """Where a deconvolution whose kernel is its stride puts voxels: long [M] into [cells * taps].

    `voxels` long [M]: flat indices (x, y, z) of the `fine` grid.
    """
    x, y, z = voxels // (fine[1] * fine[2]), voxels // fine[2] % fine[1], voxels % fine[2]
    sx, sy, sz = stride
    cell = (x // sx * (fine[1] // sy) + y // sy) * (fine[2] // sz) + z // sz
    return cell * (sx * sy * sz) + (x % sx * sy + y % sy) * sz + z % sz


class PaperOccupancyHead(nn.Module):
    """3D deconvolution to the fine grid, a layer of `hidden` softplus units, then classes and a binary mask.

    `semantic`: the 18 classes of Occ3D; `geometric`: free, occupied, referred. Logits start at the priors.
    Kernel and stride of the deconvolution are equal, so it is a linear layer whose outputs are dealt out, and
    only the voxels asked for go on from there.
    """

    def __init__(
        self,
        width: int,
        fine_width: int,
        stride: tuple[int, int, int],
        *,
        hidden: int = 128,
        semantic: bool = False,
        geometric: bool = True,
        has_prior: bool = False,
    ) -> None:
        """`has_prior`: `forward` will be given logits of occupancy, so ours start at zero."""
        super().__init__()
        self.fine_width = fine_width
        self.upsample = nn.Linear(width, math.prod(stride) * fine_width)
        self.norm = nn.LayerNorm(fine_width)
        self.hidden = nn.Linear(fine_width, hidden)
        self.mask = nn.Linear(hidden, 1)
        self.semantic = nn.Linear(hidden, len(OCC3D_CLASSES)) if semantic else None
        self.geometric = nn.Linear(hidden, len(GROUNDING_CLASSES)) if geometric else None
        with torch.no_grad():  # free 0.94, occupied 0.06, referred 0.0005 of a street scene's voxels
            occupied = 0.0 if has_prior else math.log(0.06 / 0.94)
            self.mask.bias.fill_(occupied)
            if self.geometric is not None:
                start = torch.tensor([0.0, occupied, occupied + math.log(0.0005 / 0.06)])
                self.geometric.bias.copy_(start)

    def features(self, voxels: Tensor, rows: Tensor, fine: Tensor | None = None) -> Tensor:
        """F^O [N, M, D'] of voxels [N, D, x, y, z] at M fine voxels.

        `rows` [M] of `deconvolution_rows`; `fine` [M, D'], features of the scene, are added.
        """
        raised = self.upsample(voxels.flatten(2).transpose(1, 2))  # [N, P, taps * D']
        raised = raised.unflatten(2, (-1, self.fine_width)).flatten(1, 2)[:, rows]  # [N, M, D']
        return functional.gelu(self.norm(raised if fine is None else raised + fine))

    def forward(
        self, features: Tensor, prior: Tensor | None = None
    ) -> tuple[Tensor | None, Tensor | None, Tensor]:
        """Semantic logits [N, M, 18], geometric [N, M, 3] (None where switched off) and mask logits [N, M].

        `features` [N, M, D']; `prior` [M]: logits of occupancy that are known already; mask and classes start
        from them.
        """
        hidden = functional.softplus(self.hidden(features))
        mask = self.mask(hidden)[..., 0].float()
        semantic = None if self.semantic is None else self.semantic(hidden).float()
        geometric = None if self.geometric is None else self.geometric(hidden).float()
        if prior is not None:
            mask = mask + prior
            half = prior[:, None] / 2
            if semantic is not None:
                semantic = torch.cat([semantic[..., :-1] + half, semantic[..., -1:] - half], dim=-1)
            if geometric is not None:
                geometric = torch.cat([geometric[..., :1] - half, geometric[..., 1:] + half], dim=-1)
        return semantic, geometric, mask
