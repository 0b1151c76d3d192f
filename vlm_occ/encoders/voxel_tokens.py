"""Voxel tokens: peaks of the objectness map, each with a feature, a position and a first box (ARCHITECTURE
1 b).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from vlm_occ.encoders.fusion import BirdsEyeFeatures
from vlm_occ.geometry import rotation_z, to_box_frame
from vlm_occ.types import COLOURS, TALK2OCC_CLASSES, VoxelGrid

REGRESSION_CHANNELS = 10
"""Offset x, y to the centre, height z, log dx, dy, dz, sin and cos of yaw, velocity x, y: metres, m/s."""

SAMPLE_POINTS = 9
"""Points of a candidate's box at which camera features are read: centre, faces, lower edges of the ends."""


@dataclass(frozen=True)
class Candidates:
    """Peaks of one scene's objectness map, best first."""

    cell: Tensor  # long [N, 2]: x, y index of the fine bird's-eye view
    score: Tensor  # [N] in (0, 1), differentiable
    box: Tensor  # [N, 7] ego frame, differentiable; its centre is the token's position
    velocity: Tensor  # [N, 2]


def decode_regression(cell: Tensor, regression: Tensor, grid: VoxelGrid) -> Tensor:
    """Boxes [N, 7] of regression values [N, 10] at cells [N, 2] of the fine bird's-eye view."""
    origin = torch.tensor(grid.origin[:2], device=cell.device)
    centre = origin + (cell.float() + 0.5) * grid.voxel_size + regression[:, :2].float()
    yaw = torch.atan2(regression[:, 6].float(), regression[:, 7].float())
    sizes = regression[:, 3:6].float().clamp(-3.0, 3.5).exp()
    return torch.cat([centre, regression[:, 2:3].float(), sizes, yaw[:, None]], dim=-1)


def encode_regression(box: Tensor, velocity: Tensor, cell: Tensor, grid: VoxelGrid) -> Tensor:
    """The regression values [N, 10] that decode at `cell` [N, 2] to `box` [N, 7] with `velocity` [N, 2]."""
    origin = torch.tensor(grid.origin[:2], device=cell.device)
    offset = box[:, :2] - (origin + (cell.float() + 0.5) * grid.voxel_size)
    angles = torch.stack([torch.sin(box[:, 6]), torch.cos(box[:, 6])], dim=-1)
    return torch.cat([offset, box[:, 2:3], box[:, 3:6].clamp(min=0.05).log(), angles, velocity], dim=-1)


