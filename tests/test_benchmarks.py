"""The GPU's benchmarks at small sizes on the CPU: their figures against sums, counts and each other."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from tiny_models import save_tiny_llava, tiny_tokenizer
from tiny_runs import PERCEPTION, prepare, tiny_config, tiny_scenes
from torch import nn

from vlm_occ import backbone_latency, sparse_speed
from vlm_occ.backbone_latency import Row, drawn_backbone
from vlm_occ.config import LoraSettings, ModelConfig
from vlm_occ.encoders.lidar import voxelize_batch
from vlm_occ.encoders.sparse import SparseTensor, submanifold_rulebook
from vlm_occ.language.loading import load_backbone
from vlm_occ.language.quantisation import Quantization, is_quantised, plain_weight
from vlm_occ.models.adapter import VLMOcc
from vlm_occ.sparse_speed import Case, LayerRun, sparse_command
from vlm_occ.sparse_tuning import chosen
from vlm_occ.street import street_points
from vlm_occ.training_module import TrainingModule
from vlm_occ.training_speed import counted_flops, training_command

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return prepare(tmp_path_factory.mktemp("tiny"))


def test_a_street_fills_as_many_voxels_as_asked_and_they_are_surfaces() -> None:
    grid, points = street_points(3000)
    index = voxelize_batch([points], grid).index
    assert len(index) == 3000 and torch.equal(points, street_points(3000)[1])
    empty = torch.zeros(len(index), 1)
    pairs = submanifold_rulebook(SparseTensor(index, empty, grid.shape, 1), 3)
    assert 5 < len(pairs.source) / len(index) < 12  # of 27: a plane has 9, a real sweep 7.4, a random set 1.1


def test_every_backend_has_a_row_and_the_reference_is_within_the_tolerances(tmp_path: Path) -> None:
    path = tmp_path / "sparse.json"
    rows = sparse_command(path, voxels=[500], widths=[4], repeat=1, device="cpu")
    assert json.loads(path.read_text())["rows"] == rows and len(rows) == 3 * (2 + 2 + 3)
    for row in rows:
        if row["backend"] != "reference":
            assert "needs a GPU" in str(row["not_usable"])
        elif row["layer"] != "encoder":
            assert row["within"], row


def test_an_error_is_measured_where_there_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    grid, points = street_points(500)
    run = LayerRun(Case("submanifold", 4, "float32", 500, "reference"), points, grid, CPU)
    right = run.forward
    monkeypatch.setattr(run, "forward", lambda tensor: right(tensor) * (1 + 2e-5))
    found = run.errors()
    assert found["error_output"] == pytest.approx(2e-5, rel=0.1) and not found["within"]


def test_what_a_backend_fails_with_is_its_row(monkeypatch: pytest.MonkeyPatch) -> None:
    grid, points = street_points(500)

    def failing(self: LayerRun) -> dict[str, float | bool]:
        raise RuntimeError("no kernel image")

    monkeypatch.setattr(sparse_speed.LayerRun, "errors", failing)
    case = Case("strided", 4, "float32", 500, "reference")
    row = sparse_speed.measured(case, points, grid, CPU, repeat=1)
    assert row["error"] == "RuntimeError: no kernel image" and row["layer"] == "strided"


def test_few_tilings_of_many_that_suit_narrow_layers_are_kept() -> None:
    made = [SimpleNamespace(kwargs={"BLOCK_M": m, "BLOCK_N": n}) for m in (64, 256) for n in (16, 64, 128)]
    kept = chosen(made, 1)
    assert [config.kwargs for config in kept] == [{"BLOCK_M": 64, "BLOCK_N": 16}]
    assert chosen(made, 0) == made and len(chosen(made, 2)) == 2


TINY = {
    "model_type": "llava_onevision",
    "text_config": {
        "model_type": "qwen2",
        "hidden_size": 64,
        "num_hidden_layers": 2,
        "intermediate_size": 128,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "vocab_size": 300,
    },
    "vision_config": {
        "model_type": "siglip_vision_model",
        "hidden_size": 24,
        "intermediate_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "image_size": 28,
        "patch_size": 7,
        "vision_use_head": False,
    },
    "tie_word_embeddings": True,
}


@pytest.mark.parametrize("kind", ["int8", "nf4"])
def test_a_model_in_memory_is_rounded_as_a_loaded_one(kind: Quantization, tmp_path: Path) -> None:
    pytest.importorskip("bitsandbytes", reason="pip install 'vlm-occ[quant]'")
    from vlm_occ.language.bases import load_base
    from vlm_occ.language.quantisation import quantise

    save_tiny_llava(tmp_path, wide=True)
    expected = load_base(tmp_path, torch.float32, kind)[0]
    model = load_base(tmp_path, torch.float32)[0]
    quantise(model, kind, torch.float32)
    layers = dict(model.named_modules())
    rounded = [name for name, layer in expected.named_modules() if is_quantised(layer)]
    assert len(rounded) == 14 and [n for n, layer in layers.items() if is_quantised(layer)] == rounded
    for name in rounded:
        one, two = layers[name], expected.get_submodule(name)
        assert torch.equal(plain_weight(one), plain_weight(two)), name
        x = torch.randn(3, one.in_features)  # type: ignore[arg-type]
        assert torch.equal(one(x), two(x)), name
    for mark in ("is_loaded_in_4bit", "is_loaded_in_8bit"):
        assert getattr(expected, mark, False) == getattr(model, mark, False)


def test_drawn_backbones_are_measured_and_a_failure_is_a_row(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("bitsandbytes", reason="pip install 'vlm-occ[quant]'")
    wanted = (Row("tiny", "none"), Row("unknown", "none"), Row("tiny", "nf4"))
    monkeypatch.setattr(backbone_latency, "ROWS", wanted)
    monkeypatch.setitem(backbone_latency.PUBLISHED, "tiny", TINY)
    monkeypatch.setattr(backbone_latency, "nano_tokenizer", tiny_tokenizer)
    monkeypatch.setattr(backbone_latency, "find_checkpoint", lambda name: None)
    small = ModelConfig(lora=LoraSettings(rank=2), perception=PERCEPTION, head_width=16)
    monkeypatch.setattr(backbone_latency, "ModelConfig", lambda: small)
    scene = tiny_scenes(folder)[0].scene
    monkeypatch.setattr("vlm_occ.data.scenes.load_scene", lambda spec: scene)
    path = tmp_path / "latency.json"
    rows = backbone_latency.backbones_command(path, repeat=1, device="cpu")
    assert json.loads(path.read_text())["rows"] == rows
    assert [row.get("quantised_layers") for row in rows] == [0, None, 14]
    assert "KeyError" in str(rows[1]["error"])
    assert rows[0]["prefix_tokens"] == rows[2]["prefix_tokens"] and float(str(rows[0]["cold_ms"])) > 0


def test_flops_are_those_of_the_matrices_and_grow_with_the_scenes(folder: Path, tmp_path: Path) -> None:
    config = tiny_config(folder, tmp_path / "run")
    scenes = tiny_scenes(folder)
    module = TrainingModule(VLMOcc.from_config(config.model), config)
    module.groups()
    one, two = counted_flops(module, scenes[:1]), counted_flops(module, scenes)
    assert 1.6 < two / one < 2.4
    simple = nn.Linear(8, 4)
    x = torch.zeros(5, 8, requires_grad=True)

    class Step(nn.Module):
        def forward(self, scenes: object) -> tuple[torch.Tensor, dict]:
            return simple(x).sum(), {}

    assert counted_flops(Step(), scenes) == 3 * 2 * 5 * 8 * 4  # type: ignore[arg-type]


def test_training_is_measured_at_both_sizes(folder: Path, tmp_path: Path) -> None:
    config = replace(tiny_config(folder, tmp_path / "run"), queries_per_scene=3)
    path = tmp_path / "training.json"
    rows = training_command(
        config, path, scenes_per_step=(1, 2), steps=1, scenes=2, source=tiny_scenes(folder), peak_tflops=0.1
    )
    about = json.loads(path.read_text())
    assert about["rows"] == rows and about["loader_scenes_per_second"] > 0
    for row, count in zip(rows, (1, 2), strict=True):
        assert row["scenes_per_step"] == count and row["sentences_per_step"] == 3 * count
        assert row["scenes_per_second"] == pytest.approx(count / float(str(row["step_seconds"])), rel=1e-2)
        share = float(str(row["teraflop_per_step"])) / float(str(row["step_seconds"])) / 0.1
        assert row["utilisation"] == pytest.approx(share, rel=1e-2)
    assert not (tmp_path / "run").exists()


def test_a_drawn_backbone_computes_as_one_that_was_saved_and_loaded(tmp_path: Path) -> None:
    tokenizer = tiny_tokenizer()
    backbone = drawn_backbone(TINY, tokenizer, device=CPU, dtype=torch.float32)
    plain = backbone_latency.drawn_model(
        {**TINY, "video_token_id": backbone._family.vision_id}, CPU, torch.float32
    )
    plain.save_pretrained(tmp_path)
    tiny_tokenizer().save_pretrained(tmp_path)
    loaded = load_backbone(str(tmp_path), dtype=torch.float32)
    images = torch.randint(0, 256, (2, 3, 28, 28), dtype=torch.uint8)
    found = [b.encode_prefix(b.build_prefix(images, 0, pose=False), {}).hidden for b in (backbone, loaded)]
    torch.testing.assert_close(found[0], found[1])
