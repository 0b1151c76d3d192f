"""Latency of grounding: what a scene, a query and a batch cost, beside the bare VLM, in one run."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

from vlm_occ.encoders.inputs import prepare_scene
from vlm_occ.models.adapter import VLMOcc
from vlm_occ.models.batch import video_frames
from vlm_occ.timing import default_device, peak_gib, settle
from vlm_occ.types import Scene

QUERIES: tuple[str, ...] = (
    "the truck in front of us on the left",
    "the person standing next to the truck",
    "the closest barrier ahead of us, on the right",
    "stop behind the delivery lorry that is parked at the left kerb",
    "the traffic cone at the barriers ahead",
    "the silver car behind us on the right",
    "the man near the hedge on our left",
    "all pedestrians behind us",
)


@dataclass(frozen=True)
class Latency:
    """Median seconds of each part over the repetitions, and peak memory of the process."""

    cold: float  # encode and the first query
    query: float  # one query on the cached scene, refinement included
    batch: float  # 16 queries as one batch
    vlm: float  # the bare VLM's forward over the same frames, without our tokens
    encoders: float  # our encoders alone
    peak_gib: float  # of tensors on a GPU since the model was made, else of the process

    def rows(self) -> list[tuple[str, str, str]]:
        """Name, value and floor of each figure of the table."""
        bare = self.vlm + self.encoders
        return [
            ("cold ground()", f"{self.cold:.3f} s", "<= 3 s"),
            ("cached query", f"{1000 * self.query:.0f} ms", "<= 100 ms on 2 cores"),
            ("16 cached queries as a batch", f"{1000 * self.batch:.0f} ms", ""),
            ("bare VLM, same frames", f"{self.vlm:.3f} s", ""),
            ("encoders alone", f"{self.encoders:.3f} s", ""),
            ("cached query / cold", f"{self.query / self.cold:.3f}", "<= 0.15"),
            ("16 queries / one", f"{self.batch / self.query:.2f}", "<= 4"),
            ("cold / (bare VLM + encoders)", f"{self.cold / bare:.2f}", "<= 1.3"),
            ("peak memory", f"{self.peak_gib:.2f} GiB", "<= 3 GB"),
        ]


def median_seconds(call: Callable[[], object], repeat: int, device: torch.device) -> float:
    """Median wall time of a call on a device, after two warm-ups: kernels are chosen at the first."""
    call()
    call()
    settle(device)
    times = []
    for _ in range(repeat):
        start = time.perf_counter()
        call()
        settle(device)
        times.append(time.perf_counter() - start)
    return statistics.median(times)


@torch.no_grad()
def measure(model: VLMOcc, scene: Scene, *, repeat: int = 7) -> Latency:
    """Measure one model on one scene; both sides of every ratio are of this run."""
    frames = video_frames(scene, model.config.vlm_frames)

    def cold() -> None:
        model.ground(model.encode(scene), QUERIES[0], refine=True)

    def bare() -> None:
        backbone = model.backbone
        backbone.encode_prefix(backbone.build_prefix(frames.images, 0, pose=False), {})

    def encoders() -> None:
        model.perception(prepare_scene(scene, model.config.perception).to(model.device))

    def seconds(call: Callable[[], object]) -> float:
        return median_seconds(call, repeat, model.device)

    state = model.encode(scene)
    return Latency(
        cold=seconds(cold),
        query=seconds(lambda: model.ground(state, QUERIES[1], refine=True)),
        batch=seconds(lambda: model.ground(state, QUERIES * 2, refine=True)),
        vlm=seconds(bare),
        encoders=seconds(encoders),
        peak_gib=peak_gib(model.device),
    )


def latency_command(model: str, scene: str, *, repeat: int = 7, device: str | None = None) -> None:
    """Print the table of `scripts/benchmark.py latency`."""
    from vlm_occ.data.scenes import load_scene

    vlm = VLMOcc.from_pretrained(model, device=default_device(device))
    result = measure(vlm, load_scene(scene), repeat=repeat)
    print(
        f"{model} on {scene}, {vlm.backbone.dtype}, {vlm.device}, {torch.get_num_threads()} threads, "
        f"{repeat} runs"
    )
    for name, value, floor in result.rows():
        print(f"{name:32s} {value:>12s}   {floor}")
