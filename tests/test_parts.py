"""Dense parts as ONNX: onnxruntime computes what PyTorch does, for other sizes than those traced."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_runs import prepare, tiny_config
from torch import Tensor

from vlm_occ.models.adapter import VLMOcc
from vlm_occ.models.parts import Part, dense_parts, export_parts

onnxruntime = pytest.importorskip("onnxruntime", reason="pip install 'vlm-occ[export]'")
pytest.importorskip("onnxscript", reason="pip install 'vlm-occ[export]'")
NAMES = ("images", "birds_eye", "pointer", "boxes", "mask")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> VLMOcc:
    """A tiny model whose heads do something."""
    folder = prepare(tmp_path_factory.getbasetemp() / "tiny")
    model = VLMOcc.from_config(tiny_config(folder, folder).model).eval()
    torch.manual_seed(0)
    for parameter in model.box.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    return model


@pytest.fixture(scope="module")
def files(model: VLMOcc, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Its parts, exported."""
    return export_parts(model, tmp_path_factory.mktemp("onnx"))


def resized(part: Part, count: int) -> dict[str, Tensor]:
    """Inputs of a part with `count` rows (and one more for each other name) where any number is allowed."""
    labels = sorted({label for places in part.dynamic.values() for label in places.values()})
    inputs = {}
    for name, value in part.inputs.items():
        shape = list(value.shape)
        for place, label in part.dynamic.get(name, {}).items():
            shape[place] = count + labels.index(label)
        bits = torch.Generator().manual_seed(count + 1)  # with which no two scores tie for the best
        drawn = torch.randn(shape, generator=bits)
        if value.dtype == torch.bool:  # at least one word
            inputs[name] = drawn.argsort(dim=-1) < 1 + count // 2
        else:
            inputs[name] = drawn.abs() + 1 if name in ("first", "box") else drawn
    return inputs


@pytest.mark.parametrize("name", NAMES)
def test_onnxruntime_computes_what_pytorch_does(name: str, model: VLMOcc, files: dict[str, Path]) -> None:
    part = dense_parts(model)[name]
    session = onnxruntime.InferenceSession(files[name], providers=["CPUExecutionProvider"])
    for count in (1, 9) if part.dynamic else (1,):
        inputs = resized(part, count)
        with torch.no_grad():
            expected = part.module.eval()(**inputs)
        expected = (expected,) if isinstance(expected, Tensor) else expected
        found = session.run(list(part.outputs), {key: value.numpy() for key, value in inputs.items()})
        for one, two in zip(found, expected, strict=True):
            np.testing.assert_allclose(one, two.numpy(), atol=1e-3 * float(two.abs().max()), rtol=0)
