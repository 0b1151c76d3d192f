"""What a model says of situations, questions and layout of labelled scenes, beside the truth: records."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from vlm_occ.models.adapter import VLMOcc
from vlm_occ.models.batch import video_frames
from vlm_occ.models.spatial_batch import depth_of, scene_layout_targets
from vlm_occ.situated import SpatialQuestion
from vlm_occ.types import LabelledScene

ANSWER_TOKENS = 24
"""The longest answer is a description of an object."""


@dataclass(frozen=True)
class Located:
    """One situation: what was found, and the truth; reference ego frame, metres, radians."""

    scene: str
    kind: str  # exact or vague
    lexicon: str
    position: Tensor  # [2]
    position_std: Tensor  # [2]
    yaw: float
    yaw_probabilities: Tensor  # [B]
    true_position: Tensor  # [2]
    true_yaw: float


@dataclass(frozen=True)
class Answered:
    """One question and what the model said."""

    question: SpatialQuestion
    prediction: str


@dataclass(frozen=True)
class LaidOut:
    """The vision tokens of a scene whose depth is known."""

    scene: str
    error: Tensor  # [N] metres on the ground
    normalised: Tensor  # [N]: squared error in units of the predicted spread
    distance: Tensor  # [N] metres, true, from the ego origin


@dataclass(frozen=True)
class SpatialRecords:
    """Records of any number of scenes."""

    located: list[Located] = field(default_factory=list)
    answered: list[Answered] = field(default_factory=list)
    laid_out: list[LaidOut] = field(default_factory=list)

    def extend(self, other: SpatialRecords) -> None:
        """Take over those of other scenes."""
        self.located.extend(other.located)
        self.answered.extend(other.answered)
        self.laid_out.extend(other.laid_out)


def evaluate_spatial_scene(model: VLMOcc, item: LabelledScene, *, answers: bool = True) -> SpatialRecords:
    """Records of a scene's situations, questions (with `answers`) and layout."""
    state = model.encode(item.scene)
    name = item.scene.name
    found = model.locate_all(state, [s.text for s in item.situations])
    located = [
        Located(
            name,
            s.kind,
            s.lexicon,
            place.position.cpu(),
            place.position_std.cpu(),
            place.yaw,
            place.yaw_probabilities.cpu(),
            torch.tensor(s.position),
            s.yaw,
        )
        for s, place in zip(item.situations, found, strict=True)
    ]
    answered = [
        Answered(q, model.ask(state, q.question, situation=q.situation, max_new_tokens=ANSWER_TOKENS))
        for q in (item.questions if answers else ())
    ]
    frames = video_frames(item.scene, model.config.vlm_frames)
    depth, laid_out = depth_of(item, model.config, frames), []
    if state.layout is not None and depth is not None:
        assert state.reference_from_first is not None
        # In the reference ego frame itself: a first frame that is the identity.
        targets = scene_layout_targets(frames, depth, torch.eye(4), state.layout.grids)
        known = targets.valid
        offset = state.layout.position.cpu()[known] - targets.position[known]
        spread = state.layout.position_std.cpu()[known]
        laid_out.append(
            LaidOut(
                name,
                offset.norm(dim=-1),
                (offset / spread).square().sum(-1),
                targets.position[known].norm(dim=-1),
            )
        )
    return SpatialRecords(located, answered, laid_out)


def evaluate_spatial_scenes(model: VLMOcc, scenes: Sequence[LabelledScene]) -> SpatialRecords:
    """Records of all scenes."""
    records = SpatialRecords()
    for item in scenes:
        records.extend(evaluate_spatial_scene(model, item))
    return records
