"""`vlm-occ ground --model FOLDER` for a saved model of each family and precision."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from tiny_models import SAVERS
from tiny_runs import PERCEPTION

from vlm_occ.cli import main
from vlm_occ.config import LoraSettings, ModelConfig
from vlm_occ.data.scenes import load_scene
from vlm_occ.language.quantisation import Quantization
from vlm_occ.models.adapter import VLMOcc


@pytest.mark.parametrize("kind", ["none", "int8", "nf4"])
@pytest.mark.parametrize("family", sorted(SAVERS))
def test_a_saved_model_answers_on_the_command_line_as_in_memory(
    family: str,
    kind: Quantization,
    keyframe_folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    if kind != "none":
        pytest.importorskip("bitsandbytes", reason="pip install 'vlm-occ[quant]'")
    config = ModelConfig(
        base=str(SAVERS[family](tmp_path / "base", wide=True)),
        dtype="float32",
        quantization=kind,
        lora=LoraSettings(rank=2),
        perception=PERCEPTION,
        head_width=16,
        score_threshold=0.0,  # every token is an object: untrained heads say something
    )
    model = VLMOcc.from_config(config).eval()
    model.save_pretrained(tmp_path / "saved")
    assert (
        main(["ground", str(keyframe_folder), "a red car", "--model", str(tmp_path / "saved"), "--json"]) == 0
    )
    answer = json.loads(capsys.readouterr().out)
    expected = model.ground(model.encode(load_scene(str(keyframe_folder))), "a red car")
    assert answer["text"] == expected.text and len(answer["objects"]) == len(expected.objects) > 0
    for found, known in zip(answer["objects"], expected.objects, strict=True):
        torch.testing.assert_close(torch.tensor(found["box"]), known.box, atol=1e-3, rtol=1e-3)
        assert found["score"] == pytest.approx(known.score, abs=1e-3)
