"""Merged checkpoints answer as the adapter did, without it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import cast

import pytest
import torch
from tiny_models import SAVERS
from tiny_runs import listening, prepare, tiny_config, tiny_scenes

from vlm_occ.cli import main
from vlm_occ.language.prefixes import PrefixState
from vlm_occ.models.adapter import VLMOcc
from vlm_occ.models.merge import merge_checkpoint
from vlm_occ.types import LabelledScene, SceneState

QUERIES = ["the red car on the left", "all pedestrians behind us"]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the tiny base model and two scenes."""
    return prepare(tmp_path_factory.getbasetemp() / "tiny")


@pytest.fixture(scope="module")
def scene(tiny: Path) -> LabelledScene:
    """A tiny scene."""
    return tiny_scenes(tiny)[0]


def adapted(tiny: Path, base: Path) -> VLMOcc:
    """A model whose adapter and token rows do something."""
    config = tiny_config(tiny, base).model
    model = VLMOcc.from_config(replace(config, base=str(base)))
    torch.manual_seed(3)
    for parameter in model.backbone._trainable.values():
        parameter.data.normal_(std=0.2)
    return model.eval()


def last_state(state: SceneState) -> torch.Tensor:
    """The language model's final state at the end of a scene's prefix."""
    return cast(PrefixState, state.language).hidden[-1]


@pytest.mark.parametrize("save", list(SAVERS.values()), ids=list(SAVERS))
def test_a_merged_checkpoint_answers_as_its_adapter_did(
    tiny: Path, scene: LabelledScene, tmp_path: Path, save: Callable[[Path], Path]
) -> None:
    model = listening(adapted(tiny, save(tmp_path / "base")))
    plain = listening(VLMOcc.from_config(replace(model.config, lora=None)).eval())
    state = model.encode(scene.scene)
    before, hidden = model.token_scores(state, QUERIES), state.token_states
    words = model.backbone.logits(last_state(state)).detach()
    merge_checkpoint(model, tmp_path / "merged")
    merged = VLMOcc.from_pretrained(str(tmp_path / "merged"))
    assert merged.config.lora is None and merged.config.base == str(tmp_path / "merged" / "base")
    assert not [name for name, _ in merged.named_parameters() if "lora" in name]
    state = merged.encode(scene.scene)
    torch.testing.assert_close(merged.token_scores(state, QUERIES), before, atol=1e-4, rtol=0)
    # States are read by weights far larger than trained ones are: rounding grows with them.
    torch.testing.assert_close(state.token_states, hidden, atol=5e-4, rtol=0)
    found = merged.backbone.logits(last_state(state)).detach()
    ours = list(vars(model.backbone.token_ids).values())  # an untied output matrix gets new rows for them
    words[ours] = found[ours] = 0
    torch.testing.assert_close(found, words, atol=1e-4, rtol=0)
    assert (plain.encode(scene.scene).token_states - hidden).abs().max() > 0.1  # LoRA mattered


def test_the_base_of_a_merged_checkpoint_is_a_plain_transformers_model(tiny: Path, tmp_path: Path) -> None:
    from transformers import AutoModelForImageTextToText, AutoTokenizer

    model = adapted(tiny, tiny / "base")
    ids = torch.arange(40)[None]
    with torch.no_grad():
        expected = model.backbone.model(input_ids=ids).logits
        merge_checkpoint(model, tmp_path / "merged")
        plain = AutoModelForImageTextToText.from_pretrained(tmp_path / "merged" / "base", dtype=torch.float32)
        found = plain.eval()(input_ids=ids).logits
    ours = list(vars(model.backbone.token_ids).values())  # nothing asks for the output rows of our tokens
    found[..., ours] = expected[..., ours] = 0
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "merged" / "base")
    assert len(tokenizer) == len(model.backbone.tokenizer)


def test_the_command_merges_once_and_refuses_a_folder_in_use(
    tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    adapted(tiny, tiny / "base").save_pretrained(tmp_path / "own")
    command = ["merge", str(tmp_path / "own"), "--out", str(tmp_path / "merged")]
    assert main(command) == 0
    assert capsys.readouterr().out.strip() == str(tmp_path / "merged")
    assert main(command) == 2
    assert "exists; give a new folder" in capsys.readouterr().err
    assert main(["merge", str(tmp_path / "merged"), "--out", str(tmp_path / "again")]) == 2
    assert "no LoRA to fold" in capsys.readouterr().err
