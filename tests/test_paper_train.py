"""Training, checkpoints and kept trunk features of the paper's systems, under VLM-Occ's own loop."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tiny_paper import GRID, save_tiny_text, tiny_config, tiny_scene
from tiny_runs import PERCEPTION

from vlm_occ.cli import main
from vlm_occ.config import FORMAT_VERSION, DataConfig, ModelConfig, read_yaml, to_dict
from vlm_occ.encoders.inputs import prepare_scene
from vlm_occ.encoders.voxel_tokens import described
from vlm_occ.models.baselines import Baseline
from vlm_occ.models.checkpoint import read_shards, write_shards
from vlm_occ.models.groundingocc import build_system
from vlm_occ.models.groundingocc_config import baseline
from vlm_occ.models.kept_features import KeptFeatures
from vlm_occ.models.load import load_model
from vlm_occ.models.paper_checkpoint import load_paper_trunk, load_system, take_over
from vlm_occ.models.perception import Perception
from vlm_occ.models.sensors import TrunkSensors
from vlm_occ.paper_train import PaperTrainConfig, PaperTraining, initial_system, train_paper

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny text encoder."""
    return save_tiny_text(tmp_path_factory.mktemp("text"))


def run_config(text: Path, out: Path, steps: int) -> PaperTrainConfig:
    """A short run of a tiny GroundingOcc without the modules that cost most."""
    torch.set_num_threads(1)
    system = tiny_config(text, semantic_supervision=False, multi_frame=False)
    return PaperTrainConfig(
        out=str(out),
        system=system,
        data=DataConfig(augment=False),
        steps=steps,
        queries_per_scene=2,
        head_rate=1e-2,
        warmup=1,
        save_every=2,
        tracker="none",
    )


def trained(config: PaperTrainConfig) -> Baseline:
    """The system of a finished run on the tiny scene and its small grid."""
    system = build_system(config.system, grid=GRID, seed=config.seed)
    return train_paper(config, source=[tiny_scene()], system=system)


def test_a_run_learns_and_a_resumed_one_ends_with_the_same_weights(text: Path, tmp_path: Path) -> None:
    whole = trained(run_config(text, tmp_path / "whole", 8))
    lines = [json.loads(line) for line in (tmp_path / "whole" / "log.jsonl").read_text().splitlines()]
    assert lines[-1]["total"] < 0.9 * lines[0]["total"]
    config = run_config(text, tmp_path / "parts", 8)
    (tmp_path / "parts").mkdir()
    (tmp_path / "whole" / "step-0000006").rename(tmp_path / "parts" / "step-0000006")
    again = trained(config)
    for (name, a), b in zip(whole.state_dict().items(), again.state_dict().values(), strict=True):
        assert torch.equal(a, b), name
    saved = read_shards(tmp_path / "parts" / "final")
    assert not [name for name in saved if name.startswith("text.model.")]


