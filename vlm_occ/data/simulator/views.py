"""Exact depth of a simulated drive's pictures, and what its front camera sees of each object at each frame.

Made beside a scene, from the same world, so that scenes themselves stay as they are. Depth images are
coarse: a vision token covers tens of their pixels.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from vlm_occ.data.simulator.egocentric import ground_inverse, ground_plane, move_solids
from vlm_occ.data.simulator.rendering import camera_candidates, camera_lines
from vlm_occ.data.simulator.rig import nuscenes_rig
from vlm_occ.data.simulator.scanlines import cast
from vlm_occ.data.simulator.world import World, build_world
from vlm_occ.geometry import invert_rigid
from vlm_occ.types import CAMERAS, CameraRig, SceneDepth, VoxelGrid

SHRINK = 4
"""Side of a picture over the side of its depth image."""


@dataclass(frozen=True)
class DriveViews:
    """What the cameras saw of a drive, over its frames in time order."""

    depth: SceneDepth  # float16
    front_pixels: Tensor  # long [T, M]: pixels of each labelled object in the front camera's depth image


def drive_views(
    world: World,
    *,
    num_frames: int,
    image_size: tuple[int, int] = (256, 704),
    first: int = 0,
    grid: VoxelGrid | None = None,
) -> DriveViews:
    """Views of the frames from `first` on of a world made for `num_frames`; rows of objects as `simulate`."""
    from vlm_occ.data.simulator.scene import _keep_objects

    rig = coarse_rig(world, image_size)
    solids = move_solids(
        invert_rigid(world.ego_poses[-1]), world.solids_at(num_frames - 1), device=torch.device("cpu")
    )
    kept = _keep_objects(world, solids, grid or VoxelGrid())[0]
    depths, pixels = [], []
    for frame in range(first, num_frames):
        depth, owner = _cast(world, frame, rig)
        depths.append(depth.half())
        front = owner[CAMERAS.index("CAM_FRONT")]
        counts = torch.bincount(front[front >= 0].flatten(), minlength=len(world.labels))
        pixels.append(counts[kept])
    intrinsics = rig.intrinsics.clone()
    intrinsics[:, :2, 2] += 0.5  # the simulator's pixels have their centres at whole numbers
    return DriveViews(
        SceneDepth(torch.stack(depths), intrinsics.repeat(len(depths), 1, 1, 1)), torch.stack(pixels)
    )


def coarse_rig(world: World, image_size: tuple[int, int]) -> CameraRig:
    """The cameras of a world for pictures whose sides are `SHRINK` times smaller than `image_size`."""
    rig = nuscenes_rig(image_size, calibration_seed=world.calibration_seed, lift=world.ego_height_jitter)
    intrinsics = rig.intrinsics.clone()
    intrinsics[:, :2, 2] += 0.5
    intrinsics[:, :2] /= SHRINK
    intrinsics[:, :2, 2] -= 0.5
    return replace(rig, intrinsics=intrinsics, image_size=(image_size[0] // SHRINK, image_size[1] // SHRINK))


def _cast(world: World, frame: int, rig: CameraRig) -> tuple[Tensor, Tensor]:
    """Depth [V, h, w] (metres, infinite in the sky) and world objects [V, h, w] (-1 none) at a frame."""
    pose = world.ego_poses[frame]
    solids = move_solids(invert_rigid(pose), world.solids_at(frame), device=torch.device("cpu"))
    lines = camera_lines(rig)
    hits = cast(solids, lines, camera_candidates(solids, rig))
    floor = ground_inverse(ground_plane(world.ground, pose, device="cpu"), lines)
    solid = hits.solid.masked_fill(hits.inverse <= floor, -1)
    owner = torch.cat([solids.instance.new_full((1,), -1), solids.instance])[solid + 1]
    shape = (len(rig.names), *rig.image_size)
    return (1 / torch.maximum(hits.inverse, floor)).view(shape), owner.view(shape)


def kept_views(
    seed: int,
    path: Path | None,
    *,
    num_frames: int,
    first: int,
    balanced: bool,
    image_size: tuple[int, int],
) -> DriveViews:
    """The views of the scene of a seed, read from `path` or made (seconds) and kept there."""
    if path is not None and path.exists():
        try:
            found = load_file(path)
            return DriveViews(SceneDepth(found["depth"], found["intrinsics"]), found["front_pixels"])
        except (SafetensorError, OSError, KeyError):
            path.unlink()  # half a file of a lost machine; it is made again
    world = build_world(seed, balanced=balanced, num_frames=num_frames)
    views = drive_views(world, num_frames=num_frames, image_size=image_size, first=first)
    if path is not None:
        save_views(views, path)
    return views


def save_views(views: DriveViews, path: Path) -> None:
    """Write views at once or not at all."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    tensors = {"depth": views.depth.depth, "intrinsics": views.depth.intrinsics}
    save_file(
        {k: v.contiguous() for k, v in {**tensors, "front_pixels": views.front_pixels}.items()}, temporary
    )
    os.replace(temporary, path)


def appearances(front_pixels: Tensor, *, least: int = 6) -> Sequence[tuple[int, int] | None]:
    """First and last frame at which the front camera sees each object, from pixels [T, M].

    None for an object that is never seen, or that is ever seen with fewer than `least` pixels: whether it is
    in view then would be a matter of taste.
    """
    result: list[tuple[int, int] | None] = []
    for column in front_pixels.T.tolist():
        seen = [frame for frame, count in enumerate(column) if count]
        clear = bool(seen) and all(column[frame] >= least for frame in seen)
        result.append((seen[0], seen[-1]) if clear else None)
    return result
