"""Which scenes a run sees: a function of seed and step, dealt to processes, from one source or two."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from small_scenes import small_scene

from vlm_occ.config import DataConfig, TrainConfig, from_dict
from vlm_occ.cut3r_training import Cut3rTrainConfig, open_drives
from vlm_occ.data.store import SimulatedScenes, random_bits
from vlm_occ.run_config import overridden
from vlm_occ.run_scenes import (
    MixedScenes,
    StepScenes,
    draw_queries,
    open_source,
    pool_size,
    step_loader,
)
from vlm_occ.types import GroundingQuery, LabelledScene

CONFIG = TrainConfig(seed=3, steps=8, queries_per_scene=2, data=DataConfig(augment=False))


def named(name: str) -> LabelledScene:
    """A scene with a name and five sentences."""
    item = small_scene()
    queries = tuple(GroundingQuery(f"{name} {i}", (0,), False, answer=f"answer {i}") for i in range(5))
    return replace(item, scene=replace(item.scene, name=name), queries=queries)


@pytest.fixture(scope="module")
def source() -> list[LabelledScene]:
    """Four scenes."""
    return [named(f"s{i}") for i in range(4)]


def names(scenes: StepScenes) -> list[str]:
    """The names of all scenes of a run."""
    return [item.scene.name for step in range(len(scenes)) for item in scenes[step]]


def test_every_epoch_shows_every_scene_once(source: list[LabelledScene]) -> None:
    seen = names(StepScenes(source, CONFIG))
    assert sorted(seen[:4]) == sorted(seen[4:]) == ["s0", "s1", "s2", "s3"]


def test_scenes_seen_before_come_between_new_ones(source: list[LabelledScene]) -> None:
    data = replace(CONFIG.data, replays=2)
    seen = names(StepScenes(source, replace(CONFIG, steps=12, data=data)))
    assert sorted(seen[::3]) == ["s0", "s1", "s2", "s3"]
    assert all(name in seen[: place // 3 * 3 + 1] for place, name in enumerate(seen))
    assert seen == names(StepScenes(source, replace(CONFIG, steps=12, data=data)))


def test_processes_share_the_scenes_of_one_process_with_larger_batches(source: list[LabelledScene]) -> None:
    alone = StepScenes(source, replace(CONFIG, scenes_per_step=2))
    shares = [StepScenes(source, CONFIG, process, 2) for process in range(2)]
    for step in range(4):
        together = [item for share in shares for item in share[step]]
        assert [item.queries for item in together] == [item.queries for item in alone[step]]


def test_a_loader_that_starts_late_goes_on_as_one_that_did_not(source: list[LabelledScene]) -> None:
    scenes = StepScenes(source, replace(CONFIG, accumulation=2))
    whole = [[item.queries for item in batch] for batch in step_loader(scenes, 0)]
    late = [[item.queries for item in batch] for batch in step_loader(scenes, 3)]
    assert len(whole) == 16 and late == whole[6:]


def test_sentences_are_drawn_without_repetition_and_a_share_keeps_its_answer() -> None:
    item, kept = named("a"), 0
    for seed in range(200):
        drawn = draw_queries(item, 3, 0.25, random_bits(seed, 0)).queries
        texts = [query.text for query in drawn]
        assert len(set(texts)) == 3 and set(texts) <= {query.text for query in item.queries}
        kept += sum(bool(query.answer) for query in drawn)
    assert kept / 600 == pytest.approx(0.25, abs=0.06)


def test_two_sources_take_turns_and_the_shorter_one_comes_round() -> None:
    mixed = MixedScenes([named("sim0")], [named(f"real{i}") for i in range(3)])
    assert len(mixed) == 6
    found = [mixed[i].scene.name for i in range(6)]
    assert found == ["sim0", "real0", "sim0", "real1", "sim0", "real2"]


def test_a_pool_of_no_scenes_has_a_new_one_for_every_forward(tmp_path: Path) -> None:
    config = replace(CONFIG, scenes_per_step=2, accumulation=3)
    pool = open_source(config)
    assert isinstance(pool, SimulatedScenes) and len(pool) == 8 * 2 * 3
    pool = open_source(replace(config, data=DataConfig(scenes=7, keep=str(tmp_path / "pool"))))
    assert isinstance(pool, SimulatedScenes) and len(pool) == 7 and pool.folder == tmp_path / "pool"


@pytest.mark.parametrize("scenes", [0, 7])
def test_a_pool_of_drives_is_as_large_as_one_of_scenes(scenes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    data = DataConfig(scenes=scenes, queries=0, augment=False)
    drives = Cut3rTrainConfig(steps=5, scenes_per_step=3, accumulation=4, data=data)
    expected = scenes or 5 * 3 * 4 * 2
    assert pool_size(drives) == len(open_drives(drives)) == len(open_source(drives)) == expected


def test_recorded_scenes_need_their_folder(tmp_path: Path) -> None:
    for kind in ("talk2occ", "both"):
        data = from_dict(DataConfig, {"source": kind})
        with pytest.raises(ValueError, match=r"data\.folder is not given; give the folder"):
            open_source(replace(CONFIG, data=data))
        with pytest.raises(ValueError, match=r"talk2occ\.json"):
            open_source(replace(CONFIG, data=replace(data, folder=str(tmp_path))))


def test_fields_of_the_command_line_replace_those_of_the_file() -> None:
    words = {"model.lora.rank": "4", "perception_rate": "1e-3", "data.augment": "true", "out": "runs/x"}
    config = overridden(CONFIG, words)
    assert config.model.lora is not None and config.model.lora.rank == 4
    assert (config.perception_rate, config.data.augment, config.out) == (1e-3, True, "runs/x")
    assert overridden(CONFIG, {"model.lora": "null"}).model.lora is None


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("stepz", "3", "unknown field --stepz; the config has .*steps"),
        ("data.folders", "x", r"unknown field --data\.folders; the config has .*folder"),
        ("steps.more", "3", "'steps' is not a section"),
        ("steps", "many", "steps = 'many', expected int"),
        (
            "stage",
            "all",
            "stage = 'all', expected one of 'perception', 'refine', 'pointer', 'language', 'grounding', "
            "'joint'",
        ),
    ],
)
def test_a_wrong_field_is_an_error_that_names_the_right_ones(field: str, value: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        overridden(CONFIG, {field: value})
