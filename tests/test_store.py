"""Scenes on disk: what was saved is read, damage is named or mended, other settings are refused."""

from __future__ import annotations

import json
from dataclasses import fields, replace
from pathlib import Path

import pytest
import torch
from small_scenes import small_scene

from vlm_occ.data.simulator.scene import simulate_details, split_seed
from vlm_occ.data.simulator.situations import write_situations
from vlm_occ.data.store import SimulatedScenes, load_scene_file, permutation, random_bits, save_scene
from vlm_occ.types import LabelledScene, SceneLabels

POOL = SimulatedScenes("train", 2, num_queries=3, num_situations=1, image_size=(32, 88))


def assert_equal(a: LabelledScene, b: LabelledScene) -> None:
    """Every part is the same, bit for bit."""
    assert (a.queries, a.situations) == (b.queries, b.situations)
    assert (a.scene.name, a.scene.grid) == (b.scene.name, b.scene.grid)
    assert (a.scene.rig.names, a.scene.rig.image_size) == (b.scene.rig.names, b.scene.rig.image_size)
    assert torch.equal(a.scene.rig.intrinsics, b.scene.rig.intrinsics)
    assert torch.equal(a.scene.rig.ego_from_camera, b.scene.rig.ego_from_camera)
    for field in fields(SceneLabels):
        x, y = getattr(a.labels, field.name), getattr(b.labels, field.name)
        assert x.dtype == y.dtype and torch.equal(x, y), field.name
    for x, y in zip(a.scene.frames, b.scene.frames, strict=True):
        assert x.timestamp == y.timestamp and torch.equal(x.images, y.images)
        assert torch.equal(x.world_from_ego, y.world_from_ego)
        assert (x.points is None) == (y.points is None)
        assert x.points is None or y.points is None or torch.equal(x.points, y.points)


def test_a_saved_scene_is_read_as_it_was(tmp_path: Path) -> None:
    item = small_scene()
    older, newer = item.scene.frames
    item = replace(item, scene=replace(item.scene, frames=(replace(older, points=None), newer), name="a"))
    save_scene(item, tmp_path / "a.safetensors")
    read, facts = load_scene_file(tmp_path / "a.safetensors")
    assert_equal(read, item)
    assert facts == ()
    assert [path.name for path in tmp_path.iterdir()] == ["a.safetensors"]


def test_situations_are_read_with_what_they_are_made_of(tmp_path: Path) -> None:
    item, facts = POOL.with_facts(1)
    item = replace(item, situations=write_situations(facts, seed=1, count=40))
    made = [situation.parts for situation in item.situations if situation.parts is not None]
    assert {parts.metres is None for parts in made} == {True, False}
    assert {mention.seen is None for parts in made for mention in parts.mentions} == {True, False}
    save_scene(item, tmp_path / "a.safetensors", facts=facts)
    read, kept = load_scene_file(tmp_path / "a.safetensors")
    assert_equal(read, item)
    assert kept == facts


def test_a_damaged_file_is_named(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    save_scene(small_scene(), path)
    path.write_bytes(path.read_bytes()[:5000])
    with pytest.raises(ValueError, match=r"a\.safetensors is damaged .* delete it"):
        load_scene_file(path)


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> SimulatedScenes:
    """A pool whose scenes lie in a folder."""
    pool = replace(POOL, folder=tmp_path_factory.mktemp("pool"))
    assert len(pool) == 2
    return pool


def test_a_pool_gives_the_scenes_of_the_simulator_made_or_read(kept: SimulatedScenes) -> None:
    made = kept[1]
    assert kept.folder is not None and (kept.folder / "train-000001.safetensors").exists()
    assert_equal(kept[1], made)
    truth = simulate_details(split_seed("train", 1), image_size=(32, 88), camera_frames=1)
    assert_equal(replace(made, queries=(), situations=()), truth.labelled)
    assert load_scene_file(kept.folder / "train-000001.safetensors")[1] == truth.facts


def test_the_next_epoch_has_the_same_scene_with_other_sentences(kept: SimulatedScenes) -> None:
    first, later = kept[1], kept[3]
    assert_equal(replace(first, queries=(), situations=()), replace(later, queries=(), situations=()))
    assert len(later.queries) == 3 and first.queries != later.queries
    assert later.queries == kept[3].queries


def test_a_damaged_scene_of_a_pool_is_made_again(
    kept: SimulatedScenes, capsys: pytest.CaptureFixture[str]
) -> None:
    before = kept[1]
    assert kept.folder is not None
    path = kept.folder / "train-000001.safetensors"
    start = path.read_bytes()[:5000]
    path.unlink()  # tensors of `before` lie in this file; what replaces it is another
    path.write_bytes(start)
    assert_equal(kept[1], before)
    assert "making train-000001.safetensors again" in capsys.readouterr().err
    load_scene_file(path)


def test_a_pool_of_other_settings_is_refused(kept: SimulatedScenes) -> None:
    with pytest.raises(
        ValueError, match="made with num_frames = 1, this run asks for 4; give another folder"
    ):
        replace(kept, num_frames=4)
    assert kept.folder is not None
    assert json.loads((kept.folder / "settings.json").read_text())["image_size"] == [32, 88]


def test_every_epoch_has_every_scene_once_in_an_order_of_its_own() -> None:
    orders = [permutation(50, 7, epoch).tolist() for epoch in range(3)]
    assert all(sorted(order) == list(range(50)) for order in orders)
    assert orders[0] != orders[1] != orders[2]
    assert permutation(50, 7, 1).tolist() == orders[1] and permutation(50, 8, 1).tolist() != orders[1]


def test_random_numbers_depend_on_seed_and_step_alone() -> None:
    draws = {
        (seed, step): torch.rand(4, generator=random_bits(seed, step)) for seed in (0, 1) for step in (0, 1)
    }
    assert torch.equal(draws[0, 1], torch.rand(4, generator=random_bits(0, 1)))
    assert len({tuple(draw.tolist()) for draw in draws.values()}) == 4
