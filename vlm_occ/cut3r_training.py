"""Trains a small CUT3R on simulated drives for pose and points, so that pose tokens come from pictures alone.

The published weights can't be shipped; this model has the same code and fewer, narrower layers. A clip is
what VLM-Occ feeds: all cameras of each frame in turn, oldest frame first, world = the first view.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from vlm_occ.config import read_yaml
from vlm_occ.data.store import SimulatedScenes, permutation
from vlm_occ.encoders.cut3r import Cut3r, Cut3rConfig
from vlm_occ.encoders.cut3r_frames import prepare_frames
from vlm_occ.encoders.cut3r_points import Cut3rTrainer
from vlm_occ.encoders.cut3r_weights import save_cut3r
from vlm_occ.geometry import invert_rigid, quaternion_to_rotation
from vlm_occ.losses.camera import point_loss, pose_loss
from vlm_occ.losses.occupancy import Term
from vlm_occ.models.batch import VideoFrames, video_frames
from vlm_occ.types import LabelledScene


@dataclass(frozen=True)
class Cut3rRun:
    """One training run of a small CUT3R."""

    out: str = "runs/cut3r_small"
    model: Cut3rConfig = field(
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
    scenes: int = 4000
    keep: str | None = None  # folder of simulated scenes, as data.keep of a training run
    num_frames: int = 4
    balanced: bool = True
    seed: int = 0
    steps: int = 20000
    rate: float = 3e-4
    warmup: int = 500
    clip: float = 1.0
    log_every: int = 50
    save_every: int = 1000
    device: str = "cpu"


@dataclass(frozen=True)
class Clip:
    """Pictures of a drive with their poses and the points that their patches see."""

    images: Tensor  # [T, 3, H, W] in [-1, 1]
    first_from_camera: Tensor  # [T, 4, 4], OpenCV axes
    points: Tensor  # [T, N, 3] metres, first camera's axes
    valid: Tensor  # bool [T, N]


def clip_of(item: LabelledScene, run: Cut3rRun) -> Clip:
    """The clip of a scene with depth: all its pictures."""
    assert item.depth is not None
    frames = video_frames(item.scene, run.num_frames)
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


def run_scenes(run: Cut3rRun) -> SimulatedScenes:
    """The drives of a run, with pictures and depth of every frame."""
    return SimulatedScenes(
        "train",
        run.scenes,
        num_frames=run.num_frames,
        camera_frames=run.num_frames,
        num_queries=0,
        views=True,
        balanced=run.balanced,
        folder=Path(run.keep) if run.keep else None,
    )


def scene_order(count: int, run: Cut3rRun) -> Iterator[int]:
    """Scenes of each step, an order of its own for each epoch."""
    for step in range(run.steps):
        epoch, place = divmod(step, count)
        yield int(permutation(count, run.seed, epoch)[place])


def train_cut3r(run: Cut3rRun, *, source: Sequence[LabelledScene] | SimulatedScenes | None = None) -> Path:
    """Train and write `run.out`/cut3r.safetensors; each step's terms go to log.jsonl. The file's path."""
    source = run_scenes(run) if source is None else source
    torch.manual_seed(run.seed)
    trainer = Cut3rTrainer(Cut3r(run.model)).to(run.device)
    optimizer = torch.optim.AdamW(trainer.parameters(), lr=run.rate, weight_decay=0.01, betas=(0.9, 0.95))
    out = Path(run.out)
    out.mkdir(parents=True, exist_ok=True)
    path = out / "cut3r.safetensors"
    with (out / "log.jsonl").open("w") as log:
        for step, index in enumerate(scene_order(len(source), run)):
            for group in optimizer.param_groups:
                group["lr"] = run.rate * rate_factor(step, run)
            terms = clip_terms(trainer, [clip_of(source[index], run)])
            total = torch.stack([item.total / item.count for item in terms.values()]).sum()
            total.backward()
            norm = torch.nn.utils.clip_grad_norm_(trainer.parameters(), run.clip)
            if not math.isfinite(float(norm)):
                raise FloatingPointError(f"gradient norm {float(norm)} at step {step}; lower the rate")
            optimizer.step()
            optimizer.zero_grad()
            values = {name: (item.total / item.count).item() for name, item in terms.items()}
            log.write(json.dumps({"step": step, **values, "total": total.item()}) + "\n")
            if step % run.log_every == 0:
                log.flush()
            if (step + 1) % run.save_every == 0:
                save_cut3r(trainer.model, path, recipe="cut3r", long_edge=run.long_edge)
    return save_cut3r(trainer.model, path, recipe="cut3r", long_edge=run.long_edge)


def rate_factor(step: int, run: Cut3rRun) -> float:
    """Linear warm-up, then a cosine to zero."""
    if step < run.warmup:
        return (step + 1) / run.warmup
    progress = (step - run.warmup) / max(run.steps - run.warmup, 1)
    return 0.5 * (1 + math.cos(math.pi * min(progress, 1.0)))


@torch.no_grad()
def pose_errors(model: Cut3r, source: Sequence[LabelledScene], run: Cut3rRun) -> dict[str, float]:
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


def train_cut3r_command(config: str) -> None:
    """`scripts/train_cut3r.py CONFIG.yaml`."""
    print(train_cut3r(read_yaml(Cut3rRun, config)))
