"""Figures about simulated scenes: voxels a class, LiDAR points by distance, speed.

Run as `python -m vlm_occ.data.simulator.report [--seeds N] [--kept FOLDER] [--keyframe FOLDER]`.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from statistics import mean, median

import torch

from vlm_occ.data.simulator.objects import Solids
from vlm_occ.data.simulator.rendering import camera_candidates, camera_lines
from vlm_occ.data.simulator.rig import nuscenes_rig
from vlm_occ.data.simulator.scanlines import cast
from vlm_occ.data.simulator.scene import simulate, split_seed
from vlm_occ.geometry import rotation_z
from vlm_occ.types import FREE, TALK2OCC_CLASSES, CameraRig, LabelledScene
from vlm_occ.voxels import voxel_indices_in_box

MEAN_VOXELS = (180, 32, 446, 54, 22, 22, 36, 95, 323, 772, 196, 206, 39, 56, 871)
"""Mean occupied voxels a class in Table I of Talk2Occ (arXiv 2508.01197), as TALK2OCC_CLASSES."""

DISTANCES = (0, 10, 20, 30, 40)
"""Borders of the distance bins, metres."""


def voxel_table(scenes: Iterable[LabelledScene]) -> str:
    """Objects and mean non-free voxels in their boxes a class, under both rules, beside Table I."""
    counts: dict[int, list[tuple[int, int]]] = defaultdict(list)
    for scene in scenes:
        labels, grid = scene.labels, scene.scene.grid
        filled = labels.semantics != FREE
        for label, box in zip(labels.classes.tolist(), labels.boxes, strict=True):
            inside = [
                int(filled[tuple(voxel_indices_in_box(box, grid, rule=rule).T)].sum())
                for rule in ("touching", "centre")
            ]
            counts[label].append((inside[0], inside[1]))
    lines = [f"{'class':22s}{'objects':>8s}{'touching':>10s}{'centre':>8s}{'Table I':>9s}"]
    for label, name in enumerate(TALK2OCC_CLASSES):
        if counts[label]:
            touching, centre = (mean(column) for column in zip(*counts[label], strict=True))
            row = f"{name:22s}{len(counts[label]):8d}{touching:10.0f}{centre:8.0f}{MEAN_VOXELS[label]:9d}"
            lines.append(row)
    return "\n".join(lines)


def point_table(scenes: Iterable[LabelledScene], keyframe: Path | None = None) -> str:
    """Median LiDAR points in boxes that hold any, by class and distance, beside those of a real keyframe."""
    simulated: dict[tuple[str, int], list[int]] = defaultdict(list)
    real: dict[tuple[str, int], list[int]] = defaultdict(list)
    for labels in (scene.labels for scene in scenes):
        for label, box, points in zip(labels.classes, labels.boxes, labels.num_points, strict=True):
            distance = int(box[:2].norm() // 10)
            simulated[TALK2OCC_CLASSES[int(label)], distance].append(int(points))
    if keyframe is not None:
        for box in json.loads((keyframe / "keyframe.json").read_text())["boxes"]:
            x, y, _ = box["center_ego"]
            real[box["name"].replace("_", " "), int((x * x + y * y) ** 0.5 // 10)].append(
                box["points_inside"]
            )

    def cell(values: list[int]) -> str:
        seen = [value for value in values if value > 0]
        return f"{median(seen):.0f} ({len(seen)})" if seen else "-"

    head = "".join(f"{f'{low}-{low + 10} m':>22s}" for low in DISTANCES[:-1])
    lines = [f"{'simulated / real':22s}{head}"]
    for name in TALK2OCC_CLASSES:
        row = [f"{cell(simulated[name, k])} / {cell(real[name, k])}" for k in range(len(DISTANCES) - 1)]
        lines.append(f"{name:22s}" + "".join(f"{value:>22s}" for value in row))
    return "\n".join(lines)


def speed_table(num_scenes: int, *, device: str = "cpu") -> str:
    """Seconds a keyframe, and how the time for six images' nearest hits grows with the number of solids."""

    def spent(work: Callable[[], object]) -> tuple[float, float]:
        wall, cpu = time.perf_counter(), time.process_time()
        work()
        if device != "cpu":
            torch.cuda.synchronize()
        return time.perf_counter() - wall, time.process_time() - cpu

    simulate(0, device=device)
    both = [spent(lambda seed=seed: simulate(seed, device=device)) for seed in range(num_scenes)]
    wall, cpu = (sum(column) / num_scenes for column in zip(*both, strict=True))
    threads = torch.get_num_threads()
    lines = [
        f"keyframe with ten sentences: {wall:.3f} s, {cpu:.3f} s of CPU time, {threads} threads, {device}"
    ]
    rig = nuscenes_rig()
    rig = CameraRig(rig.names, rig.intrinsics.to(device), rig.ego_from_camera.to(device), rig.image_size)
    rays = camera_lines(rig)
    for count in (100, 200, 400, 800, 1600):
        solids = _scattered(count, device)
        cast(solids, rays, camera_candidates(solids, rig))
        wall, cpu = spent(lambda solids=solids: cast(solids, rays, camera_candidates(solids, rig)))
        number = len(rays.base) * len(rays.position)
        lines.append(
            f"{count:5d} solids: {1e3 * wall:6.1f} ms, {1e9 * cpu / number:5.1f} ns of CPU time a ray"
        )
    return "\n".join(lines)


