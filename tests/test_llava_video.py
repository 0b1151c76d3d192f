"""LLaVA-Video: published key names into the LLaVA-OneVision class, with a newline after each row."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_backbones import loaded, queries, scene
from tiny_models import SPARE_ROWS, WIDTH, tiny_tokenizer
from torch import Tensor
from torch.nn import functional

from vlm_occ.language.backbones import Backbone
from vlm_occ.language.llava_video import convert

TOWER = "model.vision_tower.vision_tower.vision_model."
PATCHES = 5  # a side; pooled to 3


def published_names(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """The names of LLaVA-Video's files for the weights of transformers' class, as its modules have them."""
    names = {}
    for name, weight in weights.items():
        if name == "model.image_newline":
            new = name
        elif name.startswith("model.vision_tower."):
            new = TOWER + name.removeprefix("model.vision_tower.").removeprefix("vision_model.")
        elif name.startswith("model.multi_modal_projector."):
            _, part, kind = name.rsplit(".", 2)
            new = f"model.mm_projector.{ {'linear_1': 0, 'linear_2': 2}[part] }.{kind}"
        elif name.startswith("model.language_model."):
            new = "model." + name.removeprefix("model.language_model.")
        else:
            new = name  # lm_head.weight
        names[new] = weight.clone().contiguous()
    return names


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Tensor]]:
    """A folder under the published names in two files, with parts that are not used, and the true weights."""
    from transformers import (
        LlavaOnevisionConfig,
        LlavaOnevisionForConditionalGeneration,
        Qwen2Config,
        SiglipVisionConfig,
    )

    folder, tokenizer = tmp_path_factory.mktemp("published"), tiny_tokenizer()
    text = {
        "vocab_size": len(tokenizer) + SPARE_ROWS,
        "hidden_size": WIDTH,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 2048,
        "rms_norm_eps": 1e-6,
    }
    vision = SiglipVisionConfig(
        hidden_size=32,
        intermediate_size=40,
        num_hidden_layers=2,
        num_attention_heads=16,
        image_size=PATCHES * 7,
        patch_size=7,
        vision_use_head=False,
    )
    rope = {"rope_type": "default", "rope_theta": 1e6}
    config = LlavaOnevisionConfig(
        text_config=Qwen2Config(**text, rope_parameters=rope), vision_config=vision, tie_word_embeddings=False
    )
    torch.manual_seed(0)
    weights = LlavaOnevisionForConditionalGeneration(config).state_dict()
    weights = {name: 0.15 * torch.randn(weight.shape) for name, weight in weights.items()}
    named = published_names(weights)
    named[f"{TOWER}head.probe"] = torch.zeros(3)  # of SigLIP, not used
    named[f"{TOWER}encoder.layers.26.layer_norm1.weight"] = torch.zeros(3)  # its last layer, not used
    keys = sorted(named)
    for part, chosen in enumerate((keys[::2], keys[1::2])):
        save_file({key: named[key] for key in chosen}, folder / f"model-{part}.safetensors")
    extra = {"mm_newline_position": "grid", "mm_spatial_pool_mode": "bilinear", "rope_theta": 1e6}
    extra |= {"model_type": "llava_qwen", "tie_word_embeddings": False, "torch_dtype": "float32"}
    (folder / "config.json").write_text(json.dumps({**text, **extra}))
    tokenizer.save_pretrained(folder)
    return folder, weights


@pytest.fixture(scope="module")
def backbone(original: tuple[Path, dict[str, Tensor]], tmp_path_factory: pytest.TempPathFactory) -> Backbone:
    """The published folder, loaded as a base."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VLM_OCC_CACHE", str(tmp_path_factory.mktemp("cache")))
        return loaded(original[0])


def test_every_weight_arrives_under_its_new_name(
    backbone: Backbone, original: tuple[Path, dict[str, Tensor]]
) -> None:
    found = {}
    for name, weight in backbone.model.state_dict().items():
        for wrapper in (".base_layer", ".token_adapter"):
            name = name.replace(wrapper, "")
        found[name] = weight
    for name, weight in original[1].items():
        rows = len(weight)  # the vocabulary may have grown
        ours = list(vars(backbone.token_ids).values()) if "embed_tokens" in name or "lm_head" in name else []
        keep = [row for row in range(rows) if row not in ours]
        assert torch.equal(found[name][keep], weight[keep]), name


