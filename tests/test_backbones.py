"""Backbones: tiny random models of the real classes against plain forwards of the same models."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from peft.tuners.trainable_tokens import TrainableTokensLayer
from tiny_backbones import loaded, queries, scene
from tiny_models import SAVERS
from torch import Tensor, nn

from vlm_occ.config import LoraSettings
from vlm_occ.language.attention import use_shared_prefix_attention
from vlm_occ.language.backbones import Backbone
from vlm_occ.language.loading import load_backbone
from vlm_occ.language.prefixes import Prefix, PrefixState


@pytest.fixture(scope="module", params=sorted(SAVERS))
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return SAVERS[request.param](tmp_path_factory.mktemp(request.param))


@pytest.fixture(scope="module")
def backbone(folder: Path) -> Backbone:
    return loaded(folder)


@contextmanager
def peft_rows(backbone: Backbone) -> Iterator[None]:
    """peft's own forward of the trained rows, which `Splice` stands in for."""
    layers = [m for m in backbone.model.modules() if isinstance(m, TrainableTokensLayer)]
    for layer in layers:
        layer.enable_adapters(True)
    yield
    for layer in layers:
        layer.enable_adapters(False)
        layer.trainable_tokens_delta.requires_grad_(True)


def alone(backbone: Backbone, prefix: Prefix, features: dict[str, Tensor], query: Tensor) -> Tensor:
    """States [l, D] of one query after its prefix, by the model's own forward with spliced embeddings.

    Independent of our hook, masks, packing and cache: pose and voxel embeddings are written here, vision
    features, positions and mask are the model's own.
    """
    inner = backbone.model.model
    ids = torch.cat((prefix.input_ids, query))
    with torch.no_grad(), peft_rows(backbone):
        embeddings = inner.get_input_embeddings()(ids)
        embeddings[prefix.pose_index] = features["pose"]
        embeddings[prefix.voxel_index] = features["voxel"]
        where = {"inputs_embeds": embeddings[None], "position_ids": positions(backbone, prefix, ids)}
        if prefix.frames and backbone.family == "llava_onevision":
            output = inner(pixel_values_videos=prefix.frames["pixels"][None], **where)
        elif prefix.frames and backbone.family == "smolvlm":
            output = inner(pixel_values=prefix.frames["pixels"][None], **where)
        elif prefix.frames:
            grid = prefix.frames["grid"]
            output = inner(pixel_values=prefix.frames["pixels"], image_grid_thw=grid, **where)
        else:
            output = inner(**where)
    return output.last_hidden_state[0, len(prefix.input_ids) :]


def positions(backbone: Backbone, prefix: Prefix, ids: Tensor) -> Tensor:
    """The model's own position ids of a prefix and a query."""
    if backbone._family.axes == 1:
        return torch.arange(len(ids))[None]
    if not prefix.frames:
        return torch.arange(len(ids)).expand(3, 1, -1)
    kinds = (ids == backbone.model.config.image_token_id).int()[None]
    index = backbone.model.model.get_rope_index
    return index(ids[None], mm_token_type_ids=kinds, image_grid_thw=prefix.frames["grid"])[0]


def test_joint_and_cached_states_equal_plain_forwards_of_every_query(backbone: Backbone) -> None:
    scenes = [scene(backbone), scene(backbone, 1, 9, seed=1), scene(backbone, 0, 3, seed=2)]
    asked = queries(backbone)
    with torch.no_grad():
        joint = backbone.forward_joint(
            [p for p, _ in scenes], [f for _, f in scenes], [asked, asked[:1], asked[1:]]
        )
    for (prefix, features), states, own in zip(scenes, joint, (asked, asked[:1], asked[1:]), strict=True):
        state = backbone.encode_prefix(prefix, features)
        cached = backbone.forward_queries(state, own)
        torch.testing.assert_close(states.prefix, state.hidden, atol=1e-4, rtol=1e-4)
        for query, packed, on_cache in zip(own, states.queries, cached, strict=True):
            expected = alone(backbone, prefix, features, query)
            torch.testing.assert_close(packed, expected, atol=1e-4, rtol=1e-4)
            torch.testing.assert_close(on_cache, expected, atol=1e-4, rtol=1e-4)


def test_shared_prefix_attention_equals_eager_attention_under_a_block_mask(backbone: Backbone) -> None:
    prefix, features = scene(backbone)
    asked = queries(backbone)
    language = backbone.language_model
    with torch.no_grad():
        shared = backbone.forward_joint([prefix], [features], [asked])[0]
        language.config._attn_implementation = "eager"  # which knows no turns: two scenes come with a mask
        try:
            eager = backbone.forward_joint([prefix] * 2, [features] * 2, [asked] * 2)[1]
        finally:
            use_shared_prefix_attention(language)
    torch.testing.assert_close(shared.prefix, eager.prefix, atol=1e-4, rtol=1e-4)
    for one, two in zip(shared.queries, eager.queries, strict=True):
        torch.testing.assert_close(one, two, atol=1e-4, rtol=1e-4)


