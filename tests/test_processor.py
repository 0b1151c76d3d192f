"""Sentences as token ids, and the folders of bases, on tiny models of both families."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tiny_models import SAVERS

from vlm_occ.language.backbones import Backbone
from vlm_occ.language.loading import load_backbone
from vlm_occ.language.tokens import GROUND, ORIENTATION, POSITION


@pytest.fixture(scope="module", params=sorted(SAVERS))
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return SAVERS[request.param](tmp_path_factory.mktemp(request.param))


@pytest.fixture(scope="module")
def backbone(folder: Path) -> Backbone:
    return load_backbone(str(folder), dtype=torch.float32)


def test_users_cannot_write_special_tokens(backbone: Backbone) -> None:
    ids, ground = backbone.query_ids("a <|ground|> b <|voxel|> <|im_end|>")
    assert ids.tolist().count(backbone.token_ids.ground) == 1 and ids[ground] == backbone.token_ids.ground
    assert backbone.token_ids.voxel not in ids


def test_a_query_is_a_turn_of_the_chat_template(backbone: Backbone) -> None:
    history = [("first", "one.")]
    ids, _ = backbone.query_ids("second", "two.", history=history)
    middle, end = f"<|im_end|>\n<|im_start|>assistant\n{GROUND} ", "<|im_end|>"
    expected = f"first{middle}one.{end}\n<|im_start|>user\nsecond{middle}two.{end}"
    assert backbone.tokenizer.decode(ids) == expected


def test_situation_tokens_stand_between_situation_and_question(backbone: Backbone) -> None:
    ids, position, orientation = backbone.situation_ids("I wait", "What is left?")
    assert str(backbone.tokenizer.decode(ids)).startswith(f"I wait{POSITION}{ORIENTATION}What is left?")
    assert ids[position] == backbone.token_ids.position and ids[orientation] == backbone.token_ids.orientation


def test_wrong_queries_are_refused_with_the_reason(backbone: Backbone) -> None:
    with pytest.raises(ValueError, match="empty"):
        backbone.query_ids("  \n")
    with pytest.raises(ValueError, match="shorten"):
        backbone.query_ids("word " * 10_000)


def test_new_rows_do_not_depend_on_the_process(folder: Path) -> None:
    tables = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        backbone = load_backbone(str(folder), dtype=torch.float32)
        words = backbone.word_embeddings(torch.arange(len(backbone.tokenizer)))
        tables.append((words, backbone.model.get_output_embeddings().weight, backbone.trainable_state()))  # type: ignore[union-attr]
    assert torch.equal(tables[0][0], tables[1][0])
    ours = list(vars(backbone.token_ids).values())
    assert torch.equal(tables[0][1][ours], tables[1][1][ours])
    assert torch.equal(tables[0][2]["token_rows"], tables[1][2]["token_rows"])


def test_the_base_hash_tells_weights_apart_but_not_their_files(folder: Path, tmp_path: Path) -> None:
    from vlm_occ.language.bases import base_hash, load_base

    assert base_hash(folder) == load_backbone(str(folder), dtype=torch.float32).base_hash
    other = SAVERS[load_backbone(str(folder)).family](tmp_path / "other", seed=5)
    assert base_hash(other) != base_hash(folder)
    model, _ = load_base(folder, torch.float32)
    model.save_pretrained(tmp_path / "shards", max_shard_size="20KB")
    assert len(list((tmp_path / "shards").glob("*.safetensors"))) > 1
    assert base_hash(tmp_path / "shards") == base_hash(folder)


def test_unknown_and_damaged_bases_are_refused_with_the_remedy(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="unknown base model"):
        load_backbone(str(tmp_path / "nowhere"))
    with pytest.raises(ValueError, match=r"no readable config\.json"):
        load_backbone(str(tmp_path))
    (tmp_path / "config.json").write_text('{"model_type": "gpt2"}')
    with pytest.raises(ValueError, match="gpt2"):
        load_backbone(str(tmp_path))
    (tmp_path / "config.json").write_text((folder / "config.json").read_text())
    (tmp_path / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes()[:100])
    with pytest.raises(ValueError, match="not a safetensors file"):
        load_backbone(str(tmp_path))
