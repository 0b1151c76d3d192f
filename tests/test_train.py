"""The training loop on a tiny model: it learns, goes on after a kill as if nothing had happened, and logs."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, cast

import pytest
import torch
import yaml
from tiny_runs import prepare, tiny_config, tiny_scenes
from torch import Tensor

from vlm_occ import train as training
from vlm_occ.config import DataConfig, LoraSettings, SpatialConfig, TrainConfig, to_dict
from vlm_occ.models.adapter import VLMOcc
from vlm_occ.models.batch import make_batch
from vlm_occ.models.checkpoint import load_checkpoint, read_shards
from vlm_occ.models.perception import Perception
from vlm_occ.run_model import DESCRIBES_TOKENS, POINTS, initial_model, trainable
from vlm_occ.train import rate_factor, train
from vlm_occ.trainee import occupied
from vlm_occ.training_module import TrainingModule
from vlm_occ.types import GroundingQuery, LabelledScene

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the tiny base model and two scenes."""
    return prepare(tmp_path_factory.getbasetemp() / "tiny")


@pytest.fixture(scope="session")
def scenes(tiny: Path) -> list[LabelledScene]:
    """The tiny scenes."""
    return tiny_scenes(tiny)


@pytest.fixture(scope="module")
def learned(tiny: Path, scenes: list[LabelledScene], tmp_path_factory: pytest.TempPathFactory) -> TrainConfig:
    """The config of a finished run of 24 steps on one scene."""
    config = tiny_config(tiny, tmp_path_factory.mktemp("learned") / "run")
    config = replace(config, steps=24, save_every=8, tracker="tensorboard", perception_rate=1e-2)
    train(config, source=scenes[:1])
    return config


def log_of(config: TrainConfig) -> list[dict[str, float]]:
    """The lines of a run's log."""
    return [json.loads(line) for line in (Path(config.out) / "log.jsonl").read_text().splitlines()]


def test_a_joint_run_learns_its_scenes(learned: TrainConfig) -> None:
    lines = log_of(learned)
    assert [line["step"] for line in lines] == list(range(24))

    def fall(name: str) -> float:
        return sum(line[name] for line in lines[-3:]) / sum(line[name] for line in lines[:3])

    # The total may rise: once a candidate matches an object, its mask, its box and the pointer count too.
    assert fall("occupancy") < 0.55 and fall("occupancy_dice") < 0.5 and fall("coarse") < 0.85
    assert fall("heatmap") < 0.75 and fall("regression") < 0.65 and fall("semantic") < 0.7


def candidates_as_objects(config: TrainConfig, item: LabelledScene) -> LabelledScene:
    """The scene with the untrained trunk's own candidates as its objects, each with a sentence."""
    model = initial_model(config).eval()
    with torch.no_grad():
        output = model.perception(
            make_batch([item], config.model).inputs, extra_voxels=occupied([item.labels])
        )
    boxes = output.tokens[0].candidates.box[:6]
    count = len(boxes)
    zeros = torch.zeros(count)
    labels = replace(
        item.labels,
        boxes=boxes,
        classes=zeros.long(),
        colours=zeros.long(),
        velocities=torch.zeros(count, 2),
        visibility=zeros + 1,
        num_points=zeros.long(),
    )
    words = ("red", "the bus", "behind", "a man", "cone", "over there")
    queries = tuple(GroundingQuery(words[i], (i,), False) for i in range(count))
    return replace(item, labels=labels, queries=queries)


def test_a_grounding_run_learns_which_token_each_sentence_means(
    tiny: Path, scenes: list[LabelledScene], tmp_path: Path
) -> None:
    config = replace(tiny_config(tiny, tmp_path / "run"), stage="grounding", steps=100, queries_per_scene=6)
    item = candidates_as_objects(config, scenes[0])
    model = train(config, source=[item]).eval()
    lines = log_of(config)
    assert lines[-1]["pointer"] < 0.1 * lines[0]["pointer"]
    assert lines[-1]["mask"] < lines[0]["mask"] and lines[-1]["mask_dice"] < lines[0]["mask_dice"]
    state = model.encode(item.scene)
    chosen = model.token_scores(state, [query.text for query in item.queries]).argmax(-1)
    offset = state.token_boxes[chosen, :2] - item.labels.boxes[:, :2]
    assert (offset.norm(dim=-1) < 0.1).all()


