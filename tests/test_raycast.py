"""Ray casting: against the intersection with every occupied cube, closed forms and the fixed-step march."""

import numpy as np
import pytest
import torch

from vlm_occ.data.simulator.rig import nuscenes_rig
from vlm_occ.geometry import project
from vlm_occ.raycast import MAX_REACH, camera_rays, first_hit, free_reach, march, render_depth
from vlm_occ.types import CameraRig, VoxelGrid

SMALL = VoxelGrid((-3.0, -2.0, -1.0), 0.4, (15, 12, 8))
FULL = VoxelGrid()


def brute_force(occupancy: torch.Tensor, grid: VoxelGrid, origin: np.ndarray, course: np.ndarray):
    """Depths at which rays enter and leave all occupied cubes, [R, M] each; enter > leave: missed."""
    low = np.array(grid.origin) + occupancy.nonzero().numpy() * grid.voxel_size  # [M, 3]
    with np.errstate(divide="ignore", invalid="ignore"):
        a = (low[None] - origin[:, None]) / course[:, None]
        b = (low[None] + grid.voxel_size - origin[:, None]) / course[:, None]
    return np.minimum(a, b).max(-1).clip(min=0), np.maximum(a, b).min(-1)


def rays(count: int, seed: int, grid: VoxelGrid, spread: float = 1.0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    low = torch.tensor(grid.origin, dtype=torch.float64)
    size = torch.tensor(grid.shape) * grid.voxel_size
    place = low + size * (0.5 + spread * (torch.rand(count, 3, generator=generator).double() - 0.5))
    course = torch.randn(count, 3, generator=generator).double()
    return place, course


def check(occupancy, grid, origins, directions, max_depth=100.0) -> int:
    """Compare with brute force; chords shorter than 1e-9 are nobody's. Returns the number of hits."""
    depth, voxel = first_hit(occupancy, grid, origins, directions, max_depth=max_depth)
    enter, leave = brute_force(occupancy, grid, origins.numpy(), directions.numpy())
    solid = np.where((leave - enter > 1e-9) & (enter <= max_depth), enter, np.inf).min(1)
    grazed = np.where(leave - enter > -1e-9, enter, np.inf).min(1)
    ours = depth.numpy()
    assert (ours <= solid + 1e-9).all()  # no voxel is skipped
    assert (ours >= np.minimum(grazed, 1e300) - 1e-9).all()  # and none is made up
    hit = np.isfinite(ours)
    assert bool((voxel[~torch.from_numpy(hit)] == -1).all())
    where = voxel[torch.from_numpy(hit)]
    assert bool(occupancy[where[:, 0], where[:, 1], where[:, 2]].all())
    inside = origins[hit] + (depth[hit, None] + 1e-7) * directions[hit]
    assert (inside - grid.center_of(where)).abs().max() <= grid.voxel_size / 2 + 1e-4
    return int(hit.sum())


@pytest.mark.parametrize(("density", "seed"), [(0.002, 0), (0.02, 1), (0.3, 2)])
def test_first_hits_are_those_of_all_cubes_from_inside_and_outside(density, seed):
    occupancy = torch.rand(SMALL.shape, generator=torch.Generator().manual_seed(seed)) < density
    for spread in (1.0, 3.0):
        assert check(occupancy, SMALL, *rays(1500, seed, SMALL, spread)) > 5


def test_flat_and_steep_rays_over_a_street_skip_nothing():
    generator = torch.Generator().manual_seed(3)
    occupancy = torch.zeros(40, 40, 16, dtype=torch.bool)
    occupancy[:, :, 0] = True
    columns = torch.randint(0, 40, (2, 40), generator=generator)
    occupancy[columns[0], columns[1], :4] = True
    grid = VoxelGrid((-8.0, -8.0, -1.0), 0.4, (40, 40, 16))
    origins, directions = rays(600, 4, grid, 0.3)
    directions[:, 2] *= torch.tensor([0.01, 0.1, 1.0]).repeat(200)
    assert check(occupancy, grid, origins, directions) > 50


def test_rays_along_axes_and_diagonals_are_met():
    occupancy = torch.zeros(SMALL.shape, dtype=torch.bool)
    occupancy[7, 6, 4] = True
    centre = SMALL.center_of(torch.tensor([7, 6, 4])).double()
    courses = torch.tensor(
        [[x, y, z] for x in (-1, 0, 1) for y in (-1, 0, 1) for z in (-1, 0, 1) if x or y or z]
    )
    depth, voxel = first_hit(occupancy, SMALL, centre - 2.0 * courses, courses.double())
    torch.testing.assert_close(depth, torch.full((26,), 1.8, dtype=torch.float64), atol=1e-6, rtol=0)
    assert (voxel == torch.tensor([7, 6, 4])).all()


def test_depth_is_limited_and_counted_in_lengths_of_the_direction():
    occupancy = torch.zeros(SMALL.shape, dtype=torch.bool)
    occupancy[10] = True  # its near face is at x = 1.0
    origin = torch.tensor([[-1.0, 0.1, 0.1]])
    one, two = torch.tensor([[1.0, 0.0, 0.0]]), torch.tensor([[2.0, 0.0, 0.0]])
    assert first_hit(occupancy, SMALL, origin, one)[0].item() == pytest.approx(2.0)
    assert first_hit(occupancy, SMALL, origin, two)[0].item() == pytest.approx(1.0)
    assert first_hit(occupancy, SMALL, origin, one, max_depth=1.9)[0].item() == float("inf")
    assert first_hit(occupancy, SMALL, origin + 2.1, one)[0].item() == 0.0
    assert first_hit(occupancy, SMALL, origin, -one)[0].item() == float("inf")
    assert first_hit(occupancy, SMALL, origin[:0], one[:0])[0].shape == (0,)


def test_an_empty_and_a_full_grid():
    origins, directions = rays(200, 5, SMALL)
    empty = torch.zeros(SMALL.shape, dtype=torch.bool)
    assert torch.isinf(first_hit(empty, SMALL, origins, directions)[0]).all()
    assert (first_hit(~empty, SMALL, origins, directions)[0] == 0).all()


@pytest.mark.parametrize("kind", range(len(MAX_REACH)))
def test_free_boxes_are_free_and_as_large_as_they_can_be(kind):
    occupancy = torch.rand(SMALL.shape, generator=torch.Generator().manual_seed(6)) < 0.01
    reach = free_reach(occupancy, kind=kind)
    places = occupancy.nonzero()

    def is_free(voxel: tuple[int, int, int], r: int) -> bool:
        offset = (places - torch.tensor(voxel)).abs()
        limit = torch.tensor([r - 1, r - 1, (r - 1) // 4**kind])
        return not bool((offset <= limit).all(-1).any())

    for voxel in [(0, 0, 0), (14, 11, 7), (7, 6, 4), (3, 9, 1), (11, 2, 6), tuple(places[0].tolist())]:
        r = int(reach[voxel])
        assert r == 0 or is_free(voxel, r)
        assert r == MAX_REACH[kind] or not is_free(voxel, r + 1)


def test_a_wall_is_at_its_distance_in_every_pixel():
    occupancy = torch.zeros(FULL.shape, dtype=torch.bool)
    occupancy[150:152] = True  # x from 20.0 m on
    look_ahead = torch.tensor([[0.0, 0, 1, 1.7], [-1, 0, 0, 0.1], [0, -1, 0, 1.5], [0, 0, 0, 1]])
    intrinsics = torch.tensor([[80.0, 0, 19.5], [0, 80.0, 7.5], [0, 0, 1]])
    rig = CameraRig(("CAM_FRONT",), intrinsics[None], look_ahead[None], (16, 40))
    depth = render_depth(occupancy, FULL, rig)
    torch.testing.assert_close(depth, torch.full((1, 16, 40), 18.3), atol=1e-4, rtol=0)


def test_camera_rays_come_back_to_their_pixels():
    rig = nuscenes_rig((32, 48), calibration_seed=1)
    origins, directions = camera_rays(rig)
    for camera, row, column in [(0, 0, 0), (3, 20, 47), (5, 31, 7)]:
        point = origins[camera, row, column] + 7.0 * directions[camera, row, column]
        pixel, depth = project(point[None], rig.intrinsics, rig.ego_from_camera)
        assert depth[camera, 0].item() == pytest.approx(7.0, abs=1e-4)
        assert pixel[camera, 0].tolist() == pytest.approx([column, row], abs=1e-3)


def street() -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    occupancy = torch.zeros(FULL.shape, dtype=torch.bool)
    occupancy[:, :, 1] = True
    for _ in range(60):
        x, y = (int(v) for v in torch.randint(0, 190, (2,), generator=generator))
        if abs(x - 100) > 12 or abs(y - 100) > 8:
            occupancy[x : x + 10, y : y + 5, 2:6] = True
    occupancy[:, :20, :] = occupancy[:, 180:, :] = True
    return occupancy


def test_the_march_never_sees_more_and_mostly_sees_the_same():
    rig = nuscenes_rig((32, 88))
    origins, directions = (value.reshape(-1, 3) for value in camera_rays(rig))
    exact, _ = first_hit(street(), FULL, origins, directions)
    stepped = march(street(), FULL, origins, directions)
    assert torch.equal(stepped, march(street(), FULL, origins, directions, put_aside=True))
    assert (stepped >= exact - 1e-4).all()
    assert ((stepped == exact) | (stepped - exact < 0.11)).float().mean() > 0.95
    assert (stepped > exact + 0.11).any()  # here the march skips corners


def test_the_wrong_grid_is_refused():
    with pytest.raises(ValueError, match=r"\[2, 2, 2\], expected \[15, 12, 8\]"):
        first_hit(torch.zeros(2, 2, 2, dtype=torch.bool), SMALL, *rays(1, 0, SMALL))
    with pytest.raises(ValueError, match="expected"):
        first_hit(torch.zeros(SMALL.shape, dtype=torch.bool), SMALL, torch.zeros(3, 3), torch.zeros(2, 3))