def test_vision_features_enter_the_first_layers_of_a_model_with_deepstack(backbone: Backbone) -> None:
    prefix, features = scene(backbone)
    _, deep = backbone._features([prefix], [features])
    assert len(deep) == (2 if backbone.family == "qwen3_vl" else 0)
    if deep:  # a forward without them differs, so those above would not have passed without them
        whole = backbone.encode_prefix(prefix, features).hidden
        spliced, _ = backbone._features([prefix], [features])
        without = backbone._run(prefix.input_ids[None], prefix.position_ids[:, None], None, spliced)[0]
        assert (whole - without)[prefix.voxel_index].abs().max() > 1e-2


def test_the_cache_is_as_before_after_queries_and_generation(backbone: Backbone) -> None:
    prefix, features = scene(backbone)
    state = backbone.encode_prefix(prefix, features)
    before = [tensor.clone() for tensor in tensors_of(state)]
    first = backbone.forward_queries(state, queries(backbone))
    backbone.generate(state, queries(backbone)[0], max_new_tokens=4)
    assert all(torch.equal(one, two) for one, two in zip(tensors_of(state), before, strict=True))
    for one, two in zip(first, backbone.forward_queries(state, queries(backbone)), strict=True):
        assert torch.equal(one, two)


def tensors_of(state: PrefixState) -> list[Tensor]:
    """Keys and values of all layers of a cache."""
    return [getattr(layer, name) for layer in state.cache.layers for name in ("keys", "values")]


def test_queries_do_not_see_one_another(backbone: Backbone) -> None:
    prefix, features = scene(backbone)
    state = backbone.encode_prefix(prefix, features)
    forth = backbone.forward_queries(state, queries(backbone))
    back = backbone.forward_queries(state, queries(backbone)[::-1])[::-1]
    for one, two in zip(forth, back, strict=True):
        torch.testing.assert_close(one, two, atol=1e-5, rtol=1e-5)


def test_padding_on_the_left_gives_the_states_of_padding_on_the_right(backbone: Backbone) -> None:
    scenes = [scene(backbone), scene(backbone, 1, 2, seed=3)]
    asked = [queries(backbone)[:1], queries(backbone)]
    arguments = [p for p, _ in scenes], [f for _, f in scenes], asked
    with torch.no_grad():
        left = backbone.forward_joint(*arguments, padding="left")
        right = backbone.forward_joint(*arguments)
    for one, two in zip(left, right, strict=True):
        for a, b in zip((one.prefix, *one.queries), (two.prefix, *two.queries), strict=True):
            torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-4)


def test_answers_do_not_depend_on_the_padding_of_another_scene(backbone: Backbone) -> None:
    short, long = scene(backbone, 0, 2), scene(backbone, 3, 20, seed=4)
    asked = queries(backbone)[:1]
    with torch.no_grad():
        both = backbone.forward_joint([short[0], long[0]], [short[1], long[1]], [asked, asked])[0]
        single = backbone.forward_joint([short[0]], [short[1]], [asked])[0]
    torch.testing.assert_close(both.queries[0], single.queries[0], atol=1e-4, rtol=1e-4)


def test_a_pose_token_stands_before_the_vision_tokens_of_its_frame(backbone: Backbone) -> None:
    prefix, _ = scene(backbone, frames=3)
    vision = (prefix.input_ids == backbone._family.vision_id).nonzero()[:, 0].tolist()
    starts = [place for place in vision if place - 1 not in vision]
    opening = {"llava_onevision": 0, "qwen2_5_vl": 1, "qwen3_vl": 1, "smolvlm": 2}  # tokens before an image
    lead = 1 + opening[backbone.family]
    assert prefix.pose_index.tolist() == [start - lead for start in starts][:3]
    assert prefix.voxel_index.min() > max(vision)


def test_generation_takes_the_likeliest_token_of_a_full_forward_each_time(backbone: Backbone) -> None:
    prefix, features = scene(backbone)
    ids = queries(backbone)[0]
    words: list[int] = []
    for _ in range(6):
        grown = torch.cat((ids, torch.tensor(words, dtype=torch.long)))
        scores = backbone.logits(alone(backbone, prefix, features, grown)[-1])
        scores[list(vars(backbone.token_ids).values())] = -torch.inf
        word = int(scores.argmax())
        if word in backbone.processor.end_ids:
            break
        words.append(word)
    expected = str(backbone.tokenizer.decode(words, skip_special_tokens=True)).strip()
    state = backbone.encode_prefix(prefix, features)
    assert words and backbone.generate(state, ids, max_new_tokens=6) == expected