def _scattered(count: int, device: str) -> Solids:
    """Boxes of the size of a car, upright, 8 to 60 m away all around."""
    generator = torch.Generator().manual_seed(count)
    draw = torch.rand(count, 3, generator=generator)
    distance, angle = 8 + 52 * draw[:, 0], 2 * math.pi * draw[:, 1]
    centre = torch.stack(
        [distance * angle.cos(), distance * angle.sin(), torch.full_like(angle, 0.8)], dim=-1
    )
    whole, part = torch.zeros(count, dtype=torch.long), torch.full((count,), 0.5)
    fields = (
        centre,
        rotation_z(2 * math.pi * draw[:, 2]),
        torch.tensor([2.3, 0.95, 0.8]).expand(count, 3),
        whole,
        part[:, None].expand(count, 3),
        whole,
        whole,
        part,
    )
    return Solids(*(value.to(device) for value in fields))


def _scenes(count: int, kept: Path | None, *, balanced: bool = False) -> Iterator[LabelledScene]:
    """Scenes of the training split, simulated, or the first of a folder that a training run keeps."""
    if kept is not None:
        from vlm_occ.data.store import load_scene_file

        yield from (load_scene_file(path)[0] for path in sorted(kept.glob("*.safetensors"))[:count])
        return
    for index in range(count):
        seed = split_seed("train", index)
        yield simulate(seed, cameras=False, balanced=balanced, num_queries=0)


def main() -> None:
    """Print the three tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=40, help="scenes of the tables; 0 for speed alone")
    parser.add_argument("--kept", type=Path, help="folder of scenes (data.keep of a run) instead of new ones")
    parser.add_argument("--keyframe", type=Path, help="folder of the real keyframe")
    parser.add_argument("--timed", type=int, default=20, help="scenes to time; 0 for none")
    parser.add_argument("--device", default="cpu")
    given = parser.parse_args()
    if given.seeds:
        plain = list(_scenes(given.seeds, given.kept))
        print("natural draws" if given.kept is None else f"scenes of {given.kept}")
        print(voxel_table(plain), point_table(plain, given.keyframe), sep="\n")
    if given.seeds and given.kept is None:
        print("balanced draws", voxel_table(_scenes(given.seeds, None, balanced=True)), sep="\n")
    if given.timed:
        print(speed_table(given.timed, device=given.device))


if __name__ == "__main__":
    main()
