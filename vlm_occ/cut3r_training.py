"""Trains a small CUT3R on simulated drives for pose and points, so that pose tokens come from pictures alone.

The published weights can't be shipped; this model has the same code and fewer, narrower layers. A clip is
what VLM-Occ feeds: all cameras of each frame in turn, oldest frame first, world = the first view.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vlm_occ.config import DataConfig, TrainConfig
from vlm_occ.data.store import SimulatedScenes
from vlm_occ.encoders.cut3r import Cut3r, Cut3rConfig
from vlm_occ.encoders.cut3r_frames import prepare_frames
from vlm_occ.encoders.cut3r_points import Cut3rTrainer
from vlm_occ.encoders.cut3r_weights import save_cut3r
from vlm_occ.geometry import invert_rigid, quaternion_to_rotation
from vlm_occ.losses.camera import point_loss, pose_loss
from vlm_occ.losses.occupancy import Term
from vlm_occ.models.batch import VideoFrames, video_frames
from vlm_occ.objectives import weighted_sum
from vlm_occ.run_config import check_config
from vlm_occ.run_scenes import Scenes, pool_size
from vlm_occ.run_state import TrainingState, Weight
from vlm_occ.train import run_training
from vlm_occ.trainee import Trainee
from vlm_occ.types import LabelledScene

FILE = "cut3r.safetensors"
"""Name of the finished weights in a run's `final`."""


@dataclass(frozen=True)
class Cut3rTrainConfig(TrainConfig):
    """One run of a small CUT3R at rate `head_rate`; what only VLM-Occ has (`model`, `stage`) does nothing."""

    network: Cut3rConfig = field(
        default_factory=lambda: Cut3rConfig(
            encoder_width=192,
            encoder_depth=6,
            encoder_heads=6,
            decoder_width=192,
            decoder_depth=4,
            decoder_heads=6,
            state_heads=6,
            state_size=64,
            memory_size=32,
        )
    )
    long_edge: int = 224  # pixels of a frame's longer side
    data: DataConfig = field(default_factory=lambda: DataConfig(num_frames=4, queries=0, augment=False))


@dataclass(frozen=True)
class Clip:
    """Pictures of a drive with their poses and the points that their patches see."""

    images: Tensor  # [T, 3, H, W] in [-1, 1]
    first_from_camera: Tensor  # [T, 4, 4], OpenCV axes
    points: Tensor  # [T, N, 3] metres, first camera's axes
    valid: Tensor  # bool [T, N]