def test_a_checkpoint_gives_the_same_answers_on_the_command_line(
    text: Path, tmp_path: Path, keyframe_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    system = build_system(tiny_config(text, depth=False), seed=3).eval()
    system.save_pretrained(tmp_path / "saved")
    loaded = load_model(str(tmp_path / "saved"))
    assert isinstance(loaded, Baseline)
    for (name, a), b in zip(system.state_dict().items(), loaded.state_dict().values(), strict=True):
        assert torch.equal(a, b), name
    argv = ["ground", str(keyframe_folder), "the red car", "--json", "--refine"]
    assert main([*argv, "--model", str(tmp_path / "saved")]) == 0
    streams = capsys.readouterr()
    record = json.loads(streams.out)
    assert list(record) == ["query", "text", "objects", "seconds"] and len(record["objects"]) == 1
    assert "untrained" in streams.err
    assert main(["chat", str(keyframe_folder), "--model", str(tmp_path / "saved")]) == 2
    assert "do not talk" in capsys.readouterr().err


def test_a_checkpoint_of_another_kind_or_shape_is_refused(text: Path, tmp_path: Path) -> None:
    from vlm_occ.models.checkpoint import load_checkpoint

    build_system(tiny_config(text), grid=GRID).save_pretrained(tmp_path / "saved")
    with pytest.raises(ValueError, match="one of the paper's systems"):
        load_checkpoint(str(tmp_path / "saved"))
    about = json.loads((tmp_path / "saved" / "config.json").read_text())
    about["system"]["feed_forward"] = 24
    (tmp_path / "saved" / "config.json").write_text(json.dumps(about))
    with pytest.raises(ValueError, match="shape"):
        load_system(str(tmp_path / "saved"))
    with pytest.raises(ValueError, match="holds VLM-Occ"):
        load_system("nano")


@pytest.fixture(scope="module")
def trunk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a run of stage "perception" leaves, of a tiny trunk on the small grid."""
    folder = tmp_path_factory.mktemp("trunk")
    torch.manual_seed(5)
    weights = Perception(TRUNK, grid=GRID).state_dict()
    kept = {f"perception.{k}": v for k, v in weights.items() if not k.startswith("image_network.")}
    write_shards({**kept, "factors.offset": torch.zeros(1)}, folder)
    about = {
        "format_version": FORMAT_VERSION,
        "base_hash": "",
        "model": to_dict(ModelConfig(perception=TRUNK)),
    }
    (folder / "config.json").write_text(json.dumps(about))
    return folder


TRUNK = replace(PERCEPTION, image_size=(64, 96))


def on_trunk(text: Path, **changes: object) -> Baseline:
    """GroundingOcc on the tiny trunk."""
    config = tiny_config(
        text,
        encoders="trunk",
        perception=TRUNK,
        likely_voxels=0.1,
        semantic_supervision=False,
        query_shape=(10, 10, 2),
        **changes,
    )
    return build_system(config, grid=GRID, seed=1)


def test_a_systems_trunk_is_the_pretrained_one_and_stays_as_it_is(
    text: Path, trunk: Path, tmp_path: Path
) -> None:
    system = on_trunk(text)
    load_paper_trunk(system, str(trunk))
    given = read_shards(trunk)
    config = replace(run_config(text, tmp_path / "run", 2), system=system.config)
    system = train_paper(config, source=[tiny_scene()], system=system)
    for name, value in system.sensors.trunk.state_dict().items():  # type: ignore[union-attr]
        if not name.startswith("image_network."):
            assert torch.equal(value, given[f"perception.{name}"]), name
    with pytest.raises(ValueError, match="no trunk"):
        load_paper_trunk(build_system(tiny_config(text), grid=GRID), str(trunk))
    broken = replace(
        config, trunk=str(trunk), system=replace(system.config, perception=replace(TRUNK, bev_width=16))
    )
    with pytest.raises(ValueError, match="shape"):
        initial_system(broken)


def test_a_system_takes_over_what_fits_of_a_detector_of_its_sensors(text: Path, tmp_path: Path) -> None:
    config = run_config(text, tmp_path / "run", 2)
    detector = build_system(baseline(config.system, "M"), seed=5)
    detector.save_pretrained(tmp_path / "detector")
    system = initial_system(replace(config, init=str(tmp_path / "detector")))
    fresh, given, found = (s.state_dict() for s in (build_system(config.system), detector, system))
    for name in ("boxes.content", "decoder.fine.conv.weight", "words.0.weight", "occupancy.mask.weight"):
        assert torch.equal(found[name], given[name]) and not torch.equal(found[name], fresh[name]), name
    own = [name for name in found if name not in given]  # the language PAN, the 2D head, ...
    assert own and all(torch.equal(found[name], fresh[name]) for name in own)
    with pytest.raises(ValueError, match="no weight"):
        take_over(system, torch.nn.Linear(2, 2))  # type: ignore[arg-type]


def test_grounding_queries_start_at_the_candidates_that_vlm_occ_is_told_of(text: Path) -> None:
    system = on_trunk(text, grounding_queries=100).eval()
    inputs = prepare_scene(tiny_scene().scene, system.config.inputs())
    torch.manual_seed(0)
    whole = Perception(replace(system.config.perception, max_tokens=100), grid=GRID).eval()
    assert isinstance(system.sensors, TrunkSensors)
    whole.load_state_dict(system.sensors.trunk.state_dict(), strict=False)
    with torch.no_grad():
        tokens = whole(inputs).tokens[0]
        seen = system.sensors.observe(inputs)
        starts = system.observe(inputs)[0].starts
    count = min(len(tokens.features), 100)
    assert count > 2 and starts is not None and int(starts.present.sum()) == count
    torch.testing.assert_close(starts.boxes[:count], tokens.candidates.box[:count], atol=1e-3, rtol=1e-3)
    known = described(tokens.attributes, tokens.candidates.box)[:count]
    torch.testing.assert_close(starts.known[:count, :-1], known, atol=1e-2, rtol=1e-2)
    torch.testing.assert_close(
        starts.known[:count, -1], tokens.candidates.score[:count], atol=1e-3, rtol=1e-3
    )
    assert seen.boxes.shape == (1, 100, 7) and not starts.boxes[count:].any()


def test_kept_features_are_those_of_the_trunk_and_shared_by_systems(text: Path, tmp_path: Path) -> None:
    system, item = on_trunk(text).eval(), tiny_scene()
    inputs = prepare_scene(item.scene, system.config.inputs())
    keep = KeptFeatures(tmp_path / "kept", system)
    first, second = keep([inputs], ["a"]), KeptFeatures(tmp_path / "kept", on_trunk(text))([inputs], ["a"])
    for a, b in zip(
        [*first.levels, first.fused, first.fine], [*second.levels, second.fused, second.fine], strict=True
    ):
        assert torch.equal(a, b)
    assert len(list((tmp_path / "kept").glob("*/*.safetensors"))) == 1
    with torch.no_grad():
        plain, kept = system.observe(inputs)[0], system.observe(inputs, seen=first)[0]
        a, b = (system.read(view, ["the car"]).proposals.boxes[-1] for view in (plain, kept))
    torch.testing.assert_close(a, b, atol=0.05, rtol=0.02)
    other = build_system(baseline(system.config, "L"), grid=GRID)
    KeptFeatures(tmp_path / "kept", other)([prepare_scene(item.scene, other.config.inputs())], ["a"])
    assert len(list((tmp_path / "kept").glob("*"))) == 2  # other sensors, other features
    path = next((tmp_path / "kept").glob("*/*.safetensors"))
    path.write_bytes(path.read_bytes()[:50])
    keep([inputs], ["a"])  # a damaged file is made again
    with pytest.raises(ValueError, match="can't be kept"):
        KeptFeatures(tmp_path / "kept", build_system(tiny_config(text), grid=GRID))


def test_a_forward_with_kept_features_has_the_terms_of_one_without(text: Path, tmp_path: Path) -> None:
    system = on_trunk(text)
    config = replace(run_config(text, tmp_path / "run", 1), system=system.config)
    plain, keeping = (
        PaperTraining(system, c) for c in (config, replace(config, features=str(tmp_path / "kept")))
    )
    with torch.no_grad():
        _, a = plain([tiny_scene(), tiny_scene(seed=1)])
        _, b = keeping([tiny_scene(), tiny_scene(seed=1)])
    assert a == pytest.approx(b, rel=0.05, abs=0.02)


def test_both_scales_are_configs_of_one_code() -> None:
    paper = read_yaml(PaperTrainConfig, ROOT / "configs" / "groundingocc_paper.yaml")
    assert (paper.head_rate, paper.weight_decay) == (2e-4, 0.01)
    system = paper.system
    assert (system.width, system.fine_width, system.hidden) == (256, 64, 128)
    assert system.query_shape == (50, 50, 16) and system.perception.image_size == (320, 800)
    assert system.frames == 4 and system.perception.max_frames == 1 and system.encoder_layers == 3
    assert system.resnet_depths == (3, 4, 23, 3) and system.deformable_convolution
    nano = read_yaml(PaperTrainConfig, ROOT / "configs" / "groundingocc_nano.yaml")
    assert nano.system.encoders == "trunk" and nano.data.one_target
