"""Checkpoints to the Hub and back, on a stand-in; model cards; transformers' Auto classes."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import yaml
from hub_stand_in import Hub, local_hub
from tiny_runs import prepare, tiny_config

from vlm_occ.models.adapter import VLMOcc
from vlm_occ.models.card import model_card
from vlm_occ.models.checkpoint import model_state

RESULTS = {
    "overall": {"n": 1234, "acc25": 0.4321, "acc25_interval": [0.4, 0.47], "acc50": 0.2, "miou": 0.31},
    "heldout_words": {"n": 0, "acc25": None},
    "lidar_only": {"overall": {"n": 60, "acc25": 0.25, "acc50": None}},
    "protocol": {"commit": "abc123", "command": "vlm-occ eval --data sim", "hardware": "2 CPU cores"},
}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> VLMOcc:
    """A tiny model."""
    folder = prepare(tmp_path_factory.getbasetemp() / "tiny")
    return VLMOcc.from_config(tiny_config(folder, folder).model, seed=5)


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[Hub]:
    """An empty stand-in for the Hub."""
    with pytest.MonkeyPatch.context() as patch, local_hub(patch, str(tmp_path / "cache")) as stand_in:
        yield stand_in


@pytest.fixture
def results(tmp_path: Path) -> Path:
    """A results file."""
    path = tmp_path / "results.json"
    path.write_text(json.dumps(RESULTS))
    return path


def test_a_model_comes_back_from_the_hub_as_it_was_sent(model: VLMOcc, hub: Hub, results: Path) -> None:
    address = model.push_to_hub("someone/tiny-occ", results=results)
    assert "/someone/tiny-occ/commit/" in address
    files = hub.repositories["someone/tiny-occ"]
    assert {Path(name).suffix for name in files} == {".json", ".safetensors", ".md"}
    assert b"| all sentences with a target | 1234 | 43.2 [40.0, 47.0] |" in files["README.md"]
    files["evil.py"] = b"raise SystemExit"  # what others put beside it is not fetched
    again = VLMOcc.from_pretrained("someone/tiny-occ")
    expected, found = model_state(model), model_state(again)
    assert expected.keys() == found.keys()
    assert all(torch.equal(expected[name], found[name]) for name in expected)
    assert not any(
        "evil.py" in request or "README" in request for request in hub.requests if "resolve" in request
    )
    known = len(hub.requests)
    hub.repositories.clear()  # the Hub has lost it; the cache has not
    VLMOcc.from_pretrained("someone/tiny-occ")
    assert len(hub.requests) > known


def test_an_unknown_id_is_refused_with_the_remedy(hub: Hub) -> None:
    with pytest.raises(ValueError, match=r"could not fetch the model 'no/body'.*check the name"):
        VLMOcc.from_pretrained("no/body")


def test_a_card_shows_the_figures_of_the_results_file_and_no_others(model: VLMOcc, results: Path) -> None:
    card = model_card(model, "someone/tiny-occ", results)
    front = yaml.safe_load(card.split("---")[1])
    assert front["library_name"] == "vlm-occ" and "base_model" not in front  # its base is a local folder
    assert "| all sentences with a target | 1234 | 43.2 [40.0, 47.0] | 20.0 | 31.0 |" in card
    assert "| without cameras | 60 | 25.0 | - | - |" in card
    assert "words that training never saw" not in card  # no sentence was of that kind
    assert "- commit: abc123" in card and "untrained" in card
    assert str(results.parent) not in card and model.config.base not in card  # no paths of this machine
    assert "no figure is claimed" in model_card(model, "someone/tiny-occ")


@pytest.mark.parametrize("text", ["[]", "{}", '{"overall": 1, "protocol": {}}', "not json"])
def test_a_file_that_holds_no_results_is_refused(model: VLMOcc, tmp_path: Path, text: str) -> None:
    (tmp_path / "odd.json").write_text(text)
    with pytest.raises(ValueError, match="give a file that `vlm-occ eval` wrote"):
        model_card(model, "someone/tiny-occ", tmp_path / "odd.json")


def test_transformers_auto_classes_read_a_checkpoint(model: VLMOcc, hub: Hub, tmp_path: Path) -> None:
    from transformers import AutoConfig, AutoModel

    import vlm_occ.models.auto  # noqa: F401  # registers

    model.save_pretrained(tmp_path / "saved")
    config = AutoConfig.from_pretrained(tmp_path / "saved")
    assert config.model_type == "vlm_occ" and config.model["head_width"] == 16
    again = AutoModel.from_pretrained(tmp_path / "saved")
    model.push_to_hub("someone/tiny-occ")
    assert isinstance(again, VLMOcc) and isinstance(AutoModel.from_pretrained("someone/tiny-occ"), VLMOcc)
    assert any(request.endswith("/config.json") for request in hub.requests if "/resolve/" in request)
    assert torch.equal(again.factors.offset, model.factors.offset)
    with pytest.raises(ValueError, match="unknown option 'torch_dtype'"):
        AutoModel.from_pretrained(tmp_path / "saved", torch_dtype="auto")