def clip_of(item: LabelledScene, run: Cut3rTrainConfig) -> Clip:
    """The clip of a scene with depth: all its pictures."""
    assert item.depth is not None
    frames = video_frames(item.scene, run.data.num_frames)
    images = prepare_frames(frames.images, recipe="cut3r", long_edge=run.long_edge)
    first_from_camera = invert_rigid(frames.ego_from_camera[0].double()) @ frames.ego_from_camera.double()
    grid = (images.shape[-2] // 16, images.shape[-1] // 16)
    points, valid = patch_points(item.depth.depth, item.depth.intrinsics, frames, grid)
    local = first_from_camera.float()
    points = points @ local[:, :3, :3].mT + local[:, None, :3, 3]
    return Clip(images, local, points, valid)


def patch_points(
    depth: Tensor, intrinsics: Tensor, frames: VideoFrames, grid: tuple[int, int], *, farthest: float = 80.0
) -> tuple[Tensor, Tensor]:
    """What the middle of each patch sees, own camera's axes [F, N, 3], and where there is something [F, N].

    `depth` [T, V, h, w]. The frames' crop to whole patches is at most 8 pixels a side and not modelled.
    """
    images, matrices = depth.flatten(0, 1).float(), intrinsics.flatten(0, 1)  # [F, h, w], [F, 3, 3]
    if len(images) != len(frames.images):
        raise ValueError(f"{len(images)} depth images for {len(frames.images)} pictures; expected one each")
    height, width = images.shape[-2:]
    v = ((torch.arange(grid[0]) + 0.5) * height / grid[0]).long()
    u = ((torch.arange(grid[1]) + 0.5) * width / grid[1]).long()
    value = images[:, v][:, :, u].flatten(1)  # [F, N]
    pixels = torch.stack(torch.meshgrid(v + 0.5, u + 0.5, indexing="ij")[::-1], dim=-1).reshape(-1, 2)
    rays = torch.cat([pixels, torch.ones(len(pixels), 1)], dim=1) @ torch.linalg.inv(matrices).mT  # [F, N, 3]
    valid = value.isfinite() & (value > 0) & (value < farthest)
    return rays * torch.where(valid, value, 0.0)[..., None], valid


def clip_terms(trainer: Cut3rTrainer, clips: Sequence[Clip]) -> dict[str, Term]:
    """The loss terms of clips of one length."""
    device = next(trainer.parameters()).device
    images, poses, points, valid = (
        torch.stack([getattr(clip, name) for clip in clips]).to(device)
        for name in ("images", "first_from_camera", "points", "valid")
    )
    tokens, found, spread = trainer(images)
    assert tokens.pose is not None
    terms = pose_loss(tokens.pose[:, 1:], poses[:, 1:])  # the first camera is the world
    return {**terms, "points": point_loss(found, spread, points, valid)}


class Cut3rTraining(Trainee[Cut3rTrainer]):
    """A small CUT3R in training."""

    def __init__(self, model: Cut3rTrainer, config: Cut3rTrainConfig) -> None:
        super().__init__()
        self.model, self.config = model, config

    def forward(self, scenes: Sequence[LabelledScene]) -> tuple[Tensor, dict[str, float]]:
        """The mean loss over the scenes' clips and its terms."""
        terms = clip_terms(self.model, [clip_of(item, self.config) for item in scenes])
        total, log = weighted_sum(terms, dict.fromkeys(terms, 1.0))
        return total + self.touch(), log

    def weight_names(self) -> dict[str, Weight]:
        """The trainer's own names: CUT3R's and the point head's."""
        return {name: Weight(name, value.shape) for name, value in self.model.state_dict().items()}

    def load(self, state: TrainingState, *, where: str) -> None:
        """Put the weights of a state into the model."""
        self.model.load_state_dict(state.weights)

    def groups(self) -> list[dict[str, Any]]:
        """One group: everything is trained."""
        rate = self.config.head_rate
        return [{"params": list(self.model.parameters()), "lr": rate, "base": rate}]

    def recompute(self) -> None:
        """Refused: a small model's activations are small."""
        raise ValueError("a small CUT3R needs no checkpointing; set checkpointing: false")

    def finish(self, weights: dict[str, Tensor] | None, folder: Path | None) -> Cut3rTrainer:
        """The finished model; `folder` gets CUT3R without the point head."""
        if weights is not None:
            self.model.load_state_dict(weights)
        if folder is not None:
            save_cut3r(self.model.model, folder / FILE, recipe="cut3r", long_edge=self.config.long_edge)
        return self.model


def open_drives(config: Cut3rTrainConfig) -> SimulatedScenes:
    """The drives of a run, with pictures and depth of every frame."""
    data = config.data
    return SimulatedScenes(
        "train",
        pool_size(config),
        num_frames=data.num_frames,
        camera_frames=data.num_frames,
        num_queries=0,
        views=True,
        balanced=data.balanced,
        folder=Path(data.keep) if data.keep else None,
        first=data.first_scene,
    )


def train_cut3r(config: Cut3rTrainConfig, *, source: Scenes | None = None) -> Path:
    """Run or resume training; the path of the finished weights, `config.out`/final/cut3r.safetensors."""
    check_config(config)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        trainer = Cut3rTrainer(Cut3r(config.network))
    source = source if source is not None else open_drives(config)
    run_training(Cut3rTraining(trainer, config), config, source)
    return Path(config.out) / "final" / FILE


@torch.no_grad()
def pose_errors(model: Cut3r, source: Sequence[LabelledScene], run: Cut3rTrainConfig) -> dict[str, float]:
    """Median errors of the poses of every view but the first: metres, degrees, and those of a camera at rest
    at the first view, which knows nothing.
    """
    shifts, turns, blind_shifts, blind_turns = [], [], [], []
    for item in source:
        clip = clip_of(item, run)
        pose = model(clip.images[None].to(model.pose_token.device)).pose
        assert pose is not None
        true = clip.first_from_camera[1:]
        found = pose[0, 1:].cpu()
        shifts.append((found[:, :3] - true[:, :3, 3]).norm(dim=-1))
        blind_shifts.append(true[:, :3, 3].norm(dim=-1))
        turns.append(turn_between(quaternion_to_rotation(found[:, 3:]), true[:, :3, :3]))
        blind_turns.append(turn_between(torch.eye(3).expand_as(true[:, :3, :3]), true[:, :3, :3]))
    names = ("translation_m", "rotation_deg", "at_rest_translation_m", "at_rest_rotation_deg")
    return {
        name: torch.cat(values).median().item()
        for name, values in zip(names, (shifts, turns, blind_shifts, blind_turns), strict=True)
    }


def turn_between(a: Tensor, b: Tensor) -> Tensor:
    """Angles [...] in degrees between rotations [..., 3, 3]."""
    cosine = ((a.mT @ b).diagonal(dim1=-2, dim2=-1).sum(-1) - 1) / 2
    return torch.rad2deg(cosine.clamp(-1, 1).acos())
