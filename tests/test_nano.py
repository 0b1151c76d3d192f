"""The embedded default, with its real weights: skipped where neither cache nor package index has them."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from torch import Tensor

from vlm_occ.config import LoraSettings
from vlm_occ.language import nano
from vlm_occ.language.adapters import weight_of
from vlm_occ.language.backbones import Backbone
from vlm_occ.language.bases import default_dtype
from vlm_occ.language.conversion import convert_vision
from vlm_occ.language.loading import load_backbone
from vlm_occ.weights import fetch_member

if TYPE_CHECKING:
    from transformers import LlavaOnevisionForConditionalGeneration, PreTrainedTokenizerFast


@pytest.fixture(scope="module")
def folder() -> Path:
    try:
        return nano.nano_folder()
    except ValueError as error:
        pytest.skip(f"nano's weights are out of reach: {error}")


@pytest.fixture(scope="module")
def backbone(folder: Path) -> Backbone:
    return load_backbone("nano", dtype=torch.float32, lora=LoraSettings())


Parts = tuple["LlavaOnevisionForConditionalGeneration", "PreTrainedTokenizerFast"]


@pytest.fixture(scope="module")
def parts(folder: Path) -> Parts:
    return nano.load_nano(default_dtype(), folder=folder)


def test_the_language_model_continues_sentences_sensibly(parts: Parts) -> None:
    model, tokenizer = parts
    question = [{"role": "user", "content": "What is the capital of France?"}]
    text = str(tokenizer.apply_chat_template(question, add_generation_prompt=True, tokenize=False))
    ids = torch.tensor([tokenizer(text, add_special_tokens=False)["input_ids"]])
    output = model.generate(input_ids=ids, max_new_tokens=16, do_sample=False)  # type: ignore[operator]
    assert "Paris" in str(tokenizer.decode(output[0, ids.shape[1] :]))


def test_english_is_likely_and_shuffled_english_is_not(parts: Parts) -> None:
    model, tokenizer = parts
    sentence = "The red car is parked on the left side of the road, in front of a large bus."
    words = sentence.split()
    order = np.random.default_rng(0).permutation(len(words))
    losses = []
    for text in (" ".join(words), " ".join(words[i] for i in order)):
        ids = tokenizer(text, return_tensors="pt").input_ids
        with torch.no_grad():
            losses.append(float(model(input_ids=ids, labels=ids).loss))
    assert losses[0] < 3.0 < losses[1] - 1.0


def test_special_tokens_take_spare_ids_and_digits_stand_alone(backbone: Backbone) -> None:
    assert list(vars(backbone.token_ids).values()) == [3, 4, 5, 6, 7]
    assert weight_of(backbone.model.get_input_embeddings()).shape[0] == 49152  # nothing was added
    ids = backbone.tokenizer("in 2024", add_special_tokens=False).input_ids
    assert [str(backbone.tokenizer.decode([i])) for i in ids] == ["in", " ", "2", "0", "2", "4"]


def onnx_states(path: Path, pixels: Tensor) -> np.ndarray:
    """States [1, 1 + n, D] after the ninth layer, by ONNX's own reference evaluator."""
    import onnx
    from onnx.reference import ReferenceEvaluator

    model = onnx.load(str(path))
    end = next(n for n in model.graph.node if n.name == "/backbone/encoder/layer.9/norm1/ReduceMean").input[0]
    needed, kept = {end}, []
    for node in reversed(model.graph.node):
        if needed & set(node.output):
            needed |= set(node.input)
            kept.append(node)
    del model.graph.node[:], model.graph.output[:]
    model.graph.node.extend(reversed(kept))
    model.graph.output.append(onnx.helper.make_tensor_value_info(end, onnx.TensorProto.FLOAT, None))
    return ReferenceEvaluator(model).run(None, {"input_image": pixels.numpy()})[0]  # type: ignore[index]


