"""Pose tokens: one token an image that says where its camera stood and looked (Loc3R-VLM 3.1)."""

from __future__ import annotations

import math
from typing import Literal, Protocol

import torch
from torch import Tensor, nn

from vlm_occ.encoders.cut3r_pose import Cut3rPose
from vlm_occ.types import CAMERAS

PoseSourceName = Literal["known", "learned", "cut3r", "none"]

OCTAVES = 6
POSE_CHANNELS = 6 + 3 + 4 + 1 + 2 * OCTAVES * 4
"""6-D rotation, translation, view, age, and waves of translation and age."""


class PoseSource(Protocol):
    """Makes a token [F, out_dim] for each of F images; a source ignores what it does not need."""

    def __call__(
        self,
        *,
        ego_from_camera: Tensor,
        intrinsics: Tensor,
        image_size: tuple[int, int],
        age: Tensor,
        camera: Tensor,
        images: Tensor | None = None,
    ) -> Tensor:
        """See `PoseEncoder.forward`."""
        ...


class PoseEncoder(nn.Module):
    """Pose tokens from calibration and motion (`known`), camera names (`learned`), pictures (`cut3r`), or
    zeros (`none`).
    """

    def __init__(self, out_dim: int, source: PoseSourceName = "known", *, weights: str | None = None) -> None:
        super().__init__()
        self.out_dim, self.name = out_dim, source
        self.source: PoseSource | None = None
        if source == "known":
            self.source = KnownPose(out_dim)
        elif source == "learned":
            self.source = LearnedPose(out_dim)
        elif source == "cut3r":
            self.source = Cut3rPose(out_dim, weights)
        elif source != "none":
            raise ValueError(f"pose source {source!r}, expected 'known', 'learned', 'cut3r' or 'none'")

    def forward(
        self,
        ego_from_camera: Tensor,
        intrinsics: Tensor,
        *,
        image_size: tuple[int, int],
        age: Tensor,
        camera: Tensor,
        images: Tensor | None = None,
    ) -> Tensor:
        """Tokens [F, out_dim] of F images.

        `ego_from_camera` [F, 4, 4] reference ego from that image's camera, `intrinsics` [F, 3, 3] for images
        of `image_size` (H, W), `age` [F] seconds before the reference frame, `camera` long [F] index in
        CAMERAS (len(CAMERAS) for another camera), `images` uint8 [F, 3, H, W] for `cut3r`.
        """
        if self.source is None:
            return age.new_zeros(len(age), self.out_dim)
        return self.source(
            ego_from_camera=ego_from_camera,
            intrinsics=intrinsics,
            image_size=image_size,
            age=age,
            camera=camera,
            images=images,
        )


class KnownPose(nn.Module):
    """A small network on the camera's pose, field of view and age."""

    def __init__(self, out_dim: int, width: int = 256) -> None:
        super().__init__()
        self.mlp = nn.Sequential(
            nn.Linear(POSE_CHANNELS, width), nn.GELU(), nn.Linear(width, width), nn.GELU()
        )
        self.out = nn.Linear(width, out_dim)

    def forward(
        self,
        *,
        ego_from_camera: Tensor,
        intrinsics: Tensor,
        image_size: tuple[int, int],
        age: Tensor,
        camera: Tensor,
        images: Tensor | None = None,
    ) -> Tensor:
        """Tokens [F, out_dim]; `camera` is not read, so a rig with other names works."""
        features = pose_features(ego_from_camera, intrinsics, image_size=image_size, age=age)
        return self.out(self.mlp(features))


class LearnedPose(nn.Module):
    """A learned vector for each camera name plus one of its age; needs no calibration."""

    def __init__(self, out_dim: int) -> None:
        super().__init__()
        self.camera = nn.Embedding(len(CAMERAS) + 1, out_dim)
        self.age = nn.Linear(1 + 2 * OCTAVES, out_dim)
        nn.init.normal_(self.camera.weight, std=0.02)

    def forward(
        self,
        *,
        ego_from_camera: Tensor,
        intrinsics: Tensor,
        image_size: tuple[int, int],
        age: Tensor,
        camera: Tensor,
        images: Tensor | None = None,
    ) -> Tensor:
        """Tokens [F, out_dim] of `camera` long [F] and `age` [F]; the rest is not read."""
        return self.camera(camera) + self.age(torch.cat([age[:, None], waves(age[:, None] / 8)], dim=1))


def pose_features(
    ego_from_camera: Tensor, intrinsics: Tensor, *, image_size: tuple[int, int], age: Tensor
) -> Tensor:
    """What `KnownPose` reads, [F, POSE_CHANNELS]: the field of view counts, the image's resolution does not.

    The rotation is its first two columns (Zhou et al. 2019): continuous, unlike angles or quaternions.
    """
    height, width = image_size
    rotation = ego_from_camera[:, :3, :2].flatten(1)  # [F, 6]
    position = ego_from_camera[:, :3, 3]  # [F, 3] metres
    view = torch.stack(
        [
            torch.atan(width / (2 * intrinsics[:, 0, 0])),  # half the horizontal field of view
            torch.atan(height / (2 * intrinsics[:, 1, 1])),
            intrinsics[:, 0, 2] / width - 0.5,
            intrinsics[:, 1, 2] / height - 0.5,
        ],
        dim=-1,
    )
    moving = torch.cat([position / 32, age[:, None] / 8], dim=-1)  # [F, 4]
    return torch.cat([rotation, position / 4, view, age[:, None], waves(moving)], dim=-1).float()


def waves(values: Tensor) -> Tensor:
    """Sines and cosines [F, 2 * OCTAVES * C] of values [F, C] at periods 2, 1, 1/2, ..."""
    angles = values[:, :, None] * math.pi * 2.0 ** torch.arange(OCTAVES, device=values.device)
    return torch.cat([angles.sin(), angles.cos()], dim=-1).flatten(1)
