"""What fills the voxel grid: solids, hollow as in Occ3D, and the ground."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from vlm_occ.data.simulator.egocentric import ground_cells, ground_height, ground_plane
from vlm_occ.data.simulator.objects import BOX, CYLINDER, ELLIPSOID, Ground, Solids
from vlm_occ.types import FREE, OCC3D_CLASSES, VoxelGrid

SAMPLES = 3
"""A voxel belongs to a solid if one of SAMPLES^3 even samples of its cube, corners included, lies in it;
parts thinner than the samples' spacing are thickened to it."""

_MANMADE = OCC3D_CLASSES.index("manmade")


@dataclass(frozen=True)
class VoxelTruth:
    """What fills the grid."""

    semantics: Tensor  # uint8 [X, Y, Z], index in OCC3D_CLASSES
    instance: Tensor  # long [X, Y, Z]: object, -1 for background, ground and free
    ground: Tensor  # bool [X, Y, Z]: voxels that hold the ground's plane and nothing else


@dataclass(frozen=True)
class _Pairs:
    """Pairs of a solid and a voxel near it; columns, since index_select over columns is fastest."""

    solid: Tensor  # int32 [N]
    voxel: Tensor  # int32 [N], flat index
    local: list[Tensor]  # three of float32 [N]: the voxel's centre in the solid's axes, in half sizes


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
        solid, voxel = _touching(pairs, solids, half, grid)
        winner.scatter_reduce_(0, voxel.long(), rank.index_select(0, solid), "amax")
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
    count = size.prod(-1).int()
    row = torch.repeat_interleave(count)  # int32 [N]
    before = (count.cumsum(0) - count).int()
    rest = torch.arange(len(row), device=row.device, dtype=torch.int32) - before.index_select(0, row)

    def column(value: Tensor) -> Tensor:
        return value.contiguous().index_select(0, row)

    size_y, size_z = column(size[:, 1].float()), column(size[:, 2].float())
    # Divisions by small whole numbers, in float32 with a margin: exact below 2^21, and faster.
    above = ((rest.float() + 0.5) / size_z).floor_()
    z = rest.float() - above * size_z
    x = ((above + 0.5) / size_y).floor_()
    y = above - x * size_y
    x, y, z = (place + column(low[:, axis].float()) for axis, place in enumerate((x, y, z)))
    unit = solids.rotation[part] / half[part, None]
    first = torch.tensor(grid.origin, device=row.device) + grid.voxel_size / 2 - solids.centre[part]
    constant = (first[:, None] @ unit)[:, 0]  # [P, 3]: voxel 0 in the solid's axes
    step = unit * grid.voxel_size
    local = []
    for axis in range(3):
        place = torch.addcmul(column(constant[:, axis]), x, column(step[:, 0, axis]))
        place = torch.addcmul(place, y, column(step[:, 1, axis]))
        local.append(torch.addcmul(place, z, column(step[:, 2, axis])))
    voxel = ((x * grid.shape[1] + y) * grid.shape[2] + z).int()
    return _Pairs(row + part.start, voxel, local)


def _measure(local: list[Tensor], shape: int) -> Tensor:
    """At most 1 where points (three of [N], in half sizes) lie in a solid of a shape."""
    x, y, z = (value * value for value in local)
    if shape == BOX:
        return torch.maximum(torch.maximum(x, y), z)
    return x + y + z if shape == ELLIPSOID else torch.maximum(x + y, z)


def _touching(pairs: _Pairs, solids: Solids, half: Tensor, grid: VoxelGrid) -> tuple[Tensor, Tensor]:
    """Solids and voxels (int32 [M] each) of the pairs whose voxel holds a sample that lies in the solid."""
    offset = grid.voxel_size / 2  # outermost samples from the centre
    reach = 1 + offset * solids.rotation.abs().sum(1) / half  # [P, 3]
    near = torch.ones_like(pairs.solid, dtype=torch.bool)
    for axis in range(3):
        near &= pairs.local[axis].abs() <= reach[:, axis].contiguous().index_select(0, pairs.solid)
    axes = torch.linspace(-offset, offset, SAMPLES, device=half.device)
    samples = torch.stack(torch.meshgrid(axes, axes, axes, indexing="ij"), dim=-1).reshape(-1, 3)
    turned = torch.einsum("sk,pkj->sjp", samples, solids.rotation / half[:, None]).contiguous()  # [27, 3, P]
    members = []
    for shape in (BOX, ELLIPSOID, CYLINDER):
        mine = (near & (solids.shape == shape).index_select(0, pairs.solid)).nonzero()[:, 0]
        local = [value.index_select(0, mine) for value in pairs.local]
        centred = _measure(local, shape) <= 1
        members.append(mine[centred])
        mine, local = mine[~centred], [value[~centred] for value in local]
        solid = pairs.solid.index_select(0, mine)
        nearest = torch.full_like(local[0], 2.0)
        for sample in turned:  # the other samples: 27 steps, each over all pairs that are still open
            moved = [
                value + offset.index_select(0, solid) for value, offset in zip(local, sample, strict=True)
            ]
            nearest = torch.minimum(nearest, _measure(moved, shape))
        members.append(mine[nearest <= 1])
    member = torch.cat(members)
    return pairs.solid.index_select(0, member), pairs.voxel.index_select(0, member)


def _ground_voxels(
    ground: Ground, world_from_ego: Tensor, grid: VoxelGrid, device: torch.device
) -> tuple[Tensor, Tensor]:
    """Semantics uint8 [X, Y, Z] of the ground alone, and its voxels bool [X * Y * Z]."""
    plane = ground_plane(ground, world_from_ego, device=device)
    columns, _ = grid_columns(grid, device)
    centre = torch.cat([columns, ground_height(plane, columns)[..., None]], dim=-1)  # [X, Y, 3]
    index, inside = grid.index_of(centre.reshape(-1, 3))
    cells = ground_cells(centre.reshape(-1, 3), ground, world_from_ego)
    semantics = torch.full(grid.shape, FREE, dtype=torch.uint8, device=device)
    index, value = index[inside], ground.semantic.to(device).flatten()[cells[inside]]
    semantics[index[:, 0], index[:, 1], index[:, 2]] = value
    return semantics, (semantics != FREE).flatten()


def grid_columns(grid: VoxelGrid, device: torch.device) -> tuple[Tensor, Tensor]:
    """Centres of the columns [X, Y, 2] and of the layers [Z] of a grid."""
    x, y, z = (
        grid.origin[i] + (torch.arange(grid.shape[i], device=device) + 0.5) * grid.voxel_size
        for i in range(3)
    )
    return torch.stack(torch.meshgrid(x, y, indexing="ij"), dim=-1), z
