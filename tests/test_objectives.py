"""Total losses: each term against a loop written from its definition."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import cast

import pytest
import torch
from made_outputs import GRID, entropy, grounding, labels, output
from torch import Tensor
from torch.nn import functional

from vlm_occ.encoders.refine import CHANNELS, Refinement
from vlm_occ.losses.refine import attribute_loss, refine_loss
from vlm_occ.models.batch import ReferredObject
from vlm_occ.models.perception import PerceptionOutput
from vlm_occ.objectives import (
    attribute_terms,
    centre_terms,
    object_occupancy_terms,
    object_terms,
    occupancy_terms,
    perception_terms,
    refine_terms,
    seen_objects,
    weighted_sum,
)
from vlm_occ.types import FREE, GroundingQuery
from vlm_occ.voxels import voxels_in_box


def learning(result: PerceptionOutput) -> PerceptionOutput:
    """The same with gradients for boxes and motion."""
    result.regression.requires_grad_()
    return result


def test_occupancy_weighs_occupied_voxels_twice_and_unseen_ones_a_quarter() -> None:
    item = labels(0)
    result = output([item])
    total = weight = 0.0
    for x in range(12):
        for y in range(12):
            for z in range(4):
                occupied = bool(item.semantics[x, y, z] != FREE)
                seen = bool(item.mask_lidar[x, y, z] | item.mask_camera[x, y, z])
                w = (2 if occupied else 1) * (1 if seen else 0.25)
                total += w * entropy(float(result.occupancy_logits[0, x, y, z]), float(occupied))
                weight += w
    assert float(occupancy_terms(result, [item])["occupancy"].total) == pytest.approx(
        total / weight, rel=1e-4
    )


def test_every_seen_object_counts_alike_in_the_occupancy_around_it() -> None:
    item = labels(0)
    item = replace(item, visibility=torch.tensor([1.0, 0.0, 1.0]), num_points=torch.tensor([20, 0, 20]))
    result = output([item])
    entropies, overlaps = [], []
    for box in item.boxes[[0, 2]]:
        wide = box.clone()
        wide[3:6] += 0.8
        overlap = size = 0.0
        losses = []
        for x, y, z in voxels_in_box(wide, GRID).nonzero().tolist():
            logit, truth = float(result.occupancy_logits[0, x, y, z]), float(item.semantics[x, y, z] != FREE)
            losses.append(entropy(logit, truth))
            probability = 1 / (1 + math.exp(-logit))
            overlap, size = overlap + probability * truth, size + probability + truth
        entropies.append(sum(losses) / len(losses))
        overlaps.append(1 - (2 * overlap + 1) / (size + 1))
    found = object_occupancy_terms(result, [item], GRID)
    assert float(found["objects"].total) == pytest.approx(sum(entropies) / 2, rel=1e-4)
    assert float(found["objects_dice"].total) == pytest.approx(sum(overlaps) / 2, rel=1e-4)


def test_the_coarse_target_is_whether_any_voxel_of_a_column_of_four_by_four_is_occupied() -> None:
    item = labels(1)
    result = output([item])
    losses = []
    for x in range(3):
        for y in range(3):
            for z in range(4):
                block = item.semantics[4 * x : 4 * x + 4, 4 * y : 4 * y + 4, z]
                losses.append(entropy(float(result.coarse_logits[0, x, y, z]), float((block != FREE).any())))
    found = float(occupancy_terms(result, [item])["coarse"].total)
    assert found == pytest.approx(sum(losses) / len(losses), rel=1e-4)


def test_regression_learns_the_nine_cells_around_each_centre() -> None:
    item = labels(2)
    result = output([item])
    total = 0.0
    for box, velocity in zip(item.boxes, item.velocities, strict=True):
        cell = ((box[:2] + 4.0) / 0.8).floor()
        for dx in (-1, 0, 1):
            for dy in (-1, 0, 1):
                x, y = int(cell[0]) + dx, int(cell[1]) + dy
                if not (0 <= x < 12 and 0 <= y < 12):
                    continue
                middle = -4.0 + (torch.tensor([x, y]) + 0.5) * 0.8
                target = [*(box[:2] - middle), box[2], *box[3:6].log(), box[6].sin(), box[6].cos(), *velocity]
                for channel, value in enumerate(target):
                    error = abs(float(result.regression[0, channel, x, y]) - float(value))
                    loss = 0.5 * error**2 / 0.1 if error < 0.1 else error - 0.05
                    total += loss * (0.1 if channel >= 8 else 1.0)
    found = float(centre_terms(result, [item], GRID)["regression"].total)
    assert found == pytest.approx(total / (9 * 3), rel=1e-4)


def test_an_unknown_velocity_costs_nothing_and_teaches_nothing() -> None:
    item = labels(3)
    unknown = item.velocities.clone()
    unknown[1] = torch.nan
    result = learning(output([item]))
    terms = perception_terms(result, [replace(item, velocities=unknown)], GRID)
    total, _ = weighted_sum(terms, dict.fromkeys(terms, 1.0))
    total.backward()
    assert torch.isfinite(total)
    assert torch.isfinite(cast(Tensor, result.regression.grad)).all()
    again = learning(output([item]))
    weighted_sum(perception_terms(again, [item], GRID), dict.fromkeys(terms, 1.0))[0].backward()
    same, other = cast(Tensor, result.regression.grad), cast(Tensor, again.regression.grad)
    torch.testing.assert_close(same[:, :8], other[:, :8])


def test_attributes_are_learned_from_the_candidate_that_stands_for_an_object() -> None:
    item = labels(4)
    result = output([item])
    tokens = result.tokens[0]
    order = [2, 1, 0]  # candidates stand in reverse order
    label = [functional.cross_entropy(tokens.class_logits[order[m]], item.classes[m]) for m in range(3)]
    colour = [functional.cross_entropy(tokens.colour_logits[order[m]], item.colours[m]) for m in (0, 2)]
    terms = attribute_terms(result, [item])
    assert float(terms["label"].total) == pytest.approx(float(sum(label)) / 3, rel=1e-4)
    assert float(terms["colour"].total) == pytest.approx(float(sum(colour)) / 2, rel=1e-4)


def test_every_look_at_an_object_s_candidate_is_judged() -> None:
    item = labels(4)
    result = output([item])
    boxes = result.tokens[0].candidates.box
    count = len(boxes)
    looks = tuple(
        Refinement(boxes, torch.randn(count, CHANNELS), boxes, torch.randn(count, 15), torch.randn(count, 9))
        for _ in range(2)
    )
    result = replace(result, tokens=(replace(result.tokens[0], looks=looks),))
    order = torch.tensor([2, 1, 0])  # candidates stand in reverse order
    truth = (item.boxes, item.velocities, item.classes, item.seen)
    expected = []
    for look in looks:
        said = (look.label_logits[order], look.colour_logits[order])
        loss = refine_loss(look.raw[order], look.boxes[order], *truth)
        loss = loss + attribute_loss(*said, item.classes, item.colours, item.seen)
        expected.append(loss.mean())
    found = refine_terms(result, [item])["refine"].total
    torch.testing.assert_close(found, sum(expected) / 2)  # type: ignore[arg-type]
    assert refine_terms(output([item]), [item])["refine"].total == 0


def test_objects_that_no_sensor_saw_are_not_asked_for() -> None:
    item = replace(labels(5), visibility=torch.tensor([0.05, 0.05, 0.2]), num_points=torch.tensor([2, 3, 0]))
    assert seen_objects(item).tolist() == [1, 2]


def test_a_batch_is_the_mean_of_its_scenes() -> None:
    items = [labels(6), labels(7, boxes=2)]
    together = output(items)
    values = weighted_sum(perception_terms(together, items, GRID), _Ones())[1]
    single = []
    for b, item in enumerate(items):
        rows = (together.voxel_index[:, 0] == b).nonzero()[:, 0]
        index = together.voxel_index[rows].clone()
        index[:, 0] = 0
        one = PerceptionOutput(
            together.coarse_logits[b : b + 1],
            together.occupancy_logits[b : b + 1],
            index,
            together.voxel_features[rows],
            together.semantic_logits[rows],
            together.heatmap_logits[b : b + 1],
            together.regression[b : b + 1],
            (together.tokens[b],),
        )
        single.append(weighted_sum(perception_terms(one, [item], GRID), _Ones())[1])
    for name, value in values.items():
        assert value == pytest.approx((single[0][name] + single[1][name]) / 2, rel=1e-5), name


class _Ones(dict[str, float]):
    """A weight of one for every term."""

    def __missing__(self, key: str) -> float:
        return 1.0


def test_a_mask_learns_the_occupied_voxels_of_its_box() -> None:
    item = labels(10)
    result, _ = grounding(item, torch.zeros(1, 5), [GroundingQuery("a", (1,), True)])
    rows = torch.arange(0, len(result.perception.voxel_index), 2)
    logits = torch.randn(len(rows), generator=torch.Generator().manual_seed(3))
    box = item.boxes[1] + 0.3
    decoded = ReferredObject(0, 0, 1, 1, box, rows, logits)
    terms = object_terms(replace(result, objects=(decoded,)), [item], GRID)
    total, members = 0.0, 0
    x0, y0, z0, dx, dy, dz, yaw = item.boxes[1].tolist()
    for row, logit in zip(rows.tolist(), logits.tolist(), strict=True):
        corners = GRID.center_of(result.perception.voxel_index[row, 1:])
        # The cube meets the box: points of the cube on a fine lattice, the simplest of all tests.
        steps = torch.linspace(-0.4, 0.4, 15)
        lattice = corners + torch.cartesian_prod(steps, steps, steps) - torch.tensor([x0, y0, z0])
        u = lattice[:, 0] * math.cos(yaw) + lattice[:, 1] * math.sin(yaw)
        v = -lattice[:, 0] * math.sin(yaw) + lattice[:, 1] * math.cos(yaw)
        inside = (u.abs() <= dx / 2) & (v.abs() <= dy / 2) & (lattice[:, 2].abs() <= dz / 2)
        members += bool(inside.any())
        total += entropy(logit, float(inside.any()))
    assert members > 3
    assert float(terms["mask"].total) == pytest.approx(total / max(members, 20), rel=1e-4)
    errors = [0.3] * 3 + [math.log(1 + 0.3 / size) for size in (dx, dy, dz)]
    errors += [math.sin(yaw + 0.3) - math.sin(yaw), math.cos(yaw + 0.3) - math.cos(yaw)]
    smooth = [abs(e) - 0.05 if abs(e) > 0.1 else e * e / 0.2 for e in errors]
    assert float(terms["box"].total) == pytest.approx(sum(smooth), rel=1e-4)
