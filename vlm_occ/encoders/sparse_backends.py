"""Which package computes sparse convolutions: the exact reference, or spconv's kernels on a GPU.

`spconv-triton` (Triton kernels) and `spconv` (2.x, CUDA wheels) share an interface and our weight layout. On
the CPU neither is ever used: spconv's submanifold convolution is wrong there with more than one thread.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import os
from contextlib import nullcontext
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal, cast

import torch
from torch import Tensor

Backend = Literal["reference", "spconv-triton", "spconv"]
MODULES: dict[Backend, str] = {"spconv-triton": "spconv_triton.pytorch", "spconv": "spconv.pytorch"}
"""Packages: Triton's kernels run on every GPU that torch does, spconv's wheels end at CUDA 12.6."""
AUTO: Backend = "spconv"
"""What `auto` takes where it loads. On an H100 the reference was as fast as spconv-triton or faster
(results/sparse_gpu.json), which first looks for tilings for minutes: it runs where it is named."""
VARIABLE = "VLM_OCC_SPARSE"
"""Names a backend for this process: auto (default), reference, spconv-triton or spconv."""
EXACT_IN_HALF: tuple[Backend, ...] = ("spconv-triton",)
"""Packages whose fp16 is right to 1e-3 of the largest output: spconv's was off by up to 3.6e-3 on an H100,
and no faster than its fp32 (results/sparse_gpu.json)."""
EXTRAS = {"spconv-triton": "spconv-triton", "spconv": "spconv-cu126"}


@dataclass(frozen=True)
class Kernel:
    """What kind of convolution a layer is."""

    size: int
    stride: int = 1
    padding: int = 0
    submanifold: bool = False


def chosen_backend(device: torch.device) -> Backend:
    """The backend for tensors of a device; ValueError where VLM_OCC_SPARSE names one that can't be used."""
    name = os.environ.get(VARIABLE, "auto")
    if name == "auto":
        return "reference" if lack(AUTO, device) else AUTO
    if name not in ("reference", *MODULES):
        choices = ", ".join(("auto", "reference", *MODULES))
        raise ValueError(f"{VARIABLE} = {name!r}, expected one of {choices}")
    if reason := lack(cast(Backend, name), device):
        raise ValueError(f"{VARIABLE} = {name!r}, but {reason}; or unset the variable")
    return cast(Backend, name)


def lack(backend: Backend, device: torch.device) -> str:
    """Why a backend can't be used for tensors of a device, with the remedy; empty where it can."""
    if backend == "reference":
        return ""
    if device.type != "cuda":
        return f"{backend} needs a GPU, and these tensors are on the {device.type}; leave it at auto"
    if not installed(backend):
        return f"{backend} is not installed; run: pip install 'vlm-occ[{EXTRAS[backend]}]'"
    return _import_error(backend)


@lru_cache
def installed(backend: Backend) -> str:
    """The installed distribution of a backend with its version, empty without one."""
    for distribution in importlib.metadata.distributions():
        name = (distribution.name or "").lower().replace("_", "-")
        if name == backend or (backend == "spconv" and name.startswith("spconv-cu")):
            return f"{name} {distribution.version}"
    return ""


@lru_cache
def _import_error(backend: Backend) -> str:
    """Why the package of a backend does not load; empty where it does."""
    try:
        importlib.import_module(MODULES[backend])
    except (ImportError, OSError, RuntimeError, AttributeError) as error:
        return f"{backend} does not load ({str(error).splitlines()[0]}); install one that fits this torch"
    return ""


def convolve_with(
    backend: Backend,
    kernel: Kernel,
    weight: Tensor,
    *,
    index: Tensor,
    features: Tensor,
    shape: tuple[int, int, int],
    batch_size: int,
    shared: dict[Any, Any],
) -> tuple[Tensor, Tensor, tuple[int, int, int]]:
    """Index [N, 4], features [N, out] and grid after one convolution by the package of `backend`.

    `weight` [out, kD, kH, kW, in] is used as it is. `shared` keeps the neighbours of a set of voxels between
    submanifold layers. Rows of a strided convolution come sorted, as the reference's. Under bf16 autocast
    both packages compute in fp32 (spconv has no bf16), under fp16 autocast `EXACT_IN_HALF` in fp16; the
    result is in autocast's type.
    """
    package = package_of(backend)
    kind = features.device.type
    mixed = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else weight.dtype
    half = mixed == torch.float16 and backend in EXACT_IN_HALF
    computed = torch.float16 if half else torch.float32
    layer = _layer(package, kernel, weight.shape[-1], weight.shape[0])
    tensor = package.SparseConvTensor(
        features.to(computed).contiguous(), index.int().contiguous(), list(shape), batch_size
    )
    tensor.indice_dict = shared if kernel.submanifold else {}
    with torch.autocast(kind, enabled=False) if kind in ("cuda", "cpu") else nullcontext():
        # In training mode whatever the module's: in the other one spconv fuses a bias that we add ourselves.
        result = layer._conv_forward(True, tensor, weight.to(computed).contiguous(), None)
    out = result.features.to(mixed)
    if kernel.submanifold:
        return index, out, shape
    place = result.indices.long()  # [N, 4]
    size_x, size_y, size_z = (int(size) for size in result.spatial_shape)
    cell = ((place[:, 0] * size_x + place[:, 1]) * size_y + place[:, 2]) * size_z + place[:, 3]
    order = cell.argsort()
    return place[order], out[order], (size_x, size_y, size_z)


def _layer(package: Any, kernel: Kernel, width_in: int, width_out: int) -> Any:
    """spconv's layer for a kernel, without weights of its own."""
    common = {"bias": False, "padding": kernel.padding}
    with torch.device("meta"):
        if kernel.submanifold:
            key = f"submanifold-{kernel.size}"
            return package.SubMConv3d(width_in, width_out, kernel.size, indice_key=key, **common)
        return package.SparseConv3d(width_in, width_out, kernel.size, stride=kernel.stride, **common)


def package_of(backend: Backend) -> Any:
    """The package of a backend."""
    return importlib.import_module(MODULES[backend])
