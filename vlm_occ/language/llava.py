"""LLaVA-OneVision and what was trained in its class: one video of square frames."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from vlm_occ.language.family import Family, Piece
from vlm_occ.language.frames import normalised, resized


class LlavaOnevision(Family):
    """LLaVA-OneVision: one video of square frames, 2x2-pooled, with one newline embedding at its end.

    LLaVA-Video in its class (language/llava_video.py) has a newline after each row of a frame instead.
    """

    @property
    def newline_a_row(self) -> bool:
        """Whether each row of a frame ends with the newline embedding."""
        return getattr(self.model.config, "mm_newline_position", "one_token") == "grid"

    @property
    def vision_id(self) -> int:
        return self.model.config.video_token_id

    @property
    def image_size(self) -> int:
        """Side of a frame in pixels."""
        return self.model.config.vision_config.image_size

    @property
    def frame_side(self) -> int:
        """Rows and columns of a frame's tokens after pooling."""
        return -(-(self.image_size // self.model.config.vision_config.patch_size) // 2)  # rounded up

    def prepare(self, images: Tensor) -> dict[str, Tensor]:
        frames = resized(images, (self.image_size, self.image_size))
        return {"pixels": normalised(frames, self.mean, self.std)}  # [F, 3, h, w]

    def frame_pieces(self, prepared: dict[str, Tensor]) -> list[list[Piece]]:
        rows = self.frame_side
        columns = rows + self.newline_a_row
        return [[Piece([self.vision_id] * rows * columns, (rows, columns))] for _ in prepared["pixels"]]

    def closing_pieces(self, frames: int) -> list[Piece]:
        return [Piece([self.vision_id])] if frames and not self.newline_a_row else []

    def vision_features(self, prepared: list[dict[str, Tensor]]) -> list[Tensor]:
        inner = self.model.model
        counts = [len(item["pixels"]) for item in prepared]
        pixels = torch.cat([item["pixels"] for item in prepared])[
            :, None
        ]  # [F, 1, 3, h, w]: clips of one frame
        features = inner.get_video_features(pixels.to(inner.vision_tower.dtype)).pooler_output
        features = features[:, : self.frame_side**2]  # [F, n, D]; some versions add the newline here
        newline = inner.image_newline[None].to(features)
        if self.newline_a_row:
            grid = features.unflatten(1, (self.frame_side, self.frame_side))  # [F, h, w, D]
            ends = newline.expand(*grid.shape[:2], 1, -1)
            return [torch.cat((grid, ends), dim=2).flatten(0, 2)]  # [F h (w + 1), D]
        clips = features.split([count for count in counts if count])
        return [torch.cat([rows for clip in clips for rows in (clip.flatten(0, 1), newline)])]  # [N, D]

    def trainable_projector(self) -> dict[str, nn.Parameter]:
        inner = self.model.model
        layers = inner.multi_modal_projector.float().requires_grad_(True)
        layers.register_forward_pre_hook(lambda _, inputs: (inputs[0].float(),))
        inner.image_newline = nn.Parameter(inner.image_newline.detach().float())
        return {**dict(layers.named_parameters()), "newline": inner.image_newline}
