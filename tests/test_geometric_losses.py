"""The paper's labels and losses against naive loops, brute force, dense sampling and another library."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from tiny_paper import GRID, tiny_scene

from vlm_occ.geometry import invert_rigid, rotation_z
from vlm_occ.losses.box import generalized_iou
from vlm_occ.losses.geometric import (
    PAPER_WEIGHTS,
    box_difference,
    box_terms,
    cell_depth,
    class_losses,
    grounding_labels,
    image_boxes,
    mask_focal,
    match_queries,
)
from vlm_occ.losses.occupancy import (
    sigmoid_focal,
)
from vlm_occ.types import FREE


def randn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_weights_are_those_of_section_4d() -> None:
    boxes2d = [PAPER_WEIGHTS[f"image_{name}"] for name in ("box", "centre", "centerness", "giou")]
    assert boxes2d == [5, 10, 1, 2]
    assert [PAPER_WEIGHTS[name] for name in ("label", "box")] == [2, 0.25]
    for kind in ("semantic", "geometric"):
        names = (f"{kind}_ce", "mask", *(f"{kind}_{name}" for name in ("lovasz", "geo", "sem")))
        assert [PAPER_WEIGHTS[name] for name in names] == [10, 2, 1, 1, 1]


def test_focal_and_giou_agree_with_transformers() -> None:
    from transformers.loss.loss_for_object_detection import generalized_box_iou, sigmoid_focal_loss

    logits, targets = randn(7, 5), (randn(7, 5, seed=1) > 0.5).float()
    theirs = sigmoid_focal_loss(logits, targets, num_boxes=1)
    torch.testing.assert_close(sigmoid_focal(logits, targets).mean(1).sum(), theirs)
    low, size = randn(2, 9, 2, seed=2), randn(2, 9, 2, seed=3).abs() + 0.1
    a, b = torch.cat([low, low + size], dim=-1)
    torch.testing.assert_close(generalized_iou(a, b), generalized_box_iou(a, b).diagonal())


def test_labels_are_free_occupied_and_equation_1() -> None:
    item = tiny_scene()
    box = item.labels.boxes[1]  # not turned: its cubes can be found by intervals
    labels = grounding_labels(item.labels.semantics, box[None], GRID)
    centres = GRID.centers()
    meets = ((centres - box[:3]).abs() < box[3:6] / 2 + GRID.voxel_size / 2).all(-1)
    occupied = item.labels.semantics != FREE
    assert torch.equal(labels == 2, meets & occupied) and torch.equal(labels > 0, occupied)
    assert (labels == 2).sum() > 20


def test_class_losses_by_hand() -> None:
    logits, labels = randn(60, 3), torch.arange(60) % 3
    losses = class_losses(logits[None], labels[None], free=0, geo_affinity=True, sem_affinity=True)
    p = logits.softmax(-1)
    naive = -sum(math.log(p[i, labels[i]]) for i in range(60)) / 60
    assert losses["ce"].item() == pytest.approx(naive, rel=1e-5)
    busy = 1 - p[:, 0]
    full = (labels != 0).float()
    shares = (
        (busy * full).sum() / busy.sum(),
        (busy * full).sum() / full.sum(),
        ((1 - busy) * (1 - full)).sum() / (1 - full).sum(),
    )
    assert losses["geo"].item() == pytest.approx(-sum(math.log(s) for s in shares), rel=1e-5)
    plain = class_losses(logits[None], labels[None], free=0, geo_affinity=False, sem_affinity=False)
    assert set(plain) == {"ce", "lovasz"} and set(losses) == {"ce", "lovasz", "geo", "sem"}


def test_lovasz_of_sure_answers_is_the_jaccard_loss_of_occupied_voxels() -> None:
    labels = torch.tensor([0, 0, 1, 1, 1, 2, 2, 1])
    answers = torch.tensor([2, 0, 1, 2, 1, 2, 1, 1])  # the first is free: it does not count
    logits = 60.0 * torch.nn.functional.one_hot(answers, 3)
    value = class_losses(logits[None], labels[None], free=0, geo_affinity=False, sem_affinity=False)["lovasz"]
    jaccard = {1: 3 / 5, 2: 1 / 3}
    assert value.item() == pytest.approx(sum(1 - j for j in jaccard.values()) / 2, abs=1e-5)


def lovasz_alone(probabilities: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Lovasz-softmax of one sentence: errors in order, each times what it adds to 1 - IoU."""
    values = []
    for index in labels.unique():
        target = (labels == index).float()
        errors, order = (target - probabilities[:, index]).abs().sort(descending=True)
        mistaken = [target[order[:number]] for number in range(len(order) + 1)]
        sets = [1 - (target.sum() - m.sum()) / (target.sum() + (1 - m).sum()) for m in mistaken]
        values.append(errors @ torch.stack(sets).diff())
    return torch.stack(values).mean() if values else probabilities.sum() * 0


