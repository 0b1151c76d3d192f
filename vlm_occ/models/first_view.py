"""The frame of a scene's first view, in which layout and situations are told (Loc3R-VLM 3.2)."""

from __future__ import annotations

import torch
from torch import Tensor

from vlm_occ.data.video import is_calibrated
from vlm_occ.geometry import invert_rigid
from vlm_occ.heads.layout import first_view_frame, planar_part
from vlm_occ.models.batch import VideoFrames
from vlm_occ.types import Scene


def reference_from_first(frames: VideoFrames, reference_from_world: Tensor) -> Tensor:
    """The reference ego frame from the first view's level frame [4, 4] (Loc3R-VLM 3.2).

    Level means against gravity, the world's z axis, of which `reference_from_world` [4, 4] tells. Without a
    view it is the identity: the reference ego frame itself.
    """
    if not len(frames.ego_from_camera):
        return torch.eye(4)
    up = reference_from_world[:3, 2].float().tolist()
    return invert_rigid(first_view_frame(frames.ego_from_camera[0].cpu(), up=up))


def scene_frame(scene: Scene, frames: VideoFrames) -> Tensor:
    """`reference_from_first` of a scene; the identity for a plain video, whose only frame is the first's."""
    if not is_calibrated(scene.rig):
        return torch.eye(4)
    return reference_from_first(frames, invert_rigid(scene.reference.world_from_ego.double()))


def from_reference(boxes: Tensor, reference_from_first: Tensor) -> tuple[Tensor, Tensor]:
    """Boxes [N, 7] of the reference ego frame in the first view's, and the ego vehicle's x, y, yaw [3] there.

    Heights are left as they are.
    """
    turn, shift = planar_part(torch.linalg.inv(reference_from_first.double()))
    turn, shift = turn.to(boxes), shift.to(boxes)
    yaw = torch.atan2(turn[1, 0], turn[0, 0])
    moved = [boxes[:, :2] @ turn.T + shift, boxes[:, 2:6], boxes[:, 6:] + yaw]
    return torch.cat(moved, dim=1).float(), torch.cat([shift, yaw[None]]).float()