def test_the_vision_tower_computes_what_the_onnx_file_does(tmp_path: Path) -> None:
    from transformers import Dinov2Model

    try:
        path = fetch_member(nano.VISION, into=tmp_path)
    except ValueError as error:
        pytest.skip(f"the vision tower's package is out of reach: {error}")
    pixels = torch.randn(1, 3, 70, 70, generator=torch.Generator().manual_seed(0))
    convert_vision(path, tmp_path / "vision", image_size=70, layers=nano.VISION_LAYERS)
    tower = Dinov2Model.from_pretrained(tmp_path / "vision", dtype=torch.float32)
    with torch.no_grad():
        states = tower(pixels, output_hidden_states=True).hidden_states
    expected = onnx_states(path, pixels)
    difference = np.abs(states[-2].numpy() - expected)  # the layer that nano reads; weights are bf16
    assert difference.max() < 0.01 * np.abs(expected).max()
    assert np.abs(states[-1].numpy() - expected).max() > 10 * difference.max()


def test_a_frame_becomes_36_tokens_that_depend_on_it(backbone: Backbone) -> None:
    images = torch.zeros(2, 3, 90, 160, dtype=torch.uint8)
    images[1, 0, 20:60, 30:90] = 255
    prefix = backbone.build_prefix(images, 0)
    vision = prefix.input_ids == backbone._family.vision_id
    assert int(vision.sum()) == 2 * 36 + 1  # and the newline of the video
    features = backbone._family.vision_features([prefix.frames])[0].detach()
    assert features.shape == (73, 576) and torch.isfinite(features).all()
    assert not torch.allclose(features[:36], features[36:72])
    words = weight_of(backbone.model.get_input_embeddings()).detach()
    assert 0.3 < float(features.std() / words.std()) < 3


def test_the_untrained_projector_is_the_same_in_every_process(backbone: Backbone) -> None:
    torch.manual_seed(123)
    other = load_backbone("nano", dtype=torch.float32, lora=LoraSettings())
    state, again = backbone.trainable_state(), other.trainable_state()
    names = [name for name in state if name.startswith(("projector.", "token_rows"))]
    assert len(names) == 6 and all(torch.equal(state[name], again[name]) for name in names)
    assert backbone.base_hash == other.base_hash


def test_the_projector_is_trained_in_fp32_and_the_tower_is_not(folder: Path) -> None:
    backbone = load_backbone("nano", dtype=torch.bfloat16, lora=LoraSettings(rank=2)).train()
    prefix = backbone.build_prefix(torch.randint(0, 256, (1, 3, 60, 80), dtype=torch.uint8), 2)
    features = {"pose": torch.randn(1, 576), "voxel": torch.randn(2, 576)}
    ids, ground = backbone.query_ids("the car", "There it is.")
    state = backbone.forward_joint([prefix], [features], [[ids]])[0].queries[0]
    logits = backbone.logits(state[ground:-1]).float()
    torch.nn.functional.cross_entropy(logits, ids[ground + 1 :]).backward()
    for name, value in backbone.model.named_parameters():
        if "projector" in name or "newline" in name:
            assert value.dtype == torch.float32 and value.grad is not None and value.grad.abs().max() > 0
        if "vision_tower" in name:
            assert value.grad is None


def test_a_prepared_folder_needs_no_cache(
    folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("VLM_OCC_CACHE", str(tmp_path / "empty"))
    monkeypatch.setenv("VLM_OCC_NANO_DIR", str(folder))
    assert nano.nano_folder() == folder and not (tmp_path / "empty").exists()
    monkeypatch.setenv("VLM_OCC_NANO_DIR", str(tmp_path))
    with pytest.raises(ValueError, match=r"lacks language/config\.json"):
        nano.nano_folder()


def test_a_second_use_works_offline(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with tempfile.TemporaryDirectory() as empty:
        monkeypatch.setenv("PATH", empty)  # neither pip's index nor uv
        monkeypatch.setenv("PIP_NO_INDEX", "1")
        monkeypatch.setenv("HF_HUB_OFFLINE", "1")
        assert nano.nano_folder() == folder and os.listdir(empty) == []
