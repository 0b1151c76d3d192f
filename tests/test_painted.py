"""Painted points: their bands against plain loops, and where the road is looked at."""

from __future__ import annotations

import statistics
from itertools import pairwise

import pytest
import torch

from vlm_occ.encoders.painted import (
    AROUND,
    EDGES,
    NEAR,
    PAINT,
    READ,
    ROAD,
    VIVID,
    PaintReader,
    paint,
    painted_bands,
    road_places,
)


def test_what_no_camera_sees_has_no_colour() -> None:
    colours = torch.tensor([[1.0, 0.5, 0.0], [0.2, 0.2, 0.2]])
    torch.testing.assert_close(
        paint(colours, torch.tensor([2.0, 0.0])), torch.tensor([[0.5, 0.0, -0.5, 1.0], [0.0, 0, 0, 0]])
    )


def test_the_road_is_looked_at_all_around_a_box() -> None:
    box = torch.tensor([4.0, 2.0, 1.5])
    size, metres = road_places()
    local = size * box + metres
    assert len(local.unique(dim=0)) == 4 * ROAD and (local[:, 2] == -0.75).all()  # at its foot
    beyond = local[:, :2].abs() - box[:2] / 2  # so far beyond one of its sides, and not further
    torch.testing.assert_close(beyond.amax(1), torch.full((len(local),), AROUND))
    turned = local * torch.tensor([-1.0, -1.0, 1.0])
    assert torch.cdist(turned, local).amin(1).max() < 1e-3


def test_bands_are_means_and_spreads_of_the_colours_of_the_boxes_own_points() -> None:
    bits = torch.Generator().manual_seed(0)
    sizes = torch.tensor([[4.0, 1.8, 1.6], [0.6, 0.6, 1.8], [0.5, 0.5, 0.5]])
    local = (torch.rand(3, 60, 3, generator=bits) - 0.5) * 1.6 * sizes[:, None]
    colours = torch.rand(3, 60, 3, generator=bits)
    painted = torch.stack(
        [paint(c, (torch.rand(60, generator=bits) > 0.2).float()) for c in colours]
    )  # [3, 60, PAINT]
    now = torch.rand(3, 60, generator=bits) > 0.3
    now[2] = False
    read = painted_bands(local, painted, now, sizes)
    assert read.shape == (3, READ) and (read[2].abs() < 1e-3).all()
    for n in range(2):
        length, width, height = sizes[n].tolist()
        own = [
            (p[2] / (height / 2), c[:3])
            for p, c, is_now in zip(local[n].tolist(), painted[n].tolist(), now[n].tolist(), strict=True)
            if is_now and c[3] and abs(p[0]) < length / 2 + NEAR and abs(p[1]) < width / 2 + NEAR
        ]
        assert len(own) > VIVID
        for i, (low, high) in enumerate(pairwise(EDGES)):
            inside = [c for z, c in own if low <= z < high]
            mean, spread, count = read[n, 7 * i : 7 * i + 7].split([3, 3, 1])
            assert float(count) == pytest.approx(min(1, len(inside) / 8))
            for axis in range(3):
                values = [c[axis] for c in inside] or [0.0]
                assert float(mean[axis]) == pytest.approx(statistics.mean(values), abs=1e-5)
                assert float(spread[axis]) == pytest.approx(statistics.pstdev(values), abs=2e-4)
        vivid = sorted((c for _, c in own), key=lambda c: min(c) - max(c))[:VIVID]
        assert read[n, -3:].tolist() == pytest.approx([statistics.mean(c) for c in zip(*vivid, strict=True)])


def test_an_untrained_reader_says_nothing_and_a_trained_one_tells_red_from_blue() -> None:
    torch.manual_seed(0)
    reader, boxes = PaintReader(2), torch.tensor([[9.0, 0, 1, 4, 2, 1.5, 0]]).expand(40, -1)
    red = torch.arange(40) % 2 == 0
    bands = 0.05 * torch.randn(40, READ)
    bands[red, 0] += 0.3
    bands[~red, 2] += 0.3
    road = torch.zeros(40, 4 * ROAD, PAINT)
    assert (reader(bands, road, boxes) == 0).all()
    optimizer = torch.optim.Adam(reader.parameters(), 1e-2)
    for _ in range(60):
        loss = torch.nn.functional.cross_entropy(reader(bands, road, boxes), red.long())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert (reader(bands, road, boxes).argmax(1) == red).all()
