"""What a family of VLMs has to say about itself: frames, their tokens, positions and embeddings."""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from transformers import Cache, PreTrainedModel, PreTrainedTokenizerBase


@dataclass(frozen=True)
class Piece:
    """Neighbouring tokens of a prefix; vision tokens of one frame have a grid (rows, columns)."""

    ids: list[int]
    grid: tuple[int, int] | None = None


class Family(ABC):
    """How one family of VLMs takes frames; made for one loaded model."""

    axes: ClassVar[int] = 1  # of the language model's rotary positions
    language: ClassVar[str] = "language_model"  # its name inside `model.model`

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        *,
        mean: Sequence[float],
        std: Sequence[float],
    ) -> None:
        self.model, self.tokenizer = model, tokenizer
        self.mean, self.std = tuple(mean), tuple(std)

    @property
    def language_model(self) -> Any:
        """The decoder without its output layer."""
        return getattr(self.model.model, self.language)

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
    def vision_features(self, prepared: list[dict[str, Tensor]]) -> list[Tensor]:
        """Embeddings [N, D] of all vision tokens of several prefixes, in order.

        After them, for models with DeepStack (arXiv 2406.04334), what is added to the tokens' states behind
        each of the first layers: [N, D] each.
        """

    def closing_pieces(self, frames: int) -> list[Piece]:
        """Tokens after the last frame."""
        del frames
        return []

    def positions(self, pieces: list[Piece]) -> Tensor:
        """Rotary positions [A, L] of the tokens of a prefix."""
        return torch.arange(sum(len(piece.ids) for piece in pieces))[None]  # [1, L]

    def extra_arguments(self, ids: Tensor, cache: Cache | None, deep: list[Tensor]) -> dict[str, Any]:
        """Arguments of the language model for ids [B, L] whose names differ between versions and families.

        `deep` is what `vision_features` returned after the embeddings.
        """
        named = inspect.signature(self.language_model.forward).parameters
        arguments: dict[str, Any] = {"cache" if "cache" in named else "past_key_values": cache}
        if deep:
            arguments |= {"visual_pos_masks": ids == self.vision_id, "deepstack_visual_embeds": deep}
        return arguments

    def trainable_projector(self) -> dict[str, nn.Parameter]:
        """Free what stands between vision tower and language model, in fp32; only for an untrained one."""
        raise NotImplementedError(f"the projector of {type(self).__name__} is pretrained and stays frozen")
