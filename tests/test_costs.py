"""Counted costs of backbones against models that exist."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from tiny_backbones import RANK_4, scene
from tiny_models import SAVERS

from vlm_occ.language.costs import BYTES, PUBLISHED, costs_of, tables
from vlm_occ.language.loading import load_backbone


@pytest.mark.parametrize("family", sorted(SAVERS))
def test_counts_are_those_of_a_loaded_model(family: str, tmp_path: Path) -> None:
    folder = SAVERS[family](tmp_path)
    cost = costs_of(json.loads((folder / "config.json").read_text()), image_size=(60, 100))
    from transformers import AutoModelForImageTextToText

    model = AutoModelForImageTextToText.from_pretrained(folder)
    assert cost.layer_weights + cost.other_weights == sum(p.numel() for p in model.parameters())
    backbone = load_backbone(str(folder), dtype=torch.float32, lora=RANK_4)
    lora = [v.numel() for name, v in backbone.trainable_state().items() if name.startswith("lora.")]
    assert 4 * cost.lora_weights == sum(lora)
    one, two = (scene(backbone, frames=count)[0] for count in (1, 2))
    assert cost.frame_tokens + 1 == len(two.input_ids) - len(one.input_ids)
    state = backbone.encode_prefix(*scene(backbone, frames=1))
    cache = sum(layer.keys.numel() + layer.values.numel() for layer in state.cache.layers)  # type: ignore[union-attr]
    assert 2 * cache == len(one.input_ids) * cost.token_cache


def test_published_models_have_their_published_sizes_and_tokens() -> None:
    cost = costs_of(PUBLISHED["Qwen3-VL-2B"])  # the Hub says 2.13 G
    assert (cost.layer_weights + cost.other_weights) / 1e9 == pytest.approx(2.13, abs=0.005)
    assert cost.frame_tokens == 12 * 21 + 2  # 900 x 1600 at 384 x 672: 32 pixels a token
    smol = costs_of(PUBLISHED["SmolVLM2-256M"])
    assert (smol.layer_weights + smol.other_weights) / 1e9 == pytest.approx(0.256, abs=0.002)
    assert smol.frame_tokens == 64 + 3
    assert smol.prefix(6, 2, voxels=10, words=5) == 12 * 68 + 15


def test_nf4_takes_4_127_bits_a_weight() -> None:
    assert 8 * BYTES["nf4"] == pytest.approx(4.127, abs=1e-3)  # arXiv 2305.14314, section 3


def test_the_tables_of_the_page_are_those_that_the_script_prints() -> None:
    page = (Path(__file__).parents[1] / "docs" / "backbones.md").read_text()
    for table in tables().split("\n\n"):
        assert table in page, "run python scripts/backbone_costs.py and put its tables into docs/backbones.md"