def find_candidates(
    heatmap_logits: Tensor, regression: Tensor, grid: VoxelGrid, *, max_tokens: int, threshold: float
) -> list[Candidates]:
    """Local maxima (3x3) of `heatmap_logits` [B, classes, X, Y] over all classes, best first, one list item
    a scene.

    `regression` is [B, 10, X, Y]. At most `max_tokens` above `threshold` are kept; a maximum over the box of
    a better one of its class is a second sight of the same object, and goes.
    """
    top, kind = heatmap_logits.float().max(1)  # [B, X, Y]
    score = top.sigmoid()
    peak = functional.max_pool2d(score.detach()[:, None], 3, stride=1, padding=1)[:, 0] == score.detach()
    result = []
    for b in range(len(score)):
        ranked = torch.where(peak[b], score[b].detach(), torch.zeros_like(score[b])).flatten()
        values, order = ranked.topk(min(max_tokens, ranked.numel()))
        order = order[values > threshold]
        cell = torch.stack([order // score.shape[2], order % score.shape[2]], dim=-1)
        values = regression[b].flatten(1)[:, order].T.float()  # [N, 10]
        box = decode_regression(cell, values, grid)
        first = first_sights(box.detach(), kind[b].flatten()[order])
        kept = Candidates(cell, score[b].flatten()[order], box, values[:, 8:10])
        result.append(Candidates(kept.cell[first], kept.score[first], kept.box[first], kept.velocity[first]))
    return result


def first_sights(boxes: Tensor, kinds: Tensor) -> Tensor:
    """Rows of boxes [N, 7], best first, whose centre is not over an earlier kept one of the same kind [N]."""
    local = to_box_frame(boxes[:, :3], boxes)[..., :2].abs()  # [N, N, 2]: centre n in the frame of box m
    over = (local <= boxes[:, None, 3:5] / 2).all(-1) & (kinds[:, None] == kinds[None])  # [N, N]
    kept: list[int] = []
    for row, covers in enumerate(over.T.tolist()):  # up to 128 rows, under a millisecond
        if not any(covers[earlier] for earlier in kept):
            kept.append(row)
    return torch.tensor(kept, dtype=torch.long, device=boxes.device)


def sample_points(boxes: Tensor) -> Tensor:
    """Points [N, 9, 3] of boxes [N, 7] at which camera features are read."""
    faces = [[0, 0, 0], [0.35, 0, 0], [-0.35, 0, 0], [0, 0.35, 0], [0, -0.35, 0], [0, 0, 0.3], [0, 0, -0.25]]
    offsets = boxes.new_tensor([*faces, [0.4, 0, -0.25], [-0.4, 0, -0.25]])
    local = offsets * boxes[:, None, 3:6]  # [N, 9, 3]
    return local @ rotation_z(boxes[:, 6]).transpose(-1, -2) + boxes[:, None, :3]


def position_features(boxes: Tensor, *, frequencies: int = 8) -> Tensor:
    """Sines and cosines of where a box [N, 7] is, seen from the vehicle: [N, 8 * frequencies + 9].

    x, y, range at wavelengths from 160 m down, azimuth in multiples, then height, log sizes and heading
    plainly.
    """
    x, y, z = boxes[:, 0], boxes[:, 1], boxes[:, 2]
    distance = torch.sqrt(x * x + y * y + 1e-6)
    azimuth = torch.atan2(y, x + 1e-6)
    octaves = 2.0 ** torch.arange(frequencies, device=boxes.device)
    linear = torch.stack([x, y, distance], dim=-1) * (2 * math.pi / 160.0)  # [N, 3]
    angles = torch.cat([linear[:, :, None] * octaves, azimuth[:, None, None] * (octaves.log2() + 1)], dim=1)
    waves = torch.cat([angles.sin(), angles.cos()], dim=-1).flatten(1)  # [N, 4 * 2 * frequencies]
    plain = torch.stack([x / 40, y / 40, z / 3, distance / 40, boxes[:, 6].sin(), boxes[:, 6].cos()], dim=-1)
    return torch.cat([waves, plain, boxes[:, 3:6].clamp(min=0.05).log()], dim=-1)


POSITION_CHANNELS = 4 * 2 * 8 + 9
"""Length of `position_features` with its default frequencies."""

DESCRIBED_CHANNELS = len(TALK2OCC_CLASSES) + len(COLOURS) + 1 + POSITION_CHANNELS
"""Length of `described`: probabilities of class, colour and motion, then the position."""


@dataclass(frozen=True)
class TokenInputs:
    """What the sensors say of N candidates, from which their features are made."""

    birds_eye: Tensor  # [N, C] bird's-eye features at three scales
    image: Tensor  # [N, 9 C'] camera features at `sample_points`


class VoxelTokenEncoder(nn.Module):
    """The feature of each candidate: bird's-eye features at three scales, camera features on its box, its
    position.
    """

    def __init__(self, *, bev_channels: tuple[int, int, int], image_width: int, width: int) -> None:
        super().__init__()
        self.image_points = nn.Linear(SAMPLE_POINTS * image_width, 2 * image_width)
        total = sum(bev_channels) + 2 * image_width + POSITION_CHANNELS + 2
        self.mlp = nn.Sequential(
            nn.LayerNorm(total), nn.Linear(total, 2 * width), nn.GELU(), nn.Linear(2 * width, width)
        )
        self.norm = nn.LayerNorm(width)

    def forward(self, candidates: Candidates, inputs: TokenInputs, *, drop: float = 0.0) -> Tensor:
        """Features [N, width] of one scene's candidates; a share `drop` of what was seen is left out.

        Not yet multiplied by the score; `score_tokens` does it for the language model.
        """
        seen = functional.gelu(self.image_points(functional.dropout(inputs.image.float(), drop, drop > 0)))
        known = torch.cat(
            [position_features(candidates.box.detach()), candidates.velocity.detach() / 10], dim=-1
        )
        joined = torch.cat([inputs.birds_eye.float(), seen.float(), known.float()], dim=-1)
        return self.norm(self.mlp(functional.dropout(joined, drop, drop > 0)))


def token_inputs(candidates: Candidates, bev: BirdsEyeFeatures, scene: int, image: Tensor) -> TokenInputs:
    """What one scene's candidates are read from; `image` [N, 9, C] was read at `sample_points`."""
    box, cell = candidates.box.detach(), candidates.cell
    parts = [bev.fine[scene, :, cell[:, 0], cell[:, 1]].T]
    parts += [sample_bev(level[scene], box[:, :2]) for level in (bev.middle, bev.coarse)]
    return TokenInputs(torch.cat(parts, dim=-1), image.flatten(1))


def sample_bev(features: Tensor, points: Tensor, *, extent: float = 80.0) -> Tensor:
    """Bilinear values [N, C] of a bird's-eye map [C, X, Y] at ego points [N, 2]; the map spans `extent`
    metres.
    """
    normalised = (points / (extent / 2)).flip(-1)[None, None]  # grid_sample wants (column = y, row = x)
    sampled = functional.grid_sample(
        features[None].float(), normalised, mode="bilinear", padding_mode="border", align_corners=False
    )
    return sampled[0, :, 0].T


def score_tokens(features: Tensor, score: Tensor) -> Tensor:
    """Token features [N, D] weighted by their objectness [N], so that language gradients reach the map.

    The weight is (1 + score) / 2: a language model normalises its inputs, so that the gradient of a feature
    scaled by 0.05 would be twenty times that of a sure one.
    """
    return features * (0.5 + 0.5 * score[:, None])


def described(attributes: Tensor, boxes: Tensor) -> Tensor:
    """What can be said of candidates [N, DESCRIBED_CHANNELS]: their attributes, and where their boxes are."""
    return torch.cat([attributes, position_features(boxes.detach())], dim=-1)


class VoxelProjector(nn.Module):
    """Token features, attributes and positions into the language model's embedding space, at its scale.

    Features start without effect, so that a language side trained on attributes and positions alone (stage
    "language") takes them up gradually.
    """

    def __init__(self, width: int, hidden: int, scale: float) -> None:
        super().__init__()
        self.feature = nn.Linear(width, hidden, bias=False)
        self.described = nn.Linear(DESCRIBED_CHANNELS, hidden)
        self.out = nn.Linear(hidden, hidden)
        self.norm = nn.LayerNorm(hidden)
        nn.init.zeros_(self.feature.weight)
        nn.init.constant_(self.norm.weight, scale)

    def forward(self, features: Tensor, known: Tensor) -> Tensor:
        """Features [N, W] and `described` [N, DESCRIBED_CHANNELS] to embeddings [N, D]."""
        return self.norm(self.out(functional.gelu(self.feature(features) + self.described(known))))
