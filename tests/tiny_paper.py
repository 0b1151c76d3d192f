"""A small scene, a tiny text encoder and small configs for the tests of the paper's systems."""

from __future__ import annotations

import math
from pathlib import Path

import torch
from tiny_models import tiny_tokenizer

from vlm_occ.config import PerceptionConfig
from vlm_occ.geometry import rigid, rotation_z
from vlm_occ.models.groundingocc_config import GroundingOccConfig
from vlm_occ.types import (
    FREE,
    OCC3D_CLASSES,
    TALK2OCC_CLASSES,
    CameraRig,
    Frame,
    GroundingQuery,
    LabelledScene,
    Scene,
    SceneLabels,
    VoxelGrid,
)
from vlm_occ.voxels import voxels_in_box

GRID = VoxelGrid(origin=(-8.0, -8.0, -1.0), shape=(40, 40, 8))


def save_tiny_text(folder: Path) -> Path:
    """A two-layer RoBERTa of width 16 with a byte tokenizer."""
    from transformers import RobertaConfig, RobertaModel

    tokenizer = tiny_tokenizer()
    sizes = {
        "vocab_size": len(tokenizer),
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "max_position_embeddings": 130,
        "pad_token_id": 1,
    }
    torch.manual_seed(0)
    model = RobertaModel(RobertaConfig.from_dict(sizes), add_pooling_layer=False)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def tiny_config(text: Path | str, **changes: object) -> GroundingOccConfig:
    """GroundingOcc with the paper's encoders, a few channels wide."""
    values: dict[str, object] = {
        "encoders": "paper",
        "perception": PerceptionConfig(image_size=(64, 96), lidar_width=8, camera_frames=2, max_frames=1),
        "text": str(text),
        "resnet_depths": (1, 1, 1, 1),
        "resnet_widths": (16, 16, 16, 16),
        "width": 16,
        "fine_width": 8,
        "hidden": 8,
        "feed_forward": 16,
        "heads": 2,
        "likely_voxels": None,
        "query_shape": (10, 10, 4),
        "grounding_queries": 9,
        "sampled_features": 3,
        "semantic_supervision": True,
    }
    return GroundingOccConfig(**(values | changes))  # type: ignore[arg-type]


def _cameras() -> CameraRig:
    """A camera that looks ahead and one that looks back, 1.6 m above the ground."""
    ahead = torch.tensor([[0.0, 0.0, 1.0], [-1.0, 0.0, 0.0], [0.0, -1.0, 0.0]])  # ego from camera axes
    place = torch.tensor([0.0, 0.0, 1.6])
    poses = [rigid(rotation_z(torch.tensor(yaw)) @ ahead, place) for yaw in (0.0, math.pi)]
    intrinsics = torch.tensor([[60.0, 0.0, 48.0], [0.0, 60.0, 32.0], [0.0, 0.0, 1.0]]).expand(2, 3, 3)
    return CameraRig(("CAM_FRONT", "CAM_BACK"), intrinsics.clone(), torch.stack(poses), (64, 96))


def tiny_scene(*, frames: int = 2, seed: int = 0) -> LabelledScene:
    """Ground, two cars ahead and a person behind, random pictures and points on the occupied voxels."""
    bits = torch.Generator().manual_seed(seed)
    boxes = torch.tensor(
        [
            [5.0, 2.0, 0.2, 3.2, 1.6, 1.4, 0.3],
            [5.0, -3.0, 0.2, 3.2, 1.6, 1.4, 0.0],
            [-4.0, 1.0, 0.2, 0.8, 0.8, 1.6, 0.0],
        ]
    )
    names = ("car", "car", "pedestrian")
    semantics = torch.full(GRID.shape, FREE, dtype=torch.uint8)
    semantics[:, :, 0] = OCC3D_CLASSES.index("driveable_surface")
    for box, name in zip(boxes, names, strict=True):
        semantics[voxels_in_box(box, GRID, rule="centre")] = OCC3D_CLASSES.index(name)
    occupied = (semantics != FREE).nonzero()
    points = GRID.center_of(occupied) + 0.1 * torch.randn(len(occupied), 3, generator=bits)
    points = torch.cat([points, torch.rand(len(points), 1, generator=bits)], dim=1)
    moments = []
    for number in range(frames):
        pose = torch.eye(4, dtype=torch.float64)
        pose[0, 3] = number  # one metre ahead a frame
        images = torch.randint(0, 256, (2, 3, 64, 96), generator=bits, dtype=torch.uint8)
        moments.append(Frame(0.5 * number, images, pose, points))
    labels = SceneLabels(
        semantics=semantics,
        mask_lidar=semantics != FREE,
        mask_camera=semantics != FREE,
        boxes=boxes,
        classes=torch.tensor([TALK2OCC_CLASSES.index(name) for name in names]),
        colours=torch.full((3,), -1),
        velocities=torch.zeros(3, 2),
        visibility=torch.ones(3),
        num_points=torch.full((3,), 9),
    )
    queries = (
        GroundingQuery("the car on the left", (0,), False),
        GroundingQuery("the person behind us, please", (2,), True),
    )
    return LabelledScene(Scene(_cameras(), tuple(moments), GRID, f"tiny-{seed}"), labels, queries)
