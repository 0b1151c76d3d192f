"""What a batch says of situations and layout: turns, first views' frames, and depth of the VLM's images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from vlm_occ.config import ModelConfig
from vlm_occ.data.video import is_calibrated
from vlm_occ.encoders.cut3r_pose import Cut3rPose
from vlm_occ.geometry import project
from vlm_occ.heads.layout import LayoutTargets, layout_targets
from vlm_occ.models.batch import Batch, SpatialTurn, VideoFrames, make_batch
from vlm_occ.models.first_view import scene_frame
from vlm_occ.models.spatial import WHERE
from vlm_occ.types import CameraRig, LabelledScene, Scene, SceneDepth

if TYPE_CHECKING:
    from vlm_occ.models.adapter import VLMOcc

_LIDAR_ROWS = 64
"""Rows of the depth images that are made of sweeps: most pixels below the horizon have a return."""


def make_spatial_batch(
    scenes: Sequence[LabelledScene], config: ModelConfig, *, training: bool = True
) -> Batch:
    """`make_batch` with the scenes' situated turns, where the model has heads for them."""
    batch = make_batch(scenes, config, training=training)
    if config.spatial is None:
        return batch
    return replace(
        batch,
        turns=tuple(turns_of(item) for item in scenes),
        first_frames=tuple(
            scene_frame(item.scene, frames) for item, frames in zip(scenes, batch.frames, strict=True)
        ),
        depths=tuple(
            depth_of(item, config, frames) for item, frames in zip(scenes, batch.frames, strict=True)
        ),
    )


def without_pictures(batch: Batch) -> Batch:
    """The batch as the language model sees it without images: then the reference ego frame is the first's."""
    none = tuple(frames.none() for frames in batch.frames)
    first, depths = tuple(torch.eye(4) for _ in batch.first_frames), tuple(None for _ in batch.depths)
    return replace(batch, frames=none, first_frames=first, depths=depths)


def keep_clips(model: VLMOcc, *, keep: bool) -> None:
    """Whether CUT3R's tokens of a clip are kept on disk: of no use where pictures never come twice."""
    if model.config.pose_source == "cut3r" and isinstance(model.pose.source, Cut3rPose):
        model.pose.source.keep = keep


def turns_of(item: LabelledScene) -> tuple[SpatialTurn, ...]:
    """A scene's situations to be found, then its questions with their first answer."""
    found = [SpatialTurn(s.text, WHERE, "", s.position, s.yaw, s.parts) for s in item.situations]
    asked = [
        SpatialTurn(
            q.situation, q.question, q.answers[0], None if q.position is None else q.position[:2], q.yaw
        )
        for q in item.questions
    ]
    return (*found, *asked)


def depth_of(item: LabelledScene, config: ModelConfig, frames: VideoFrames) -> SceneDepth | None:
    """Depth of the VLM's images: the scene's own, else of its sweeps; None where there is neither."""
    if not len(frames.images) or not is_calibrated(item.scene.rig):
        return None
    shown = [frame for frame in item.scene.frames[-config.vlm_frames :] if len(frame.images)]
    if item.depth is None:
        return lidar_depth(replace(item.scene, frames=tuple(shown)))
    depth, intrinsics = item.depth.depth[-len(shown) :], item.depth.intrinsics[-len(shown) :]
    lacking = len(shown) - len(depth)  # older frames of which no depth is known
    return replace(
        item.depth,
        depth=torch.cat([depth.new_zeros(lacking, *depth.shape[1:]), depth]),
        intrinsics=torch.cat([intrinsics[:1].expand(lacking, -1, -1, -1), intrinsics]),
    )


def lidar_depth(scene: Scene) -> SceneDepth | None:
    """Depth images of a scene's sweeps: the nearest return of each pixel, 0 where there is none.

    Each sweep is seen by the cameras of its own frame; None where no frame has a sweep.
    """
    if all(frame.points is None for frame in scene.frames):
        return None
    height, width = scene.rig.image_size
    shape = (_LIDAR_ROWS, round(_LIDAR_ROWS * width / height))
    intrinsics = scene.rig.intrinsics.clone()
    intrinsics[:, 0] *= shape[1] / width
    intrinsics[:, 1] *= shape[0] / height
    rig = replace(scene.rig, intrinsics=intrinsics, image_size=shape)
    images = [_sweep_depth(frame.points, rig) for frame in scene.frames]
    return SceneDepth(torch.stack(images), intrinsics.expand(len(images), -1, -1, -1), least=0.02)


def _sweep_depth(points: Tensor | None, rig: CameraRig) -> Tensor:
    """The nearest depth [V, h, w] of points [N, >=3] (ego) in each pixel of each camera, 0 where none."""
    (height, width), cameras = rig.image_size, len(rig.names)
    if points is None:
        return torch.zeros(cameras, height, width)
    pixels, depth = project(points[:, :3], rig.intrinsics, rig.ego_from_camera)  # [V, N, 2], [V, N]
    column, row = pixels.floor().long().unbind(-1)
    inside = (depth > 0.5) & (column >= 0) & (column < width) & (row >= 0) & (row < height)
    camera = torch.arange(cameras)[:, None].expand_as(column)
    place = ((camera * height + row) * width + column)[inside]
    nearest = torch.full((cameras * height * width,), torch.inf)
    nearest.scatter_reduce_(0, place, depth[inside], "amin")
    return torch.where(nearest.isinf(), 0.0, nearest).view(cameras, height, width)


def scene_layout_targets(
    frames: VideoFrames, depth: SceneDepth, reference_from_first: Tensor, grids: Sequence[tuple[int, int]]
) -> LayoutTargets:
    """True bird's-eye positions [N, 2] of vision tokens in the first view's frame, and which are known.

    Loc3R-VLM 3.2. `grids` holds the rows and columns of each image's tokens; all images have one size.
    """
    grid = grids[0]
    if any(other != grid for other in grids):
        raise ValueError(f"images of {sorted(set(grids))} tokens; expected one grid for all images")
    first_from_reference = torch.linalg.inv(reference_from_first.double())
    poses = (first_from_reference @ frames.ego_from_camera.cpu().double()).float()
    images, intrinsics = depth.depth.flatten(0, 1).float(), depth.intrinsics.flatten(0, 1).float()
    targets = layout_targets(images, intrinsics, poses, grid, min_valid=depth.least)
    return LayoutTargets(targets.position.flatten(0, 1), targets.valid.flatten())
