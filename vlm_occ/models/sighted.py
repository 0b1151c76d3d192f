"""What the vision tokens of a scene see of the trunk's occupancy, for the language model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from vlm_occ.encoders.sight import Sight, joined_sight, look
from vlm_occ.language.prefixes import Prefix
from vlm_occ.language.vision_tokens import vision_tokens
from vlm_occ.models.batch import Batch, VideoFrames
from vlm_occ.models.first_view import scene_frame
from vlm_occ.models.perception import PerceptionOutput
from vlm_occ.types import Scene

if TYPE_CHECKING:
    from vlm_occ.models.adapter import VLMOcc


def scene_sight(model: VLMOcc, frames: VideoFrames, prefix: Prefix, occupancy: Tensor) -> Sight | None:
    """The sight of a scene's vision tokens in the reference ego frame; None without pictures.

    `occupancy` is the trunk's, bool [X, Y, Z].
    """
    if not len(frames.images):
        return None
    size = (frames.images.shape[-2], frames.images.shape[-1])
    device, parts = occupancy.device, []
    intrinsics, poses = frames.intrinsics.to(device), frames.ego_from_camera.to(device)
    grids = vision_tokens(model.backbone, prefix).grids
    for cells in sorted(set(grids)):  # nearly always one
        rows = [n for n, own in enumerate(grids) if own == cells]
        seen = look(occupancy, model.perception.grid, intrinsics[rows], poses[rows], size, cells)
        parts += zip(rows, _split(seen, len(rows)), strict=True)
    return joined_sight([seen for _, seen in sorted(parts, key=lambda part: part[0])])


def _split(sight: Sight, images: int) -> list[Sight]:
    """The sight of each of several images with as many tokens as one another."""
    chunks = [value.chunk(images) for value in vars(sight).values()]
    return [Sight(*parts) for parts in zip(*chunks, strict=True)]


def with_sights(model: VLMOcc, batch: Batch, perception: PerceptionOutput) -> PerceptionOutput:
    """The trunk's output with the sight of every scene of a batch, so that it can be kept without maps."""
    if model.sight is None:
        return perception
    prefixes = [model.backbone.build_prefix(frames.images, 0, pose=False) for frames in batch.frames]
    return replace(perception, sights=tuple(_sights(model, batch.frames, prefixes, perception)))


def _sights(
    model: VLMOcc, frames: Sequence[VideoFrames], prefixes: Sequence[Prefix], perception: PerceptionOutput
) -> list[Sight | None]:
    """Of every scene of a batch; None where there is no picture or no map of the occupancy."""
    if not perception.occupancy_logits.numel():
        return [None] * len(frames)
    occupied = perception.occupancy_logits.detach().sigmoid() > model.config.occupancy_threshold
    scenes = zip(frames, prefixes, occupied, strict=True)
    return [scene_sight(model, own, prefix, voxels) for own, prefix, voxels in scenes]


def first_sight(sight: Sight | None, frames: VideoFrames, reference_from_first: Tensor) -> Sight | None:
    """A scene's sight in the first view's frame, as the layout's targets are; None without pictures."""
    if sight is None or not len(frames.images):
        return None
    return sight.moved(torch.linalg.inv(reference_from_first.double()).float())


def batch_sights(
    model: VLMOcc, batch: Batch, prefixes: Sequence[Prefix], perception: PerceptionOutput
) -> list[Sight | None]:
    """`first_sight` of every scene of a batch, of what was kept or else of the trunk's map."""
    if model.sight is None:
        return [None for _ in batch.frames]
    sights = perception.sights or _sights(model, batch.frames, prefixes, perception)
    scenes = zip(sights, batch.frames, batch.first_frames, strict=True)
    return [first_sight(sight, frames, first) for sight, frames, first in scenes]


def encoded_sight(
    model: VLMOcc, scene: Scene, frames: VideoFrames, prefix: Prefix, occupancy: Tensor
) -> Sight | None:
    """`first_sight` of one scene that is encoded, with the trunk's occupancy bool [X, Y, Z]."""
    if model.sight is None:
        return None
    return first_sight(scene_sight(model, frames, prefix, occupancy), frames, scene_frame(scene, frames))
