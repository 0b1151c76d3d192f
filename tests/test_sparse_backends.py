"""spconv's backends: chosen rightly, fed rightly (a stand-in for the package), and equal to the reference."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from test_sparse import random_tensor
from torch import Tensor
from torch.nn import functional

from vlm_occ.encoders import sparse_backends
from vlm_occ.encoders.sparse import SparseConv3d, SparseTensor, SubmanifoldConv3d
from vlm_occ.encoders.sparse_backends import MODULES, VARIABLE, Backend, chosen_backend, lack

CPU, GPU = torch.device("cpu"), torch.device("cuda")


class Sparse:
    """spconv's tensor."""

    def __init__(self, features: Tensor, indices: Tensor, spatial_shape: list[int], batch_size: int) -> None:
        assert indices.dtype == torch.int32 and features.is_contiguous()
        self.features, self.indices = features, indices
        self.spatial_shape, self.batch_size = spatial_shape, batch_size
        self.indice_dict: dict[Any, Any] = {}


class Layer:
    """spconv's layer by a dense convolution of its weight layout; strided rows come in a shuffled order."""

    def __init__(
        self,
        width_in: int,
        width_out: int,
        kernel: int,
        *,
        stride: int = 1,
        padding: int,
        bias: bool,
        indice_key: str | None = None,
    ) -> None:
        assert not bias
        self.shape = (width_out, kernel, kernel, kernel, width_in)
        self.stride, self.padding, self.key = stride, padding, indice_key

    def _conv_forward(self, training: bool, tensor: Sparse, weight: Tensor, bias: Tensor | None) -> Sparse:
        assert training and bias is None
        assert weight.shape == self.shape and weight.dtype == tensor.features.dtype
        place = tensor.indices.long()
        dense = self._dense(tensor, tensor.features.float(), weight.float().permute(0, 4, 1, 2, 3))
        if self.key:
            tensor.indice_dict[self.key] = tensor.indice_dict.get(self.key, 0) + 1
        else:
            ones = torch.ones(len(place), 1), torch.ones(1, 1, *weight.shape[1:4])
            place = (self._dense(tensor, *ones)[:, 0] > 0).nonzero()
            place = place[torch.randperm(len(place))]
        batch, x, y, z = place.unbind(1)
        features = dense[batch, :, x, y, z].to(tensor.features.dtype)
        result = Sparse(features.contiguous(), place.int(), list(dense.shape[2:]), tensor.batch_size)
        result.indice_dict = tensor.indice_dict
        return result

    def _dense(self, tensor: Sparse, features: Tensor, weight: Tensor) -> Tensor:
        """The dense convolution [B, out, X, Y, Z] of features on a tensor's voxels."""
        size_x, size_y, size_z = tensor.spatial_shape
        shape = (size_x, size_y, size_z)
        volume = SparseTensor(tensor.indices.long(), features, shape, tensor.batch_size).dense()
        return functional.conv3d(volume, weight, stride=self.stride, padding=self.padding)


@pytest.fixture
def package(monkeypatch: pytest.MonkeyPatch) -> None:
    """A stand-in for spconv, chosen on the CPU too."""
    stand_in = SimpleNamespace(SparseConvTensor=Sparse, SubMConv3d=Layer, SparseConv3d=Layer)
    monkeypatch.setattr("vlm_occ.encoders.sparse_backends.package_of", lambda _: stand_in)
    monkeypatch.setattr("vlm_occ.encoders.sparse.chosen_backend", lambda _: "spconv")


def test_layers_give_the_package_what_it_expects_and_return_what_the_reference_does(package: None) -> None:
    del package
    torch.manual_seed(0)
    tensor = random_tensor(channels=4)
    first, second = SubmanifoldConv3d(4, 6, bias=True), SubmanifoldConv3d(6, 6)
    down = SparseConv3d(6, 8, 2, 2, 0, bias=True)
    found = down(second(first(tensor)))
    assert tensor.neighbours == {"submanifold-3": 2}  # the second layer finds what the first one shared
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("vlm_occ.encoders.sparse.chosen_backend", lambda _: "reference")
        expected = down(second(first(random_tensor(channels=4))))
    assert torch.equal(found.index, expected.index) and found.shape == expected.shape
    torch.testing.assert_close(found.features, expected.features, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_spconv_computes_half_precision_in_fp32(package: None, dtype: torch.dtype) -> None:
    del package
    layer = SubmanifoldConv3d(4, 6)
    with torch.autocast("cpu", dtype=dtype):
        found = layer(random_tensor(channels=4)).features
    exact = layer(random_tensor(channels=4)).features
    assert found.dtype == dtype and torch.equal(found, exact.to(dtype))


def test_gradients_reach_our_weights_through_the_package(package: None) -> None:
    del package
    layer = SubmanifoldConv3d(4, 6)
    layer(random_tensor(channels=4)).features.square().sum().backward()
    found = layer.weight.grad
    layer.weight.grad = None
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("vlm_occ.encoders.sparse.chosen_backend", lambda _: "reference")
        layer(random_tensor(channels=4)).features.square().sum().backward()
    assert found is not None and layer.weight.grad is not None
    torch.testing.assert_close(found, layer.weight.grad, atol=1e-4, rtol=1e-4)


def test_the_cpu_never_runs_spconv(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sparse_backends, "installed", lambda backend: f"{backend} 9.9")
    monkeypatch.setattr(sparse_backends, "_import_error", lambda backend: "")
    monkeypatch.delenv(VARIABLE, raising=False)
    assert chosen_backend(CPU) == "reference" and chosen_backend(GPU) == "spconv"
    for name in MODULES:
        monkeypatch.setenv(VARIABLE, name)
        assert chosen_backend(GPU) == name
        with pytest.raises(ValueError, match=f"{name} needs a GPU"):
            chosen_backend(CPU)
    monkeypatch.setenv(VARIABLE, "reference")
    assert chosen_backend(GPU) == "reference"


def test_a_backend_that_is_not_there_is_refused_with_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sparse_backends, "installed", lambda backend: "")
    monkeypatch.setenv(VARIABLE, "spconv")
    with pytest.raises(ValueError, match=r"pip install 'vlm-occ\[spconv-cu126\]'"):
        chosen_backend(GPU)
    monkeypatch.setenv(VARIABLE, "minkowski")
    with pytest.raises(ValueError, match="expected one of auto, reference, spconv-triton, spconv"):
        chosen_backend(CPU)


