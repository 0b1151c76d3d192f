"""Occupancy: what is occupied (coarse to fine), what it is, and which voxels belong to an object."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from vlm_occ.geometry import rotation_z
from vlm_occ.types import OCC3D_CLASSES


class SceneOccupancyHead(nn.Module):
    """Occupancy logits of the whole scene, coarse to fine: a 50x50x16 prediction plus a 200x200x16
    residual.
    """

    def __init__(self, *, coarse_channels: int, fine_channels: int, height: int = 16) -> None:
        super().__init__()
        self.coarse = nn.Conv2d(coarse_channels, height, 1)
        self.fine = nn.Conv2d(fine_channels, height, 1)

    def forward(self, coarse: Tensor, fine: Tensor) -> tuple[Tensor, Tensor]:
        """Features [B, C, X/4, Y/4] and [B, F, X, Y] to logits [B, X/4, Y/4, Z] and [B, X, Y, Z]."""
        coarse_logits = self.coarse(coarse).float()  # [B, Z, X/4, Y/4]
        upsampled = functional.interpolate(coarse_logits, size=fine.shape[-2:], mode="nearest")
        fine_logits = self.fine(fine).float() + upsampled  # [B, Z, X, Y]
        return coarse_logits.permute(0, 2, 3, 1), fine_logits.permute(0, 2, 3, 1)


class VoxelFeatureHead(nn.Module):
    """Fine features and semantic logits of chosen voxels, from all that is known about them."""

    def __init__(
        self, *, bev_channels: int, lidar_channels: int, image_channels: int, width: int, height: int = 16
    ) -> None:
        super().__init__()
        self.height = nn.Embedding(height, 16)
        total = bev_channels + lidar_channels + image_channels + 16 + 1
        self.mlp = nn.Sequential(nn.LayerNorm(total), nn.Linear(total, 96), nn.GELU(), nn.Linear(96, width))
        self.norm = nn.LayerNorm(width)
        self.semantic = nn.Linear(width, len(OCC3D_CLASSES))

    def forward(
        self, bev: Tensor, height: Tensor, lidar: Tensor, image: Tensor, seen: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Features [M, width] and semantic logits [M, 18] of M voxels.

        `bev` [M, F], `height` index [M], `lidar` [M, L] (zeros without points), `image` [M, I], `seen` [M]
        cameras.
        """
        parts = [bev, lidar, image, self.height(height), (seen > 0).to(bev.dtype)[:, None]]
        features = self.norm(self.mlp(torch.cat([p.to(bev.dtype) for p in parts], dim=-1)))
        return features, self.semantic(features)


FACE_STEPS = (-0.6, -0.3, 0.0, 0.3, 0.6)
SHELL_STEPS = (-0.8, -0.4, -0.2, 0.0, 0.2, 0.4, 0.8)
"""Metres beyond a box's face, and beyond its surface, at which a voxel's bumps are centred."""
BUMP = 0.25
"""Metres of standard deviation of a bump."""
OFFSET_CHANNELS = 12 + 6 * len(FACE_STEPS) + len(SHELL_STEPS)


def offset_features(centers: Tensor, box: Tensor) -> Tensor:
    """Where voxel centres [M, 3] lie relative to a box [7], in its axes and sizes: [M, OFFSET_CHANNELS].

    Linear and squared coordinates (so that a dot product can draw an ellipsoid), how far outside each side a
    voxel is, the plain offset in units of 4 m; then how near it is to each face, and to the surface: objects
    are shells a voxel thick, which no smooth function of the coordinates draws.
    """
    local = (centers - box[:3]) @ rotation_z(box[6])  # [M, 3]
    half = box[3:6] / 2
    relative = (local / (half + 0.2)).clamp(-4, 4)
    outside = (relative.abs() - 1).clamp(min=0)
    beyond = torch.cat([local - half, -local - half], dim=-1)  # [M, 6] metres, below 0 inside
    apart = local.abs() - half
    surface = apart.clamp(min=0).norm(dim=-1) + apart.amax(-1).clamp(max=0)  # [M] signed distance
    parts = [relative, relative.square() / 4, outside, (centers - box[:3]) / 4]
    parts += [_bumps(beyond, FACE_STEPS).flatten(1), _bumps(surface, SHELL_STEPS)]
    return torch.cat(parts, dim=-1)


def _bumps(distance: Tensor, places: tuple[float, ...]) -> Tensor:
    """Gaussians of distances [...] around places, all in metres: [..., len(places)]."""
    return (-((distance[..., None] - distance.new_tensor(places)) / BUMP).square() / 2).exp()


WINDOW_MARGIN = 2.0
"""Metres beyond the corners of an object's box in which its mask may lie."""


def mask_window(box: Tensor, centers: Tensor, radius: float) -> Tensor:
    """Rows of the voxels [M, 3] among which the mask of an object with box [7] is sought."""
    reach = (box[3:5].norm() / 2 + WINDOW_MARGIN).clamp(max=radius)
    return ((centers[:, :2] - box[:2]).abs() <= reach).all(-1).nonzero()[:, 0]


class ObjectMaskHead(nn.Module):
    """The mask of one object: MLP(state, token) dotted with features of the voxels near it (ARCHITECTURE 1
    e).

    What is dotted is a voxel's fine feature, its occupancy logit, its place in the object's box, and
    32 values that a small network makes of all these under the object's state: the shape of its class.
    """

    def __init__(self, state_width: int, *, voxel_width: int, width: int, radius: float) -> None:
        super().__init__()
        self.radius = radius  # metres around the object in which its mask may lie
        channels = voxel_width + OFFSET_CHANNELS
        self.voxel = nn.Linear(channels, 128)
        self.state = nn.Linear(state_width, 128, bias=False)
        self.shape = nn.Linear(128, 32)
        last = nn.Linear(width, channels + 32 + 1)
        self.kernel = nn.Sequential(nn.Linear(state_width, width), nn.GELU(), last)
        # The offset part begins as "inside the box": a mask that is right where the box is.
        nn.init.zeros_(last.bias)
        with torch.no_grad():
            last.weight.mul_(0.1)
            last.bias[voxel_width + 6 : voxel_width + 9] = -6.0
            last.bias[-1] = 1.5

    def forward(self, joint: Tensor, features: Tensor, centers: Tensor, box: Tensor) -> Tensor:
        """Mask logits [M] of one object: `joint` [D] of state and token, voxels' features [M, C] and
        centres [M, 3].

        `box` [7] is the object's, in the frame of the centres.
        """
        kernel = self.kernel(joint).float()
        voxel = torch.cat([features.float(), offset_features(centers, box)], dim=-1)
        hidden = functional.gelu(self.voxel(voxel) + self.state(joint.float()))
        voxel = torch.cat([voxel, functional.gelu(self.shape(hidden))], dim=-1)
        return voxel @ kernel[:-1] + kernel[-1]
