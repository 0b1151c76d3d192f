"""VLMOcc on a tiny backbone: one forward for training and inference, one cache for many queries."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tiny_models import save_tiny_llava, save_tiny_qwen

from vlm_occ.config import FORMAT_VERSION, LoraSettings, ModelConfig, PerceptionConfig
from vlm_occ.data.augment import without_cameras, without_lidar
from vlm_occ.data.simulator.scene import simulate
from vlm_occ.geometry import to_box_frame
from vlm_occ.models.adapter import VLMOcc
from vlm_occ.models.batch import make_batch
from vlm_occ.models.perception import REACH
from vlm_occ.objectives import (
    GROUNDING_WEIGHTS,
    PERCEPTION_WEIGHTS,
    grounding_terms,
    perception_terms,
    weighted_sum,
)
from vlm_occ.types import FREE, GroundingQuery, LabelledScene

SMALL = PerceptionConfig(
    image_size=(64, 176),
    image_backbone="random",
    image_width=16,
    lidar_width=16,
    volume_width=16,
    bev_width=16,
    fine_bev_width=16,
    fine_width=16,
    max_tokens=24,
    token_threshold=0.001,
    token_width=32,
)


@pytest.fixture(scope="module")
def item() -> LabelledScene:
    made = simulate(11, image_size=(64, 176), num_queries=6)
    assert any(query.targets for query in made.queries)
    return made


def tiny(folder: Path, **changes) -> VLMOcc:
    config = ModelConfig(
        base=str(folder), dtype="float32", lora=LoraSettings(rank=2), perception=SMALL, head_width=32
    )
    return VLMOcc.from_config(replace(config, **changes)).eval()


@pytest.fixture(scope="module")
def llava(tmp_path_factory) -> Path:
    return save_tiny_llava(tmp_path_factory.mktemp("llava"))


@pytest.fixture(scope="module")
def qwen(tmp_path_factory) -> Path:
    return save_tiny_qwen(tmp_path_factory.mktemp("qwen"))


@pytest.mark.parametrize("family", ["llava", "qwen"])
def test_cached_queries_equal_the_training_forward(family, item, request):
    model = tiny(request.getfixturevalue(family), score_threshold=0.0)
    with torch.no_grad():
        output = model(make_batch([item], model.config, training=False))
        state = model.encode(item.scene)
        texts = [query.text for query in item.queries]
        packed = model.token_scores(state, texts)
        single = torch.cat([model.token_scores(state, [text]) for text in texts])
    assert packed.shape[1] > 3
    torch.testing.assert_close(packed, output.scores[0].scores(), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(packed, single, atol=1e-4, rtol=1e-4)
    answers = model.ground(state, texts)
    first = {(o.query, o.token): o for o in output.objects}
    scores = packed[0].argsort(descending=True)
    for found, token in zip(answers[0].objects, scores.tolist(), strict=True):
        torch.testing.assert_close(found.box, first[(0, token)].box, atol=1e-4, rtol=1e-4)


def test_forward_decodes_what_ground_answers(llava, item):
    model = tiny(llava, score_threshold=0.0, score_ratio=0.9)
    with torch.no_grad():
        output = model(make_batch([item], model.config, training=False))
    answers = model.ground(model.encode(item.scene), [query.text for query in item.queries])
    for q, answer in enumerate(answers):
        decoded = [found.box for found in output.objects if found.query == q]
        assert 0 < len(decoded) < output.scores[0].logits.shape[1]
        torch.testing.assert_close(
            torch.stack(decoded), torch.stack([o.box for o in answer.objects]), atol=1e-4, rtol=1e-4
        )


def test_every_trained_part_learns_from_one_step(llava, item):
    model = tiny(llava).train()
    labels = [item.labels]
    occupied = torch.stack([item.labels.semantics != FREE])
    batch = make_batch([item], model.config)
    batch = replace(batch, boxes=(item.labels.boxes,))
    output = model(batch, extra_voxels=occupied)
    # A token at every true object, so that masks and boxes are decoded whatever an untrained map says.
    terms = perception_terms(output.perception, labels, model.perception.grid)
    terms.update(grounding_terms(model, output, batch, labels))
    total, log = weighted_sum(terms, {**PERCEPTION_WEIGHTS, **GROUNDING_WEIGHTS})
    total.backward()
    assert torch.isfinite(total) and log["language"] > 0
    parts = ("perception.lidar", "perception.pyramid", "voxel_projector", "pose", "pointer", "backbone")
    for part in parts:
        gradients = [p.grad for n, p in model.named_parameters() if n.startswith(part) and p.requires_grad]
        assert any(g is not None and g.abs().max() > 0 for g in gradients), part
    frozen = [n for n, p in model.named_parameters() if p.requires_grad and "image_network" in n]
    assert not frozen


def test_the_voxels_that_may_be_an_objects_are_those_around_candidates(llava, item):
    perception = tiny(llava).perception.eval()
    inputs = make_batch([item], tiny(llava).config).inputs
    with torch.no_grad():
        output = perception(inputs)
    grid, boxes = perception.grid, output.tokens[0].candidates.box
    assert len(boxes) > 0 and len(output.voxel_index) > 0
    everywhere = grid.center_of(torch.cartesian_prod(*(torch.arange(n) for n in grid.shape)))
    beyond = to_box_frame(everywhere, boxes).abs() - boxes[:, None, 3:6] / 2
    apart = beyond.amax(-1).amin(0).reshape(grid.shape)  # metres from the nearest candidate's faces
    likely = output.occupancy_logits[0].sigmoid() > perception.config.voxel_threshold
    found = torch.zeros(grid.shape, dtype=torch.bool)
    found[tuple(output.voxel_index[:, 1:].unbind(-1))] = True
    half = grid.voxel_size * math.sqrt(3) / 2
    assert not (found & ((apart > REACH + half) | ~likely)).any()
    assert found[likely & (apart < REACH)].all()


def test_a_missing_sensor_or_camera_still_answers(llava, item):
    model = tiny(llava)
    rig = item.scene.rig
    one = replace(
        rig, names=rig.names[:1], intrinsics=rig.intrinsics[:1], ego_from_camera=rig.ego_from_camera[:1]
    )
    frames = tuple(replace(frame, images=frame.images[:1]) for frame in item.scene.frames)
    for scene in (
        without_lidar(item.scene),
        without_cameras(item.scene),
        replace(without_lidar(item.scene), rig=one, frames=tuple(replace(f, points=None) for f in frames)),
    ):
        result = model.ground(model.encode(scene), "the car")
        assert result.occupancy.shape == (200, 200, 16)
        assert result.query == "the car" and result.text


def test_saved_and_loaded_models_answer_alike_and_hold_no_base_weights(llava, item, tmp_path):
    model = tiny(llava)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.01)
    model.save_pretrained(tmp_path / "model")
    again = VLMOcc.from_pretrained(str(tmp_path / "model"))
    assert again.config == model.config
    texts = [query.text for query in item.queries]
    first, second = (m.token_scores(m.encode(item.scene), texts) for m in (model, again))
    torch.testing.assert_close(first, second, atol=1e-6, rtol=0)
    names = json.loads((tmp_path / "model" / "weights.json").read_text())
    assert not any("image_network" in name or "embed_tokens.weight" in name for name in names)
    assert not any(path.suffix not in (".json", ".safetensors") for path in (tmp_path / "model").iterdir())


def test_broken_checkpoints_are_refused_with_their_reason(llava, tmp_path):
    model = tiny(llava)
    folder = tmp_path / "model"
    model.save_pretrained(folder)
    config = json.loads((folder / "config.json").read_text())

    def refused(change: dict, words: str) -> None:
        (folder / "config.json").write_text(json.dumps({**config, **change}))
        with pytest.raises(ValueError, match=words):
            VLMOcc.from_pretrained(str(folder))

    refused({"format_version": FORMAT_VERSION + 1}, "format version")
    refused({"base_hash": "0" * 64}, "trained on a base model")
    refused({"model": {**config["model"], "colour": 3}}, "unknown config key")
    refused({"model": {**config["model"], "head_width": 48}}, "shape")
    (folder / "config.json").write_text("{")
    with pytest.raises(ValueError, match="not the config"):
        VLMOcc.from_pretrained(str(folder))
    (folder / "config.json").write_text(json.dumps(config))
    shard = next(folder.glob("*.safetensors"))
    shard.write_bytes(shard.read_bytes()[:-100])
    with pytest.raises(ValueError, match="damaged"):
        VLMOcc.from_pretrained(str(folder))


@pytest.mark.parametrize("name", ["nanoo", "/no/such/folder", "a/b/c"])
def test_an_unknown_model_name_says_what_was_expected(name):
    with pytest.raises(ValueError, match="unknown model"):
        VLMOcc.from_pretrained(name)


def test_a_folder_with_other_things_in_it_is_not_overwritten(llava, tmp_path):
    (tmp_path / "thesis.txt").write_text("precious")
    with pytest.raises(ValueError, match="not empty"):
        tiny(llava).save_pretrained(tmp_path)
    assert (tmp_path / "thesis.txt").read_text() == "precious"


def test_the_true_objects_are_decoded_in_training_and_the_found_ones_otherwise(llava, item):
    model = tiny(llava, score_threshold=2.0)
    with torch.no_grad():
        trained = model(make_batch([item], model.config), extra_voxels=(item.labels.semantics != FREE)[None])
        asked = model(make_batch([item], model.config, training=False))
    assert asked.objects == ()
    wanted = {
        (q, t) for q, query in enumerate(item.queries) for t in query.targets if trained.matches[0][t] >= 0
    }
    assert {(o.query, o.target) for o in trained.objects} == wanted


def test_queries_do_not_see_each_other(llava, item):
    model = tiny(llava)
    state = model.encode(item.scene)
    together = model.token_scores(state, ["the red car", "the bus behind us", "all cones"])
    turned = model.token_scores(state, ["all cones", "the red car", "the bus behind us"])
    torch.testing.assert_close(together, turned[[1, 2, 0]], atol=1e-5, rtol=1e-5)


def test_an_answer_without_words_trains_no_language(llava, item):
    model = tiny(llava)
    silent = replace(item, queries=tuple(replace(q, answer="") for q in item.queries))
    batch = make_batch([silent], model.config)
    terms = grounding_terms(model, model(batch), batch, [item.labels])
    assert terms["language"].total.item() == 0
    assert isinstance(silent.queries[0], GroundingQuery)


def test_a_language_model_without_voxel_tokens_leaves_the_heads_the_trunks_tokens(llava, item):
    torch.manual_seed(0)
    model = tiny(llava, voxel_tokens=False)
    batch = make_batch([item], model.config, training=False)
    seen = model.perception(batch.inputs)
    assert len(seen.tokens[0].features)
    (said,) = model.language_states(batch, seen)
    assert said.tokens.shape == (len(seen.tokens[0].features), model.backbone.hidden_size)
    assert not said.tokens.any()
    state = model.encode(item.scene)
    (whole,) = tiny(llava).language_states(batch, seen)
    assert len(said.queries[0]) == len(whole.queries[0])
    longer = tiny(llava).encode(item.scene).language
    assert len(longer.hidden) - len(state.language.hidden) == len(state.token_boxes)  # type: ignore[union-attr]
    scores = model.token_scores(state, [q.text for q in item.queries])
    trained = model.ground_batch(batch, seen, decode=False).scores[0].scores()
    torch.testing.assert_close(scores, trained, atol=1e-4, rtol=1e-3)


def test_random_language_weights_are_the_same_every_time_and_keep_the_vision(llava):
    first, again, known = (
        tiny(llava, language_weights=weights) for weights in ("random", "random", "pretrained")
    )
    mine, same, base = (dict(m.backbone.model.named_parameters()) for m in (first, again, known))
    name = next(
        n for n in mine if "layers.1" in n and "q_proj" in n and "lora" not in n and "vision" not in n
    )
    assert torch.equal(mine[name], same[name]) and not torch.equal(mine[name], base[name])
    tower = [n for n in mine if "vision" in n and "lora" not in n]
    assert tower and all(torch.equal(mine[n], base[n]) for n in tower)
    words = first.backbone.word_embeddings(torch.arange(20))
    assert words.std().item() == pytest.approx(0.02, rel=0.2)
    with pytest.raises(ValueError, match="quantization 'none'"):
        tiny(llava, language_weights="random", quantization="nf4")