def test_the_finished_checkpoint_has_the_weights_of_the_trained_model(
    learned: TrainConfig, scenes: list[LabelledScene]
) -> None:
    model = load_checkpoint(str(Path(learned.out) / "final"))
    assert model.config.trained
    with torch.no_grad():
        _, values = TrainingModule(model, learned).eval()([replace(scenes[0], queries=scenes[0].queries[:3])])
    for name in ("occupancy", "heatmap", "regression"):  # whatever sentences are drawn
        assert values[name] == pytest.approx(log_of(learned)[-1][name], rel=0.05)


def test_the_newest_checkpoints_stay_and_the_resolved_config_is_saved(learned: TrainConfig) -> None:
    out = Path(learned.out)
    assert sorted(path.name for path in out.glob("step-*")) == ["step-0000016", "step-0000024"]
    assert yaml.safe_load((out / "config.yaml").read_text()) == to_dict(learned)
    assert list((out / "tensorboard").glob("events*"))


class Interrupted(RuntimeError):
    """The stand-in of a lost machine."""


def interrupt(monkeypatch: pytest.MonkeyPatch, at: int) -> None:
    """Let training fail in step `at`."""
    rate = training.rate_factor

    def failing(step: int, config: TrainConfig) -> float:
        if step == at:
            raise Interrupted
        return rate(step, config)

    monkeypatch.setattr(training, "rate_factor", failing)


