"""Pose tokens from pictures alone: CUT3R's camera tokens through two layers (Loc3R-VLM 3.1)."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from vlm_occ.encoders.cut3r import Cut3r
from vlm_occ.encoders.cut3r_frames import Recipe, camera_tokens
from vlm_occ.encoders.cut3r_weights import load_cut3r, read_settings
from vlm_occ.weights import sha256_of


@dataclass(frozen=True)
class _Frozen:
    """A loaded CUT3R; no module, so that it is neither trained, moved nor saved with the model."""

    model: Cut3r
    name: str  # checksum of its file


class Cut3rPose(nn.Module):
    """A two-layer projection of the camera tokens of a frozen CUT3R, kept on disk for each clip.

    A clip is all images of a scene in the language model's order, so that the first view is CUT3R's world.
    """

    def __init__(self, out_dim: int, weights: str | None) -> None:
        super().__init__()
        if weights is None:
            raise ValueError(
                "pose_source 'cut3r' needs CUT3R's weights; give their file as model.cut3r (published: "
                "cut3r_512_dpt_4_64.pth, or its conversion; small ones: configs/cut3r_small.yaml)"
            )
        self.path = Path(weights)
        settings = read_settings(self.path)
        self.config, self.long_edge = settings.config, settings.long_edge
        self.recipe: Recipe = settings.recipe
        self.keep = True  # False where pictures never come twice, as augmented ones
        width = self.config.decoder_width
        self.mlp = nn.Sequential(nn.Linear(width, out_dim), nn.GELU(), nn.Linear(out_dim, out_dim))
        self._frozen: _Frozen | None = None

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
        """Tokens [F, out_dim] of images uint8 [F, 3, H, W] in time order; nothing else is read."""
        if images is None:
            raise ValueError("pose_source 'cut3r' reads pictures, but none were given")
        return self.mlp(self.camera_tokens(images).to(self.device))

    @property
    def device(self) -> torch.device:
        """Where the projection is, and CUT3R with it."""
        return next(self.mlp.parameters()).device

    def camera_tokens(self, images: Tensor) -> Tensor:
        """CUT3R's own tokens [F, D] (float32) of a clip."""
        device = self.device
        if self._frozen is None or self._frozen.model.pose_token.device != device:
            model = load_cut3r(self.path, config=self.config, device=device)
            self._frozen = _Frozen(model, sha256_of(self.path))
        return camera_tokens(
            self._frozen.model,
            images.to(device),
            recipe=self.recipe,
            long_edge=self.long_edge,
            weights_name=self._frozen.name if self.keep else None,
        )