def affinity_alone(probability: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Minus the logarithms of precision, recall and specificity, where each has something to divide by."""
    value = probability.sum() * 0
    if target.sum() > 0:
        value = value - (probability @ target / target.sum()).log()
        value = value - (probability @ target / probability.sum()).log()
    elif probability.sum() > 0:
        value = value - torch.tensor(1e-6).log()
    if (1 - target).sum() > 0:
        value = value - ((1 - probability) @ (1 - target) / (1 - target).sum()).log()
    return value


def test_sentences_together_lose_what_each_loses_alone() -> None:
    logits, labels = randn(5, 70, 4).requires_grad_(), torch.randint(0, 4, (5, 70))
    labels[1] = labels[1].clamp(max=1)  # classes 2 and 3 are absent
    labels[2] = 0  # nothing but free voxels
    labels[3, :] = 2
    ours = class_losses(logits, labels, free=0, geo_affinity=True, sem_affinity=True)
    alone: dict[str, list[torch.Tensor]] = {"ce": [], "lovasz": [], "geo": [], "sem": []}
    for one, truth in zip(logits, labels, strict=True):
        p = one.softmax(-1)
        alone["ce"].append(torch.nn.functional.cross_entropy(one, truth))
        alone["lovasz"].append(lovasz_alone(p[truth != 0], truth[truth != 0]))
        alone["geo"].append(affinity_alone(1 - p[:, 0], (truth != 0).float()))
        present = [affinity_alone(p[:, c], (truth == c).float()) for c in truth.unique()]
        alone["sem"].append(torch.stack(present).mean())
    for name, values in alone.items():
        torch.testing.assert_close(ours[name], torch.stack(values))
        gradients = [
            torch.autograd.grad(v.sum(), logits, retain_graph=True)[0]
            for v in (ours[name], torch.stack(values))
        ]
        torch.testing.assert_close(*gradients)
    masks, occupied = randn(5, 70, seed=4), labels[0] > 0
    each = torch.stack([mask_focal(mask, occupied) for mask in masks])
    torch.testing.assert_close(mask_focal(masks, occupied), each)


def test_no_voxel_costs_nothing() -> None:
    losses = class_losses(
        torch.zeros(1, 0, 3), torch.zeros(1, 0).long(), free=0, geo_affinity=True, sem_affinity=True
    )
    assert all(value == 0 for value in losses.values()) and len(losses) == 4
    assert mask_focal(torch.zeros(0), torch.zeros(0).bool()) == 0


def test_the_masks_focal_loss_is_a_sum_for_each_occupied_voxel() -> None:
    logits, occupied = randn(20), torch.arange(20) < 6
    total = 0.0
    for logit, full in zip(logits.tolist(), occupied.tolist(), strict=True):
        p = 1 / (1 + math.exp(-logit))
        total += -0.25 * (1 - p) ** 2 * math.log(p) if full else -0.75 * p**2 * math.log(1 - p)
    assert mask_focal(logits, occupied).item() == pytest.approx(total / 6, rel=1e-5)


def boxes_at(count: int, seed: int) -> torch.Tensor:
    values = randn(count, 7, seed=seed)
    return torch.cat([values[:, :3] * 5, values[:, 3:6].exp(), values[:, 6:]], dim=-1)


def test_matching_is_the_cheapest_of_all_assignments() -> None:
    boxes, targets, logits, classes = boxes_at(5, 0), boxes_at(3, 1), randn(5, 4), torch.tensor([2, 0, 2])
    stacked = (boxes.expand(2, 2, -1, -1), logits.expand(2, 2, -1, -1))
    two = (torch.stack([targets, targets.flip(0)]), torch.stack([classes, classes.flip(0)]))
    layer, sentence, rows, columns = match_queries(*stacked, *two, [3, 1])
    assert layer.tolist() == [0, 0, 0, 0, 1, 1, 1, 1] and sentence.tolist() == [0, 0, 0, 1] * 2
    rows, columns = rows[:3], columns[:3]

    def cost(query: int, target: int) -> float:
        p = torch.sigmoid(logits[query, classes[target]]).item()
        focal = 0.25 * (1 - p) ** 2 * -math.log(p) - 0.75 * p**2 * -math.log(1 - p)
        return 2 * focal + 0.25 * box_difference(boxes[query], targets[target]).item()

    best = min(itertools.permutations(range(5), 3), key=lambda q: sum(cost(q[t], t) for t in range(3)))
    found = dict(zip(columns.tolist(), rows.tolist(), strict=True))
    assert [found[t] for t in range(3)] == list(best)


def test_box_terms_are_zero_for_the_truth_and_count_sentences() -> None:
    targets = boxes_at(2, 3)
    boxes = torch.cat([targets, boxes_at(4, 4)]).expand(2, -1, -1)
    sure = torch.full((2, 6, 4), -30.0)
    sure[0, 0, 1] = sure[1, 1, 3] = 30.0
    classes = [torch.tensor([1]), torch.tensor([3])]
    terms = box_terms([(boxes, sure)], [targets[:1], targets[1:]], classes)
    assert terms["box"].count == 2 and terms["box"].total < 1e-5 and terms["label"].total < 1e-5
    none = box_terms([(boxes, sure)], [targets[:0], targets[1:]], [classes[0][:0], classes[1]])
    assert none["box"].total < 1e-5 and none["label"].total > 1  # a sure answer to a sentence without one


def test_a_full_turn_and_no_other_is_no_difference() -> None:
    box = torch.tensor([1.0, 2.0, 0.0, 4.0, 2.0, 1.5, 0.4])
    turned = box + torch.tensor([0, 0, 0, 0, 0, 0, 2 * math.pi])
    assert box_difference(box, turned) < 1e-5
    moved = box + torch.tensor([1.0, -2.0, 0.5, 0, 0, 0, 0])
    assert box_difference(moved, box).item() == pytest.approx(3.5)
    back = box + torch.tensor([0, 0, 0, 0, 0, 0, math.pi])
    assert box_difference(back, box).item() == pytest.approx(2 * (math.sin(0.4) + math.cos(0.4)), rel=1e-5)


@pytest.mark.parametrize("place", [(6.0, 1.0, 0.5), (2.0, -1.5, 0.8), (0.3, 0.2, 1.0), (-5.0, 0.0, 0.5)])
def test_picture_boxes_are_the_hull_of_all_projected_points(place: tuple[float, float, float]) -> None:
    item = tiny_scene()
    rig, (height, width) = item.scene.rig, item.scene.rig.image_size
    box = torch.tensor([*place, 3.0, 1.6, 1.4, 0.5])
    axis = torch.linspace(-0.5, 0.5, 61)
    inside = torch.cartesian_prod(axis, axis, axis)
    inside = inside[(inside.abs() > 0.49999).any(-1)] * box[3:6]  # the surface
    points = inside @ rotation_z(box[6]).T + box[:3]
    found, shown = image_boxes(box[None], rig.intrinsics, rig.ego_from_camera, rig.image_size)
    for v in range(len(rig.names)):
        camera = invert_rigid(rig.ego_from_camera[v])
        local = points @ camera[:3, :3].T + camera[:3, 3]
        local = local[local[:, 2] >= 0.3]
        pixels = local @ rig.intrinsics[v].T
        pixels = pixels[:, :2] / pixels[:, 2:]
        if not len(pixels):
            assert not shown[v, 0]
            continue
        limit = torch.tensor([width, height])
        low, high = pixels.amin(0).clamp(min=0), torch.minimum(pixels.amax(0), limit)
        assert bool(shown[v, 0]) == bool(((high - low) >= 4).all())
        if shown[v, 0]:
            expected = torch.cat([low / limit, high / limit])
            torch.testing.assert_close(found[v, 0], expected, atol=0.03, rtol=0)


def test_cell_depth_is_the_first_occupied_voxel_on_a_march() -> None:
    item = tiny_scene()
    rig, occupied = item.scene.rig, item.labels.semantics != FREE
    cells = (8, 12)
    depth = cell_depth(occupied, GRID, rig.intrinsics, rig.ego_from_camera, rig.image_size, cells)
    assert depth.shape == (2, *cells) and (depth > 0).float().mean() > 0.2
    for v, row, column in [(0, 3, 5), (0, 6, 2), (1, 5, 8), (1, 7, 11), (0, 4, 10)]:
        pixel = torch.tensor([(column + 0.5) * 96 / 12, (row + 0.5) * 64 / 8, 1.0])
        ray = torch.linalg.inv(rig.intrinsics[v]) @ pixel  # eq. 9
        steps = torch.arange(0, 40, 0.002)[:, None]
        pose = rig.ego_from_camera[v]
        points = (steps * ray) @ pose[:3, :3].T + pose[:3, 3]  # eq. 10
        index, inside = GRID.index_of(points)
        hit = occupied[tuple(index.T)] & inside
        expected = float(steps[int(hit.float().argmax())]) if hit.any() else 0.0  # eq. 11
        assert depth[v, row, column].item() == pytest.approx(expected, abs=0.02)
