"""What the training loop asks of a model: a forward to the loss, its weights by name, how it ends."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from vlm_occ.run_state import TrainingState, Weight
from vlm_occ.types import FREE, LabelledScene, SceneLabels

M = TypeVar("M", bound=nn.Module)


class Trainee(nn.Module, ABC, Generic[M]):
    """A model in training: what DDP and FSDP wrap. VLM-Occ's is in `train`, the paper's in `paper_train`."""

    model: M

    @abstractmethod
    def forward(self, scenes: Sequence[LabelledScene]) -> tuple[Tensor, dict[str, float]]:
        """The mean loss over the scenes and its terms."""

    @abstractmethod
    def weight_names(self) -> dict[str, Weight]:
        """What each of the model's weights is in a checkpoint, by its name in the model."""

    @abstractmethod
    def load(self, state: TrainingState, *, where: str) -> None:
        """Put the weights of a state into the model, which no process shares yet."""

    @abstractmethod
    def groups(self) -> list[dict[str, Any]]:
        """Parameter groups of what is trained, each with its rate as "lr" and "base"; the rest is frozen."""

    @abstractmethod
    def recompute(self) -> None:
        """Let activations be forgotten and computed again going backward."""

    @abstractmethod
    def finish(self, weights: dict[str, Tensor] | None, folder: Path | None) -> M:
        """The finished model, saved in `folder`; `weights` by checkpoint name, where the own are shards."""

    def touch(self) -> Tensor:
        """Zero that depends on every trained parameter, so that all processes have the same gradients.

        What FSDP has sharded again after its use (layers of the language model) is used in every forward. A
        process that is alone fills missing gradients instead (`fill_gradients`): that costs no launches.
        """
        used = [p for p in self.parameters() if p.requires_grad and not isinstance(p, DTensor)]
        if not torch.distributed.is_initialized():
            used = used[:1]
        return torch.stack([p.flatten()[0] * 0 for p in used]).sum()


def fill_gradients(groups: Sequence[dict[str, Any]]) -> None:
    """Give trained parameters of an optimiser's groups that no loss has reached a gradient of zero."""
    for group in groups:
        for parameter in group["params"]:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)


def occupied(labels: Sequence[SceneLabels]) -> Tensor:
    """The truly occupied voxels, bool [B, X, Y, Z]."""
    return torch.stack([item.semantics != FREE for item in labels])


def to_device(labels: SceneLabels, device: torch.device) -> SceneLabels:
    """Labels on another device."""
    return SceneLabels(**{name: getattr(labels, name).to(device) for name in labels.__dataclass_fields__})
