"""Adaptive fusion of LiDAR and camera volumes, and the bird's-eye network on top of it."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional


class AdaptiveFusion(nn.Module):
    """A learned weight per voxel mixes two volumes (Talk2Occ, section IV-B c; the adaptive fusion of
    OpenOccupancy).

    `w = sigmoid(conv(cat(lidar, camera)))`, `fused = w lidar + (1 - w) camera`. A scene that lacks one
    sensor takes
    the other alone.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.gate = nn.Linear(2 * width, width)
        self.norm = nn.LayerNorm(width)

    def forward(self, lidar: Tensor, camera: Tensor, has_lidar: Tensor, has_camera: Tensor) -> Tensor:
        """Fuse `lidar` and `camera` [B, C, X, Y, Z] where `has_lidar`, `has_camera` bool [B]: [B, C, X, Y,
        Z].
        """
        lidar, camera = lidar.movedim(1, -1), camera.movedim(1, -1)  # [B, X, Y, Z, C]
        weight = torch.sigmoid(self.gate(torch.cat([lidar, camera], dim=-1)))
        only_lidar = (has_lidar & ~has_camera)[:, None, None, None, None]
        only_camera = (has_camera & ~has_lidar)[:, None, None, None, None]
        weight = torch.where(only_lidar, torch.ones_like(weight), weight)
        weight = torch.where(only_camera, torch.zeros_like(weight), weight)
        return self.norm(weight * lidar + (1 - weight) * camera).movedim(-1, 1)


class ConvBlock(nn.Module):
    """3x3 convolution, GroupNorm, GELU; residual where the shape allows."""

    def __init__(self, width_in: int, width_out: int, *, stride: int = 1) -> None:
        super().__init__()
        self.conv = nn.Conv2d(width_in, width_out, 3, stride=stride, padding=1, bias=False)
        self.norm = nn.GroupNorm(8, width_out)
        self.residual = stride == 1 and width_in == width_out

    def forward(self, x: Tensor) -> Tensor:
        """[B, width_in, H, W] to [B, width_out, H/stride, W/stride]."""
        y = functional.gelu(self.norm(self.conv(x)))
        return x + y if self.residual else y


@dataclass(frozen=True)
class BirdsEyeFeatures:
    """Bird's-eye features at three scales; the axes are x, y of the ego frame."""

    fine: Tensor  # [B, F, X, Y] at the grid's voxel size (0.4 m)
    middle: Tensor  # [B, D, X/2, Y/2]
    coarse: Tensor  # [B, 2D, X/4, Y/4]


def _upsample(x: Tensor) -> Tensor:
    return functional.interpolate(x, scale_factor=2.0, mode="bilinear", align_corners=False)


class BirdsEyeNetwork(nn.Module):
    """A small U-Net over the bird's-eye view: fused volume at 0.8 m down to 3.2 m and back up to 0.4 m."""

    def __init__(
        self,
        *,
        volume_channels: int,
        lidar_channels: int,
        width: int = 64,
        fine_width: int = 48,
        depth: int = 2,
    ) -> None:
        super().__init__()
        wide = 2 * width
        self.stem = nn.Conv2d(volume_channels, width, 1, bias=False)
        self.middle = nn.Sequential(ConvBlock(width, width), ConvBlock(width, width))
        self.down = ConvBlock(width, wide, stride=2)
        self.coarse = nn.Sequential(*[ConvBlock(wide, wide) for _ in range(depth)])
        self.bottom = nn.Sequential(
            ConvBlock(wide, wide, stride=2), *[ConvBlock(wide, wide) for _ in range(depth)]
        )
        self.up_coarse = nn.Sequential(ConvBlock(2 * wide, wide), ConvBlock(wide, wide))
        self.up_middle = nn.Sequential(ConvBlock(wide + width, width), ConvBlock(width, width))
        self.lidar_stem = nn.Conv2d(lidar_channels, fine_width, 1, bias=False)
        self.up_fine = nn.Conv2d(width, fine_width, 1, bias=False)
        self.fine = nn.Sequential(ConvBlock(fine_width, fine_width), ConvBlock(fine_width, fine_width))

    def forward(self, volume: Tensor, lidar_bev: Tensor) -> BirdsEyeFeatures:
        """`volume` [B, C, X/2, Y/2, Z/2] and `lidar_bev` [B, L, X, Y] to features at three scales."""
        middle = self.middle(self.stem(volume.permute(0, 1, 4, 2, 3).flatten(1, 2)))  # [B, D, X/2, Y/2]
        coarse = self.coarse(self.down(middle))  # [B, 2D, X/4, Y/4]
        bottom = functional.interpolate(
            self.bottom(coarse), size=coarse.shape[-2:], mode="bilinear", align_corners=False
        )
        coarse = self.up_coarse(torch.cat([coarse, bottom], dim=1))
        middle = self.up_middle(torch.cat([middle, _upsample(coarse)], dim=1))
        fine = self.fine(_upsample(self.up_fine(middle)) + self.lidar_stem(lidar_bev))
        return BirdsEyeFeatures(fine=fine, middle=middle, coarse=coarse)
