"""What the paper's systems read and give."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from vlm_occ.encoders.inputs import SceneInputs, collate_inputs, prepare_scene
from vlm_occ.encoders.voxel_queries import CameraHits
from vlm_occ.heads.grounding2d import ImageGrounding
from vlm_occ.heads.grounding3d import BoxProposals, QueryStarts
from vlm_occ.models.groundingocc_config import GroundingOccConfig
from vlm_occ.models.sensors import TrunkFeatures
from vlm_occ.types import FREE, GroundingQuery, LabelledScene, VoxelGrid


@dataclass(frozen=True)
class QueryBatch:
    """B scenes and the sentences about each."""

    inputs: SceneInputs
    queries: tuple[tuple[GroundingQuery, ...], ...]
    occupied: Tensor | None = None  # bool [B, X, Y, Z]: in training, the voxels that are decoded besides
    seen: TrunkFeatures | None = None  # what the frozen trunk said of the scenes, where it was kept


def make_query_batch(
    scenes: Sequence[LabelledScene], config: GroundingOccConfig, *, training: bool = True
) -> QueryBatch:
    """Labelled scenes with a system's sensors and frames; with `training` the truth is part of it."""
    inputs = collate_inputs([prepare_scene(item.scene, config.inputs()) for item in scenes])
    occupied = torch.stack([item.labels.semantics != FREE for item in scenes]) if training else None
    return QueryBatch(inputs, tuple(item.queries for item in scenes), occupied)


@dataclass(frozen=True)
class Moment:
    """The images of one frame of a scene, and the voxel queries that they show."""

    age: float  # seconds before the reference
    rows: Tensor  # long [V], of the scene's images
    hits: CameraHits


@dataclass(frozen=True)
class SceneView:
    """One scene before any word is read: all that its sentences share."""

    levels: tuple[Tensor, ...]  # [F, D, h, w] of the scene's images
    volume: Tensor | None  # [D, x, y, z]
    has_volume: bool  # False where the volume would come from a LiDAR that saw nothing
    voxels: Tensor  # long [M], flat indices of the fine voxels that are decoded
    fine: Tensor | None  # [M, D']
    prior: Tensor | None  # [M] logits
    starts: QueryStarts | None  # at which the grounding queries start; None: on a grid
    moments: tuple[Moment, ...]  # youngest first
    intrinsics: Tensor  # [F, 3, 3]
    ego_from_camera: Tensor  # [F, 4, 4]
    image_size: tuple[int, int]
    depth_logits: Tensor | None  # [V, D, h, w] of the reference frame's images


@dataclass(frozen=True)
class PaperState:
    """A scene encoded once, for any number of sentences."""

    name: str
    grid: VoxelGrid
    view: SceneView


@dataclass(frozen=True)
class PictureGrounding:
    """Where a sentence's object is in each of the V images of the reference frame: P = N * V pictures."""

    predicted: ImageGrounding
    rows: Tensor  # long [V], of the scene's images


@dataclass(frozen=True)
class SentenceOutput:
    """What a system says to N sentences about one scene; M voxels are those of its view."""

    semantic_logits: Tensor | None  # [N, M, 18]
    geometric_logits: Tensor | None  # [N, M, 3]
    mask_logits: Tensor  # [N, M]
    proposals: BoxProposals
    pictures: PictureGrounding | None

    def occupied(self, mask_threshold: float) -> tuple[Tensor, Tensor | None]:
        """Occupied voxels and (with geometric supervision) referred ones, bool [N, M] each."""
        mask = self.mask_logits.sigmoid() > mask_threshold
        if self.geometric_logits is None:
            assert self.semantic_logits is not None
            return mask & (self.semantic_logits.argmax(-1) != FREE), None
        label = self.geometric_logits.argmax(-1)
        return mask & (label > 0), mask & (label == 2)


@dataclass(frozen=True)
class PaperOutput:
    """What a forward pass over B scenes gives; losses are made of it in `vlm_occ.models.paper_terms`."""

    views: tuple[SceneView, ...]  # B
    sentences: tuple[SentenceOutput | None, ...]  # B; None for a scene without a sentence


def picture_rows(view: SceneView, sentences: int) -> Tensor:
    """Rows [N * V] of the reference frame's images among N * F pyramids, sentence by sentence."""
    rows = view.moments[0].rows
    offset = torch.arange(sentences, device=rows.device)[:, None] * len(view.intrinsics)
    return (offset + rows).flatten()
