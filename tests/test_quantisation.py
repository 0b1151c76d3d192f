"""Quantised bases on tiny models, against plain models that hold the rounded weights."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tiny_backbones import loaded, queries, scene
from tiny_models import SAVERS, save_tiny_qwen
from tiny_runs import prepare, tiny_config, tiny_scenes
from torch import Tensor, nn

from vlm_occ.language.backbones import Backbone
from vlm_occ.language.full import train_whole
from vlm_occ.language.quantisation import Quantization, is_quantised, plain_weight
from vlm_occ.models.adapter import VLMOcc
from vlm_occ.models.checkpoint import load_checkpoint, load_model_state, model_state
from vlm_occ.models.merge import merge_checkpoint
from vlm_occ.run_check import check_resume
from vlm_occ.run_state import make_shardable
from vlm_occ.types import LabelledScene

pytest.importorskip("bitsandbytes", reason="pip install 'vlm-occ[quant]'")

KINDS: tuple[Quantization, ...] = ("int8", "nf4")
NF4 = (-1.0, -0.6961928, -0.5250731, -0.3949175, -0.2844414, -0.1847734, -0.0910500, 0.0)
NF4 += (0.0795803, 0.1609302, 0.2461123, 0.3379152, 0.4407098, 0.5626170, 0.7229568, 1.0)
"""The levels of arXiv 2305.14314, appendix E."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Qwen2.5-VL."""
    return save_tiny_qwen(tmp_path_factory.mktemp("qwen"), wide=True)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with two scenes."""
    return prepare(tmp_path_factory.getbasetemp() / "tiny")


@pytest.fixture(scope="module")
def scenes(tiny: Path) -> list[LabelledScene]:
    """The tiny scenes."""
    return tiny_scenes(tiny)


def quantised_layers(backbone: Backbone) -> dict[str, nn.Module]:
    """The quantised layers by the names that they have without peft."""
    modules = backbone.model.named_modules()
    return {name.replace(".base_layer", ""): layer for name, layer in modules if is_quantised(layer)}


def twin(folder: Path, quantised: Backbone) -> Backbone:
    """A plain backbone with the quantised one's rounded weights and its adapter."""
    plain = loaded(folder)
    layers = {n.replace(".base_layer", ""): layer for n, layer in plain.model.named_modules()}
    by_name = {**{n: m for n, m in plain.model.named_modules()}, **layers}
    for name, layer in quantised_layers(quantised).items():
        weight = by_name[name].weight
        assert isinstance(weight, Tensor)
        weight.data.copy_(plain_weight(layer))
    plain.load_trainable_state(quantised.trainable_state())
    return plain


def states(backbone: Backbone) -> list[Tensor]:
    """States of a scene's queries, on the cache."""
    prefix, features = scene(backbone)
    return backbone.forward_queries(backbone.encode_prefix(prefix, features), queries(backbone))


@pytest.mark.parametrize("kind", KINDS)
def test_weights_are_rounded_as_the_papers_say_and_only_the_language_models(
    folder: Path, kind: Quantization
) -> None:
    layers = quantised_layers(loaded(folder, quantization=kind))
    assert len(layers) == 2 * 7 and all("language_model.layers." in name for name in layers)
    plain = dict(loaded(folder).model.named_parameters())
    for name, layer in layers.items():
        weight, found = plain[f"{name}.base_layer.weight"].detach(), plain_weight(layer).float()
        if kind == "int8":
            scale = weight.abs().amax(1, keepdim=True) / 127
            steps = (
                found - weight
            ).abs() / scale  # half a step, and a little for the rounding to fp16 before it
            assert 0.3 < steps.max() < 0.6
            continue
        blocks = weight.reshape(-1, 64)
        scale = blocks.abs().amax(1, keepdim=True)
        levels = torch.tensor(NF4)
        nearest = levels[(blocks[..., None] / scale[..., None] - levels).abs().argmin(-1)] * scale
        far = (found.reshape(-1, 64) - blocks).abs() - (nearest - blocks).abs()
        assert far.max() < 0.02 * scale.max()  # no farther than the nearest level; scales are rounded, too


