"""GT-Rand and Box-Rand on a hand-made scene whose expected scores can be counted by hand."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from vlm_occ.eval.metrics import occupancy_iou
from vlm_occ.models.references import RandomReference, ReferenceState
from vlm_occ.types import FREE, OCC3D_CLASSES, TALK2OCC_CLASSES, SceneLabels, VoxelGrid

GRID = VoxelGrid(origin=(-8.0, -8.0, -1.0), shape=(40, 40, 16))
CAR, PERSON = TALK2OCC_CLASSES.index("car"), TALK2OCC_CLASSES.index("pedestrian")


def scene_of_four() -> SceneLabels:
    """Two cars and a person of 4 x 4 x 4 voxels, one car filled by a third; a box of air, one outside."""
    semantics = torch.full(GRID.shape, FREE, dtype=torch.uint8)
    corners = [(2, 2), (2, 30), (30, 2)]
    boxes = []
    for number, (x, y) in enumerate(corners):
        semantics[x : x + 4, y : y + 4, 4:8] = OCC3D_CLASSES.index("car")
        if number == 0:
            semantics[x : x + 4, y : y + 4, 5:8] = FREE  # 16 of 64 voxels are left
            semantics[x, y : y + 4, 5] = OCC3D_CLASSES.index("car")  # and 4 more
        low = torch.tensor([x, y, 4]) * 0.4 + torch.tensor(GRID.origin)
        boxes.append([*(low + 0.8).tolist(), 1.6, 1.6, 1.6, 0.0])
    boxes.append([4.8, 4.8, 2.0, 1.6, 1.6, 1.6, 0.0])  # air
    boxes.append([30.0, 0.0, 0.0, 4.0, 2.0, 1.6, 0.0])  # outside the grid
    seen = semantics != FREE
    return SceneLabels(
        semantics=semantics,
        mask_lidar=seen,
        mask_camera=seen,
        boxes=torch.tensor(boxes),
        classes=torch.tensor([CAR, CAR, PERSON, CAR, CAR]),
        colours=torch.full((5,), -1),
        velocities=torch.zeros(5, 2),
        visibility=torch.ones(5),
        num_points=torch.full((5,), 9),
    )


def truth(state: ReferenceState, row: int) -> Tensor:
    """The object's own voxels, drawn by slices instead of by `voxels_in_box`."""
    x, y = [(2, 2), (2, 30), (30, 2)][row]
    window = torch.zeros(GRID.shape, dtype=torch.bool)
    window[x : x + 4, y : y + 4, 4:8] = True
    return window & state.occupancy


def test_candidates_are_the_boxes_in_the_grid_that_hold_an_occupied_voxel_of_any_class() -> None:
    state = RandomReference("gt_rand").encode(scene_of_four(), GRID)
    torch.testing.assert_close(state.boxes, scene_of_four().boxes[:3])
    assert state.classes.tolist() == [CAR, CAR, PERSON]


@pytest.mark.parametrize(("kind", "expected"), [("box_rand", (1 / 3, 1 / 3)), ("gt_rand", (1 / 3, 0.0))])
def test_accuracy_over_many_seeds_is_the_share_of_the_right_box(
    kind: str, expected: tuple[float, float]
) -> None:
    # The first car fills 20 of its 64 voxels: the whole box has IoU 0.3125, its occupied voxels IoU 1.
    seeds, hits = 300, torch.zeros(2)
    state = RandomReference("gt_rand").encode(scene_of_four(), GRID)
    for seed in range(seeds):
        reference = RandomReference(kind, seed=seed)  # type: ignore[arg-type]
        iou = occupancy_iou(reference.ground(state, "the car").objects[0].occupancy, truth(state, 0))
        hits += torch.tensor([iou > 0.25, iou > 0.5])
    for found, share in zip((hits / seeds).tolist(), expected, strict=True):
        assert abs(found - share) <= 3 * math.sqrt(share * (1 - share) / seeds)


def test_gt_rand_answers_the_whole_box_and_box_rand_its_occupied_voxels() -> None:
    labels = scene_of_four()
    sizes: dict[str, set[int]] = {"gt_rand": set(), "box_rand": set(), "refined": set()}
    for seed in range(12):
        whole, occupied = RandomReference("gt_rand", seed=seed), RandomReference("box_rand", seed=seed)
        state = whole.encode(labels, GRID)
        sizes["gt_rand"].add(int(whole.ground(state, "x").objects[0].occupancy.sum()))
        sizes["box_rand"].add(int(occupied.ground(state, "x").objects[0].occupancy.sum()))
        refined, plain = whole.ground(state, "x", refine=True), occupied.ground(state, "x")
        assert torch.equal(refined.occupancy, plain.occupancy)
    assert sizes["gt_rand"] == {64} and sizes["box_rand"] == {20, 64}


def test_the_same_seed_gives_the_same_answers_and_each_sentence_its_own() -> None:
    reference = RandomReference("box_rand", seed=5)
    state = reference.encode(scene_of_four(), GRID)
    queries = [f"the car number {n}" for n in range(40)]
    first, second = (
        reference.ground(state, queries),
        RandomReference("box_rand", seed=5).ground(state, queries),
    )
    rows = [reference.draw(state, text, n) for n, text in enumerate(queries)]
    assert all(torch.equal(a.objects[0].box, b.objects[0].box) for a, b in zip(first, second, strict=True))
    assert set(rows) == {0, 1, 2}
    other = [RandomReference("box_rand", seed=6).draw(state, text, n) for n, text in enumerate(queries)]
    assert other != rows


def test_a_scene_without_boxes_has_no_answer() -> None:
    labels = scene_of_four()
    state = ReferenceState("empty", GRID, labels.semantics != FREE, torch.zeros(0, 7), torch.zeros(0).long())
    assert RandomReference("gt_rand").ground(state, "the car").objects == ()
