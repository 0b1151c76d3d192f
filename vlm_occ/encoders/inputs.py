"""Scenes made ready for the encoders: resized images, merged sweeps, cameras in the reference ego frame."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from vlm_occ.config import PerceptionConfig
from vlm_occ.encoders.camera import prepare_images
from vlm_occ.encoders.lidar import merge_sweeps
from vlm_occ.geometry import invert_rigid
from vlm_occ.types import CAMERAS, Scene


@dataclass(frozen=True)
class SceneInputs:
    """A batch of B scenes; the F images of all scenes and frames lie in one list."""

    points: tuple[Tensor, ...]  # B tensors [N, 5]: x, y, z (reference ego), intensity, age in seconds
    images: Tensor  # [F, 3, h, w] in 0..1
    intrinsics: Tensor  # [F, 3, 3] for the prepared image size
    ego_from_camera: Tensor  # [F, 4, 4]: reference ego from that image's camera
    age: Tensor  # [F] seconds before the reference frame
    camera: Tensor  # long [F], index in CAMERAS (len(CAMERAS) for other names)
    scene: Tensor  # long [F], which scene an image belongs to
    image_size: tuple[int, int]

    @property
    def batch_size(self) -> int:
        """B."""
        return len(self.points)

    def to(self, device: torch.device | str) -> SceneInputs:
        """The same on another device."""
        return replace(
            self,
            points=tuple(p.to(device) for p in self.points),
            **{
                name: getattr(self, name).to(device)
                for name in ("images", "intrinsics", "ego_from_camera", "age", "camera", "scene")
            },
        )


def prepare_scene(scene: Scene, config: PerceptionConfig) -> SceneInputs:
    """The inputs of one scene: its latest `camera_frames` with images, its latest `max_frames` sweeps."""
    points = torch.zeros(0, 5)
    if config.lidar and any(frame.points is not None for frame in scene.frames):
        points = merge_sweeps(scene, config.max_frames)
    height, width = config.image_size
    images, intrinsics, poses, ages = [], [], [], []
    ego_from_world = invert_rigid(scene.reference.world_from_ego.double())
    frames = scene.frames[-config.camera_frames :] if config.cameras and scene.rig.names else ()
    for frame in frames:
        if not len(frame.images):
            continue
        image, matrix = prepare_images(frame.images, scene.rig.intrinsics, config.image_size)
        images.append(image)
        intrinsics.append(matrix)
        reference_from_frame = ego_from_world @ frame.world_from_ego.double()
        poses.append((reference_from_frame @ scene.rig.ego_from_camera.double()).float())
        ages.append(torch.full((len(image),), scene.reference.timestamp - frame.timestamp))
    names = [CAMERAS.index(name) if name in CAMERAS else len(CAMERAS) for name in scene.rig.names]
    return SceneInputs(
        points=(points,),
        images=torch.cat(images) if images else torch.zeros(0, 3, height, width),
        intrinsics=torch.cat(intrinsics) if images else torch.zeros(0, 3, 3),
        ego_from_camera=torch.cat(poses) if images else torch.zeros(0, 4, 4),
        age=torch.cat(ages) if images else torch.zeros(0),
        camera=torch.tensor(names * len(images), dtype=torch.long),
        scene=torch.zeros(sum(map(len, images)), dtype=torch.long),
        image_size=config.image_size,
    )


def collate_inputs(items: Sequence[SceneInputs]) -> SceneInputs:
    """One batch of several inputs."""
    offsets = torch.tensor([item.batch_size for item in items]).cumsum(0).tolist()
    starts = [0, *offsets[:-1]]
    scene = [item.scene + start for item, start in zip(items, starts, strict=True)]
    return SceneInputs(
        points=tuple(points for item in items for points in item.points),
        images=torch.cat([item.images for item in items]),
        intrinsics=torch.cat([item.intrinsics for item in items]),
        ego_from_camera=torch.cat([item.ego_from_camera for item in items]),
        age=torch.cat([item.age for item in items]),
        camera=torch.cat([item.camera for item in items]),
        scene=torch.cat(scene),
        image_size=items[0].image_size,
    )