def naive_features(backbone: Backbone, pixels: Tensor) -> Tensor:
    """Tokens of frames [F, 3, h, w], one by one: tower, projector, bilinear pooling, a newline a row."""
    inner = backbone.model.model
    rows: list[Tensor] = []
    for frame in pixels:
        patches = inner.vision_tower(frame[None], output_hidden_states=True).hidden_states[-1]
        tokens = inner.multi_modal_projector(patches)[0]  # [25, D]
        plane = tokens.T.reshape(1, -1, PATCHES, PATCHES)
        plane = functional.interpolate(plane, size=(3, 3), mode="bilinear", align_corners=False)[0]
        for row in range(3):
            rows += [plane[:, row, column] for column in range(3)] + [inner.image_newline]
    return torch.stack(rows)


def test_each_row_of_each_frame_ends_with_the_newline(backbone: Backbone) -> None:
    prefix, _ = scene(backbone, frames=2)
    family = backbone._family
    vision = (prefix.input_ids == family.vision_id).nonzero()[:, 0]
    assert len(vision) == 2 * 3 * 4  # and none after the last frame
    assert prefix.pose_index.tolist() == [int(vision[0]) - 1, int(vision[12]) - 1]
    with torch.no_grad():
        (found,) = family.vision_features([prefix.frames])
        expected = naive_features(backbone, prefix.frames["pixels"])
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


def test_states_are_those_of_the_language_model_after_that_layout(backbone: Backbone) -> None:
    prefix, features = scene(backbone)
    query = queries(backbone)[0]
    ids = torch.cat((prefix.input_ids, query))
    with torch.no_grad():
        embeddings = backbone.model.get_input_embeddings()(ids).clone()
        rows = backbone.trainable_state()["token_rows"]
        embeddings[ids == backbone.token_ids.ground] = rows[backbone._rows[backbone.token_ids.ground]]
        embeddings[prefix.pose_index] = features["pose"]
        embeddings[prefix.voxel_index] = features["voxel"]
        vision = ids == backbone._family.vision_id
        embeddings[vision] = naive_features(backbone, prefix.frames["pixels"])
        expected = backbone.language_model(inputs_embeds=embeddings[None]).last_hidden_state[0]
    found = backbone.forward_queries(backbone.encode_prefix(prefix, features), [query])[0]
    torch.testing.assert_close(found, expected[len(prefix.input_ids) :], atol=1e-4, rtol=1e-4)


def test_a_conversion_keeps_its_files_apart_and_its_layout_when_saved_again(
    original: tuple[Path, dict[str, Tensor]], backbone: Backbone, tmp_path: Path
) -> None:
    (tmp_path / "converted").mkdir()
    convert(original[0], tmp_path / "converted")
    files = sorted(path.name for path in (tmp_path / "converted").glob("*.safetensors"))
    assert files == ["model-0.safetensors", "model-1.safetensors"]
    assert not any(
        "head" in name for f in files for name in load_file(tmp_path / "converted" / f) if "tower" in name
    )
    backbone.model.config.save_pretrained(tmp_path / "again")
    assert json.loads((tmp_path / "again" / "config.json").read_text())["mm_newline_position"] == "grid"


@pytest.mark.parametrize(
    ("field", "value"),
    [("mm_newline_position", "frame"), ("add_faster_video", True), ("mm_spatial_pool_mode", "average")],
)
def test_what_the_class_cannot_hold_is_refused(
    original: tuple[Path, dict[str, Tensor]], tmp_path: Path, field: str, value: object
) -> None:
    config = json.loads((original[0] / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, field: value}))
    with pytest.raises(ValueError, match=f"{field} = {value!r}"):
        convert(tmp_path, tmp_path / "into")


def test_a_weight_of_another_model_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "llava_qwen"}')
    save_file({"transformer.h.0.weight": torch.zeros(1)}, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match=r"unknown weight 'transformer\.h\.0\.weight'"):
        convert(tmp_path, tmp_path)
