"""Sparse convolutions against the dense ones of torch."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from vlm_occ.encoders.sparse import (
    SparseConv3d,
    SparseTensor,
    SubmanifoldConv3d,
    submanifold_rulebook,
)

SHAPE = (7, 6, 5)


def random_tensor(
    *, channels: int, seed: int = 0, fill: float = 0.3, dtype: torch.dtype = torch.float32
) -> SparseTensor:
    """Two grids with `fill` of their voxels, rows in random order."""
    generator = torch.Generator().manual_seed(seed)
    index = (torch.rand(2, *SHAPE, generator=generator) < fill).nonzero()
    index = index[torch.randperm(len(index), generator=generator)]
    features = torch.randn(len(index), channels, generator=generator, dtype=torch.float64).to(dtype)
    return SparseTensor(index, features, SHAPE, 2)


def dense_at(volume: Tensor, index: Tensor) -> Tensor:
    """Values [M, C] of a dense volume [B, C, X, Y, Z] at voxels [M, 4]."""
    batch, x, y, z = index.unbind(1)
    return volume[batch, :, x, y, z]


def conv3d(tensor: SparseTensor, weight: Tensor, bias: Tensor | None, **options: int) -> Tensor:
    return functional.conv3d(tensor.dense(), weight.permute(0, 4, 1, 2, 3), bias, **options)


def test_dense_puts_each_row_into_its_cell() -> None:
    tensor = random_tensor(channels=3)
    dense = tensor.dense()
    expected = torch.zeros(2, 3, *SHAPE)
    for (batch, x, y, z), row in zip(tensor.index.tolist(), tensor.features, strict=True):
        expected[batch, :, x, y, z] = row
    assert torch.equal(dense, expected)


@pytest.mark.parametrize("kernel", [1, 3, 5])
def test_submanifold_equals_dense_convolution_at_the_input_voxels(kernel: int) -> None:
    torch.manual_seed(1)
    tensor = random_tensor(channels=4)
    layer = SubmanifoldConv3d(4, 6, kernel, bias=True)
    output = layer(tensor)
    expected = dense_at(conv3d(tensor, layer.weight, layer.bias, padding=kernel // 2), tensor.index)
    assert torch.equal(output.index, tensor.index)
    torch.testing.assert_close(output.features, expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize(("kernel", "stride", "padding"), [(3, 2, 1), (2, 2, 0), (3, 1, 1), (3, 3, 0)])
def test_strided_equals_dense_convolution_and_keeps_all_reached_voxels(
    kernel: int, stride: int, padding: int
) -> None:
    torch.manual_seed(2)
    tensor = random_tensor(channels=4, fill=0.1)
    layer = SparseConv3d(4, 6, kernel, stride, padding)
    output = layer(tensor)
    expected = conv3d(tensor, layer.weight, None, stride=stride, padding=padding)
    torch.testing.assert_close(output.dense(), expected, atol=1e-5, rtol=0)
    ones = tensor.with_features(torch.ones(len(tensor.index), 1))
    reach = conv3d(ones, torch.ones(1, *[kernel] * 3, 1), None, stride=stride, padding=padding)
    assert torch.equal(output.index, (reach[:, 0] > 0).nonzero())


@pytest.mark.parametrize("kind", ["submanifold", "strided"])
def test_gradients_equal_those_of_the_dense_convolution(kind: str) -> None:
    torch.manual_seed(3)
    tensor = random_tensor(channels=4)
    features = tensor.features.requires_grad_()
    strided = kind == "strided"
    layer = SparseConv3d(4, 6, 3, 2, 1) if strided else SubmanifoldConv3d(4, 6)
    output = layer(tensor)
    target = torch.randn_like(output.features)
    found = torch.autograd.grad((output.features * target).sum(), [features, layer.weight])
    dense = conv3d(tensor, layer.weight, None, padding=1, stride=2 if strided else 1)
    expected = torch.autograd.grad((dense_at(dense, output.index) * target).sum(), [features, layer.weight])
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-5)


@pytest.mark.parametrize("kind", ["submanifold", "strided"])
def test_gradients_equal_finite_differences(kind: str) -> None:
    torch.manual_seed(4)
    tensor = random_tensor(channels=2, fill=0.1, dtype=torch.float64)
    layer = SparseConv3d(2, 2, 3, 2, 1) if kind == "strided" else SubmanifoldConv3d(2, 2)
    weight = layer.double().weight.detach().requires_grad_()

    def apply(features: Tensor, weight: Tensor) -> Tensor:
        return torch.func.functional_call(layer, {"weight": weight}, tensor.with_features(features)).features

    assert torch.autograd.gradcheck(apply, (tensor.features.requires_grad_(), weight))


def test_the_order_of_rows_does_not_matter() -> None:
    tensor = random_tensor(channels=4)
    order = torch.randperm(len(tensor.index), generator=torch.Generator().manual_seed(5))
    shuffled = SparseTensor(tensor.index[order], tensor.features[order], SHAPE, 2)
    for layer in (SubmanifoldConv3d(4, 4), SparseConv3d(4, 4, 3, 2, 1)):
        torch.testing.assert_close(layer(tensor).dense(), layer(shuffled).dense(), atol=1e-6, rtol=0)


def test_scenes_of_a_batch_do_not_see_each_other() -> None:
    tensor = random_tensor(channels=4)
    layer = SparseConv3d(4, 4, 3, 2, 1)
    together = layer(tensor).dense()
    for scene in range(2):
        mine = tensor.index[:, 0] == scene
        index = tensor.index[mine] * torch.tensor([0, 1, 1, 1])
        alone = layer(SparseTensor(index, tensor.features[mine], SHAPE, 1)).dense()
        torch.testing.assert_close(together[scene], alone[0], atol=1e-6, rtol=0)


def test_no_voxel_gives_no_voxel_and_zero_gradients() -> None:
    empty = SparseTensor(torch.zeros(0, 4, dtype=torch.long), torch.zeros(0, 3), SHAPE, 2)
    first, second = SubmanifoldConv3d(3, 4), SparseConv3d(4, 5, 3, 2, 1)
    dense = second(first(empty)).dense()
    assert dense.shape == (2, 5, 4, 3, 3) and not dense.any()
    dense.sum().backward()
    assert first.weight.grad is not None and not first.weight.grad.any()


def test_layers_on_the_same_voxels_share_one_rulebook() -> None:
    tensor = random_tensor(channels=4)
    pairs = submanifold_rulebook(tensor, 3)
    after = SubmanifoldConv3d(4, 4)(SubmanifoldConv3d(4, 4)(tensor))
    assert submanifold_rulebook(after, 3) is pairs


def test_under_autocast_the_result_is_bfloat16_and_close() -> None:
    torch.manual_seed(6)
    tensor, layer = random_tensor(channels=16), SubmanifoldConv3d(16, 16)
    exact = layer(tensor).features
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = layer(tensor).features
    assert output.dtype == torch.bfloat16
    error = (output.float() - exact).norm() / exact.norm()
    assert error < 0.01
    output.sum().backward()
    assert layer.weight.grad is not None and layer.weight.grad.dtype == torch.float32


def test_an_even_submanifold_kernel_is_refused() -> None:
    with pytest.raises(ValueError, match="odd kernel"):
        SubmanifoldConv3d(2, 2, 4)
