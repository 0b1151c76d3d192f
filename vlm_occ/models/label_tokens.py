"""Voxel tokens made of labels, with errors of perception's kind: the language side learns before its eyes do.

Stage "language" trains on them: no sensor is read and no trunk runs, so a step costs only the language model.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from vlm_occ.config import PerceptionConfig
from vlm_occ.encoders.refine import CODE_CHANNELS
from vlm_occ.encoders.voxel_tokens import Candidates
from vlm_occ.models.perception import PerceptionOutput, SceneTokens
from vlm_occ.types import COLOURS, TALK2OCC_CLASSES, SceneLabels

SEEN_RECALL, UNSEEN_RECALL = 0.97, 0.2
"""Share of the objects that get a token: of those that a sensor saw, and of the others."""
MOST_FALSE = 40
"""False candidates of a scene, at most."""
WRONG_CLASS, WRONG_COLOUR = 0.15, 0.2
"""Share of the tokens whose likeliest class, or colour, is a random other one."""


def label_tokens(
    labels: SceneLabels, config: PerceptionConfig, bits: torch.Generator, *, device: torch.device
) -> PerceptionOutput:
    """What the trunk might say of one scene with labels on the CPU: tokens only, no occupancy, no voxels.

    Boxes are jittered (0.25 m, 12 % in size, 6 degrees, one heading in ten turned back), class and colour
    are soft and sometimes wrong, some objects are missed, some tokens stand for nothing. Features are zero.
    """
    chance = torch.where(labels.seen, SEEN_RECALL, UNSEEN_RECALL)
    rows = (torch.rand(len(labels.boxes), generator=bits) < chance).nonzero()[:, 0]
    false = int(torch.randint(0, MOST_FALSE + 1, (1,), generator=bits))
    boxes = torch.cat([_jittered(labels.boxes[rows], bits), _random_boxes(false, bits)])
    classes = torch.cat([labels.classes[rows], _draw(false, len(TALK2OCC_CLASSES), bits)])
    colours = torch.cat([labels.colours[rows], _draw(false, len(COLOURS), bits)])
    speeds = torch.cat([labels.velocities[rows], torch.zeros(false, 2)]).nan_to_num()
    score = 0.1 + 0.9 * torch.rand(len(boxes), generator=bits)
    score[len(rows) :] *= 0.5
    order = score.argsort(descending=True)[: config.max_tokens]
    moving = 4 * ((speeds.norm(dim=-1) > 0.5).float() * 2 - 1) + _noise(len(boxes), 1, bits)[:, 0] * 1.5
    cells = torch.zeros(len(boxes), 2, dtype=torch.long)
    class_logits = _soft(classes, len(TALK2OCC_CLASSES), WRONG_CLASS, bits)
    colour_logits = _soft(colours, len(COLOURS), WRONG_COLOUR, bits)
    parts = (cells, score, boxes, speeds, class_logits, colour_logits, moving)
    cells, score, boxes, speeds, class_logits, colour_logits, moving = (p[order].to(device) for p in parts)
    features = torch.zeros(len(order), config.token_width, device=device)
    candidates = Candidates(cells, score, boxes, speeds)
    code = torch.zeros(len(order), CODE_CHANNELS, device=device)  # no box is looked at
    tokens = SceneTokens(features, candidates, class_logits, colour_logits, moving, code)
    nothing = torch.zeros(0, device=device)
    return PerceptionOutput(
        coarse_logits=nothing,
        occupancy_logits=nothing,
        voxel_index=torch.zeros(0, 4, dtype=torch.long, device=device),
        voxel_features=torch.zeros(0, config.fine_width + 1, device=device),
        semantic_logits=nothing,
        heatmap_logits=nothing,
        regression=nothing,
        tokens=(tokens,),
    )


def _noise(rows: int, columns: int, bits: torch.Generator) -> Tensor:
    return torch.randn(rows, columns, generator=bits)


def _draw(count: int, values: int, bits: torch.Generator) -> Tensor:
    return torch.randint(0, values, (count,), generator=bits)


def _jittered(boxes: Tensor, bits: torch.Generator) -> Tensor:
    """Boxes [N, 7] as a detector gives them."""
    noise = _noise(len(boxes), 7, bits)
    centre = boxes[:, :3] + noise[:, :3] * 0.25
    sizes = boxes[:, 3:6] * (0.12 * noise[:, 3:6]).exp()
    turned = (torch.rand(len(boxes), generator=bits) < 0.1) * math.pi
    return torch.cat([centre, sizes, (boxes[:, 6] + math.radians(6) * noise[:, 6] + turned)[:, None]], dim=-1)


def _random_boxes(count: int, bits: torch.Generator) -> Tensor:
    """Boxes [N, 7] of things that are none."""
    places = (torch.rand(count, 2, generator=bits) - 0.5) * 80
    sizes = torch.tensor([1.5, 0.9, 1.2]) * (0.6 * _noise(count, 3, bits)).exp()
    yaw = (torch.rand(count, 1, generator=bits) - 0.5) * 2 * math.pi
    return torch.cat([places, sizes[:, 2:] / 2, sizes, yaw], dim=-1)


def _soft(truth: Tensor, values: int, wrong: float, bits: torch.Generator) -> Tensor:
    """Logits [N, values] that mostly favour the true value; where it is unknown (-1) they favour none."""
    other = _draw(len(truth), values, bits)
    shown = torch.where(torch.rand(len(truth), generator=bits) < wrong, other, truth)
    sure = 1 + 5 * torch.rand(len(truth), 1, generator=bits)
    target = torch.nn.functional.one_hot(shown.clamp(min=0), values) * (shown >= 0)[:, None]
    return target * sure + _noise(len(truth), values, bits)
