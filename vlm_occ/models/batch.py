"""What one forward pass of VLM-Occ reads and gives."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from vlm_occ.config import ModelConfig
from vlm_occ.encoders.inputs import SceneInputs, collate_inputs, prepare_scene
from vlm_occ.encoders.sight import Sight
from vlm_occ.geometry import invert_rigid
from vlm_occ.heads.factors import Factors
from vlm_occ.models.perception import PerceptionOutput
from vlm_occ.situated import SituationParts
from vlm_occ.types import CAMERAS, GroundingQuery, LabelledScene, Scene, SceneDepth

if TYPE_CHECKING:
    from vlm_occ.models.spatial import SpatialOutput


@dataclass(frozen=True)
class VideoFrames:
    """The images that the VLM sees of one scene, oldest first, with their cameras."""

    images: Tensor  # uint8 [F, 3, H, W]
    intrinsics: Tensor  # [F, 3, 3]
    ego_from_camera: Tensor  # [F, 4, 4]: reference ego from that image's camera
    age: Tensor  # [F] seconds
    camera: Tensor  # long [F], index in CAMERAS, len(CAMERAS) for other names

    def none(self) -> VideoFrames:
        """The same without any image."""
        parts = (self.images, self.intrinsics, self.ego_from_camera, self.age, self.camera)
        return VideoFrames(*(part[:0] for part in parts))


@dataclass(frozen=True)
class SpatialTurn:
    """A situation with a question from it (Loc3R-VLM 3.3); no `answer` where only the place is asked for."""

    situation: str
    question: str
    answer: str = ""
    position: tuple[float, float] | None = None  # metres, reference ego frame; None where it is not known
    yaw: float | None = None  # radians
    parts: SituationParts | None = None  # what the situation is made of, where it is known


@dataclass(frozen=True)
class Batch:
    """B scenes with their queries; `boxes` are given in training only."""

    inputs: SceneInputs
    frames: tuple[VideoFrames, ...]  # B
    queries: tuple[tuple[GroundingQuery, ...], ...]  # B
    boxes: tuple[Tensor, ...] | None = None  # B tensors [M, 7] that the queries' targets index
    turns: tuple[tuple[SpatialTurn, ...], ...] = ()  # B, or () without situations
    first_frames: tuple[Tensor, ...] = ()  # B transforms [4, 4]: reference ego from the first view's frame
    depths: tuple[SceneDepth | None, ...] = ()  # B, of the same images as `frames`, or None


@dataclass(frozen=True)
class SceneStates:
    """What the language model says of one scene."""

    tokens: Tensor  # [N, D] final states of its voxel tokens
    queries: tuple[Tensor, ...]  # Q tensors [l, D]: final states of each query's own tokens
    turns: tuple[Tensor, ...] = ()  # likewise of situated turns
    vision: Tensor | None = None  # [V, D] final states of its vision tokens, with spatial heads only
    grids: tuple[tuple[int, int], ...] = ()  # F: rows and columns of each picture's vision tokens
    sight: Sight | None = None  # what these look to, in the first view's frame


@dataclass(frozen=True)
class ReferredObject:
    """One decoded object of one query of a batch."""

    scene: int
    query: int
    token: int  # row of the scene's voxel tokens
    target: int  # row of the batch's boxes that the token was matched to, -1 at inference
    box: Tensor  # [7]
    voxel_rows: Tensor  # long [W]: rows of `perception.voxel_index` in the object's window
    mask_logits: Tensor  # [W]


@dataclass(frozen=True)
class GroundingOutput:
    """What a forward pass gives; losses are made of it outside (vlm_occ/objectives.py)."""

    perception: PerceptionOutput
    scores: tuple[Factors, ...]  # B: of every voxel token for every query
    answer_states: tuple[tuple[Tensor, ...], ...]  # B x Q tensors [l, D]: states of each query's own tokens
    matches: tuple[Tensor, ...]  # B tensors [M]: the token of each true box, -1 where none
    objects: tuple[ReferredObject, ...]
    spatial: SpatialOutput | None = None  # with spatial heads only


def video_frames(scene: Scene, count: int) -> VideoFrames:
    """The latest `count` frames of all cameras of a scene."""
    images, intrinsics, poses, ages, cameras = [], [], [], [], []
    ego_from_world = invert_rigid(scene.reference.world_from_ego.double())
    index = torch.tensor([CAMERAS.index(n) if n in CAMERAS else len(CAMERAS) for n in scene.rig.names])
    for frame in scene.frames[-count:]:
        if not len(frame.images):
            continue
        images.append(frame.images)
        intrinsics.append(scene.rig.intrinsics)
        reference_from_frame = ego_from_world @ frame.world_from_ego.double()
        poses.append((reference_from_frame @ scene.rig.ego_from_camera.double()).float())
        ages.append(torch.full((len(index),), float(scene.reference.timestamp - frame.timestamp)))
        cameras.append(index)
    if not images:
        return VideoFrames(
            torch.zeros(0, 3, *scene.rig.image_size, dtype=torch.uint8),
            torch.zeros(0, 3, 3),
            torch.zeros(0, 4, 4),
            torch.zeros(0),
            torch.zeros(0, dtype=torch.long),
        )
    return VideoFrames(
        torch.cat(images), torch.cat(intrinsics), torch.cat(poses), torch.cat(ages), torch.cat(cameras)
    )


def make_batch(scenes: Sequence[LabelledScene], config: ModelConfig, *, training: bool = True) -> Batch:
    """A batch of labelled scenes; with `training` the true boxes are part of it."""
    return Batch(
        inputs=collate_inputs([prepare_scene(item.scene, config.perception) for item in scenes]),
        frames=tuple(video_frames(item.scene, config.vlm_frames) for item in scenes),
        queries=tuple(item.queries for item in scenes),
        boxes=tuple(item.labels.boxes for item in scenes) if training else None,
    )
