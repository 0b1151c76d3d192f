"""Sparse convolution on every backend that runs: errors against exact sums, times and memory, in one run.

Exact is the reference in float64 on inputs and weights that are rounded to the type in question.
"""

from __future__ import annotations

import copy
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal, cast

import torch
from torch import Tensor, nn

from vlm_occ.encoders.lidar import LidarEncoder, voxelize_batch
from vlm_occ.encoders.sparse import SparseConv3d, SparseTensor, SubmanifoldConv3d
from vlm_occ.encoders.sparse_backends import VARIABLE, Backend, installed, lack
from vlm_occ.eval.report import circumstances, write_json
from vlm_occ.sparse_tuning import tune
from vlm_occ.street import street_points
from vlm_occ.timing import (
    default_device,
    device_name,
    failure_text,
    failures,
    forget_peak,
    median_milliseconds,
    peak_gib,
    settle,
)

Layer = Literal["submanifold", "strided", "encoder"]
TOLERANCES = {"float32": 1e-5, "float16": 1e-3}
"""Largest error of a layer's output, as a share of the largest output; of gradients ten times as much."""
ENCODER_WIDTH = 32
DTYPES: dict[Layer, tuple[str, ...]] = {
    "submanifold": ("float32", "float16"),
    "strided": ("float32", "float16"),
    "encoder": ("float32", "float16", "bfloat16"),
}


@dataclass(frozen=True)
class Case:
    """What one row computes: `width` channels to as many, to twice as many where strided."""

    layer: Layer
    width: int
    dtype: str
    voxels: int
    backend: Backend


@contextmanager
def using(backend: Backend) -> Iterator[None]:
    """Within it, sparse convolutions run on `backend`."""
    before = os.environ.get(VARIABLE)
    os.environ[VARIABLE] = backend
    try:
        yield
    finally:
        os.environ.pop(VARIABLE) if before is None else os.environ.update({VARIABLE: before})


ORDER: tuple[Backend, ...] = ("reference", "spconv", "spconv-triton")
"""Of the rows of one set: spconv-triton compiles its kernels, which takes longer than all else."""


def cases_of(voxels: Sequence[int], widths: Sequence[int], backends: Sequence[Backend] = ORDER) -> list[Case]:
    """All rows: small sets first, then by backend, as an error on a GPU may end all that is done on it."""
    sizes: list[tuple[Layer, int]] = [("encoder", ENCODER_WIDTH)]
    layers: tuple[Layer, ...] = ("submanifold", "strided")
    sizes.extend((layer, width) for layer in layers for width in widths)
    return [
        Case(layer, width, dtype, count, backend)
        for count in voxels
        for backend in backends
        for layer, width in sizes
        for dtype in DTYPES[layer]
    ]


class LayerRun:
    """One layer on one set of voxels, as it is computed by the chosen backend."""

    def __init__(self, case: Case, points: Tensor, grid: object, device: torch.device) -> None:
        torch.manual_seed(case.width)
        self.case, self.device, self.dtype = case, device, cast(torch.dtype, getattr(torch, case.dtype))
        self.grid = grid
        width = case.width
        self.layer: nn.Module = SubmanifoldConv3d(width, width)
        if case.layer == "strided":
            self.layer = SparseConv3d(width, 2 * width, 2, 2, 0)  # as the encoder's
        rounded = {n: p.to(self.dtype).float() for n, p in self.layer.state_dict().items()}
        self.layer.load_state_dict(rounded)
        self.layer.to(device)
        bits = torch.Generator().manual_seed(case.voxels)
        self.index = voxelize_batch([points], grid).index.to(device)  # type: ignore[arg-type]
        features = torch.randn(len(self.index), width, generator=bits).to(self.dtype).float()
        self.features = features.to(device).requires_grad_()
        self.upper: Tensor | None = None

    def tensor(self) -> SparseTensor:
        """The voxels, whose neighbours are not known yet."""
        return SparseTensor(self.index, self.features, self.grid.shape, 1)  # type: ignore[attr-defined]

    def forward(self, tensor: SparseTensor) -> Tensor:
        """The layer's output [N, C], in the case's type."""
        with torch.autocast(self.device.type, dtype=self.dtype, enabled=self.dtype != torch.float32):
            return self.layer(tensor).features

    def training(self, tensor: SparseTensor) -> list[Tensor]:
        """Output, and gradients of input and weight, under one upper gradient."""
        self.layer.zero_grad()
        self.features.grad = None
        output = self.forward(tensor)
        if self.upper is None:
            bits = torch.Generator().manual_seed(1)
            self.upper = torch.randn(output.shape, generator=bits).to(output)
        output.backward(self.upper.to(output.dtype))
        weight = cast(Tensor, self.layer.weight)
        return [output.detach(), cast(Tensor, self.features.grad), cast(Tensor, weight.grad)]

    def exact(self) -> list[Tensor]:
        """The same in float64 by the reference."""
        own = copy.deepcopy(self.layer).double()
        features = self.features.detach().double().requires_grad_()
        tensor = SparseTensor(self.index, features, self.grid.shape, 1)  # type: ignore[attr-defined]
        with using("reference"):
            output = own(tensor).features
            output.backward(cast(Tensor, self.upper).double())
        weight = cast(Tensor, own.weight)
        return [output.detach(), cast(Tensor, features.grad), cast(Tensor, weight.grad)]

    def errors(self) -> dict[str, float | bool]:
        """Largest errors as a share of the largest value, and whether they are within the tolerance."""
        found = self.training(self.tensor())
        shares = [relative_error(one, two) for one, two in zip(found, self.exact(), strict=True)]
        names = ("error_output", "error_input_gradient", "error_weight_gradient")
        limit = TOLERANCES[self.case.dtype]
        within = shares[0] <= limit and max(shares[1:]) <= 10 * limit
        return {**dict(zip(names, shares, strict=True)), "tolerance": limit, "within": within}

    def calls(self) -> dict[str, Callable[[], object]]:
        """What is timed. A strided layer always searches; later submanifold layers know the neighbours."""
        known = self.tensor()
        again = known if self.case.layer == "submanifold" else None
        return {
            "search_and_forward_ms": lambda: self.forward(self.tensor()),
            "forward_ms": lambda: self.forward(again or self.tensor()),
            "training_ms": lambda: self.training(again or self.tensor()),
        }


