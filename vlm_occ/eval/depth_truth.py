"""Where depth maps for training come from: occupancy or LiDAR sweeps (Talk2Occ, figure 5), measured.

The simulator knows the true depth of every pixel, so each source is given a completeness and an error.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor

from vlm_occ.data.simulator.scene import simulate_details
from vlm_occ.geometry import invert_rigid, project, transform_points
from vlm_occ.raycast import camera_rays, first_hit, march, render_depth
from vlm_occ.types import FREE, CameraRig, Scene, VoxelGrid

MAX_DEPTH = 40.0
"""Metres; pixels whose true depth is larger are not judged, as the grid ends there."""

SOURCES = ("occupancy", "one sweep", "several sweeps")


@dataclass(frozen=True)
class DepthMaps:
    """Depths [V, H, W] along the optical axis of one scene, inf without a value."""

    truth: Tensor
    sources: dict[str, Tensor]
    images: Tensor  # uint8 [V, 3, H, W]


def lidar_depth(points: Tensor, rig: CameraRig) -> Tensor:
    """Depth [V, H, W] of ego points [N, 3]: the nearest that falls into a pixel, inf where none does."""
    height, width = rig.image_size
    pixels, depth = project(points, rig.intrinsics, rig.ego_from_camera)  # [V, N, 2], [V, N]
    column, row = (pixels + 0.5).floor().long().unbind(-1)
    seen = (depth > 0.1) & (column >= 0) & (column < width) & (row >= 0) & (row < height)
    camera = torch.arange(len(depth))[:, None].expand_as(depth)
    flat = ((camera * height + row) * width + column)[seen]
    nearest = torch.full((len(depth) * height * width,), torch.inf)
    return nearest.scatter_reduce(0, flat, depth[seen], "amin").reshape(len(depth), height, width)


def merged_points(scene: Scene) -> Tensor:
    """Points [N, 3] of all sweeps in the reference ego frame, as if nothing but the vehicle moved."""
    ego_from_world = invert_rigid(scene.reference.world_from_ego.double())
    return torch.cat(
        [
            transform_points((ego_from_world @ frame.world_from_ego.double()).float(), frame.points[:, :3])
            for frame in scene.frames
            if frame.points is not None
        ]
    )


def depth_maps(seed: int, *, num_frames: int = 5, image_size: tuple[int, int] = (256, 704)) -> DepthMaps:
    """The true depth of a simulated scene and that of each source."""
    simulation = simulate_details(seed, num_frames=num_frames, image_size=image_size, camera_frames=1)
    scene, render = simulation.labelled.scene, simulation.render
    points = scene.reference.points
    if render is None or points is None:
        raise ValueError(f"scene {seed} has no images or no points; simulate it with both")
    occupied = simulation.labelled.labels.semantics != FREE
    sources = {
        "occupancy": render_depth(occupied, scene.grid, scene.rig),
        "one sweep": lidar_depth(points[:, :3], scene.rig),
        "several sweeps": lidar_depth(merged_points(scene), scene.rig),
    }
    return DepthMaps(render.depth, sources, scene.reference.images)


def judge(truth: Tensor, depth: Tensor) -> dict[str, float]:
    """Completeness and errors of a depth map where the truth (both [V, H, W]) is below MAX_DEPTH.

    `wrong` is the share of given values off by more than 1 m and a tenth of the truth: another surface.
    """
    judged = truth < MAX_DEPTH
    given = judged & torch.isfinite(depth)
    error = (depth - truth)[given].abs()
    wrong = (error > 1.0) & (error > 0.1 * truth[given])
    return {
        "completeness": given.sum().item() / max(1, judged.sum().item()),
        "mean_error_m": error.mean().item(),
        "median_error_m": error.median().item(),
        "wrong": wrong.float().mean().item(),
    }


def compare_sources(seeds: Sequence[int], *, num_frames: int = 5) -> dict[str, dict[str, float]]:
    """Means of `judge` over simulated scenes, by source."""
    totals: dict[str, dict[str, float]] = {name: {} for name in SOURCES}
    for seed in seeds:
        maps = depth_maps(seed, num_frames=num_frames)
        for name, depth in maps.sources.items():
            for key, value in judge(maps.truth, depth).items():
                totals[name][key] = totals[name].get(key, 0.0) + value / len(seeds)
    return totals


def benchmark_casting(occupied: Tensor, rig: CameraRig, *, repeats: int = 3) -> dict[str, float]:
    """CPU seconds (the least of `repeats`) for all pixels: exact casting, and both marches at 0.1 m."""
    grid = VoxelGrid()
    origins, directions = (value.reshape(-1, 3).contiguous() for value in camera_rays(rig))
    out: dict[str, float] = {"rays": float(len(origins))}
    for name, run in (
        ("exact", lambda: first_hit(occupied, grid, origins, directions)),
        ("march", lambda: march(occupied, grid, origins, directions)),
        ("march_put_aside", lambda: march(occupied, grid, origins, directions, put_aside=True)),
    ):
        seconds = []
        for _ in range(repeats if name != "march" else 1):
            start = time.process_time()
            run()
            seconds.append(time.process_time() - start)
        out[f"{name}_s"] = min(seconds)
    return out


def draw_comparison(maps: DepthMaps, path: Path, *, camera: int = 0) -> None:
    """A picture: the image of a camera, its true depth and that of each source, near red and far blue."""
    import matplotlib

    colours = matplotlib.colormaps["turbo_r"]
    panels = [("image", None), ("true depth", maps.truth), *maps.sources.items()]
    height, width = maps.truth.shape[1:]
    sheet = Image.new("RGB", (2 * width, 3 * (height + 16)), "white")
    for i, (name, depth) in enumerate(panels):
        if depth is None:
            pixels = maps.images[camera].permute(1, 2, 0).contiguous().numpy()
        else:
            shown = _thicken(depth[camera]).clamp(max=MAX_DEPTH)
            painted = (255 * colours((shown / MAX_DEPTH).numpy())[..., :3]).astype(np.uint8)
            pixels = np.where(torch.isfinite(_thicken(depth[camera])).numpy()[..., None], painted, 0)
            pixels = pixels.astype(np.uint8)
        place = ((i % 2) * width, (i // 2) * (height + 16))
        sheet.paste(Image.fromarray(pixels), (place[0], place[1] + 16))
        ImageDraw.Draw(sheet).text((place[0] + 4, place[1] + 2), name, fill="black")
    sheet.save(path)


def _thicken(depth: Tensor) -> Tensor:
    """Each pixel takes the nearest depth of its 3 x 3 neighbours, so that single points can be seen."""
    return -torch.nn.functional.max_pool2d(-depth[None, None], 3, stride=1, padding=1)[0, 0]
