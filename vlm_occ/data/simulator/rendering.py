"""Camera images, depth and instance maps of solids and ground, with exact occlusion."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from vlm_occ.data.simulator.egocentric import ground_inverse, ground_plane, solid_corners
from vlm_occ.data.simulator.objects import Ground, Solids
from vlm_occ.data.simulator.scanlines import cast, covered_samples
from vlm_occ.data.simulator.shading import shade
from vlm_occ.data.simulator.spans import Candidates, Scanlines
from vlm_occ.data.simulator.world import Appearance
from vlm_occ.geometry import invert_rigid
from vlm_occ.types import CameraRig

NEAR = 0.1
"""Solids with a corner nearer than this to a camera's plane (metres) are tried on all its rows."""


@dataclass(frozen=True)
class CameraRender:
    """What the cameras see at one moment."""

    images: Tensor  # uint8 [V, 3, H, W]
    depth: Tensor  # float32 [V, H, W] metres along the optical axis, infinite in the sky
    instance: Tensor  # int32 [V, H, W], -1 on background, ground and sky
    visible: Tensor  # long [M]: pixels of each object, all cameras together
    covered: Tensor  # long [M]: pixels each object would have if it were alone, all cameras together


def camera_lines(rig: CameraRig) -> Scanlines:
    """One scanline per image row, camera by camera; the rays' parameter is depth along the optical axis."""
    height, width = rig.image_size
    device = rig.intrinsics.device
    ego_from_pixel = rig.ego_from_camera[:, :3, :3] @ torch.linalg.inv(rig.intrinsics)  # [V, 3, 3]
    rows = torch.arange(height, device=device, dtype=torch.float32)[:, None]
    base = ego_from_pixel[:, None, :, 1] * rows + ego_from_pixel[:, None, :, 2]  # [V, H, 3]
    step = ego_from_pixel[:, None, :, 0].expand_as(base)
    origin = rig.ego_from_camera[:, None, :3, 3].expand_as(base)
    position = torch.arange(width, device=device, dtype=torch.float32)
    return Scanlines(origin.reshape(-1, 3), base.reshape(-1, 3), step.reshape(-1, 3), position)


def camera_candidates(solids: Solids, rig: CameraRig) -> Candidates:
    """The rows of each camera that hold a solid's bounding rectangle."""
    height, width = rig.image_size
    num_cameras, num_solids = len(rig.intrinsics), len(solids.centre)
    camera_from_ego = invert_rigid(rig.ego_from_camera)
    corners = solid_corners(solids).reshape(1, -1, 3)
    local = corners @ camera_from_ego[:, :3, :3].transpose(-1, -2) + camera_from_ego[:, None, :3, 3]
    image = local @ rig.intrinsics.transpose(-1, -2)  # [V, P * 8, 3]
    x, y, depth = image.view(num_cameras, num_solids, 8, 3).unbind(-1)
    # In homogeneous coordinates: beyond a border with all corners, be they behind the camera or not.
    beyond = [x < 0, y < 0, x > (width - 1) * depth, y > (height - 1) * depth, depth <= 0]
    seen = ~torch.stack([outside.all(-1) for outside in beyond]).any(0)  # [V, P]
    row = y / depth.clamp(min=NEAR)
    low, high = row.amin(-1), row.amax(-1)
    crossing = depth.amin(-1) <= NEAR
    camera, solid = seen.nonzero(as_tuple=True)
    whole = crossing[camera, solid]
    first = torch.where(whole, 0, low[camera, solid].ceil().clamp(min=0)).long()
    last = torch.where(whole, height - 1, high[camera, solid].floor().clamp(max=height - 1)).long()
    return Candidates(solid, camera * height + first, (last - first + 1).clamp(min=0))


def render_cameras(
    solids: Solids,
    ground: Ground,
    world_from_ego: Tensor,
    rig: CameraRig,
    look: Appearance,
    *,
    num_objects: int,
    seed: int,
) -> CameraRender:
    """Images, depth and instances of `solids` (ego frame) and of the ground (world frame)."""
    lines = camera_lines(rig)
    hits = cast(solids, lines, camera_candidates(solids, rig))
    plane = ground_plane(ground, world_from_ego, device=lines.base.device)
    floor = ground_inverse(plane, lines)
    shape = (len(rig.intrinsics), *rig.image_size)
    solid = hits.solid.masked_fill(hits.inverse <= floor, -1)
    inverse = torch.maximum(hits.inverse, floor)
    hits = replace(hits, inverse=inverse, solid=solid)
    images = shade(hits, lines, solids, ground, plane, world_from_ego, look, seed=seed, shape=shape)
    owner = torch.cat([solids.instance.new_full((1,), -1), solids.instance]).int()
    instance = owner.index_select(0, solid.flatten() + 1)
    covered = covered_samples(hits, solids.instance, num_groups=num_objects)
    visible = torch.bincount(instance + 1, minlength=num_objects + 1)[1 : num_objects + 1]
    return CameraRender(images, (1 / inverse).view(shape), instance.view(shape), visible, covered)


def visible_boxes(render: CameraRender, num_objects: int) -> Tensor:
    """Tight boxes [V, M, 4] of visible pixels, x0, y0, x1, y1 (one past the last); NaN where none."""
    num_cameras = len(render.instance)
    camera, row, column = (render.instance >= 0).nonzero(as_tuple=True)
    slot = camera * num_objects + render.instance[camera, row, column]
    value = torch.stack([-column, -row, column + 1, row + 1], dim=-1).float()  # [N, 4]
    boxes = torch.full((num_cameras * num_objects, 4), -torch.inf, device=value.device)
    boxes.scatter_reduce_(0, slot[:, None].expand(-1, 4), value, "amax")
    boxes = torch.where(torch.isinf(boxes), torch.nan, boxes)
    return (boxes * boxes.new_tensor([-1.0, -1.0, 1.0, 1.0])).view(num_cameras, num_objects, 4)