def test_gradients_reach_the_voxel_projector_and_only_our_weights(folder: Path) -> None:
    backbone = loaded(folder).train()
    prefix, features = scene(backbone)
    projector = nn.Linear(7, backbone.hidden_size)
    features["voxel"] = projector(torch.randn(len(features["voxel"]), 7))
    ids, ground = backbone.query_ids("the red car", "It is there.")
    states = backbone.forward_joint([prefix], [features], [[ids]])[0]
    state = states.queries[0][ground]
    (states.prefix[prefix.voxel_index] @ state).sum().backward()
    assert projector.weight.grad is not None and projector.weight.grad.abs().max() > 0
    trained = {name for name, value in backbone.named_parameters() if value.grad is not None}
    assert len(trained) == len(backbone.trainable_state())
    assert all(".lora_" in name or "trainable_tokens_delta" in name for name in trained)
    assert not any("vision" in name or "visual" in name for name in trained)
    gradients = {name: value.grad for name, value in backbone.named_parameters() if ".lora_B" in name}
    assert all(gradient is not None and gradient.abs().max() > 0 for gradient in gradients.values())


def test_only_the_rows_of_special_tokens_are_trained(folder: Path) -> None:
    backbone = loaded(folder, lora=None).train()
    assert set(backbone.trainable_state()) == {"token_rows"}
    embeddings = backbone.model.get_input_embeddings()
    ids, _ = backbone.query_ids("the red car")
    with peft_rows(backbone):
        before = embeddings(torch.arange(len(backbone.tokenizer))).detach().clone()
    optimiser = torch.optim.SGD([p for p in backbone.parameters() if p.requires_grad], lr=1.0)
    prefix, features = scene(backbone)
    backbone.forward_joint([prefix], [features], [[ids]])[0].queries[0].square().sum().backward()
    optimiser.step()
    with peft_rows(backbone):
        after = embeddings(torch.arange(len(backbone.tokenizer)))
    changed = (after != before).any(-1).nonzero()[:, 0].tolist()
    assert changed == [backbone.token_ids.ground]  # the other four do not occur, or features stand over them


def test_a_saved_adapter_gives_the_same_states_in_a_new_backbone(folder: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    first, second = loaded(folder, seed=1), loaded(folder, seed=2)
    prefix, features = scene(first)
    save_file(first.trainable_state(), tmp_path / "adapter.safetensors")
    expected = first.forward_queries(first.encode_prefix(prefix, features), queries(first))
    other = second.forward_queries(second.encode_prefix(prefix, features), queries(second))
    assert (expected[0] - other[0]).abs().max() > 1e-2
    second.load_trainable_state(load_file(tmp_path / "adapter.safetensors"))
    again = second.forward_queries(second.encode_prefix(prefix, features), queries(second))
    for one, two in zip(expected, again, strict=True):
        assert torch.equal(one, two)
    size = sum(value.numel() for value in first.trainable_state().values())
    assert size < sum(value.numel() for value in first.parameters()) / 2


def test_an_adapter_of_another_rank_is_refused(folder: Path, backbone: Backbone) -> None:
    other = loaded(folder, lora=LoraSettings(rank=2))
    with pytest.raises(ValueError, match="another LoRA rank"):
        backbone.load_trainable_state(other.trainable_state())
    with pytest.raises(ValueError, match="missing"):
        backbone.load_trainable_state(loaded(folder, lora=None).trainable_state())


def test_merging_changes_nothing_but_forbids_training(folder: Path) -> None:
    backbone = loaded(folder)
    prefix, features = scene(backbone)
    before = backbone.forward_queries(backbone.encode_prefix(prefix, features), queries(backbone))
    saved = backbone.trainable_state()
    backbone.merge()
    after = backbone.forward_queries(backbone.encode_prefix(prefix, features), queries(backbone))
    for one, two in zip(before, after, strict=True):
        torch.testing.assert_close(one, two, atol=1e-4, rtol=1e-4)
    assert all(torch.equal(value, saved[name]) for name, value in backbone.trainable_state().items())
    with pytest.raises(ValueError, match="merged"):
        backbone.train()


def test_bf16_stays_near_fp32(folder: Path) -> None:
    fine = loaded(folder)
    coarse = load_backbone(str(folder), dtype=torch.bfloat16, lora=LoraSettings(rank=4))
    coarse.load_trainable_state(fine.trainable_state())
    prefix, features = scene(fine)
    exact = fine.forward_queries(fine.encode_prefix(prefix, features), queries(fine))
    rough = coarse.forward_queries(coarse.encode_prefix(prefix, features), queries(coarse))
    assert rough[0].dtype == torch.bfloat16
    assert nn.functional.cosine_similarity(exact[0], rough[0].float(), dim=-1).mean() > 0.98


def test_a_scene_beyond_the_known_positions_is_refused(backbone: Backbone) -> None:
    prefix, features = scene(backbone, 0, 2030)
    with pytest.raises(ValueError, match="2048"):
        backbone.forward_joint([prefix], [features], [queries(backbone)])


def test_features_of_another_scene_are_refused(backbone: Backbone) -> None:
    prefix, features = scene(backbone)
    features["voxel"] = features["voxel"][:3]
    with pytest.raises(ValueError, match=r"5 <\|voxel\|> placeholders but 3 voxel features"):
        backbone.encode_prefix(prefix, features)
