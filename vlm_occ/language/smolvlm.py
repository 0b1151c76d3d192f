"""SmolVLM2: square frames between tokens of their own, pixel-shuffled to few tokens."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from vlm_occ.language.family import Family, Piece
from vlm_occ.language.frames import normalised, resized

AROUND, WHOLE = "<fake_token_around_image>", "<global-img>"
"""What stands around an image, and before one that shows the whole picture, not a tile of it."""


class SmolVLM(Family):
    """SmolVLM2 (`smolvlm`): every frame is an image that is not cut into tiles, as its videos' are."""

    language: ClassVar[str] = "text_model"

    @property
    def vision_id(self) -> int:
        return self.model.config.image_token_id

    @property
    def image_size(self) -> int:
        """Side of a frame in pixels."""
        return self.model.config.vision_config.image_size

    @property
    def frame_side(self) -> int:
        """Rows and columns of a frame's tokens after the pixel shuffle."""
        config = self.model.config
        return self.image_size // config.vision_config.patch_size // config.scale_factor

    def prepare(self, images: Tensor) -> dict[str, Tensor]:
        frames = resized(images, (self.image_size, self.image_size))
        return {"pixels": normalised(frames, self.mean, self.std)}  # [F, 3, h, w]

    def frame_pieces(self, prepared: dict[str, Tensor]) -> list[list[Piece]]:
        side = self.frame_side
        around, whole = self._id(AROUND), self._id(WHOLE)
        frame = [
            Piece([around, whole]),
            Piece([self.vision_id] * side**2, (side, side)),
            Piece([around]),
        ]
        return [frame for _ in prepared["pixels"]]

    def vision_features(self, prepared: list[dict[str, Tensor]]) -> list[Tensor]:
        pixels = torch.cat([item["pixels"] for item in prepared])  # [F, 3, h, w]
        # The model takes pictures of zeros for padding; with a mean of 0.5 no pixel is zero.
        rows = self.model.model.get_image_features(pixels[None]).pooler_output
        return [torch.cat(list(rows)).flatten(0, -2)]  # [N, D]

    def _id(self, token: str) -> int:
        index = self.tokenizer.get_vocab().get(token)
        if index is None:
            raise ValueError(f"the tokenizer has no {token}; expected that of a SmolVLM2 model")
        return int(index)
