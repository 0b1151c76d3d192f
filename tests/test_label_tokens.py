"""Voxel tokens made of labels: what they say of the objects, how often they err, a step of stage language."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tiny_runs import prepare, tiny_config, tiny_scenes

from vlm_occ.config import PerceptionConfig
from vlm_occ.losses.matching import match_boxes
from vlm_occ.models.label_tokens import MOST_FALSE, WRONG_CLASS, label_tokens
from vlm_occ.train import train
from vlm_occ.types import SceneLabels


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return prepare(tmp_path_factory.mktemp("label-tokens"))


def a_crowd(count: int = 400) -> SceneLabels:
    """Objects on a lattice 2 m apart, all of them seen."""
    side = torch.arange(count)
    places = torch.stack([(side % 20) * 4.0 - 38, (side // 20) * 4.0 - 38, torch.ones(count)], dim=-1)
    boxes = torch.cat([places, torch.tensor([1.8, 0.8, 1.6]).expand(count, 3), torch.zeros(count, 1)], dim=-1)
    none = torch.zeros(1, 1, 1)
    return SceneLabels(
        semantics=none.to(torch.uint8),
        mask_lidar=none.bool(),
        mask_camera=none.bool(),
        boxes=boxes,
        classes=side % 15,
        colours=side % 9,
        velocities=torch.zeros(count, 2),
        visibility=torch.ones(count),
        num_points=torch.full((count,), 9),
    )


def test_most_objects_have_a_token_that_names_their_class_and_some_have_a_wrong_one() -> None:
    labels, config = a_crowd(), PerceptionConfig(max_tokens=1000)
    output = label_tokens(labels, config, torch.Generator().manual_seed(0), device=torch.device("cpu"))
    tokens = output.tokens[0]
    match = match_boxes(tokens.candidates.box, labels.boxes)
    assert 0.93 < (match >= 0).float().mean() < 1.0
    right = tokens.class_logits.argmax(-1)[match[match >= 0]] == labels.classes[match >= 0]
    assert 1 - 2 * WRONG_CLASS < right.float().mean() < 1 - WRONG_CLASS / 2
    assert len(tokens.features) <= len(labels.boxes) + MOST_FALSE
    assert tokens.attributes.shape[1] == 25
    torch.testing.assert_close(tokens.attributes[:, :15].sum(-1), torch.ones(len(tokens.features)))


def test_tokens_of_labels_depend_on_the_generator_alone() -> None:
    labels, config = a_crowd(60), PerceptionConfig()
    cpu = torch.device("cpu")
    one, two, other = (
        label_tokens(labels, config, torch.Generator().manual_seed(seed), device=cpu).tokens[0].candidates.box
        for seed in (3, 3, 4)
    )
    assert torch.equal(one, two)
    assert one.shape != other.shape or not torch.equal(one, other)


def test_stage_language_trains_the_language_side_and_leaves_the_trunk_and_the_decoders_alone(
    folder: Path, tmp_path: Path
) -> None:
    from vlm_occ.run_model import initial_model

    config = replace(tiny_config(folder, tmp_path / "run"), stage="language", steps=3)
    before = {name: value.clone() for name, value in initial_model(config).named_parameters()}
    after = dict(train(config, source=tiny_scenes(folder)).named_parameters())
    changed = {name.split(".")[0] for name, value in after.items() if not torch.equal(value, before[name])}
    assert {"backbone", "ground_norm", "pointer", "voxel_projector", "token_state"} <= changed
    assert not changed & {"perception", "joint", "mask", "box", "pose"}