def test_doctor_says_why_a_backend_does_not_run(monkeypatch: pytest.MonkeyPatch) -> None:
    from vlm_occ import doctor

    monkeypatch.setattr(doctor, "_device_names", lambda: ["cpu"])
    lines = {finding.what: finding for finding in doctor._sparse_backends()}
    assert set(lines) == {"sparse: spconv-triton", "sparse: spconv"}
    assert all(line.state == "note" and "needs a GPU" in line.detail for line in lines.values())
    monkeypatch.setattr(doctor, "_device_names", lambda: ["cpu", "cuda:0"])
    monkeypatch.setattr(sparse_backends, "installed", lambda backend: "")
    triton = next(line for line in doctor._sparse_backends() if line.what == "sparse: spconv-triton")
    assert triton.state == "missing" and triton.remedy == "pip install 'vlm-occ[spconv-triton]'"
    monkeypatch.setattr(sparse_backends, "installed", lambda backend: f"{backend} 9.9")
    monkeypatch.setattr(sparse_backends, "_import_error", lambda backend: "")
    said = {finding.what: finding.detail for finding in doctor._sparse_backends()}
    assert said["sparse: spconv"].endswith("used on cuda:0")
    assert said["sparse: spconv-triton"].endswith("loads; VLM_OCC_SPARSE=spconv-triton takes it")


def test_doctor_reports_a_backend_that_the_variable_names_in_vain(monkeypatch: pytest.MonkeyPatch) -> None:
    from vlm_occ import doctor

    monkeypatch.setattr(doctor, "_device_names", lambda: ["cpu"])
    monkeypatch.setenv(VARIABLE, "spconv")
    (line,) = doctor._sparse()
    assert line.state == "broken" and "needs a GPU" in line.detail and line.remedy == f"unset {VARIABLE}"
    monkeypatch.setenv(VARIABLE, "auto")
    (line,) = doctor._sparse()
    assert line.state == "ok" and line.detail.startswith("reference runs")


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float16, 1e-3)])
@pytest.mark.parametrize("backend", MODULES)
def test_a_backend_on_the_gpu_equals_the_reference(
    backend: Backend, dtype: torch.dtype, tolerance: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not torch.cuda.is_available():
        pytest.skip("no GPU here")
    if reason := lack(backend, GPU):
        pytest.skip(reason)
    torch.manual_seed(0)
    tensor = random_tensor(channels=16)
    tensor = SparseTensor(tensor.index.to(GPU), tensor.features.to(GPU), tensor.shape, 2)
    first = SubmanifoldConv3d(16, 16)
    layers = torch.nn.Sequential(first, SubmanifoldConv3d(16, 16), SparseConv3d(16, 32, 2, 2, 0)).to(GPU)
    results = []
    for name in ("reference", backend):
        monkeypatch.setenv(VARIABLE, name)
        layers.zero_grad()
        with torch.autocast("cuda", dtype=dtype, enabled=dtype != torch.float32):
            output = layers(tensor.with_features(tensor.features))
        output.features.float().square().sum().backward()
        assert first.weight.grad is not None
        results.append((output.index, output.features.float(), first.weight.grad.clone()))
    assert torch.equal(results[0][0], results[1][0])
    scale = results[0][1].abs().max()
    torch.testing.assert_close(results[1][1] / scale, results[0][1] / scale, atol=tolerance, rtol=0)
    scale = results[0][2].abs().max()
    torch.testing.assert_close(results[1][2] / scale, results[0][2] / scale, atol=10 * tolerance, rtol=0)
