"""2D grounding head, sampling, lifting, fusion and loss: closed forms, symmetries, a box that is learnt."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from vlm_occ.geometry import project, rigid, rotation_z
from vlm_occ.heads.grounding2d import (
    ImageGrounding,
    ImageGroundingHead,
    QueryFusion,
    cell_places,
    lift_places,
    sample_best,
)
from vlm_occ.losses.grounding2d import (
    IMAGE_GROUNDING_WEIGHTS,
    centerness_targets,
    image_grounding_terms,
)

SIZES = ((4, 8), (2, 4))
STRIDES = (8, 16)


def _inputs(batch: int = 2) -> tuple[list[Tensor], Tensor, Tensor]:
    torch.manual_seed(0)
    levels = [torch.randn(batch, 16, *size) for size in SIZES]
    return levels, torch.randn(batch, 5, 16), torch.tensor([[True] * 3 + [False] * 2] * batch)


def _head() -> ImageGroundingHead:
    torch.manual_seed(1)
    head = ImageGroundingHead(16, heads=4, hidden=32, strides=STRIDES)
    torch.nn.init.normal_(head.output.weight, std=0.1)
    return head


def test_places_are_those_of_equation_7() -> None:
    places = cell_places(SIZES, STRIDES, (32, 64))
    expected = [((8 * i + 4) / 64, (8 * j + 4) / 32) for j in range(4) for i in range(8)]
    expected += [((16 * i + 8) / 64, (16 * j + 8) / 32) for j in range(2) for i in range(4)]
    torch.testing.assert_close(places, torch.tensor(expected))


def test_masked_words_do_not_matter_and_others_do() -> None:
    levels, text, mask = _inputs()
    head = _head()
    out = head(levels, text, mask)
    changed = text.clone()
    changed[:, 3:] = 100.0
    torch.testing.assert_close(head(levels, changed, mask).boxes, out.boxes)
    changed[:, 0] += 3.0
    assert (head(levels, changed, mask).boxes - out.boxes).abs().max() > 1e-4


def test_the_order_of_the_words_does_not_matter_but_the_place_of_a_feature_does() -> None:
    levels, text, mask = _inputs()
    head = _head()
    out = head(levels, text, mask)
    swapped = head(levels, text[:, [2, 0, 1, 3, 4]], mask)
    torch.testing.assert_close(swapped.centerness_logits, out.centerness_logits, atol=1e-5, rtol=0)
    flipped = head([level.flip(3) for level in levels], text, mask)
    mirrored = flipped.centerness_logits[:, :32].reshape(2, 4, 8).flip(2).flatten(1)
    assert (mirrored - out.centerness_logits[:, :32]).abs().max() > 1e-4


def test_boxes_hold_their_cell_and_start_at_a_tenth_of_the_picture() -> None:
    levels, text, mask = _inputs()
    out = _head()(levels, text, mask)
    assert (out.boxes[..., :2] <= out.places).all() and (out.boxes[..., 2:] >= out.places).all()
    fresh = ImageGroundingHead(16, heads=4, hidden=32, strides=STRIDES)(levels, text, mask)
    extent = fresh.boxes[..., 2:] - fresh.boxes[..., :2]
    torch.testing.assert_close(extent, torch.full_like(extent, 0.1))
    torch.testing.assert_close(fresh.centerness_logits.sigmoid(), torch.full((2, 40), 0.01))


def test_a_wrong_number_of_levels_is_refused() -> None:
    levels, text, mask = _inputs()
    with pytest.raises(ValueError, match="1 feature levels, expected 2"):
        _head()(levels[:1], text, mask)


def test_the_best_places_are_sampled_in_order_with_their_score() -> None:
    torch.manual_seed(0)
    places = cell_places(SIZES, STRIDES, (32, 64))
    logits, features = torch.randn(2, 40), torch.randn(2, 40, 3)
    centres = torch.rand(2, 40, 2)
    grounding = ImageGrounding(features, places, SIZES, torch.zeros(2, 40, 4), centres, logits)
    sampled = sample_best(grounding, 3)
    for b in range(2):
        order = sorted(range(40), key=lambda n: -logits[b, n].item())[:3]
        assert sampled.index[b].tolist() == order
        torch.testing.assert_close(sampled.features[b], features[b, order] * logits[b, order, None].sigmoid())
        torch.testing.assert_close(sampled.places[b], places[order])
        torch.testing.assert_close(sampled.centres[b], centres[b, order])
    assert sample_best(grounding, 99).scores.shape == (2, 40)


def test_lifted_places_project_back_onto_themselves() -> None:
    torch.manual_seed(0)
    intrinsics = torch.tensor([[300.0, 0, 160], [0, 300, 90], [0, 0, 1]]).expand(2, 3, 3)
    forward = torch.tensor([[0.0, 0, 1], [-1, 0, 0], [0, -1, 0]])
    poses = torch.stack([rigid(rotation_z(torch.tensor(yaw)) @ forward, torch.rand(3)) for yaw in (0.3, 2.0)])
    places, depth = torch.rand(2, 7, 2), torch.rand(2, 7) * 30 + 2
    points = lift_places(places, depth, intrinsics, poses, (180, 320))
    for b in range(2):
        pixels, found = project(points[b], intrinsics[b : b + 1], poses[b : b + 1])
        torch.testing.assert_close(pixels[0] / torch.tensor([320.0, 180]), places[b], atol=1e-4, rtol=0)
        torch.testing.assert_close(found[0], depth[b], atol=1e-4, rtol=0)


def test_fusion_does_not_depend_on_the_order_of_points_but_on_where_they_are() -> None:
    torch.manual_seed(0)
    fusion = QueryFusion(16, heads=4, hidden=32)
    content, position, sampled = torch.randn(2, 3, 16), torch.randn(2, 3, 16), torch.randn(2, 6, 16)
    points = torch.rand(2, 6, 3)
    out = fusion(content, position, sampled, points)
    order = torch.randperm(6)
    torch.testing.assert_close(fusion(content, position, sampled[:, order], points[:, order]), out)
    assert (fusion(content, position, sampled, points.flip(1)) - out).abs().max() > 1e-4


def test_points_outside_the_grid_are_ignored_and_none_at_all_is_no_error() -> None:
    torch.manual_seed(0)
    fusion = QueryFusion(16, heads=4, hidden=32)
    content, position, sampled = torch.randn(2, 3, 16), torch.randn(2, 3, 16), torch.randn(2, 6, 16)
    points, mask = torch.rand(2, 6, 3), torch.tensor([[True] * 4 + [False] * 2, [False] * 6])
    out = fusion(content, position, sampled, points, mask)
    alone = fusion(content[:1], position[:1], sampled[:1, :4], points[:1, :4])
    torch.testing.assert_close(out[:1], alone)
    assert torch.isfinite(out).all()
    other = fusion(content, position, torch.randn(2, 6, 16), points, mask)
    torch.testing.assert_close(other[1], out[1])


def test_the_right_answer_costs_nothing_but_centerness() -> None:
    places = cell_places(SIZES, STRIDES, (32, 64))
    box = torch.tensor([[0.2, 0.1, 0.5, 0.7], [math.nan] * 4])
    visible = torch.tensor([True, False])
    boxes = box[:1, None].expand(2, 40, 4)
    centres = torch.tensor([0.35, 0.4]).expand(2, 40, 2)
    heat = centerness_targets(places, SIZES, box, visible)
    logits = torch.where(heat >= 1, 30.0, -30.0)
    terms = image_grounding_terms(boxes, centres, logits, places, SIZES, box, visible)
    assert set(terms) == set(IMAGE_GROUNDING_WEIGHTS)
    assert all(term.total.abs() < 1e-5 for term in terms.values())
    assert [terms[name].count.item() for name in ("image_box", "image_giou", "image_centerness")] == [2, 2, 2]


def test_terms_by_hand() -> None:
    places = cell_places(SIZES, STRIDES, (32, 64))
    box = torch.tensor([[0.2, 0.2, 0.6, 0.6]])
    predicted = torch.tensor([0.4, 0.2, 0.8, 0.6]).expand(1, 40, 4)  # moved by half its width
    centres = torch.tensor([0.6, 0.45]).expand(1, 40, 2)
    logits = torch.zeros(1, 40)
    terms = image_grounding_terms(predicted, centres, logits, places, SIZES, box, torch.tensor([True]))
    assert terms["image_box"].total.item() == pytest.approx(2 * 0.4)  # two levels
    assert terms["image_centre"].total.item() == pytest.approx(2 * 0.25)
    assert terms["image_giou"].total.item() == pytest.approx(2 * (1 - 1 / 3))


def test_centerness_is_one_at_the_nearest_place_of_each_level_and_falls_off() -> None:
    places = cell_places(SIZES, STRIDES, (32, 64))
    heat = centerness_targets(places, SIZES, torch.tensor([[0.3, 0.3, 0.5, 0.5]]), torch.tensor([True]))[0]
    distance = (places - torch.tensor([0.4, 0.4])).norm(dim=-1)
    for start, stop in ((0, 32), (32, 40)):
        assert heat[start:stop].argmax() == distance[start:stop].argmin()
        assert (heat[start:stop] == 1).sum() == 1
    assert heat[distance > 0.5].max() < 0.05


def test_the_head_learns_to_box_the_marked_place() -> None:
    torch.manual_seed(0)
    head = ImageGroundingHead(16, heads=4, hidden=32, strides=STRIDES)
    places = cell_places(SIZES, STRIDES, (32, 64))
    text, mask = torch.randn(1, 2, 16).expand(8, 2, 16), torch.ones(8, 2, dtype=torch.bool)
    rows, columns = torch.arange(8) % 4, torch.arange(8)
    centres = torch.stack([(columns + 0.5) / 8, (rows + 0.5) / 4], dim=-1)
    boxes = torch.cat([centres - 0.1, centres + 0.1], dim=-1)
    fine = torch.zeros(8, 16, 4, 8)
    fine[torch.arange(8), :, rows, columns] = torch.randn(16) * 2
    levels = [fine, torch.nn.functional.avg_pool2d(fine, 2)]
    optimizer = torch.optim.Adam(head.parameters(), lr=3e-3)
    for _ in range(60):
        optimizer.zero_grad()
        out = head(levels, text, mask)
        terms = image_grounding_terms(
            out.boxes, out.centres, out.centerness_logits, places, SIZES, boxes, torch.ones(8).bool()
        )
        sum(IMAGE_GROUNDING_WEIGHTS[n] * t.total / t.count for n, t in terms.items()).backward()  # type: ignore
        optimizer.step()
    best = sample_best(head(levels, text, mask), 1)
    assert (best.centres[:, 0] - centres).abs().max() < 0.08
