"""The refiner of boxes: its geometry against plain loops, its loss, and that it learns a made-up shift."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from vlm_occ.config import RefinerConfig
from vlm_occ.encoders.painted import AROUND
from vlm_occ.encoders.refine import (
    CHANNELS,
    CODE_CHANNELS,
    GROUND,
    MARGIN,
    BoxRefiner,
    Refinement,
    face_places,
    points_of,
    shaken,
)
from vlm_occ.encoders.voxel_tokens import Candidates
from vlm_occ.geometry import box_corners, from_box_axes
from vlm_occ.losses.refine import attribute_loss, end_swings, face_errors, refine_loss


def boxes_at_random(count: int, seed: int = 0) -> Tensor:
    bits = torch.Generator().manual_seed(seed)
    place = (torch.rand(count, 2, generator=bits) - 0.5) * 60
    sizes = 0.5 + torch.rand(count, 3, generator=bits) * torch.tensor([8.0, 2.0, 2.5])
    yaw = (torch.rand(count, 1, generator=bits) - 0.5) * 2 * math.pi
    return torch.cat([place, sizes[:, 2:] / 2, sizes, yaw], dim=1)


def saying(start: Tensor, truth: Tensor) -> Refinement:
    """The look that leads from boxes to true ones, worked out box by box."""
    rows = []
    for a, b in zip(start.tolist(), truth.tolist(), strict=True):
        dx, dy = b[0] - a[0], b[1] - a[1]
        along = math.cos(a[6]) * dx + math.sin(a[6]) * dy
        left = -math.sin(a[6]) * dx + math.cos(a[6]) * dy
        turn = math.remainder(b[6] - a[6], 2 * math.pi)
        wrong = abs(turn) > math.pi / 2
        sizes = [math.log(q / p) for p, q in zip(a[3:6], b[3:6], strict=True)]
        around = [math.sin(2 * turn), math.cos(2 * turn), 40.0 if wrong else -40.0]
        rows.append([along, left, b[2] - a[2], *sizes, *around, 0.0, 0.0, 40.0])
    return Refinement(start, torch.tensor(rows), *others(len(rows)))


def others(count: int) -> tuple[Tensor, Tensor, Tensor]:
    """Codes and logits of class and colour that say nothing."""
    return torch.zeros(count, CODE_CHANNELS), torch.zeros(count, 15), torch.zeros(count, 9)


def test_a_perfect_look_gives_the_true_boxes_and_costs_nothing() -> None:
    start = boxes_at_random(20)
    truth = start + 0.3 * torch.randn(20, 7, generator=torch.Generator().manual_seed(1))
    truth[:, 3:6] = start[:, 3:6] * 1.2
    truth[::2, 6] += math.pi
    said = saying(start, truth)
    found = said.refined()
    torch.testing.assert_close(found[:, :6], truth[:, :6], atol=1e-4, rtol=1e-4)
    torch.testing.assert_close((found[:, 6] - truth[:, 6]).cos(), torch.ones(20), atol=1e-5, rtol=0)
    velocity = torch.full((20, 2), 2.0)
    raw = said.raw.clone()
    raw[:, 9:11] = from_box_axes(velocity, -start[:, 6]) / 2
    said = Refinement(start, raw, *others(20))
    torch.testing.assert_close(said.velocity(), velocity, atol=1e-5, rtol=1e-5)
    classes, seen = torch.zeros(20, dtype=torch.long), torch.ones(20, dtype=torch.bool)
    assert refine_loss(said.raw, said.boxes, truth, velocity, classes, seen).max() < 1e-5


@pytest.mark.parametrize(
    ("column", "change", "cost"),
    [(0, 2.0, 2 * 1.975), (2, -2.0, 2 * 1.975), (8, -80.0, 40.0), (11, -80.0, 40.0), (9, 1.0, 0.5 * 0.85)],
)
def test_each_error_costs_what_its_formula_says(column: int, change: float, cost: float) -> None:
    # Smooth L1 beyond beta is |e| - beta / 2; a sure wrong logit of 40 costs 40.
    start = boxes_at_random(1)
    truth = start.clone()
    truth[:, 6] += math.pi
    raw = saying(start, truth).raw.clone()
    raw[:, 9:11] = from_box_axes(torch.ones(1, 2), -start[:, 6]) / 2
    raw[0, column] += change
    args = (truth, torch.ones(1, 2), torch.zeros(1, dtype=torch.long))
    loss = refine_loss(raw, start, *args, torch.tensor([True]))
    assert loss.item() == pytest.approx(cost, rel=1e-3)
    assert refine_loss(raw, start, *args, torch.tensor([False])).item() == pytest.approx(0.3 * cost, rel=1e-3)


def test_a_wrong_size_costs_for_itself_and_for_both_faces() -> None:
    start = boxes_at_random(1)
    raw = saying(start, start).raw.clone()
    raw[0, 4] += 0.5  # log width
    beyond = float(start[0, 4]) * (math.exp(0.5) - 1) / 2
    args = (start, torch.full((1, 2), math.nan), torch.zeros(1, dtype=torch.long), torch.tensor([True]))
    loss = refine_loss(raw, start, *args).item()
    assert loss == pytest.approx(0.45 + 2 * (beyond - 0.025), rel=1e-3)


def test_an_axis_that_is_off_costs_what_its_ends_swing() -> None:
    start = boxes_at_random(1)
    off = 0.1
    raw = saying(start, start).raw.clone()
    raw[0, 6], raw[0, 7] = math.sin(2 * off), math.cos(2 * off)
    args = (start, torch.full((1, 2), math.nan), torch.zeros(1, dtype=torch.long), torch.tensor([True]))
    swing = float(start[0, 3]) / 2 * math.sin(2 * off) / 2  # near what half the length swings
    assert swing == pytest.approx(float(start[0, 3]) / 2 * math.sin(off), rel=0.01)
    around = math.sin(2 * off) ** 2 + (1 - math.cos(2 * off)) ** 2
    assert refine_loss(raw, start, *args).item() == pytest.approx(around + 2 * (swing - 0.025), rel=1e-3)
    turned = raw.clone()
    turned[0, 6:8] *= 3.0  # only the direction counts
    torch.testing.assert_close(
        *(end_swings(r, torch.zeros(1), start[:, 3]) for r in (raw, turned)), rtol=1e-3, atol=0
    )


def test_errors_of_faces_are_those_of_the_boxes_that_come_out() -> None:
    start, bits = boxes_at_random(20), torch.Generator().manual_seed(4)
    truth = start + 0.2 * torch.randn(20, 7, generator=bits)
    truth[:, 3:6] = start[:, 3:6] * (1 + 0.2 * torch.rand(20, 3, generator=bits))
    raw = 0.3 * torch.randn(20, CHANNELS, generator=bits)
    errors, found = face_errors(raw, start, truth), Refinement(start, raw, *others(20)).refined()
    for box, real, row in zip(found.tolist(), truth.tolist(), errors.tolist(), strict=True):
        dx, dy = box[0] - real[0], box[1] - real[1]
        c, s = math.cos(real[6]), math.sin(real[6])
        places = (c * dx + s * dy, c * dy - s * dx, box[2] - real[2])
        for axis, place in enumerate(places):  # the far face, then the near one, outwards
            assert row[axis] == pytest.approx(place + box[3 + axis] / 2 - real[3 + axis] / 2, abs=1e-4)
            assert row[3 + axis] == pytest.approx(-(place - box[3 + axis] / 2 + real[3 + axis] / 2), abs=1e-4)


def test_class_and_colour_cost_their_cross_entropies_and_no_colour_costs_nothing() -> None:
    bits = torch.Generator().manual_seed(6)
    label, colour = torch.randn(3, 15, generator=bits), torch.randn(3, 9, generator=bits)
    classes, colours = torch.tensor([2, 0, 14]), torch.tensor([1, -1, 8])
    loss = attribute_loss(label, colour, classes, colours, torch.tensor([True, True, False]))
    for n, (kind, hue) in enumerate(zip(classes.tolist(), colours.tolist(), strict=True)):
        expected = math.log(sum(math.exp(v) for v in label[n].tolist())) - float(label[n, kind])
        if hue >= 0:
            expected += math.log(sum(math.exp(v) for v in colour[n].tolist())) - float(colour[n, hue])
        assert loss[n].item() == pytest.approx(expected * 0.3 * (1.0 if n < 2 else 0.3), rel=1e-4)


def test_unknown_velocities_cost_nothing() -> None:
    start = boxes_at_random(2)
    raw = torch.randn(2, CHANNELS)
    known, unknown = torch.tensor([[1.0, 0.0], [1.0, 0.0]]), torch.tensor([[1.0, 0.0], [math.nan, math.nan]])
    classes, seen = torch.zeros(2, dtype=torch.long), torch.ones(2, dtype=torch.bool)
    both = [refine_loss(raw, start, start, v, classes, seen) for v in (known, unknown)]
    assert both[0][0] == both[1][0] and both[1][1] < both[0][1] and both[1].isfinite().all()


def test_points_of_a_box_are_those_around_it_and_above_the_road() -> None:
    bits = torch.Generator().manual_seed(3)
    boxes = boxes_at_random(6)
    points = torch.rand(4000, 5, generator=bits) * torch.tensor([60.0, 60, 4, 1, 0.5]) - torch.tensor(
        [30.0, 30, 1, 0, 0]
    )
    own, real = points_of(points, boxes, 256)
    for n, box in enumerate(boxes.tolist()):
        reach = math.hypot(box[3], box[4]) / 2 + MARGIN
        expected = [
            p
            for p in points.tolist()
            if abs(p[0] - box[0]) < reach
            and abs(p[1] - box[1]) < reach
            and GROUND < p[2] < box[2] + box[5] / 2 + 1
        ]
        assert int(real[n].sum()) == min(len(expected), 256)
        torch.testing.assert_close(own[n, real[n]], torch.tensor(expected).reshape(-1, 5)[:256])


def test_of_many_points_evenly_chosen_ones_are_looked_at() -> None:
    box = torch.tensor([[0.0, 0, 1, 4, 2, 2, 0]])
    points = torch.zeros(1000, 5)
    points[:, 2], points[:, 3] = 1.0, torch.arange(1000) / 1000
    own, real = points_of(points, box, 256)
    assert real.all()
    gaps, even = own[0, 1:, 3] - own[0, :-1, 3], 1 / 256
    assert gaps.min() > even - 0.0011 and gaps.max() < even + 0.0011


@pytest.mark.parametrize("beyond", [True, False])
def test_the_places_lie_on_the_faces(beyond: bool) -> None:
    places = face_places(RefinerConfig(end_pixels=(7, 3), side_pixels=(9, 4), beyond=beyond))
    front, rear, left, right, top = places.split([21, 21, 36, 36, 36])
    assert (front[:, 0] == 0.49).all() and (rear[:, 0] == -0.49).all()
    assert (left[:, 1] == 0.49).all() and (right[:, 1] == -0.49).all() and (top[:, 2] == 0.5).all()
    reach = places.abs().amax(0)
    if beyond:
        assert (reach > 0.5).all() and (reach < 0.75).all()  # what lies behind an edge is seen too
    else:
        assert (reach <= 0.5).all()
    turned = places * torch.tensor([-1.0, -1.0, 1.0])  # a box turned round has the same places
    assert torch.cdist(turned, places).amin(1).max() < 1e-3


def test_points_have_the_colours_that_cameras_see_there() -> None:
    points = torch.tensor([[3.0, 1, 1, 0.5, 0], [4, 1, 0.05, 0.5, 0], [-3, 1, 1, 0.5, 0]])

    def look(places: Tensor) -> tuple[Tensor, Tensor]:  # what lies behind is seen by no camera
        return places / 10, (places[:, 0] > 0).float()

    painted = BoxRefiner(4).painted(points, look)
    assert len(painted) == 2 and torch.equal(painted[:, :5], points[[0, 2]])  # the road left out
    torch.testing.assert_close(painted[0, 5:], torch.tensor([-0.2, -0.4, -0.4, 1.0]))
    assert (painted[1, 5:] == 0).all()
    plain = BoxRefiner(4, RefinerConfig(painted=False))
    assert plain.painted(points, look) is points


def test_a_smaller_refiner_is_told_less_and_looks_less_often() -> None:
    config = RefinerConfig(2, 40, (8, 12), False, (3, 2), (4, 2), False, False)
    refiner, boxes = BoxRefiner(4, config).eval(), boxes_at_random(3)
    contents = refiner.contents(boxes, torch.zeros(3, 6), torch.zeros(0, 5), lambda p: (p * 0, p[:, 0]))
    assert contents.points.shape == (3, 40, 5) and contents.pixels.shape == (3, 2 * 6 + 3 * 8, 4)
    assert refiner._local_points(contents)[0].shape == (3, 40, 11)
    candidates = Candidates(torch.zeros(3, 2, dtype=torch.long), torch.ones(3), boxes, torch.zeros(3, 2))
    _, looks = refiner.refine(candidates, torch.zeros(3, 4), torch.zeros(0, 5), lambda p: (p * 0, p[:, 0]))
    assert len(looks) == 2


def test_the_refiner_looks_where_the_box_is() -> None:
    torch.manual_seed(0)
    refiner, boxes = BoxRefiner(4).eval(), boxes_at_random(3)
    asked: list[Tensor] = []

    def look(places: Tensor) -> tuple[Tensor, Tensor]:
        asked.append(places)
        return places * 0, torch.ones(len(places))

    candidates = Candidates(torch.zeros(3, 2, dtype=torch.long), torch.ones(3), boxes, torch.zeros(3, 2))
    found, looks = refiner.refine(candidates, torch.randn(3, 4), torch.zeros(0, 5), look)
    torch.testing.assert_close(found.box[:, :6], boxes[:, :6])  # it starts as the identity
    assert len(looks) == len(asked) - 1 == RefinerConfig().passes  # first the points are painted
    wider = boxes.clone()
    wider[:, 3:6] = wider[:, 3:6] * 1.5 + 2 * AROUND
    corners = box_corners(wider)
    for n, places in enumerate(asked[1].unflatten(0, (3, -1))):
        low, high = corners[n].amin(0), corners[n].amax(0)
        assert ((places > low - 1e-3) & (places < high + 1e-3)).all()
    nothing = Candidates(
        *(part[:0] for part in (candidates.cell, candidates.score, boxes, candidates.velocity))
    )
    assert refiner.refine(nothing, torch.zeros(0, 4), torch.zeros(0, 5), look) == (nothing, ())


def test_what_it_says_turns_with_the_scene_but_for_what_is_known_of_place() -> None:
    # Points in a box's own axes are the same wherever the box points.
    refiner = BoxRefiner(4).eval()
    boxes = boxes_at_random(2)
    points = torch.randn(50, 5) + torch.cat([boxes[0, :3], torch.zeros(2)])
    turn = 0.7
    rotation = torch.tensor([[math.cos(turn), -math.sin(turn)], [math.sin(turn), math.cos(turn)]])
    moved, other = boxes.clone(), points.clone()
    moved[:, :2], moved[:, 6] = boxes[:, :2] @ rotation.T, boxes[:, 6] + turn
    other[:, :2] = points[:, :2] @ rotation.T

    def look(places: Tensor) -> tuple[Tensor, Tensor]:
        return places * 0, torch.zeros(len(places))

    seen = []
    for box, cloud in ((boxes, points), (moved, other)):
        contents = refiner.contents(box, torch.zeros(2, 6), torch.zeros(0, 5), look)
        own = refiner.painted(cloud, look).expand(2, -1, -1)
        contents = type(contents)(
            box, own, torch.ones(own.shape[:2], dtype=torch.bool), contents.pixels, contents.known
        )
        seen.append(refiner._local_points(contents)[0])
    torch.testing.assert_close(seen[0], seen[1], atol=1e-4, rtol=1e-4)


def test_it_learns_to_undo_an_offset_that_the_points_show() -> None:
    torch.manual_seed(0)
    refiner = BoxRefiner(4)
    optimizer = torch.optim.Adam(refiner.parameters(), 3e-3)
    truth = boxes_at_random(24, seed=5)
    rows = []
    for box in truth:
        flat = from_box_axes((torch.rand(60, 2) - 0.5) * box[3:5], box[6].expand(60))
        rows.append(torch.cat([box[:2] + flat, box[2].expand(60, 1), torch.zeros(60, 2)], dim=1))
    points = torch.cat(rows)

    def look(places: Tensor) -> tuple[Tensor, Tensor]:
        return places * 0, torch.zeros(len(places))

    losses = []
    for step in range(60):
        start = shaken(truth, step)
        seen = refiner.painted(points, look)
        said = refiner(refiner.contents(start, torch.zeros(24, 6), seen, look))
        loss = refine_loss(
            said.raw,
            said.boxes,
            truth,
            torch.zeros(24, 2),
            torch.zeros(24, dtype=torch.long),
            torch.ones(24) > 0,
        ).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert sum(losses[-10:]) < 0.6 * sum(losses[:10])
