"""Which voxels the sensors see."""

from __future__ import annotations

import torch
from torch import Tensor

from vlm_occ.data.simulator.egocentric import Plane, ground_height
from vlm_occ.data.simulator.filling import VoxelTruth, grid_columns
from vlm_occ.data.simulator.lidar import LidarSweep
from vlm_occ.data.simulator.rendering import CameraRender, camera_lines
from vlm_occ.geometry import invert_rigid
from vlm_occ.types import CameraRig, VoxelGrid


def camera_mask(
    truth: VoxelTruth, render: CameraRender, rig: CameraRig, plane: Plane, grid: VoxelGrid
) -> Tensor:
    """Voxels that a camera sees, bool [X, Y, Z].

    A voxel is seen if the ray of a pixel ends in it, or if its centre (for ground: the ground's point in it)
    projects to a pixel that sees at least as far; of two rows the upper, which sees farther on the ground.
    """
    lines = camera_lines(rig)
    device, height = lines.base.device, rig.image_size[0]
    seen = torch.zeros([extent + 2 for extent in grid.shape], dtype=torch.bool, device=device)  # with a rim
    block = height if device.type == "cpu" else len(lines.base)
    for first in range(0, len(lines.base), block):
        part = slice(first, first + block)
        distance = render.depth.view(len(lines.base), -1)[part].clamp(max=1e4)
        index = torch.zeros_like(distance)  # a whole number below 2^24, exact
        for axis, extent in enumerate(grid.shape):
            base, step = (value[part, axis, None] / grid.voxel_size for value in (lines.base, lines.step))
            origin = (lines.origin[part, axis, None] - grid.origin[axis]) / grid.voxel_size
            place = torch.addcmul(origin, distance, torch.addcmul(base, step, lines.position))
            index = index * (extent + 2) + (place + 1).clamp_(0, extent + 1).floor_()
        seen.view(-1).index_fill_(0, index.flatten().long(), True)
    return seen[1:-1, 1:-1, 1:-1] | _centres_seen(truth, render, rig, plane, grid)


def _centres_seen(
    truth: VoxelTruth, render: CameraRender, rig: CameraRig, plane: Plane, grid: VoxelGrid
) -> Tensor:
    """Voxels whose centre (or ground point) is not hidden from some camera, bool [X, Y, Z]."""
    columns, layers = grid_columns(grid, render.depth.device)
    columns = columns.reshape(-1, 2)
    height = layers.repeat(len(columns), 1)  # [C, Z]
    column, layer = truth.ground.view(height.shape).nonzero(as_tuple=True)
    height[column, layer] = ground_height(plane, columns)[column] + 0.01
    seen = torch.zeros_like(height, dtype=torch.bool)
    rows, width = rig.image_size
    # A rim that sees nothing takes all points outside the image.
    depth = torch.nn.functional.pad(render.depth, (1, 1, 1, 1), value=-1.0).flatten(1)
    for camera, camera_from_ego in enumerate(invert_rigid(rig.ego_from_camera)):  # six steps
        pixel_from_ego = (rig.intrinsics[camera] @ camera_from_ego[:3]).tolist()  # [3, 4]
        flat = [columns[:, 0] * row[0] + columns[:, 1] * row[1] + row[3] for row in pixel_from_ego]
        side = flat[0] / flat[2].clamp(min=0.1)
        wedge = ((flat[2] > 0.5) & (side > -0.2 * width) & (side < 1.2 * width)).nonzero()[:, 0]
        level = height.index_select(0, wedge)  # [W, Z]
        x, y, z = (flat[i].index_select(0, wedge)[:, None] + pixel_from_ego[i][2] * level for i in range(3))
        z = z.clamp(min=0.1)
        u, v = (x / z + 1.5).clamp_(0, width + 1).floor_(), (y / z + 1).clamp_(0, rows + 1).floor_()
        pixel = (v * (width + 2) + u).int().flatten()
        visible = z.flatten() <= depth[camera].index_select(0, pixel)
        seen[wedge] = seen.index_select(0, wedge) | visible.view(z.shape)
    return seen.view(grid.shape)


def lidar_mask(sweep: LidarSweep, grid: VoxelGrid) -> Tensor:
    """Voxels that the LiDAR sees, bool [X, Y, Z]: crossed by rays with a return, or their end."""
    return crossed_voxels(sweep.origin, sweep.surface, grid)


def crossed_voxels(origin: Tensor, ends: Tensor, grid: VoxelGrid) -> Tensor:
    """Voxels that segments from a point [3] of the grid to ends [N, 3] cross, bool [X, Y, Z]; exact.

    Every plane between voxels that a segment crosses leads into one more voxel (Amanatides and Woo 1987,
    for all planes of all segments at once).
    """
    low = torch.tensor(grid.origin, device=ends.device)
    size = torch.tensor(grid.shape, device=ends.device)
    start = (origin - low) / grid.voxel_size  # in voxels
    way = (ends - origin) / grid.voxel_size  # [N, 3]
    limit = torch.where(way > 0, size - start, start) / way.abs().clamp(min=1e-9)
    way = way * limit.amin(-1).clamp(max=1)[:, None]  # end where the grid ends
    first = start.floor()
    last = torch.minimum((start + way).floor().clamp(min=0), size - 1)
    crossed = torch.zeros(grid.shape, dtype=torch.bool, device=ends.device).flatten()
    _, size_y, size_z = grid.shape  # flat indices are below 2^24, so exact as float32
    crossed[((last[:, 0] * size_y + last[:, 1]) * size_z + last[:, 2]).long()] = True
    for axis in range(3):
        count = (last[:, axis] - first[axis]).abs().int()
        row = torch.repeat_interleave(count)
        before = (count.cumsum(0) - count).int()
        step = torch.arange(1, len(row) + 1, device=row.device, dtype=torch.int32)
        step = (step - before.index_select(0, row)).float()  # 1 .. count: the planes of each segment
        sign = torch.sign(way[:, axis])
        pace = 1 / way[:, axis].abs().clamp(min=1e-9)
        begin = (first[axis] + (sign < 0).float() - start[axis]) * sign * pace
        index = torch.zeros_like(step)
        for other, extent in enumerate(grid.shape):
            if other == axis:
                place = torch.addcmul(first[axis], sign.index_select(0, row), step)
            else:
                constant = start[other] + way[:, other] * begin
                slope = (way[:, other] * pace).index_select(0, row)
                place = torch.addcmul(constant.index_select(0, row), slope, step)
                place = place.clamp_(0, extent - 1).floor_()
            index = index * extent + place
        crossed.index_fill_(0, index.long(), True)
    return crossed.view(grid.shape)
