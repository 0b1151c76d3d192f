"""Rays through a voxel grid: the first occupied voxel that each ray meets, exactly, and depth maps from it.

The way of Amanatides and Woo (1987) visits voxel after voxel by the parameter at which the ray leaves each.
Here a ray leaves a whole box of free voxels at once, whose size around each voxel is computed beforehand;
flat rays take flat boxes, so that the ground below does not hold them up. The result is that of visiting all.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from vlm_occ.types import CameraRig, VoxelGrid
from vlm_occ.voxels import unravel

STEEPNESS = (0.5, 0.1)
"""Slopes below which rays take boxes of another kind, a quarter and a sixteenth as high as wide."""

MAX_REACH = (24, 48, 64)
"""Largest horizontal reach in voxels of each kind of box."""

OUTSIDE = 255
"""Stands in the tables for the border around the grid."""

CHUNK = 1 << 13
"""Rays at a time on the CPU, so that what they need stays in its cache."""

COMPACT = 0.75
"""Rays that are done are put aside when less than this share is under way."""

NEVER = 1e300
"""Stands for 1 / 0, and is safe to multiply with a positive distance."""


def free_reach(occupancy: Tensor, *, kind: int = 0) -> Tensor:
    """How far the free box around each voxel of `occupancy` (bool [X, Y, Z]) reaches, uint8 [X, Y, Z].

    0 is occupied; at r, all voxels less than r away along x and y, and at most (r - 1) // 4^kind along z, are
    free. Outside the grid is free.
    """
    reached = occupancy.bool().clone()
    reach = (~reached).to(torch.uint8)
    for distance in range(1, MAX_REACH[kind]):  # the occupied part grows by a voxel on all sides
        axes = (0, 1, 2) if distance % 4**kind == 0 else (0, 1)
        for axis in axes:
            before, size = reached.clone(), reached.shape[axis] - 1
            reached.narrow(axis, 1, size).logical_or_(before.narrow(axis, 0, size))
            reached.narrow(axis, 0, size).logical_or_(before.narrow(axis, 1, size))
        reach += ~reached
    return reach


def first_hit(
    occupancy: Tensor, grid: VoxelGrid, origins: Tensor, directions: Tensor, *, max_depth: float = 100.0
) -> tuple[Tensor, Tensor]:
    """Where rays first meet an occupied voxel of `occupancy` (bool [X, Y, Z]).

    Rays start at `origins` [R, 3] (metres, the grid's frame) along `directions` [R, 3] of any length. Returns
    depths [R] in lengths of `directions` (metres for unit vectors; 0 inside an occupied voxel, inf where
    nothing is met within `max_depth`) and voxel indices [R, 3] (long, -1 where nothing is met).
    """
    if tuple(occupancy.shape) != grid.shape:
        raise ValueError(
            f"occupancy is {list(occupancy.shape)}, expected {list(grid.shape)}; give the grid it is on"
        )
    if origins.shape != directions.shape or origins.shape[-1:] != (3,):
        raise ValueError(
            f"origins {list(origins.shape)} and directions {list(directions.shape)}, expected [R, 3] for both"
        )
    tables = torch.stack([free_reach(occupancy, kind=kind) for kind in range(len(MAX_REACH))])
    tables = torch.nn.functional.pad(tables, (1,) * 6, value=OUTSIDE)  # [3, X + 2, Y + 2, Z + 2]
    depth = torch.full((len(origins),), torch.inf, dtype=torch.float64, device=origins.device)
    found = torch.full((len(origins),), -1, dtype=torch.long, device=origins.device)
    reach, rays = tables.flatten(), None
    for place, course, rows in _chunks(grid, origins, directions):
        new = _enter(tables, place, course, rows.start, max_depth)
        rays = new if rays is None else rays.join(new)
        # The last rays wait for the next chunk: short vectors cost as much as long ones.
        rays = _traverse(reach, rays, depth, found, until=CHUNK // 4 if rows.stop < len(origins) else 0)
    border = (grid.shape[0] + 2, grid.shape[1] + 2, grid.shape[2] + 2)
    voxel = unravel(found % math.prod(border), border) - 1  # [R, 3]
    return depth.to(origins.dtype), torch.where(found[:, None] < 0, -1, voxel)


def _chunks(grid: VoxelGrid, origins: Tensor, directions: Tensor) -> Iterator[tuple[Tensor, Tensor, slice]]:
    """Rays [R, 3] some at a time, as places and courses float64 [3, n] in voxels, and their rows."""
    low = torch.tensor(grid.origin, dtype=torch.float64, device=origins.device)
    size = CHUNK if origins.device.type == "cpu" else max(1, len(origins))
    for begin in range(0, len(origins), size):
        rows = slice(begin, begin + size)
        place = (origins[rows].double() - low) / grid.voxel_size
        yield place.T.contiguous(), (directions[rows].double() / grid.voxel_size).T.contiguous(), rows


@dataclass
class _Rays:
    """Rays under way through a grid, mirrored so that all of them run towards higher indices.

    Lengths are voxels, t is depth; everything is float64 (whole numbers too: mixed types cost a copy a use).
    Only `t` and `voxel` change.
    """

    number: Tensor  # long [n], each ray's place in the answer
    place: Tensor  # [3, n], where t is 0
    course: Tensor  # [3, n], not negative
    inverse: Tensor  # [3, n], 1 / course
    start: Tensor  # [3, n]: a ray enters the layer i of an axis at t = i * inverse + start
    stride: Tensor  # [3, n]: a voxel's row in the tables is first + stride . voxel
    first: Tensor  # [n]
    flatness: Tensor  # [n], height of a free box over its width
    leave: Tensor  # [n], where it leaves the grid or reaches the largest depth
    t: Tensor  # [n]
    voxel: Tensor  # [3, n]

    def only(self, rows: Tensor) -> _Rays:
        """These rays."""
        return _Rays(*(getattr(self, item.name).index_select(-1, rows) for item in fields(self)))

    def join(self, other: _Rays) -> _Rays:
        """These rays and the others."""
        names = [item.name for item in fields(self)]
        return _Rays(*(torch.cat([getattr(self, name), getattr(other, name)], dim=-1) for name in names))


def _enter(tables: Tensor, place: Tensor, course: Tensor, number: int, max_depth: float) -> _Rays:
    """The rays `place` + t `course` ([3, n], voxels) that meet the grid, each in its first voxel.

    They are numbered from `number` on.
    """
    size = torch.tensor(tables.shape[1:], device=place.device, dtype=torch.float64)[:, None] - 2
    back = course < 0
    place, course = torch.where(back, size - place, place), course.abs()
    inverse = torch.where(course == 0, NEVER, 1 / course)
    start = -place * inverse
    t = start.amax(0).clamp(min=0)
    leave = (size * inverse + start).amin(0).clamp(max=max_depth)
    voxel = torch.minimum((place + t * course).floor().clamp(min=0), size - 1)
    slope = course[2] / course[:2].amax(0).clamp(min=1e-30)
    kind = sum((slope < limit for limit in STEEPNESS), torch.zeros_like(slope))
    row = torch.tensor(tables.stride(), device=place.device, dtype=torch.float64)[:, None]
    first = kind * row[0] + (torch.where(back, size, 1.0) * row[1:]).sum(0)
    stride = torch.where(back, -row[1:], row[1:])
    numbers = torch.arange(number, number + place.shape[1], device=place.device)
    flatness = torch.pow(0.25, kind)
    rays = _Rays(numbers, place, course, inverse, start, stride, first, flatness, leave, t, voxel)
    meets = t < leave
    return rays if bool(meets.all()) else rays.only(meets.nonzero()[:, 0])


def _traverse(reach: Tensor, rays: _Rays, depth: Tensor, found: Tensor, *, until: int) -> _Rays:
    """Move rays until at most `until` are under way, and return these.

    Depths [R] and rows of the flat tables `reach` of what the others have hit go to `depth` and `found`.
    """
    while len(rays.number) > until:
        row = torch.addcmul(rays.first, rays.stride[0], rays.voxel[0])
        row = row.addcmul_(rays.stride[1], rays.voxel[1]).addcmul_(rays.stride[2], rays.voxel[2]).int()
        free = reach.index_select(0, row)  # [n]
        under_way = rays.t < rays.leave
        rows = (under_way & (free - 1 < OUTSIDE - 1)).nonzero()[:, 0]  # 0 - 1 is 255
        if len(rows) < COMPACT * len(row):
            hit = (under_way & (free == 0)).nonzero()[:, 0]
            number = rays.number[hit]
            depth[number], found[number] = rays.t[hit], row[hit].long()
            rays, free = rays.only(rows), free[rows]
        _advance(rays, free.double())
    return rays


def _advance(rays: _Rays, free: Tensor) -> None:
    """Move rays to where they leave the free boxes around their voxels.

    Rays that have hit (`free` 0) or left stay: time never runs back, nor beyond where a ray leaves.
    """
    height = ((free - 1) * rays.flatness).floor_() + 1
    beyond = rays.voxel + torch.stack([free, free, height])  # the layers behind the box, [3, n]
    crossing = torch.addcmul(rays.start, beyond, rays.inverse)
    t = torch.minimum(torch.minimum(crossing[0], crossing[1]), crossing[2])
    rays.t = torch.minimum(torch.maximum(t, rays.t), rays.leave)
    # Rounding must not take a layer back, and must not lose the one that is entered.
    inside = torch.addcmul(rays.place, rays.course, rays.t).floor_()
    rays.voxel = torch.where(crossing <= rays.t, beyond, torch.maximum(inside, rays.voxel))


def camera_rays(rig: CameraRig) -> tuple[Tensor, Tensor]:
    """Origins and directions [V, H, W, 3] of all pixels (ego frame); a direction's depth is 1 metre.

    The ray of pixel (row v, column u) runs through image coordinates (u, v) (Talk2Occ, eq. 9 and 10).
    """
    height, width = rig.image_size
    device = rig.intrinsics.device
    v, u = torch.meshgrid(
        torch.arange(height, device=device).float(), torch.arange(width, device=device).float(), indexing="ij"
    )
    pixels = torch.stack([u, v, torch.ones_like(u)], dim=-1)  # [H, W, 3]
    local = torch.einsum("vij,hwj->vhwi", torch.linalg.inv(rig.intrinsics), pixels)  # z is 1
    directions = torch.einsum("vij,vhwj->vhwi", rig.ego_from_camera[:, :3, :3], local)
    origins = rig.ego_from_camera[:, None, None, :3, 3].expand_as(directions)
    return origins, directions


def cell_rig(
    intrinsics: Tensor,
    ego_from_camera: Tensor,
    image_size: tuple[int, int],
    cells: tuple[int, int],
    *,
    rays: int = 1,
) -> CameraRig:
    """Cameras whose pixels are `rays` x `rays` parts of each of `cells` (h, w) that cover an image.

    `intrinsics` [V, 3, 3] and `ego_from_camera` [V, 4, 4] of images of `image_size` (H, W); a pixel's ray
    runs through the middle of its part.
    """
    height, width = cells[0] * rays, cells[1] * rays
    scale = intrinsics.new_tensor([width / image_size[1], height / image_size[0], 1.0])
    scaled = intrinsics * scale[:, None]
    scaled[:, :2, 2] -= 0.5
    names = tuple(str(v) for v in range(len(intrinsics)))
    return CameraRig(names, scaled, ego_from_camera, (height, width))


def render_depth(occupancy: Tensor, grid: VoxelGrid, rig: CameraRig, *, max_depth: float = 100.0) -> Tensor:
    """Depth [V, H, W] along the optical axis of every pixel, inf without a voxel (Talk2Occ, eq. 9 to 11)."""
    origins, directions = camera_rays(rig)
    depth, _ = first_hit(
        occupancy, grid, origins.reshape(-1, 3), directions.reshape(-1, 3), max_depth=max_depth
    )
    return depth.reshape(origins.shape[:3])


def march(
    occupancy: Tensor,
    grid: VoxelGrid,
    origins: Tensor,
    directions: Tensor,
    *,
    max_depth: float = 100.0,
    step: float = 0.1,
    put_aside: bool = False,
) -> Tensor:
    """Depths [R] by fixed steps, the paper's method (eq. 11), which skips what is shorter than `step`.

    Arguments as `first_hit`; `step` is in lengths of `directions`. With `put_aside`, rays that have hit or
    left the grid are not stepped any further.
    """
    flat = occupancy.bool().flatten()
    depth = torch.full((len(origins),), torch.inf, dtype=origins.dtype, device=origins.device)
    limit = torch.tensor(grid.shape, device=origins.device)[:, None]
    for place, course, rows in _chunks(grid, origins, directions):
        leave = (torch.where(course < 0, 0.0 - place, limit - place) / course).nan_to_num(NEVER).amin(0)
        place, course = place.to(origins.dtype), course.to(origins.dtype)
        rays = torch.arange(rows.start, rows.start + place.shape[1], device=origins.device)
        for count in range(int(max_depth / step) + 1):
            index = (place + count * step * course).floor().long()
            inside = ((index >= 0) & (index < limit)).all(0)
            key = (index[0] * grid.shape[1] + index[1]) * grid.shape[2] + index[2]
            hit = inside & flat[torch.where(inside, key, 0)]
            number = rays[hit]
            depth[number] = depth[number].clamp(max=count * step)
            if put_aside and count % 8 == 0:  # putting rays aside costs more than a few idle steps
                going = torch.isinf(depth[rays]) & (count * step <= leave)
                place, course, leave, rays = (value[..., going] for value in (place, course, leave, rays))
                if not len(rays):
                    break
    return depth