@pytest.mark.parametrize("family", sorted(SAVERS))
def test_an_nf4_model_of_each_family_computes_with_its_rounded_weights(family: str, tmp_path: Path) -> None:
    folder = SAVERS[family](tmp_path, wide=True)
    quantised = loaded(folder, quantization="nf4")
    expected = states(twin(folder, quantised))
    for one, two in zip(states(quantised), expected, strict=True):
        torch.testing.assert_close(one, two, atol=1e-4, rtol=1e-4)
    for one, two in zip(states(quantised), expected, strict=True):  # the first inference changed nothing
        torch.testing.assert_close(one, two, atol=1e-4, rtol=1e-4)
    exact = states(loaded(folder))
    assert (exact[0] - expected[0]).abs().max() > 1e-2


def test_rows_that_nf4_cannot_round_are_refused(tmp_path: Path) -> None:
    folder = save_tiny_qwen(tmp_path)  # rows of 32, which bitsandbytes would read back wrongly
    with pytest.raises(ValueError, match=r"rows of 32; use quantization: int8"):
        loaded(folder, quantization="nf4")


def test_an_int8_model_stays_near_its_rounded_weights(folder: Path) -> None:
    quantised = loaded(folder, quantization="int8")
    expected = states(twin(folder, quantised))
    for one, two in zip(states(quantised), expected, strict=True):  # inference rounds activations too
        assert nn.functional.cosine_similarity(one, two, dim=-1).min() > 0.99


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_of_the_adapter_are_those_beside_the_rounded_weights(
    folder: Path, kind: Quantization
) -> None:
    quantised = loaded(folder, quantization=kind)
    gradients = []
    for backbone in (quantised, twin(folder, quantised)):
        backbone.train()
        prefix, features = scene(backbone)
        ids, ground = backbone.query_ids("the red car", "It is there.")
        state = backbone.forward_joint([prefix], [features], [[ids]])[0]
        (state.prefix[prefix.voxel_index] @ state.queries[0][ground]).sum().backward()
        trained = {name for name, value in backbone.named_parameters() if value.grad is not None}
        assert len(trained) == len(backbone.trainable_state())
        gradients.append({n: p.grad for n, p in backbone._trainable.items()})
    for name, gradient in gradients[1].items():
        torch.testing.assert_close(gradients[0][name], gradient, atol=2e-3, rtol=2e-3, msg=name)


@pytest.mark.parametrize("kind", KINDS)
def test_a_quantised_model_saves_its_adapter_alone_and_loads_as_it_was(
    folder: Path, tiny: Path, scenes: list[LabelledScene], tmp_path: Path, kind: Quantization
) -> None:
    model = adapted(tiny, folder, kind)
    before = model.token_scores(model.encode(scenes[0].scene), ["the red car"])
    model.save_pretrained(tmp_path / "saved")
    saved = {path.suffix for path in (tmp_path / "saved").iterdir()}
    assert saved == {".json", ".safetensors"}
    again = VLMOcc.from_pretrained(str(tmp_path / "saved"))
    assert again.config.quantization == kind and len(quantised_layers(again.backbone)) == 14
    after = again.token_scores(again.encode(scenes[0].scene), ["the red car"])
    assert torch.equal(before, after)
    names = [name for name in model_state(model) if name.startswith("backbone.")]
    assert names and all(".lora_" in name or "token_rows" in name for name in names)


def adapted(tiny: Path, base: Path, kind: Quantization) -> VLMOcc:
    """A model whose adapter and token rows do something."""
    config = replace(tiny_config(tiny, base).model, base=str(base), quantization=kind)
    model = VLMOcc.from_config(config)
    torch.manual_seed(3)
    for parameter in model.backbone._trainable.values():
        parameter.data.normal_(std=0.2)
    return model.eval()