class EncoderRun(LayerRun):
    """The whole encoder; its error is that against the reference in float32, and is not judged."""

    def __init__(self, case: Case, points: Tensor, grid: object, device: torch.device) -> None:
        torch.manual_seed(case.width)
        self.case, self.device, self.dtype = case, device, cast(torch.dtype, getattr(torch, case.dtype))
        self.encoder = LidarEncoder(case.width, case.width, grid).to(device)  # type: ignore[arg-type]
        self.points = points.to(device)

    def encoded(self, *, exact: bool = False) -> list[Tensor]:
        """The fine features and the volume."""
        mixed = self.dtype != torch.float32 and not exact
        with torch.autocast(self.device.type, dtype=self.dtype, enabled=mixed):
            result = self.encoder([self.points])
        return [result.fine.features, result.volume]

    def stepped(self) -> list[Tensor]:
        """The gradient of the first convolution, beside the outputs."""
        self.encoder.zero_grad()
        outputs = self.encoded()
        sum(out.float().square().mean() for out in outputs).backward()  # type: ignore[union-attr]
        return [*(out.detach() for out in outputs)]

    def errors(self) -> dict[str, float | bool]:
        with torch.no_grad():
            found = self.encoded()
            with using("reference"):
                exact = self.encoded(exact=True)
        names = ("error_output", "error_volume")
        shares = [relative_error(one, two) for one, two in zip(found, exact, strict=True)]
        return dict(zip(names, shares, strict=True))

    def calls(self) -> dict[str, Callable[[], object]]:
        def without_gradients() -> None:
            with torch.no_grad():
                self.encoded()

        return {"forward_ms": without_gradients, "training_ms": self.stepped}


def relative_error(found: Tensor, exact: Tensor) -> float:
    """The largest difference as a share of the largest exact value."""
    exact = exact.double()
    return float((found.double() - exact).abs().max() / exact.abs().max())


def measured(
    case: Case, points: Tensor, grid: object, device: torch.device, *, repeat: int
) -> dict[str, object]:
    """One row; what a backend fails with is part of it, so that the others' rows are not lost."""
    row: dict[str, object] = asdict(case)
    if reason := lack(case.backend, device):
        return {**row, "not_usable": reason}
    kind = EncoderRun if case.layer == "encoder" else LayerRun
    try:
        with using(case.backend):
            run = kind(case, points, grid, device)
            row |= run.errors()
            calls = run.calls()
            row |= {n: round(median_milliseconds(c, device, repeat=repeat), 3) for n, c in calls.items()}
            forget_peak(device)
            before = peak_gib(device)
            calls["training_ms"]()
            settle(device)
            if device.type == "cuda":
                row["training_peak_mib"] = round(1024 * (peak_gib(device) - before), 1)
    except failures() as error:
        row["error"] = failure_text(error)
    return row


def sparse_command(
    results: Path,
    *,
    voxels: Sequence[int],
    widths: Sequence[int],
    backends: Sequence[Backend] = ORDER,
    repeat: int = 20,
    tilings: int = 6,
    processes: int = 12,
    device: str | None = None,
) -> list[dict[str, object]]:
    """`scripts/benchmark.py sparse`: the rows, written after each set and printed.

    spconv-triton tries tilings of its kernels at a layer's first use, for minutes: `tilings` limits them (0
    is all), and `processes` compile them ahead, side by side.
    """
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False
    place = default_device(device)
    cases = cases_of(voxels, widths, backends)
    about: dict[str, object] = {**circumstances(), "device": device_name(place), "repeat": repeat}
    about["backends"] = {name: installed(name) or lack(name, place) for name in ORDER}
    compiled = [case for case in cases if case.backend == "spconv-triton" and case.voxels == voxels[0]]
    rows: list[dict[str, object]] = []
    sets = {count: street_points(count) for count in voxels}
    for case in cases:
        if case in compiled[:1] and not lack(case.backend, place):
            about |= tune(compiled, tilings, processes)
        grid, points = sets[case.voxels]
        rows.append(measured(case, points, grid, place, repeat=repeat))
        print(line_of(rows[-1]), flush=True)
        write_json({**about, "rows": rows}, results)
    return rows


def line_of(row: dict[str, object]) -> str:
    """A row as a line of the printed table."""
    names = ("layer", "width", "dtype", "voxels", "backend")
    head = "{:12} {:>4} {:9} {:>7} {:14}".format(*(str(row[name]) for name in names))
    if failure := row.get("not_usable") or row.get("error"):
        return f"{head} {failure}"
    rest = [(n, v) for n, v in row.items() if n not in names]
    return f"{head} " + " ".join(f"{n}={v:.3g}" if isinstance(v, float) else f"{n}={v}" for n, v in rest)
