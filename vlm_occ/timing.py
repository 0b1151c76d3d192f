"""How long calls take and how much memory they need, by a GPU's own clock and allocator if there is one."""

from __future__ import annotations

import gc
import importlib.util
import resource
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch


def settle(device: torch.device) -> None:
    """Wait until a device has done all that it was told."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def median_milliseconds(call: Callable[[], object], device: torch.device, *, repeat: int) -> float:
    """Median time of a call on a device, after one warm-up; by CUDA's events on a GPU."""
    call()
    settle(device)
    times = []
    for _ in range(repeat):
        if device.type == "cuda":
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            begin.record()
            call()
            end.record()
            end.synchronize()
            times.append(begin.elapsed_time(end))
        else:
            start = time.perf_counter()
            call()
            times.append(1000 * (time.perf_counter() - start))
    return statistics.median(times)


def forget_peak(device: torch.device) -> None:
    """Begin to measure `peak_gib` anew; the peak of a process cannot be forgotten."""
    if device.type == "cuda":
        gc.collect()
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)


def peak_gib(device: torch.device) -> float:
    """Most memory in GiB since `forget_peak`: of tensors on a GPU, else of the process since its start.

    On Linux of the program itself: `ru_maxrss` also holds what the process that started it had.
    """
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    status = Path("/proc/self/status")
    if status.exists():
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM:"))
        return int(line.split()[1]) / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def default_device(name: str | None = None) -> torch.device:
    """The device of that name; without one the GPU, where there is one."""
    return torch.device(name or ("cuda" if torch.cuda.is_available() else "cpu"))


def device_name(device: torch.device) -> str:
    """What a device is called."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def failures() -> tuple[type[Exception], ...]:
    """What a library can fail with on a machine that it does not suit; one row's must not lose the others."""
    known = (ArithmeticError, AssertionError, AttributeError, ImportError, LookupError, OSError)
    known += (RuntimeError, TypeError, ValueError)
    if importlib.util.find_spec("triton") is None:
        return known
    return (*known, importlib.import_module("triton.errors").TritonError)


def failure_text(error: Exception) -> str:
    """An error as a row tells it."""
    return f"{type(error).__name__}: {str(error).strip()[:600]}"
