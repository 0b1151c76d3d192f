"""Occ3D voxels of solids and ground, and which of them the sensors see."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from vlm_occ.data.simulator.egocentric import Plane, ground_cells, ground_height, ground_plane
from vlm_occ.data.simulator.lidar import LidarSweep
from vlm_occ.data.simulator.objects import BOX, CYLINDER, Ground, Solids
from vlm_occ.data.simulator.rendering import CameraRender, camera_lines
from vlm_occ.geometry import invert_rigid
from vlm_occ.types import FREE, OCC3D_CLASSES, CameraRig, VoxelGrid

SAMPLES = 3
"""A voxel belongs to a solid if one of SAMPLES^3 even samples of its cube, corners included, lies in it;
parts thinner than the samples' spacing are thickened to it."""

_VEGETATION, _MANMADE = OCC3D_CLASSES.index("vegetation"), OCC3D_CLASSES.index("manmade")


@dataclass(frozen=True)
class VoxelTruth:
    """What fills the grid."""

    semantics: Tensor  # uint8 [X, Y, Z], index in OCC3D_CLASSES
    instance: Tensor  # long [X, Y, Z]: object, -1 for background, ground and free
    ground: Tensor  # bool [X, Y, Z]: voxels that hold the ground's plane and nothing else


@dataclass(frozen=True)
class _Pairs:
    """Pairs of a solid and a voxel near it, with the voxel's centre in the solid's axes."""

    solid: Tensor  # long [N]
    voxel: Tensor  # long [N], flat index
    local: Tensor  # float32 [N, 3] metres


def voxelise(
    solids: Solids, ground: Ground, world_from_ego: Tensor, grid: VoxelGrid, *, chunk: int = 1 << 19
) -> VoxelTruth:
    """The voxels of `solids` (ego frame) and the ground (world frame).

    Where solids share a voxel, objects win over background and smaller solids over larger ones. As in Occ3D,
    whose labels come from surfaces, objects and buildings are hollow: a voxel among six of the same
    object (or of buildings) is free; vegetation, which LiDAR enters, is filled. Ground is one layer: the
    voxel that its plane crosses in the middle of each column.
    """
    device = solids.centre.device
    half = solids.half_size.clamp(min=grid.voxel_size / (SAMPLES - 1) / 2)
    volume = half.prod(-1) * torch.where(solids.instance >= 0, 1.0, 1e9)
    order = torch.argsort(volume, descending=True, stable=True)
    rank = torch.empty_like(order).scatter_(0, order, torch.arange(len(order), device=device))
    winner = torch.full(grid.shape, -1, dtype=torch.long, device=device).flatten()
    for low, high in _windows(solids, half, grid, chunk):
        pairs = _near_pairs(solids, half, grid, slice(low, high))
        pairs = _touching(pairs, solids, half, grid)
        winner.scatter_reduce_(0, pairs.voxel, rank[pairs.solid], "amax")
    surface, floor = _ground_voxels(ground, world_from_ego, grid, device)
    semantics, instance = surface.flatten(), torch.full_like(winner, -1)
    taken = (winner >= 0).nonzero()[:, 0]
    if len(order):
        solid = order[winner[taken]]
        semantics[taken] = solids.semantic[solid].to(torch.uint8)
        instance[taken] = solids.instance[solid]
    floor[taken] = False
    inner = _inner(semantics.view(grid.shape), instance.view(grid.shape)).flatten()
    semantics, instance = semantics.masked_fill(inner, FREE), instance.masked_fill(inner, -1)
    return VoxelTruth(semantics.view(grid.shape), instance.view(grid.shape), floor.view(grid.shape))


def _inner(semantics: Tensor, instance: Tensor) -> Tensor:
    """Voxels [X, Y, Z] of objects and buildings whose six neighbours are of the same one.

    What lies beyond the grid counts as the same, and so does what lies below a building.
    """
    body = (instance + 2).short()  # 0 where hollowing does not apply
    manmade = semantics == _MANMADE
    body = torch.where(manmade & (instance < 0), 1, body.masked_fill(instance < 0, 0))
    inner = body > 0
    for axis in range(3):
        size = body.shape[axis]
        same = body.narrow(axis, 1, size - 1) == body.narrow(axis, 0, size - 1)
        inner.narrow(axis, 0, size - 1).logical_and_(same)
        if axis == 2:
            same = same | (body.narrow(axis, 1, size - 1) == 1)
        inner.narrow(axis, 1, size - 1).logical_and_(same)
    return inner


def _reach(solids: Solids, half: Tensor) -> Tensor:
    """Half extents [P, 3] of the upright boxes about solids with half sizes [P, 3]."""
    spread = solids.rotation.abs() * half[:, None]
    return torch.where(
        (solids.shape == BOX)[:, None] | (solids.shape == CYLINDER)[:, None],
        spread.sum(-1),
        spread.norm(dim=-1),
    )


def _ranges(solids: Solids, half: Tensor, grid: VoxelGrid) -> tuple[Tensor, Tensor]:
    """First voxel and number of voxels [P, 3] along each axis of the windows about solids."""
    origin = torch.tensor(grid.origin, device=half.device)
    shape = torch.tensor(grid.shape, device=half.device)
    reach = _reach(solids, half) + grid.voxel_size / 2
    low = ((solids.centre - reach - origin) / grid.voxel_size - 0.5).ceil().long().clamp(min=0)
    high = ((solids.centre + reach - origin) / grid.voxel_size - 0.5).floor().long()
    return low, (torch.minimum(high, shape - 1) - low + 1).clamp(min=0)


