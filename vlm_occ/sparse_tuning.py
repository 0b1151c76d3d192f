"""How long spconv-triton looks for the best tiling of its kernels: fewer of them, compiled side by side."""

from __future__ import annotations

import importlib
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from typing import TYPE_CHECKING, Any

from vlm_occ.timing import failure_text, failures

if TYPE_CHECKING:
    from vlm_occ.sparse_speed import Case

KERNELS = ("spconv_triton.pytorch._impl.gemm", "spconv_triton.pytorch._impl.pair_kernels")
"""Modules whose kernels choose among tilings."""
TUNED_ON = 20_000  # voxels
CHANNELS, ROWS = 64, 128
"""Largest tile along channels and along voxels that suits layers of at most 64 channels."""


def limit_tuning(most: int) -> dict[str, str]:
    """Let each kernel of spconv-triton try at most `most` tilings (0: all); how many of how many, by kernel.

    Those whose tiles suit narrow layers, spread evenly over the order in which the package lists them.
    """
    told = {}
    for module in KERNELS:
        for name, kernel in vars(importlib.import_module(module)).items():
            configs = getattr(kernel, "configs", None)
            if not isinstance(configs, list) or not configs:
                continue
            kernel.configs = chosen(configs, most)
            told[name] = f"{len(kernel.configs)} of {len(configs)}"
    return told


def chosen(configs: list[Any], most: int) -> list[Any]:
    """At most `most` of the configs that suit narrow layers, evenly spread; all where `most` is 0."""
    if not most or len(configs) <= most:
        return configs
    narrow = [config for config in configs if suits(config.kwargs)] or configs
    step = max(1, -(-len(narrow) // most))
    return narrow[::step]


def suits(tile: dict[str, int]) -> bool:
    """Whether a tile is no larger than a narrow layer needs."""
    blocks = {name: size for name, size in tile.items() if name.startswith("BLOCK_")}
    along_rows = ("BLOCK_M", "BLOCK_P")
    return all(size <= (ROWS if name in along_rows else CHANNELS) for name, size in blocks.items())


def tune(cases: Sequence[Case], tilings: int, processes: int) -> dict[str, object]:
    """Compile and choose spconv-triton's tilings for `cases`, which this process then finds on disk.

    What was tried, how many seconds it took, and what failed: the rows of these cases will tell more.
    """
    start = time.perf_counter()
    about: dict[str, object] = {"tilings": limit_tuning(tilings)}
    failed: list[str] = []
    try:
        with ProcessPoolExecutor(min(processes, len(cases)), get_context("spawn")) as pool:
            found = pool.map(_tuned, cases, [tilings] * len(cases))
            failed = [f"{c.layer} {c.width} {c.dtype}: {f}" for c, f in zip(cases, found, strict=True) if f]
    except failures() as error:  # a process died
        failed.append(failure_text(error))
    return {**about, "tuning_seconds": round(time.perf_counter() - start, 1), "tuning_failures": failed}


def _tuned(case: Case, tilings: int) -> str:
    """Run one case once, forward and backward; what it failed with."""
    import torch

    from vlm_occ.sparse_speed import EncoderRun, LayerRun, using
    from vlm_occ.street import street_points

    limit_tuning(tilings)
    torch.set_num_threads(1)
    grid, points = street_points(min(case.voxels, TUNED_ON))
    kind = EncoderRun if case.layer == "encoder" else LayerRun
    try:
        with using(case.backend):
            run = kind(case, points, grid, torch.device("cuda"))
            run.calls()["training_ms"]()
            torch.cuda.synchronize()
    except failures() as error:
        return failure_text(error)
    return ""
