"""A small scene with situations and a tiny model with spatial heads, for several tests."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch
from small_scenes import small_scene
from tiny_runs import PERCEPTION

from vlm_occ.config import LoraSettings, ModelConfig, SpatialConfig
from vlm_occ.data.video import Video, video_scene
from vlm_occ.models.adapter import VLMOcc
from vlm_occ.situated import SituationQuery, SpatialQuestion
from vlm_occ.types import LabelledScene, Scene, SceneDepth, VoxelGrid

QUESTION = SpatialQuestion(
    "1", "s", "how many cars are there?", ("2",), "counting", "I stand here", (1.0, -2.0, 0.0), 3.0
)


def scene_of_grid() -> LabelledScene:
    """The small scene with the whole grid, two frames, situations and a question."""
    item = small_scene()
    grid = VoxelGrid()
    labels = replace(
        item.labels,
        semantics=torch.full(grid.shape, 17, dtype=torch.uint8),
        mask_lidar=torch.zeros(grid.shape, dtype=torch.bool),
        mask_camera=torch.zeros(grid.shape, dtype=torch.bool),
    )
    told = (*item.situations, SituationQuery("near a car", (-4.0, 1.0), -2.5, "vague"))
    scene = replace(item.scene, grid=grid)
    return LabelledScene(scene, labels, item.queries, told, (QUESTION,))


def tiny(base: Path, **changes: object) -> VLMOcc:
    """A model on a tiny base, with fields of its config changed."""
    config = ModelConfig(
        base=str(base),
        dtype="float32",
        lora=LoraSettings(rank=2),
        perception=PERCEPTION,
        head_width=16,
        vlm_frames=2,
        spatial=SpatialConfig(),
    )
    return VLMOcc.from_config(replace(config, **changes)).eval()  # type: ignore[arg-type]


def wall_depth(item: LabelledScene, distance: float) -> SceneDepth:
    """Two frames that see nothing but walls at right angles to the optical axes."""
    intrinsics = item.scene.rig.intrinsics.expand(2, -1, -1, -1)
    return SceneDepth(torch.full((2, 2, *item.scene.rig.image_size), distance), intrinsics)


def video(seed: int = 0, frames: int = 3) -> Scene:
    """A plain video of noise."""
    bits = torch.Generator().manual_seed(seed)
    images = torch.randint(0, 256, (frames, 3, 40, 60), generator=bits, dtype=torch.uint8)
    return video_scene(Video(images, torch.arange(frames, dtype=torch.float64)))