@pytest.mark.parametrize(("kind", "tolerance", "cosine"), [("int8", 0.05, 0.95), ("nf4", 1e-3, 0.99999)])
def test_a_merged_model_is_a_plain_one_that_answers_as_the_quantised_one_did(
    folder: Path,
    tiny: Path,
    scenes: list[LabelledScene],
    tmp_path: Path,
    kind: Quantization,
    tolerance: float,
    cosine: float,
) -> None:
    """Int8 inference rounds activations too, which a plain model does not: it is only near."""
    texts = ["the red car", "a bus"]
    model = adapted(tiny, folder, kind)
    state = model.encode(scenes[0].scene)
    before, hidden = model.token_scores(state, texts), state.token_states
    merge_checkpoint(model, tmp_path / "merged")
    merged = VLMOcc.from_pretrained(str(tmp_path / "merged"))
    assert merged.config.quantization == "none" and not quantised_layers(merged.backbone)
    state = merged.encode(scenes[0].scene)
    torch.testing.assert_close(merged.token_scores(state, texts), before, atol=tolerance, rtol=0)
    assert nn.functional.cosine_similarity(state.token_states, hidden, dim=-1).mean() > cosine


def test_an_adapter_moves_between_precisions(folder: Path, tiny: Path) -> None:
    config = replace(tiny_config(tiny, folder).model, base=str(folder))
    source = adapted(tiny, folder, "nf4")
    plain = VLMOcc.from_config(config)
    load_model_state(plain, model_state(source), where="the other model")
    assert plain.backbone.base_hash == source.backbone.base_hash


def test_a_checkpoint_is_loaded_at_the_precision_that_is_asked_for(
    folder: Path, tiny: Path, tmp_path: Path
) -> None:
    source = adapted(tiny, folder, "nf4")
    source.save_pretrained(tmp_path / "saved")
    kept = model_state(source)
    asked: dict[Quantization | None, int] = {"none": 0, "int8": 14, None: 14}
    for kind, layers in asked.items():
        model = load_checkpoint(str(tmp_path / "saved"), quantization=kind)
        assert model.config.quantization == (kind or "nf4")
        found = quantised_layers(model.backbone).values()
        assert {type(layer).__name__ for layer in found} <= {"Linear8bitLt" if kind else "Linear4bit"}
        assert len(found) == layers
        for name, value in model_state(model).items():
            assert torch.equal(value, kept[name]), name


def test_scales_go_where_the_weights_go(folder: Path) -> None:
    backbone = loaded(folder, quantization="int8")
    before = states(backbone)  # also moves the scales to the layers' state
    backbone._apply(lambda tensor: tensor.clone())  # as a move to another device does
    for layer in quantised_layers(backbone).values():
        weight, state = layer.weight, layer.state
        assert state.CB.data_ptr() == weight.data_ptr()  # type: ignore[union-attr]
        assert state.SCB.device == weight.device  # type: ignore[union-attr]
    assert torch.equal(before[0], states(backbone)[0])


def test_a_quantised_language_model_is_not_trained_whole(folder: Path) -> None:
    with pytest.raises(ValueError, match="set quantization: none"):
        train_whole(loaded(folder, lora=None, quantization="nf4"))


def test_fsdp_is_refused_for_a_quantised_base(folder: Path, tiny: Path) -> None:
    with pytest.raises(ValueError, match=r"quantization = 'nf4' under FSDP.*multi_gpu\.yaml"):
        make_shardable(adapted(tiny, folder, "nf4"))


def test_a_qlora_run_that_was_killed_ends_as_the_one_that_was_not(
    folder: Path, tiny: Path, scenes: list[LabelledScene], tmp_path: Path
) -> None:
    config = replace(tiny_config(tiny, tmp_path / "run"), steps=3, save_every=1, stage="grounding")
    config = replace(config, model=replace(config.model, base=str(folder), quantization="nf4"))
    report = check_resume(config, scenes, kills=1)
    assert report["identical"] == 1