@pytest.mark.parametrize("stage", ["joint", "grounding", "pointer"])
def test_an_interrupted_run_ends_with_the_same_weights_bit_for_bit(
    tiny: Path,
    scenes: list[LabelledScene],
    tmp_path: Path,
    stage: Literal["joint", "grounding", "pointer"],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    config = tiny_config(tiny, tmp_path / "whole", augment=stage == "joint")
    config = replace(
        config, data=replace(config.data, label_tokens=0.5)
    )  # the trunk's, too, in stage "pointer"
    lora = LoraSettings(rank=2, dropout=0.2)
    config = replace(config, stage=stage, ema=0.9, model=replace(config.model, lora=lora))
    train(config, source=scenes)
    broken = replace(config, out=str(tmp_path / "broken"))
    with monkeypatch.context() as patch, pytest.raises(Interrupted):
        interrupt(patch, 3)
        train(broken, source=scenes)
    assert [path.name for path in Path(broken.out).glob("step-*")] == ["step-0000002"]
    train(broken, source=scenes)
    expected, found = (read_shards(Path(c.out) / "final") for c in (config, broken))
    assert expected.keys() == found.keys()
    assert all(torch.equal(expected[name], found[name]) for name in expected)
    assert log_of(broken) == log_of(config)


def kept_config(tiny: Path, out: Path, *, renew: bool) -> TrainConfig:
    """Only heads train, on all sentences of a scene at once, with pictures or without."""
    config = tiny_config(tiny, out)
    data = replace(config.data, queries=20, renew=renew, drop_vlm_frames=0.5)
    frozen = {"lora_rate": 0.0, "input_rate": 0.0, "language_share": 0.0, "queries_per_scene": 20}
    return replace(config, stage="grounding", steps=12, data=data, **frozen)  # type: ignore[arg-type]


def test_kept_states_of_a_frozen_language_model_give_the_losses_of_fresh_ones(
    tiny: Path, scenes: list[LabelledScene], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fresh = kept_config(tiny, tmp_path / "fresh", renew=True)
    kept = kept_config(tiny, tmp_path / "kept", renew=False)
    train(fresh, source=scenes)
    calls: list[int] = []
    run = VLMOcc.language_states
    monkeypatch.setattr(VLMOcc, "language_states", lambda *a: calls.append(1) or run(*a))
    train(kept, source=scenes)
    assert len(calls) <= 4  # two scenes, with pictures and without
    for one, other in zip(log_of(fresh), log_of(kept), strict=True):
        assert other["total"] == pytest.approx(one["total"], rel=0.02)  # they are kept at half precision
    broken = replace(kept, out=str(tmp_path / "broken"))
    with monkeypatch.context() as patch, pytest.raises(Interrupted):
        interrupt(patch, 7)
        train(broken, source=scenes)
    train(broken, source=scenes)
    assert log_of(broken) == log_of(kept)


def test_a_run_that_keeps_states_must_be_able_to_find_them_again(tiny: Path, tmp_path: Path) -> None:
    config = kept_config(tiny, tmp_path, renew=False)
    with pytest.raises(ValueError, match="set queries_per_scene to at least"):
        train(replace(config, queries_per_scene=19))
    wide = replace(config.model, spatial=SpatialConfig())
    with pytest.raises(ValueError, match="turns_per_scene = 2: of situations and questions no states"):
        train(replace(config, model=wide, turns_per_scene=2))
    with pytest.raises(ValueError, match="set lora_rate and input_rate to 0"):
        train(replace(config, lora_rate=1e-3), source=[])


def test_a_grounding_run_leaves_the_trunk_as_it_was(
    tiny: Path, scenes: list[LabelledScene], tmp_path: Path
) -> None:
    config = replace(tiny_config(tiny, tmp_path / "run"), stage="grounding", steps=2)
    before = {name: value.clone() for name, value in initial_model(config).named_parameters()}
    after = dict(train(config, source=scenes).named_parameters())
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert not [name for name in changed if name.startswith("perception.")]
    for part in ("pointer.", "voxel_projector.", "lora_B", "trainable_tokens"):
        names = {name for name in before if part in name and not name.startswith("perception.")}
        assert names & changed, part


def changed_by(config: TrainConfig, source: list[LabelledScene]) -> set[str]:
    """The weights that a run without decay changes."""
    config = replace(config, weight_decay=0.0)
    before = {name: value.clone() for name, value in initial_model(config).named_parameters()}
    after = dict(train(config, source=source).named_parameters())
    return {name for name in before if not torch.equal(before[name], after[name])}


def refuse(*_: object, **__: object) -> None:
    """What must not be called."""
    raise AssertionError("called")


def test_a_pointer_run_trains_what_reads_words_and_tokens_and_runs_nothing_else(
    tiny: Path, scenes: list[LabelledScene], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = replace(tiny_config(tiny, tmp_path / "run"), stage="pointer", scenes_per_step=2)
    monkeypatch.setattr(VLMOcc, "language_states", refuse)
    monkeypatch.setattr(Perception, "forward", refuse)
    changed = changed_by(config, scenes)
    ours = [name for name, _ in initial_model(config).named_parameters() if name.startswith(POINTS)]
    silent = (
        "pointer.",
        "token_state.state.0.",
        "token_state.state.1.weight",
        "token_state.feature.",
        "token_state.code.",
        "word_encoder.state.",
    )
    assert changed == {name for name in ours if not name.startswith(silent)}  # those read zeros
    line = log_of(config)[0]
    assert line["factors"] > 0 and line["stated"] > 0 and not {"mask", "language", "occupancy"} & set(line)


@pytest.mark.parametrize("rate", [0.0, 5e-3])
def test_a_pointer_run_looks_once_at_a_scene_and_learns_which_token_each_sentence_means(
    tiny: Path, scenes: list[LabelledScene], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rate: float
) -> None:
    config = replace(tiny_config(tiny, tmp_path / "run"), stage="pointer", steps=60, queries_per_scene=6)
    config = replace(config, perception_rate=rate, data=replace(config.data, label_tokens=0.0))
    item = candidates_as_objects(config, scenes[0])
    calls: list[int] = []
    look = Perception.forward
    monkeypatch.setattr(Perception, "forward", lambda *a, **k: calls.append(1) or look(*a, **k))
    changed = changed_by(config, [item])
    lines = log_of(config)
    assert lines[-1]["ranking"] < 0.1 * lines[0]["ranking"]
    assert "token_state.feature.weight" in changed and len(calls) == 1
    ours = (*POINTS[:3], *(DESCRIBES_TOKENS if rate else ()))  # at rate 0 the whole trunk is frozen
    assert all(any(name.startswith(part) for name in changed) for part in ours)
    assert not [name for name in changed if not name.startswith(ours)]


def test_a_refine_run_trains_what_refines_boxes_and_nothing_else(
    tiny: Path, scenes: list[LabelledScene], tmp_path: Path
) -> None:
    config = replace(tiny_config(tiny, tmp_path / "run"), stage="refine", steps=30)
    changed = changed_by(config, [candidates_as_objects(config, scenes[0])])
    assert changed and all(name.startswith("perception.refiner.") for name in changed)
    lines = log_of(config)
    assert set(lines[0]) == {"step", "refine", "total", "norm"}
    assert lines[-1]["refine"] < 0.5 * lines[0]["refine"]
    assert not load_checkpoint(config.out + "/final").config.trained  # its heads are not


def test_only_ours_is_trained_and_the_base_model_stays_frozen(tiny: Path, tmp_path: Path) -> None:
    config = tiny_config(tiny, tmp_path)
    model = initial_model(config)
    groups = trainable(model, config)
    rates = [config.perception_rate] * 2  # the trunk, and what refines its boxes
    rates += [config.pointer_rate, config.head_rate, config.input_rate, config.lora_rate]
    assert [group["base"] for group in groups] == rates
    trained = {id(parameter) for group in groups for parameter in group["params"]}
    for name, parameter in model.named_parameters():
        ours = "lora_" in name or "trainable_tokens" in name
        frozen = name.startswith("perception.image_network.") or (name.startswith("backbone.") and not ours)
        assert (id(parameter) in trained) != frozen, name


def test_recomputed_activations_give_the_same_step_with_two_forwards_a_layer(
    tiny: Path, scenes: list[LabelledScene], tmp_path: Path
) -> None:
    results: list[dict[str, Tensor]] = []
    calls: list[int] = []
    for checkpointing in (False, True):
        config = tiny_config(tiny, tmp_path / str(checkpointing))
        config = replace(config, steps=1, stage="grounding", checkpointing=checkpointing)
        model = initial_model(config)
        count = [0]
        layers = cast(Any, model.backbone.model).model.language_model.layers
        layers[0].input_layernorm.register_forward_hook(_counter(count))
        train(config, source=scenes, model=model)
        calls.append(count[0])
        results.append(read_shards(tmp_path / str(checkpointing) / "final"))
    assert calls[1] == calls[0] + 1  # some more measure the states before the step
    for name, value in results[0].items():
        torch.testing.assert_close(results[1][name], value, atol=1e-6, rtol=1e-5)


def _counter(count: list[int]) -> Callable[..., None]:
    def hook(*_: object) -> None:
        count[0] += 1

    return hook


def test_accumulated_forwards_are_one_larger_batch(
    tiny: Path, scenes: list[LabelledScene], tmp_path: Path
) -> None:
    finals = []
    for name, together in (("batch", (2, 1)), ("pieces", (1, 2))):
        config = replace(tiny_config(tiny, tmp_path / name), steps=1, language_share=0.0)
        config = replace(config, scenes_per_step=together[0], accumulation=together[1])
        train(config, source=scenes)
        finals.append(log_of(config)[0])
    for name, value in finals[0].items():
        assert finals[1][name] == pytest.approx(value, rel=1e-4, abs=1e-5), name


def test_the_rate_rises_linearly_and_falls_as_a_cosine_to_two_percent() -> None:
    config = TrainConfig(steps=110, warmup=10)
    assert [rate_factor(step, config) for step in (0, 4, 9)] == pytest.approx([0.1, 0.5, 1.0])
    assert rate_factor(60, config) == pytest.approx((1 + 0.02) / 2)
    assert rate_factor(110, config) == pytest.approx(0.02)
    quarter = 0.02 + 0.98 * math.cos(math.pi / 8) ** 2
    assert rate_factor(35, config) == pytest.approx(quarter)


def test_the_averaged_weights_are_the_ones_that_are_saved(
    tiny: Path, scenes: list[LabelledScene], tmp_path: Path
) -> None:
    config = replace(tiny_config(tiny, tmp_path / "run"), stage="grounding", steps=2, save_every=1, ema=0.75)
    start = initial_model(config).factors.offset.item()
    train(config, source=scenes)
    first, second = (
        read_shards(tmp_path / "run" / f"step-000000{step}")["model.factors.offset"].item() for step in (1, 2)
    )
    expected = 0.75 * (0.75 * start + 0.25 * first) + 0.25 * second
    assert read_shards(tmp_path / "run" / "final")["factors.offset"].item() == pytest.approx(
        expected, abs=1e-6
    )


def test_a_batch_holds_the_scenes_of_its_queries(
    scenes: list[LabelledScene], tiny: Path, tmp_path: Path
) -> None:
    batch = make_batch(scenes, tiny_config(tiny, tmp_path).model)
    assert batch.inputs.batch_size == len(batch.queries) == len(scenes)


def test_sample_pictures_are_drawn_when_asked_for(
    tiny: Path, scenes: list[LabelledScene], tmp_path: Path
) -> None:
    config = replace(tiny_config(tiny, tmp_path / "run"), stage="grounding", steps=2, picture_every=2)
    train(config, source=scenes)
    folder = tmp_path / "run" / "pictures" / "step-0000002"
    assert sorted(path.name for path in folder.iterdir()) == ["query-0.png", "query-1.png"]


def test_pictures_do_not_change_the_weights(tiny: Path, scenes: list[LabelledScene], tmp_path: Path) -> None:
    finals = []
    for every in (0, 1):
        config = replace(tiny_config(tiny, tmp_path / str(every)), stage="grounding", steps=2)
        train(replace(config, picture_every=every), source=scenes)
        finals.append(read_shards(tmp_path / str(every) / "final"))
    assert all(torch.equal(finals[0][name], finals[1][name]) for name in finals[0])


def test_a_run_that_diverges_stops_and_says_at_which_step(
    tiny: Path, scenes: list[LabelledScene], tmp_path: Path
) -> None:
    config = replace(tiny_config(tiny, tmp_path / "run"), stage="grounding")
    model = initial_model(config)
    torch.nn.init.constant_(model.factors.offset, float("nan"))
    with pytest.raises(FloatingPointError, match="at step 0; lower the learning rates"):
        train(config, source=scenes, model=model)


@pytest.mark.parametrize(
    ("field", "value"), [("save_every", 0), ("steps", 0), ("ema", 1.0), ("keep_checkpoints", 0)]
)
def test_numbers_that_make_no_sense_are_refused(field: str, value: float, tmp_path: Path) -> None:
    config = TrainConfig(out=str(tmp_path / "run"), data=DataConfig())
    with pytest.raises(ValueError, match=f"{field} = {value}"):
        train(replace(config, **{field: value}))  # type: ignore[arg-type]
    assert not (tmp_path / "run").exists()


def test_the_script_answers_help_without_torch() -> None:
    code = (
        "import runpy, sys; sys.argv = ['finetune.py', '--help']\n"
        "try: runpy.run_path('scripts/finetune.py', run_name='__main__')\n"
        "except SystemExit as end: sys.exit(end.code or ('torch' in sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 0 and "CONFIG.yaml" in done.stdout
