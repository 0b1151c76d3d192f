"""Qwen2.5-VL and Qwen3-VL: every frame is an image of its own that keeps its aspect ratio."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from vlm_occ.language.family import Family, Piece
from vlm_occ.language.frames import fitting_size, normalised, patches, resized


class Qwen25VL(Family):
    """Qwen2.5-VL: every frame is an image of its own that keeps its aspect ratio, with 3-D positions."""

    axes: ClassVar[int] = 3
    most_tokens: ClassVar[int] = 256  # a frame
    least_tokens: ClassVar[int] = 4

    @property
    def vision_id(self) -> int:
        return self.model.config.image_token_id

    def prepare(self, images: Tensor) -> dict[str, Tensor]:
        vision = self.model.config.vision_config
        unit = vision.patch_size * vision.spatial_merge_size
        most, least = self.most_tokens * unit**2, self.least_tokens * unit**2
        given = images.shape[-2:]
        height, width = fitting_size(*given, factor=unit, least=least, most=most)
        frames = normalised(resized(images, (height, width)), self.mean, self.std)  # [F, 3, h, w]
        repeats = vision.temporal_patch_size
        cut = patches(frames, patch=vision.patch_size, merge=vision.spatial_merge_size, repeats=repeats)
        grid = torch.tensor(
            [1, height // vision.patch_size, width // vision.patch_size], device=images.device
        )
        return {"pixels": cut, "grid": grid.expand(len(images), 3)}

    def frame_pieces(self, prepared: dict[str, Tensor]) -> list[list[Piece]]:
        config = self.model.config
        merge = config.vision_config.spatial_merge_size
        start, end = Piece([config.vision_start_token_id]), Piece([config.vision_end_token_id])
        pieces = []
        for _, height, width in prepared["grid"].tolist():
            rows, columns = height // merge, width // merge
            pieces.append([start, Piece([self.vision_id] * (rows * columns), (rows, columns)), end])
        return pieces

    def vision_features(self, prepared: list[dict[str, Tensor]]) -> list[Tensor]:
        pixels = torch.cat([item["pixels"] for item in prepared])
        grid = torch.cat([item["grid"] for item in prepared])
        output = self.model.model.get_image_features(pixels, grid)
        deep = getattr(output, "deepstack_features", None) or []  # Qwen3-VL's
        layers = [output.pooler_output, *deep]  # tensors, or a list of them, one an image
        return [x if isinstance(x, Tensor) else torch.cat(list(x)) for x in layers]  # [N, D]

    def positions(self, pieces: list[Piece]) -> Tensor:
        """Text counts on along all axes; an image starts where text stopped and takes its longer side.

        Qwen2-VL's multimodal rotary embedding (arXiv 2409.12191, section 2.1).
        """
        start, parts = 0, []
        for piece in pieces:
            if piece.grid is None:
                parts.append(start + torch.arange(len(piece.ids)).expand(3, -1))
                start += len(piece.ids)
                continue
            rows, columns = piece.grid
            row = torch.arange(rows).repeat_interleave(columns)
            column = torch.arange(columns).repeat(rows)
            parts.append(start + torch.stack((torch.zeros_like(row), row, column)))
            start += max(rows, columns)
        return torch.cat(parts, dim=1)  # [3, L]


class Qwen3VL(Qwen25VL):
    """Qwen3-VL: as Qwen2.5-VL, and its tower's features enter the language model's first layers too.

    Its videos have text timestamps between frames; here each frame is an image after its pose token.
    """
