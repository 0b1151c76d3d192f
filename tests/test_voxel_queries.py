"""Deformable attention against grid_sample and loops; which queries see which image; fusion of frames."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from vlm_occ.encoders.voxel_queries import (
    CameraHits,
    DeformableAttention,
    FrameFusion,
    VoxelEncoder,
    VoxelEncoderLayer,
    camera_hits,
    query_points,
    sample_levels,
)
from vlm_occ.geometry import rigid
from vlm_occ.types import VoxelGrid

SIZES = ((4, 6), (2, 3))


def brute_force(value: Tensor, locations: Tensor, weights: Tensor) -> Tensor:
    """The same by one grid_sample for every single sample."""
    batch, _, heads, width = value.shape
    queries = locations.shape[1]
    out = torch.zeros(batch, queries, heads, width)
    start = 0
    for level, (h, w) in enumerate(SIZES):
        maps = value[:, start : start + h * w].reshape(batch, h, w, heads, width)
        start += h * w
        for b in range(batch):
            for q in range(queries):
                for head in range(heads):
                    for p in range(locations.shape[4]):
                        place = locations[b, q, head, level, p] * 2 - 1
                        picture = maps[b, :, :, head].permute(2, 0, 1)[None]
                        sample = functional.grid_sample(picture, place[None, None, None], align_corners=False)
                        out[b, q, head] += weights[b, q, head, level, p] * sample[0, :, 0, 0]
    return out.flatten(2)


def test_sampling_equals_one_grid_sample_a_place() -> None:
    torch.manual_seed(0)
    value = torch.randn(2, 30, 2, 3)
    locations = torch.rand(2, 5, 2, 2, 4, 2) * 1.4 - 0.2  # some outside
    weights = torch.rand(2, 5, 2, 2, 4)
    found = sample_levels(value, SIZES, locations, weights)
    torch.testing.assert_close(found, brute_force(value, locations, weights), atol=1e-5, rtol=1e-4)


def test_attention_samples_where_its_offsets_point_in_cells_of_each_level() -> None:
    torch.manual_seed(0)
    attention = DeformableAttention(4, heads=2, levels=2, points=1)
    for linear in (attention.value, attention.out):
        torch.nn.init.eye_(linear.weight)
        torch.nn.init.zeros_(linear.bias)
    levels = [torch.randn(1, 4, h, w) for h, w in SIZES]
    with torch.no_grad():  # head 0 looks one cell to the right on level 0, head 1 one cell up on level 1
        attention.offsets.bias.copy_(torch.tensor([1.0, 0, 0, 0, 0, 0, 0, -1]))
        attention.weights.bias.copy_(torch.tensor([50.0, 0, 0, 50.0]))
    place = torch.tensor([[[2.5 / 6, 1.5 / 4], [1.5 / 3, 1.5 / 2]]])  # middles of cells
    out = attention(torch.zeros(1, 2, 4), place, levels)[0]
    torch.testing.assert_close(out[0, :2], levels[0][0, :2, 1, 3])  # row 1, column 2 + 1
    torch.testing.assert_close(out[1, 2:], levels[1][0, 2:, 0, 1])  # row 1 - 1, column 1


def test_few_queries_on_large_maps_get_what_projecting_every_cell_gives() -> None:
    torch.manual_seed(2)
    attention = DeformableAttention(8, heads=2, levels=2, points=3)
    projections = [nn.Conv2d(3, 8, 1), nn.Conv2d(5, 8, 1)]
    levels = [torch.randn(2, 3, 12, 20, requires_grad=True), torch.randn(2, 5, 6, 10, requires_grad=True)]
    query, place = torch.randn(2, 3, 8), torch.rand(2, 3, 2) * 1.2 - 0.1  # some outside
    nn.init.normal_(attention.offsets.weight)
    few = attention(query, place, levels, projections)  # 36 samples of 300 cells
    many = attention(query.repeat(1, 20, 1), place.repeat(1, 20, 1), levels, projections)  # the cells first
    torch.testing.assert_close(few, many[:, :3], atol=1e-5, rtol=1e-4)
    inputs = [*levels, attention.value.bias, projections[0].weight, projections[1].bias]
    ours = torch.autograd.grad(few.square().sum(), inputs)
    theirs = torch.autograd.grad(many.square().sum() / 20, inputs)
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-3)


def test_fresh_heads_look_in_different_directions() -> None:
    attention = DeformableAttention(16, heads=4, levels=1, points=2)
    offsets = attention.offsets.bias.reshape(4, 2, 2)
    assert len({tuple(round(v, 3) for v in head[0].tolist()) for head in offsets}) == 4
    torch.testing.assert_close(offsets[:, 1], 2 * offsets[:, 0])


def test_query_points_are_the_middles_of_blocks_of_voxels() -> None:
    grid = VoxelGrid(origin=(-4.0, 2.0, -1.0), shape=(8, 4, 4))
    points = query_points(grid, (4, 2, 2)).reshape(4, 2, 2, 3)
    blocks = grid.centers().reshape(4, 2, 2, 2, 2, 2, 3).mean((1, 3, 5))
    torch.testing.assert_close(points, blocks)


def _hits() -> tuple[Tensor, CameraHits]:
    """Two cameras at the origin: one looks along +x, one along -x."""
    points = torch.tensor([[5.0, 0, 0], [5.0, 2, 1], [-4.0, 0, 0], [0.0, 9, 0]])
    ahead = torch.tensor([[0.0, 0, 1], [-1, 0, 0], [0, -1, 0]])
    back = torch.diag(torch.tensor([-1.0, -1, 1])) @ ahead
    poses = torch.stack([rigid(ahead, torch.zeros(3)), rigid(back, torch.zeros(3))])
    intrinsics = torch.tensor([[20.0, 0, 16], [0, 20, 8], [0, 0, 1]]).expand(2, 3, 3)
    return points, camera_hits(points, intrinsics, poses, (16, 32))


def test_hits_name_the_queries_that_each_camera_shows_and_where() -> None:
    _, hits = _hits()
    assert hits.valid.tolist() == [[True, True], [True, False]]
    assert hits.query[0].tolist() == [0, 1] and int(hits.query[1, 0]) == 2
    # 2 m to the left and 1 m up at 5 m: 8 pixels left, 4 up of the middle
    torch.testing.assert_close(hits.place[0], torch.tensor([[0.5, 0.5], [8 / 32, 4 / 16]]))


def test_no_camera_shows_anything_without_cameras_or_behind_them() -> None:
    points = torch.tensor([[0.1, 0.0, 0.0]])
    assert camera_hits(points, torch.zeros(0, 3, 3), torch.zeros(0, 4, 4), (16, 32)).query.shape == (0, 1)


@pytest.mark.parametrize("own", [False, True])
def test_a_layers_look_is_the_mean_over_the_images_that_show_a_query(own: bool) -> None:
    torch.manual_seed(0)
    layer = VoxelEncoderLayer(8, heads=2, levels=2, points=2, hidden=16)
    torch.nn.init.normal_(layer.images.offsets.weight, std=0.3)
    torch.nn.init.normal_(layer.images.weights.weight, std=0.3)
    _, hits = _hits()
    both = CameraHits(torch.tensor([[0, 1], [1, 2]]), hits.place, torch.ones(2, 2, dtype=torch.bool))
    query = torch.randn(3, 4, 8)  # three sentences, four queries
    levels = [torch.randn(6 if own else 2, 8, h, w) for h, w in SIZES]
    found = layer._look(query, levels, both)
    for n in range(3):
        looks: dict[int, list[Tensor]] = {0: [], 1: [], 2: [], 3: []}
        for v in range(2):
            mine = [level[n * 2 + v if own else v][None] for level in levels]
            for k in range(2):
                q = int(both.query[v, k])
                looks[q].append(
                    layer.images(query[n : n + 1, q : q + 1], both.place[v : v + 1, k : k + 1], mine)
                )
        for q, answers in looks.items():
            expected = torch.stack(answers).mean(0)[0, 0] if answers else torch.zeros(8)
            torch.testing.assert_close(found[n, q], expected, atol=1e-5, rtol=1e-4)


def test_unseen_queries_hear_the_words_only() -> None:
    torch.manual_seed(0)
    encoder = VoxelEncoder(8, (2, 2, 1), layers=1, heads=2, levels=2, points=2, hidden=16)
    _, hits = _hits()
    words, mask = torch.randn(1, 3, 8), torch.ones(1, 3, dtype=torch.bool)
    levels = [torch.randn(2, 8, h, w) for h, w in SIZES]
    one, two = encoder(levels, hits, words, mask), encoder([lv + 1 for lv in levels], hits, words, mask)
    moved = (one - two).abs().amax(-1)[0] > 1e-4
    assert moved.tolist() == [True, True, True, False]  # the fourth query is in no image
    other = encoder(levels, hits, words + 1, mask)
    assert ((one - other).abs().amax(-1) > 1e-4).all()


def test_frames_of_one_moment_are_weighed_by_content_and_age() -> None:
    torch.manual_seed(0)
    fusion = FrameFusion(8)
    frames, age = torch.randn(2, 3, 4, 8), torch.tensor([0.0, 0.5, 1.0])
    found = fusion(frames, age)
    for n in range(2):
        for p in range(4):
            scores = []
            for t in range(3):
                x = frames[n, t, p]
                scores.append(fusion.score(torch.cat([x, x * frames[n, 0, p], age[t : t + 1]])).item())
            total = sum(math.exp(s) for s in scores)
            mixed = sum(math.exp(s) / total * frames[n, t, p] for t, s in enumerate(scores))
            assert isinstance(mixed, Tensor)
            expected = frames[n, 0, p] + fusion.mix(fusion.norm(mixed))
            torch.testing.assert_close(found[n, p], expected, atol=1e-5, rtol=1e-4)


def test_an_image_that_shows_the_query_teaches_every_parameter() -> None:
    torch.manual_seed(0)
    encoder = VoxelEncoder(8, (2, 2, 1), layers=2, heads=2, levels=2, points=2, hidden=16)
    _, hits = _hits()
    levels = [torch.randn(2, 8, h, w) for h, w in SIZES]
    out = encoder(levels, hits, torch.randn(2, 3, 8), torch.ones(2, 3, dtype=torch.bool), torch.randn(4, 8))
    (out * torch.randn_like(out)).sum().backward()
    dead = [n for n, p in encoder.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert not dead
