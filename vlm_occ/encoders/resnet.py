"""ResNet-101 with deformable convolutions in its last two stages: the paper's image backbone.

The plain network is transformers'. Its batch normalisation never updates, as batches are single scenes. The
deformable convolution is written out on grid_sample, so that it runs without torchvision's compiled operator.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from vlm_occ.weights import hide_broken_torchvision

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""Of ImageNet's channels."""


class DeformableConv2d(nn.Module):
    """A 3x3 convolution whose nine taps move and are weighted by what is there (Dai 2017, Zhu 2019).

    Starts as the plain convolution: offsets are zero and weights one.
    """

    def __init__(self, width_in: int, width_out: int, *, stride: int = 1) -> None:
        super().__init__()
        self.stride = stride
        self.weight = nn.Parameter(torch.empty(width_out, width_in, 3, 3))
        nn.init.kaiming_normal_(self.weight, mode="fan_out", nonlinearity="relu")
        self.shift = nn.Conv2d(width_in, 27, 3, stride=stride, padding=1)  # 18 offsets (x, y), 9 weights
        nn.init.zeros_(self.shift.weight)
        nn.init.zeros_(self.shift.bias)  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> Tensor:
        """[F, width_in, H, W] to [F, width_out, H / stride, W / stride]."""
        count, channels, height, width = x.shape
        shift, weight = self.shift(x).float().split([18, 9], dim=1)
        rows, columns = shift.shape[2:]
        tap = torch.cartesian_prod(torch.arange(-1, 2), torch.arange(-1, 2)).to(shift)  # [9, 2] y, x
        y = torch.arange(rows, device=x.device) * self.stride
        column = torch.arange(columns, device=x.device) * self.stride
        offsets = shift.unflatten(1, (9, 2))  # [F, 9, 2, h, w] x, y
        px = column + tap[:, 1, None, None] + offsets[:, :, 0]  # [F, 9, h, w] pixels
        py = y[:, None] + tap[:, 0, None, None] + offsets[:, :, 1]
        place = torch.stack([(2 * px + 1) / width - 1, (2 * py + 1) / height - 1], dim=-1)
        samples = functional.grid_sample(
            x.float(), place.flatten(1, 2), align_corners=False, padding_mode="zeros"
        )  # [F, C, 9 h, w]
        samples = samples.view(count, channels, 9, rows, columns) * (2 * weight.sigmoid())[:, None]
        return torch.einsum("fckhw,ock->fohw", samples, self.weight.flatten(2).to(samples.dtype))


class ImageResNet(nn.Module):
    """Maps of images at strides 8, 16 and 32 (`channels`)."""

    def __init__(
        self,
        weights: str = "random",
        *,
        deformable: bool = True,
        depths: tuple[int, ...] = (3, 4, 23, 3),
        widths: tuple[int, ...] = (256, 512, 1024, 2048),
    ) -> None:
        """`weights`: "random", or the Hub id or folder of a ResNet of these depths."""
        super().__init__()
        hide_broken_torchvision()
        from transformers import ResNetConfig, ResNetModel

        self.channels = widths[1:]
        config = ResNetConfig(depths=list(depths), hidden_sizes=list(widths), embedding_size=widths[0] // 4)
        if weights == "random":
            self.model = ResNetModel(config)
        else:
            self.model = ResNetModel.from_pretrained(weights, dtype=torch.float32)
        if deformable:
            for stage in list(self.model.encoder.stages)[2:]:
                for block in stage.layers:  # type: ignore[union-attr]
                    _make_deformable(block.layer[1])  # type: ignore[index,union-attr]
        self.train(False)

    def train(self, mode: bool = True) -> ImageResNet:
        """Batch normalisation stays as it was pretrained."""
        super().train(mode)
        for module in self.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.eval()
        return self

    def forward(self, images: Tensor, *, recompute: bool = False) -> list[Tensor]:
        """Images [F, 3, H, W] in 0..1 to maps [F, C_i, H / s, W / s].

        With `recompute`, blocks forget their activations and compute them again going backward.
        """
        mean, std = (images.new_tensor(values)[:, None, None] for values in (MEAN, STD))
        x = self.model.embedder((images - mean) / std)
        maps = []
        for stage in self.model.encoder.stages:
            for block in stage.layers:  # type: ignore[union-attr]
                x = checkpoint(block, x, use_reentrant=False) if recompute else block(x)  # type: ignore[operator]
            maps.append(x)
        return maps[1:]


def _make_deformable(layer: nn.Module) -> None:
    """Replace the 3x3 convolution of a bottleneck, weights kept."""
    plain = layer.convolution
    assert isinstance(plain, nn.Conv2d) and plain.kernel_size == (3, 3)
    moved = DeformableConv2d(plain.in_channels, plain.out_channels, stride=plain.stride[0])
    moved.weight = nn.Parameter(plain.weight.detach())
    layer.convolution = moved
