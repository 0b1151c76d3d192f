"""The dense parts of a model as ONNX files: image network, bird's-eye trunk, pointer, boxes, masks.

What is between them stays in PyTorch: sparse convolutions, the lift into voxels, the language model.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from vlm_occ.encoders.refine import CODE_CHANNELS
from vlm_occ.heads.occupancy import ObjectMaskHead
from vlm_occ.heads.words import QueryStates
from vlm_occ.models.adapter import VLMOcc
from vlm_occ.models.perception import Perception
from vlm_occ.weights import require


@dataclass(frozen=True)
class Part:
    """A module with inputs by name, of which some dimensions may have any size."""

    module: nn.Module
    inputs: dict[str, Tensor]
    outputs: tuple[str, ...]
    dynamic: dict[str, dict[int, str]]  # by input: dimension and its name


class ImageMaps(nn.Module):
    """Pictures [F, 3, H, W] in 0..1 to the pyramid [F, C, H/8, W/8]."""

    def __init__(self, trunk: Perception) -> None:
        super().__init__()
        self.network, self.pyramid = trunk.image_network, trunk.pyramid

    def forward(self, images: Tensor) -> Tensor:
        """As `Perception.forward` in float32, all pictures at once."""
        return self.pyramid(self.network._maps(images))


class BirdsEye(nn.Module):
    """Fused volume and LiDAR's bird's-eye view to logits of occupancy and objectness, and boxes."""

    def __init__(self, trunk: Perception) -> None:
        super().__init__()
        self.bev, self.occupancy, self.centres = trunk.bev, trunk.occupancy, trunk.centres

    def forward(self, volume: Tensor, lidar_bev: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """`volume` [B, C, X/2, Y/2, Z/2], `lidar_bev` [B, L, X, Y]."""
        bev = self.bev(volume, lidar_bev)
        _, occupancy = self.occupancy(bev.coarse, bev.fine)
        return (occupancy, *self.centres(bev.fine))


class Pointer(nn.Module):
    """States of `<|ground|>`, of the words before it and of voxel tokens to scores [Q, N]."""

    def __init__(self, model: VLMOcc) -> None:
        super().__init__()
        self.norm, self.pointer = model.ground_norm, model.pointer
        self.words, self.factors = model.word_encoder, model.factors

    def forward(
        self,
        ground: Tensor,
        states: Tensor,
        embeddings: Tensor,
        valid: Tensor,
        tokens: Tensor,
        boxes: Tensor,
    ) -> Tensor:
        """`ground` [Q, D], `states` and `embeddings` [Q, l, D], `valid` bool [Q, l], `tokens` [N, W],
        `boxes` [N, 7].
        """
        query = QueryStates(self.norm(ground), states, embeddings, valid)
        factors = self.factors(self.words(query), valid, tokens, boxes)
        return replace(factors, logits=factors.logits + self.pointer(query.ground, tokens)).scores()


class Boxes(nn.Module):
    """Normed grounding states [K, D], tokens [K, W], codes [K, C] and first boxes [K, 7] to boxes and joint
    states.
    """

    def __init__(self, model: VLMOcc) -> None:
        super().__init__()
        self.joint, self.box = model.joint, model.box

    def forward(self, ground: Tensor, tokens: Tensor, codes: Tensor, first: Tensor) -> tuple[Tensor, Tensor]:
        """Boxes [K, 7] and joint states [K, width]."""
        joint = self.joint(ground, tokens, codes)
        return self.box(joint, first), joint


class Mask(nn.Module):
    """Joint state [width], voxels' features [M, C] and centres [M, 3], first box [7] to mask logits [M]."""

    def __init__(self, head: ObjectMaskHead) -> None:
        super().__init__()
        self.head = head

    def forward(self, joint: Tensor, features: Tensor, centers: Tensor, box: Tensor) -> Tensor:
        """As `ObjectMaskHead`."""
        return self.head(joint, features, centers, box)


def dense_parts(model: VLMOcc) -> dict[str, Part]:
    """The parts with inputs to trace them by; sizes that differ between calls differ from one another."""
    config, trunk = model.config.perception, model.perception
    size_x, size_y, size_z = trunk.grid.shape
    state, width = model.backbone.hidden_size, model.config.head_width
    draw = _drawer()
    volume = draw(1, config.volume_width, size_x // 2, size_y // 2, size_z // 2)
    boxes = draw(5, 7).abs() + 1
    return {
        "images": Part(
            ImageMaps(trunk),
            {"images": draw(2, 3, *config.image_size).sigmoid()},
            ("pyramid",),
            {"images": {0: "pictures"}},
        ),
        "birds_eye": Part(
            BirdsEye(trunk),
            {"volume": volume, "lidar_bev": draw(1, config.lidar_width + size_z, size_x, size_y)},
            ("occupancy", "heatmap", "regression"),
            {},
        ),
        "pointer": Part(
            Pointer(model),
            {
                "ground": draw(3, state),
                "states": draw(3, 6, state),
                "embeddings": draw(3, 6, state),
                "valid": torch.arange(6) < torch.tensor([[6], [4], [5]]),
                "tokens": draw(7, width),
                "boxes": draw(7, 7),
            },
            ("scores",),
            {
                "ground": {0: "queries"},
                "states": {0: "queries", 1: "words"},
                "embeddings": {0: "queries", 1: "words"},
                "valid": {0: "queries", 1: "words"},
                "tokens": {0: "candidates"},
                "boxes": {0: "candidates"},
            },
        ),
        "boxes": Part(
            Boxes(model),
            {
                "ground": draw(5, state),
                "tokens": draw(5, width),
                "codes": draw(5, CODE_CHANNELS),
                "first": boxes,
            },
            ("boxes", "joint"),
            {name: {0: "objects"} for name in ("ground", "tokens", "codes", "first")},
        ),
        "mask": Part(
            Mask(model.mask),
            {
                "joint": draw(width),
                "features": draw(11, config.fine_width + 1),
                "centers": draw(11, 3),
                "box": boxes[0],
            },
            ("logits",),
            {"features": {0: "voxels"}, "centers": {0: "voxels"}},
        ),
    }


def _drawer() -> Callable[..., Tensor]:
    generator = torch.Generator().manual_seed(0)
    return lambda *shape: torch.randn(*shape, generator=generator)


def export_parts(model: VLMOcc, folder: Path) -> dict[str, Path]:
    """Write each dense part as `folder`/NAME.onnx in float32; the files by name."""
    require("onnxscript", "export")
    folder.mkdir(parents=True, exist_ok=True)
    files = {}
    for name, part in dense_parts(model).items():
        dimensions: dict[str, Any] = {key: None for key in part.inputs}
        for key, places in part.dynamic.items():
            dimensions[key] = {place: torch.export.Dim(label, min=1) for place, label in places.items()}
        files[name] = folder / f"{name}.onnx"
        with torch.no_grad():
            torch.onnx.export(
                part.module.eval(),
                args=(),
                kwargs=part.inputs,
                f=files[name],
                dynamo=True,
                dynamic_shapes=dimensions,
                output_names=list(part.outputs),
                external_data=False,
                verbose=False,
            )
    return files
