"""What differs between families of VLMs: frames, their tokens and positions; new families go here."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor, nn

from vlm_occ.language.frames import CLIP_MEAN, CLIP_STD, HALF, fitting_size, normalised, patches, resized

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True)
class Piece:
    """Neighbouring tokens of a prefix; vision tokens of one frame have a grid (rows, columns)."""

    ids: list[int]
    grid: tuple[int, int] | None = None


class Family(ABC):
    """How one family of VLMs takes frames; made for one loaded model."""

    axes: ClassVar[int] = 1  # of the language model's rotary positions

    def __init__(self, model: PreTrainedModel, mean: tuple[float, ...], std: tuple[float, ...]) -> None:
        self.model = model
        self.mean, self.std = mean, std

    @property
    @abstractmethod
    def vision_id(self) -> int:
        """Vocabulary id of the vision placeholder."""

    @abstractmethod
    def prepare(self, images: Tensor) -> dict[str, Tensor]:
        """Inputs of the vision tower for uint8 [F, 3, H, W] images, on their device."""

    @abstractmethod
    def frame_pieces(self, prepared: dict[str, Tensor]) -> list[list[Piece]]:
        """Tokens of each frame [F], as the model was trained on them."""

    @abstractmethod
    def vision_features(self, prepared: list[dict[str, Tensor]]) -> Tensor:
        """Embeddings [N, D] of all vision tokens of several prefixes, in order."""

    def closing_pieces(self, frames: int) -> list[Piece]:
        """Tokens after the last frame."""
        del frames
        return []

    def positions(self, pieces: list[Piece]) -> Tensor:
        """Rotary positions [A, L] of the tokens of a prefix."""
        return torch.arange(sum(len(piece.ids) for piece in pieces))[None]  # [1, L]

    def trainable_projector(self) -> dict[str, nn.Parameter]:
        """Free what stands between vision tower and language model, in fp32; only for an untrained one."""
        raise NotImplementedError(f"the projector of {type(self).__name__} is pretrained and stays frozen")


class LlavaOnevision(Family):
    """LLaVA-OneVision: one video of square frames, 2x2-pooled, with one newline embedding at its end."""

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
        side = self.frame_side
        return [[Piece([self.vision_id] * side**2, (side, side))] for _ in prepared["pixels"]]

    def closing_pieces(self, frames: int) -> list[Piece]:
        return [Piece([self.vision_id])] if frames else []

    def vision_features(self, prepared: list[dict[str, Tensor]]) -> Tensor:
        inner = self.model.model
        counts = [len(item["pixels"]) for item in prepared]
        pixels = torch.cat([item["pixels"] for item in prepared])[
            :, None
        ]  # [F, 1, 3, h, w]: clips of one frame
        features = inner.get_video_features(pixels.to(inner.vision_tower.dtype)).pooler_output
        features = features[:, : self.frame_side**2]  # [F, n, D]; some versions add the newline here
        newline = inner.image_newline[None].to(features)
        clips = features.split([count for count in counts if count])
        return torch.cat([rows for clip in clips for rows in (clip.flatten(0, 1), newline)])  # [N, D]

    def trainable_projector(self) -> dict[str, nn.Parameter]:
        inner = self.model.model
        layers = inner.multi_modal_projector.float().requires_grad_(True)
        layers.register_forward_pre_hook(lambda _, inputs: (inputs[0].float(),))
        inner.image_newline = nn.Parameter(inner.image_newline.detach().float())
        return {**dict(layers.named_parameters()), "newline": inner.image_newline}


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

    def vision_features(self, prepared: list[dict[str, Tensor]]) -> Tensor:
        pixels = torch.cat([item["pixels"] for item in prepared])
        grid = torch.cat([item["grid"] for item in prepared])
        return torch.cat(list(self.model.model.get_image_features(pixels, grid).pooler_output))  # [N, D]

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


FAMILIES: dict[str, type[Family]] = {"llava_onevision": LlavaOnevision, "qwen2_5_vl": Qwen25VL}
"""Families by the `model_type` of their config; a new one is a class above and a line here."""

NORMALISATIONS = {"llava_onevision": (HALF, HALF), "qwen2_5_vl": (CLIP_MEAN, CLIP_STD)}
"""Mean and standard deviation of pixels where a model's folder names none."""


def normalisation(folder: Path, model_type: str) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of pixels that a model was trained with, from its processor's files."""
    for name in ("video_preprocessor_config.json", "preprocessor_config.json", "processor_config.json"):
        path = folder / name
        values = json.loads(path.read_text()) if path.is_file() else {}
        for part in (values, values.get("video_processor") or {}, values.get("image_processor") or {}):
            if "image_mean" in part and "image_std" in part:
                return tuple(part["image_mean"]), tuple(part["image_std"])
    return NORMALISATIONS[model_type]