def _windows(solids: Solids, half: Tensor, grid: VoxelGrid, chunk: int) -> list[tuple[int, int]]:
    """Slices of solids whose windows hold about `chunk` voxels together."""
    if len(half) == 0:
        return []
    total = _ranges(solids, half, grid)[1].prod(-1).cumsum(0)
    steps = torch.arange(chunk, int(total[-1]) + chunk, chunk, device=total.device)
    edges = [0, *torch.searchsorted(total, steps, right=True).tolist()]
    edges[-1] = len(half)
    return [(low, high) for low, high in pairwise(edges) if low < high]


def _near_pairs(solids: Solids, half: Tensor, grid: VoxelGrid, part: slice) -> _Pairs:
    """All voxels in the windows of a slice of solids."""
    low, size = (value[part] for value in _ranges(solids, half, grid))
    count = size.prod(-1)
    row = torch.repeat_interleave(count)
    rest = torch.arange(len(row), device=row.device) - (count.cumsum(0) - count)[row]
    size_z, size_y = size[:, 2][row], size[:, 1][row]
    column = rest // size_z
    z = rest - column * size_z + low[:, 2][row]
    x = column // size_y
    y = column - x * size_y + low[:, 1][row]
    x = x + low[:, 0][row]
    rotation = solids.rotation[part]
    first = torch.tensor(grid.origin, device=row.device) + grid.voxel_size / 2 - solids.centre[part]
    constant = (first[:, None] @ rotation)[:, 0]  # [P, 3]: voxel 0 in the solid's axes
    step = rotation * grid.voxel_size
    local = [
        constant[:, j].contiguous()[row]
        + x * step[:, 0, j].contiguous()[row]
        + y * step[:, 1, j].contiguous()[row]
        + z * step[:, 2, j].contiguous()[row]
        for j in range(3)
    ]
    voxel = (x * grid.shape[1] + y) * grid.shape[2] + z
    return _Pairs(row + part.start, voxel, torch.stack(local, dim=-1))


def _inside(local: Tensor, half: Tensor, shape: Tensor) -> Tensor:
    """Whether points [..., 3] in the solids' axes lie in solids of half sizes [..., 3] and shapes [...]."""
    scaled = (local / half) ** 2
    flat, round_ = scaled[..., 0] + scaled[..., 1], scaled.amax(-1) <= 1
    curved = torch.where(shape == CYLINDER, flat, flat + scaled[..., 2]) <= 1
    return torch.where(shape == BOX, round_, curved & (scaled[..., 2] <= 1))


def _touching(pairs: _Pairs, solids: Solids, half: Tensor, grid: VoxelGrid) -> _Pairs:
    """The pairs whose voxel holds a sample that lies in the solid."""
    offset = grid.voxel_size / 2  # outermost samples from the centre
    reach = half + offset * solids.rotation.abs().sum(1)  # [P, 3]
    near = (pairs.local.abs() <= reach[pairs.solid]).all(-1).nonzero()[:, 0]
    solid, voxel, local = pairs.solid[near], pairs.voxel[near], pairs.local[near]
    member = _inside(local, half[solid], solids.shape[solid])
    unsure = (~member).nonzero()[:, 0]
    axis = torch.linspace(-offset, offset, SAMPLES, device=local.device)
    samples = torch.stack(torch.meshgrid(axis, axis, axis, indexing="ij"), dim=-1).reshape(-1, 1, 3)
    turned = torch.einsum("sk,pkj->spj", samples[:, 0], solids.rotation)  # [27, P, 3]
    which, shape = solid[unsure], solids.shape[solid[unsure]]
    found = torch.zeros_like(which, dtype=torch.bool)
    start, size = local[unsure], half[which]
    for sample in turned:  # 27 steps, each over all pairs
        found |= _inside(start + sample[which], size, shape)
    member[unsure] = found
    return _Pairs(solid[member], voxel[member], local[member])


def _ground_voxels(
    ground: Ground, world_from_ego: Tensor, grid: VoxelGrid, device: torch.device
) -> tuple[Tensor, Tensor]:
    """Semantics uint8 [X, Y, Z] of the ground alone, and its voxels bool [X * Y * Z]."""
    plane = ground_plane(ground, world_from_ego, device=device)
    columns, _ = _columns(grid, device)
    centre = torch.cat([columns, ground_height(plane, columns)[..., None]], dim=-1)  # [X, Y, 3]
    index, inside = grid.index_of(centre.reshape(-1, 3))
    cells = ground_cells(centre.reshape(-1, 3), ground, world_from_ego)
    semantics = torch.full(grid.shape, FREE, dtype=torch.uint8, device=device)
    index, value = index[inside], ground.semantic.to(device).flatten()[cells[inside]]
    semantics[index[:, 0], index[:, 1], index[:, 2]] = value
    return semantics, (semantics != FREE).flatten()


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


def _columns(grid: VoxelGrid, device: torch.device) -> tuple[Tensor, Tensor]:
    """Centres of the columns [X, Y, 2] and of the layers [Z] of a grid."""
    x, y, z = (
        grid.origin[i] + (torch.arange(grid.shape[i], device=device) + 0.5) * grid.voxel_size
        for i in range(3)
    )
    return torch.stack(torch.meshgrid(x, y, indexing="ij"), dim=-1), z


def _centres_seen(
    truth: VoxelTruth, render: CameraRender, rig: CameraRig, plane: Plane, grid: VoxelGrid
) -> Tensor:
    """Voxels whose centre (or ground point) is not hidden from some camera, bool [X, Y, Z]."""
    columns, layers = _columns(grid, render.depth.device)
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
