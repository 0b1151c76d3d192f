"""One run for grounding, layout, situations and questions; what is off stays off; full fine-tuning."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tiny_runs import prepare, tiny_config, tiny_scenes
from tiny_spatial import QUESTION

from vlm_occ.config import DataConfig, LoraSettings, SpatialConfig, TrainConfig, read_yaml
from vlm_occ.data.augment import augment, crop, mirror, turn_and_scale
from vlm_occ.data.augment_spatial import crop_depth
from vlm_occ.models.batch import video_frames
from vlm_occ.models.checkpoint import load_checkpoint, model_state, read_shards
from vlm_occ.models.spatial_batch import depth_of, scene_layout_targets
from vlm_occ.objectives_spatial import SPATIAL_WEIGHTS
from vlm_occ.run_model import initial_model, trainable
from vlm_occ.run_scenes import StepScenes, draw_turns
from vlm_occ.run_state import weight_names
from vlm_occ.situated import SituationQuery
from vlm_occ.train import train
from vlm_occ.training_module import TrainingModule
from vlm_occ.types import LabelledScene

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return prepare(tmp_path_factory.getbasetemp() / "tiny")


def situated(item: LabelledScene) -> LabelledScene:
    """The scene with situations and questions of its own."""
    told = (
        SituationQuery("behind the bus", (5.0, 2.0), 0.4),
        SituationQuery("near the cone", (-8.0, -3.0), -2.0, "vague"),
    )
    return replace(item, situations=told, questions=(QUESTION, replace(QUESTION, answers=("3",))))


@pytest.fixture(scope="session")
def scenes(tiny: Path) -> list[LabelledScene]:
    return [situated(item) for item in tiny_scenes(tiny)]


def spatial_config(folder: Path, out: Path, **changes: object) -> TrainConfig:
    config = tiny_config(folder, out)
    model = replace(config.model, spatial=SpatialConfig())
    return replace(config, model=model, **{"turns_per_scene": 3, **changes})  # type: ignore[arg-type]


def log_of(config: TrainConfig) -> list[dict[str, float]]:
    return [json.loads(line) for line in (Path(config.out) / "log.jsonl").read_text().splitlines()]


def test_one_run_trains_grounding_layout_situations_and_answers(
    tiny: Path, scenes: list[LabelledScene], tmp_path: Path
) -> None:
    config = spatial_config(tiny, tmp_path / "run", stage="grounding", steps=40, turns_per_scene=4)
    model = train(config, source=scenes[:1]).eval()
    lines = log_of(config)
    assert set(SPATIAL_WEIGHTS) | {"pointer", "language", "mask"} <= set(lines[0])
    for name in ("layout", "position", "orientation", "answer"):
        assert lines[-1][name] < lines[0][name] - 0.3, name
    # The layout's targets come from the sweep here; its error falls below that of knowing nothing.
    item = scenes[0]
    place = model.locate(model.encode(item.scene), "behind the bus")
    assert torch.dist(place.position, torch.tensor([5.0, 2.0])) < 6.0
    assert load_checkpoint(str(tmp_path / "run" / "final")).config.spatial == SpatialConfig()


def test_the_language_side_learns_situations_on_tokens_of_labels_without_pictures(
    tiny: Path, scenes: list[LabelledScene], tmp_path: Path
) -> None:
    config = spatial_config(tiny, tmp_path / "run", stage="language", steps=40, turns_per_scene=4)
    train(config, source=scenes[:1])
    lines = log_of(config)
    for name in ("position", "orientation", "answer"):
        assert lines[-1][name] < lines[0][name] - 0.3, name
    assert all(line["layout"] == 0 for line in lines)


def test_with_situations_off_a_run_is_what_it_was(
    tiny: Path, scenes: list[LabelledScene], tmp_path: Path
) -> None:
    config = tiny_config(tiny, tmp_path / "run", augment=True)
    plain = [replace(item, situations=(), questions=()) for item in scenes]
    for number in range(3):
        with_turns, without = (StepScenes(source, config)[number][0] for source in (scenes, plain))
        assert with_turns.queries == without.queries
        assert torch.equal(with_turns.labels.semantics, without.labels.semantics)
        assert with_turns.scene.name == without.scene.name
    module = TrainingModule(initial_model(config), config)
    torch.manual_seed(0)
    total, values = module([StepScenes(plain, config)[0][0]])
    torch.manual_seed(0)
    other, _ = module([StepScenes(scenes, config)[0][0]])
    assert torch.equal(total, other) and not set(SPATIAL_WEIGHTS) & set(values)


def test_turns_are_drawn_from_situations_and_questions_alike(scenes: list[LabelledScene]) -> None:
    counts = [0, 0]
    for seed in range(200):
        item = draw_turns(scenes[0], 2, torch.Generator().manual_seed(seed))
        assert len(item.situations) + len(item.questions) == 2
        counts[0] += len(item.situations)
        counts[1] += len(item.questions)
    assert 0.4 < counts[0] / sum(counts) < 0.6


def test_turns_without_heads_are_refused(tiny: Path, tmp_path: Path) -> None:
    config = replace(tiny_config(tiny, tmp_path), turns_per_scene=2)
    with pytest.raises(ValueError, match="no heads"):
        train(config, source=[])
    full = replace(config, turns_per_scene=0, model=replace(config.model, full_language=True))
    with pytest.raises(ValueError, match="lora: null"):
        train(full, source=[])


def test_a_checkpoint_without_heads_starts_a_run_with_them(
    tiny: Path, scenes: list[LabelledScene], tmp_path: Path
) -> None:
    first = replace(tiny_config(tiny, tmp_path / "first"), steps=1)
    trained = train(first, source=scenes)
    config = spatial_config(tiny, tmp_path / "second", init=str(tmp_path / "first" / "final"))
    model = initial_model(config)
    assert model.config.spatial is not None and model.config.trained
    state = model_state(model)
    for name, value in model_state(trained).items():
        assert torch.equal(state.pop(name), value), name
    assert state and all(name.startswith("spatial.") for name in state)
    same = initial_model(replace(config, model=first.model, turns_per_scene=0))
    assert same.config.spatial is None


def test_the_whole_language_model_is_trained_saved_and_loaded(
    tiny: Path, scenes: list[LabelledScene], tmp_path: Path
) -> None:
    config = spatial_config(tiny, tmp_path / "run", stage="grounding", steps=2, lora_rate=1e-2)
    config = replace(config, model=replace(config.model, lora=None, full_language=True))
    before = initial_model(config)
    groups = trainable(before, config)
    language = [n for n, p in before.named_parameters() if ".language_model." in n and p.requires_grad]
    assert sum("self_attn.q_proj" in name for name in language) == 4  # weight and bias of two layers
    rates = {id(p): group["base"] for group in groups for p in group["params"]}
    for name, parameter in before.named_parameters():
        if name in language and "trainable_tokens" not in name:
            assert rates[id(parameter)] == config.lora_rate, name
    assert not [n for n, p in before.named_parameters() if "vision_tower" in n and p.requires_grad]
    assert {n for n, p in before.named_parameters() if p.requires_grad} <= set(weight_names(before))
    after = train(config, source=scenes)
    saved = read_shards(tmp_path / "run" / "final")
    changed = [
        n
        for n, v in model_state(before).items()
        if n.startswith("backbone.language.") and not torch.equal(v, saved[n])
    ]
    assert any("q_proj" in name for name in changed) and any("down_proj" in name for name in changed)
    again = load_checkpoint(str(tmp_path / "run" / "final")).eval()
    item = scenes[0]
    a, b = (m.locate(m.encode(item.scene), "behind the bus") for m in (after.eval(), again))
    torch.testing.assert_close(a.position, b.position, atol=1e-5, rtol=1e-5)


def test_lora_and_the_whole_language_model_exclude_each_other(tiny: Path, tmp_path: Path) -> None:
    config = tiny_config(tiny, tmp_path).model
    with pytest.raises(ValueError, match="lora: null"):
        from vlm_occ.models.adapter import VLMOcc

        VLMOcc.from_config(replace(config, lora=LoraSettings(rank=2), full_language=True))


@pytest.mark.parametrize("name", ["loc3r_sim", "loc3r_full", "loc3r_cpu_language"])
def test_the_shipped_configs_are_read_and_ask_for_turns(name: str) -> None:
    config = read_yaml(TrainConfig, ROOT / "configs" / f"{name}.yaml")
    assert config.model.spatial is not None and config.turns_per_scene > 0
    assert config.data.situations and config.data.questions
    assert config.model.full_language == (name == "loc3r_full") == (config.model.lora is None)


def targets(item: LabelledScene) -> tuple[torch.Tensor, torch.Tensor]:
    """Layout targets of the small scene in its reference ego frame."""
    from vlm_occ.config import ModelConfig

    frames = video_frames(item.scene, 2)
    depth = depth_of(item, ModelConfig(vlm_frames=2), frames)
    assert depth is not None
    found = scene_layout_targets(frames, depth, torch.eye(4), [(2, 2)] * len(frames.images))
    return found.position, found.valid


def test_mirrored_turned_and_cropped_scenes_have_moved_targets() -> None:
    from small_scenes import small_scene
    from tiny_spatial import wall_depth

    item = small_scene()
    depth = wall_depth(item, 6.0)
    rough = torch.rand(depth.depth.shape, generator=torch.Generator().manual_seed(0))  # no two are equal
    item = replace(item, depth=replace(depth, depth=4 + 4 * rough), questions=(QUESTION,))
    position, _ = targets(item)
    other, _ = targets(mirror(item))
    cells = other.reshape(4, 2, 2, 2).flip(2).reshape(16, 2)
    torch.testing.assert_close(cells * torch.tensor([1.0, -1.0]), position, atol=1e-3, rtol=0)
    moved = turn_and_scale(item, 0.3, 1.5)
    cos, sin = torch.tensor(0.3).cos(), torch.tensor(0.3).sin()
    turn = 1.5 * torch.tensor([[cos, -sin], [sin, cos]])
    torch.testing.assert_close(targets(moved)[0], position @ turn.T, atol=1e-3, rtol=1e-4)
    (question,) = moved.questions
    torch.testing.assert_close(
        torch.tensor(question.position)[:2], turn @ torch.tensor(QUESTION.position)[:2], atol=1e-5, rtol=1e-5
    )
    assert question.yaw == pytest.approx(QUESTION.yaw + 0.3 - 2 * torch.pi, abs=1e-5)  # type: ignore[operator]


def test_a_cropped_depth_image_shows_the_cropped_picture() -> None:
    from vlm_occ.types import SceneDepth

    ramp = torch.arange(60 * 100.0).reshape(1, 1, 60, 100)
    intrinsics = torch.tensor([[70.0, 0, 47], [0, 70, 31], [0, 0, 1]]).reshape(1, 1, 3, 3)
    cut = crop_depth(SceneDepth(ramp, intrinsics), 1.2, 0.7)
    picture, matrix = crop(ramp, intrinsics[0], 1.2, 0.7)
    assert cut is not None
    scale = picture.shape[-1] / cut.depth.shape[-1]
    torch.testing.assert_close(matrix[0, 0], cut.intrinsics[0, 0, 0] * scale, atol=1e-4, rtol=0)
    middle, expected = cut.depth[0, 0, 25, 41], picture[0, 0, 30, 49]
    assert abs(middle - expected) < 120  # a row is 100


def test_augmentation_leaves_no_question_about_frames_that_it_dropped(scenes: list[LabelledScene]) -> None:
    from small_scenes import small_scene

    order = replace(QUESTION, category="appearance order")
    item = replace(small_scene(), questions=(QUESTION, order))
    for seed in range(8):
        found = augment(item, torch.Generator().manual_seed(seed), DataConfig(drop_sensor=0.0))
        assert (order.category in [q.category for q in found.questions]) == (len(found.scene.frames) == 2)
