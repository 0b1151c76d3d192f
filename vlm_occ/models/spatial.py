"""Loc3R-VLM's half of the model: layout of the vision tokens, situations, and answers from them."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import cast

import torch
from torch import Tensor, nn

from vlm_occ.config import ModelConfig, SpatialConfig
from vlm_occ.data.scenes import check_query
from vlm_occ.data.video import is_calibrated
from vlm_occ.encoders.pose import PoseEncoder
from vlm_occ.geometry import invert_rigid
from vlm_occ.heads.layout import BirdsEyeEstimate, LayoutHead, first_view_frame, to_reference_frame
from vlm_occ.heads.situation import (
    OrientationHead,
    PositionHead,
    decode_situation,
    situation_to_reference,
)
from vlm_occ.language.backbones import Backbone
from vlm_occ.language.prefixes import JointStates, Prefix, PrefixState
from vlm_occ.language.vision_tokens import vision_tokens
from vlm_occ.models.batch import Batch, SpatialTurn, VideoFrames, video_frames
from vlm_occ.types import NO_SITUATION, Layout, Scene, SceneState, Situation

WHERE = "Where am I?"
"""The question of a situation that is only to be found."""


class SpatialHeads(nn.Module):
    """The heads of Loc3R-VLM 3.2 and 3.3 on final states of the language model.

    The layer norms are ours: a few channels of a small model's final states are a hundred times the others.
    """

    def __init__(self, width: int, config: SpatialConfig) -> None:
        super().__init__()
        self.vision_norm, self.turn_norm = nn.LayerNorm(width), nn.LayerNorm(width)
        self.layout = LayoutHead(width, scale=config.scale)
        self.position = PositionHead(width, scale=config.scale)
        self.orientation = OrientationHead(width, bins=config.bins)

    def see(self, states: Tensor) -> BirdsEyeEstimate:
        """Bird's-eye positions of vision tokens from their states [N, D], in the first view's frame."""
        return self.layout(self.vision_norm(states.float()))

    def place(self, position: Tensor, orientation: Tensor) -> tuple[BirdsEyeEstimate, Tensor]:
        """Positions [Q, 2] and orientation logits [Q, B] from states [Q, D] of `<|pos|>` and `<|ori|>`."""
        return (
            self.position(self.turn_norm(position.float())),
            self.orientation(self.turn_norm(orientation.float())),
        )


@dataclass(frozen=True)
class TurnIds:
    """A situated turn as the language model reads it."""

    ids: Tensor  # [l]
    position: int  # of `<|pos|>`
    orientation: int
    ground: int  # of `<|ground|>`, after which the answer's words stand


@dataclass(frozen=True)
class SpatialOutput:
    """What a forward pass says of B scenes' layout and situations, in each first view's frame."""

    layout: tuple[BirdsEyeEstimate, ...]  # B x [N, 2]
    grids: tuple[tuple[tuple[int, int], ...], ...]  # B x F: rows and columns of each frame's tokens
    position: tuple[BirdsEyeEstimate, ...]  # B x [Q, 2]
    orientation: tuple[Tensor, ...]  # B x [Q, bins]
    turns: tuple[tuple[TurnIds, ...], ...]  # B x Q
    states: tuple[tuple[Tensor, ...], ...]  # B x Q tensors [l, D]


def turn_ids(backbone: Backbone, turn: SpatialTurn) -> TurnIds:
    """Ids of a turn: situation, `<|pos|>`, `<|ori|>`, question, and its answer where it has one (3.3)."""
    ids, position, orientation = backbone.situation_ids(turn.situation, turn.question, turn.answer or None)
    ground = int((ids == backbone.token_ids.ground).nonzero()[0])
    return TurnIds(ids, position, orientation, ground)


def batch_turns(backbone: Backbone, batch: Batch) -> tuple[tuple[TurnIds, ...], ...]:
    """The situated turns of each scene of a batch, none where it has none: B x Q."""
    return tuple(tuple(turn_ids(backbone, turn) for turn in scene) for scene in batch.turns) or tuple(
        () for _ in batch.frames
    )


def spatial_output(
    heads: SpatialHeads,
    backbone: Backbone,
    prefixes: Sequence[Prefix],
    states: Sequence[JointStates],
    turns: tuple[tuple[TurnIds, ...], ...],
) -> SpatialOutput:
    """What the heads say of scenes whose last queries are `turns`."""
    layout, grids, position, orientation, own = [], [], [], [], []
    for prefix, joint, asked in zip(prefixes, states, turns, strict=True):
        tokens = vision_tokens(backbone, prefix)
        layout.append(heads.see(joint.prefix[tokens.index]))
        grids.append(tokens.grids)
        own.append(tuple(joint.queries[len(joint.queries) - len(asked) :]))
        none = joint.prefix.new_zeros(0, joint.prefix.shape[-1])
        where, facing = (
            torch.stack([state[place] for state, place in zip(own[-1], places, strict=True)])
            if asked
            else none
            for places in ([turn.position for turn in asked], [turn.orientation for turn in asked])
        )
        estimate, logits = heads.place(where, facing)
        position.append(estimate)
        orientation.append(logits)
    return SpatialOutput(tuple(layout), tuple(grids), tuple(position), tuple(orientation), turns, tuple(own))


def reference_from_first(frames: VideoFrames, reference_from_world: Tensor) -> Tensor:
    """The reference ego frame from the first view's level frame [4, 4] (Loc3R-VLM 3.2).

    Level means against gravity, the world's z axis, of which `reference_from_world` [4, 4] tells. Without a
    view it is the identity: the reference ego frame itself.
    """
    if not len(frames.ego_from_camera):
        return torch.eye(4)
    up = reference_from_world[:3, 2].float().tolist()
    return invert_rigid(first_view_frame(frames.ego_from_camera[0].cpu(), up=up))


def scene_frame(scene: Scene, frames: VideoFrames) -> Tensor:
    """`reference_from_first` of a scene; the identity for a plain video, whose only frame is the first's."""
    if not is_calibrated(scene.rig):
        return torch.eye(4)
    return reference_from_first(frames, invert_rigid(scene.reference.world_from_ego.double()))


def check_groundable(state: SceneState) -> None:
    """ValueError where nothing can be grounded in an encoded scene."""
    if not state.calibrated:
        raise ValueError(
            f"nothing can be grounded in the plain video {state.name!r}: grounding needs a pose source, that "
            "is cameras of known calibration and poses (a keyframe folder or nuscenes:ROOT:TOKEN); use ask "
            "or locate"
        )


class SpatialAnswers:
    """`locate`, `ask`, the layout and the pose tokens of VLMOcc."""

    backbone: Backbone
    config: ModelConfig
    spatial: SpatialHeads | None
    pose: PoseEncoder

    @property
    @abstractmethod
    def device(self) -> torch.device:
        """Where the weights are."""

    def pose_tokens(self, frames: VideoFrames) -> Tensor:
        """A token [F, D] for each image (Loc3R-VLM 3.1)."""
        return self.pose(
            ego_from_camera=frames.ego_from_camera.to(self.device),
            intrinsics=frames.intrinsics.to(self.device),
            image_size=(frames.images.shape[-2], frames.images.shape[-1]),
            age=frames.age.to(self.device),
            camera=frames.camera.to(self.device),
            images=frames.images,
        )

    def encode_video(self, scene: Scene) -> SceneState:
        """A plain video: all its frames, no voxels; pose tokens of a source that needs no calibration."""
        frames = video_frames(scene, len(scene.frames))
        posed = self.config.pose_source in ("learned", "cut3r")
        prefix = self.backbone.build_prefix(frames.images, 0, pose=posed)
        none = torch.zeros(0, device=self.device)
        features = {"voxel": none.new_zeros(0, self.backbone.hidden_size)}
        if posed:
            features["pose"] = self.pose_tokens(frames)
        state = SceneState(
            name=scene.name,
            grid=scene.grid,
            occupancy=torch.zeros(scene.grid.shape, dtype=torch.bool, device=self.device),
            voxel_index=none.new_zeros(0, 3, dtype=torch.long),
            voxel_features=none.new_zeros(0, self.config.perception.fine_width + 1),
            token_boxes=none.new_zeros(0, 7),
            token_labels=none.long(),
            token_states=none.new_zeros(0, self.config.head_width),
            language=self.backbone.encode_prefix(prefix, features),
        )
        return self.with_layout(state, scene, frames, prefix)

    def with_layout(self, state: SceneState, scene: Scene, frames: VideoFrames, prefix: Prefix) -> SceneState:
        """The state with the layout of what its vision tokens see, and the frame of its first view."""
        transform = scene_frame(scene, frames)
        state = replace(state, reference_from_first=transform, calibrated=is_calibrated(scene.rig))
        if self.spatial is None or not len(frames.images):
            return state
        tokens = vision_tokens(self.backbone, prefix)
        hidden = cast(PrefixState, state.language).hidden
        estimate = to_reference_frame(self.spatial.see(hidden[tokens.index]), transform)
        return replace(state, layout=Layout(estimate.mean, estimate.std, tokens.grids))

    def locate(self, state: SceneState, text: str) -> Situation:
        """Where somebody stands and looks who describes it by `text` (Loc3R-VLM 3.3).

        In the reference ego frame; in the first view's level frame where the scene is a plain video.
        """
        return self.locate_all(state, [text])[0]

    @torch.no_grad()
    def locate_all(self, state: SceneState, texts: Sequence[str]) -> list[Situation]:
        """`locate` of several descriptions, run together on the scene's cache."""
        heads = self._spatial_heads("locate")
        turns = [turn_ids(self.backbone, SpatialTurn(check_query(text), WHERE)) for text in texts]
        asked = [turn.ids[: turn.orientation + 1] for turn in turns]  # what follows can't be seen from there
        hidden = self.backbone.forward_queries(cast(PrefixState, state.language), asked)
        if not hidden:
            return []
        estimate, logits = heads.place(
            torch.stack([h[-2] for h in hidden]), torch.stack([h[-1] for h in hidden])
        )
        transform = torch.eye(4) if state.reference_from_first is None else state.reference_from_first
        found = []
        for text, mean, log_variance, row in zip(
            texts, estimate.mean.cpu(), estimate.log_variance.cpu(), logits.cpu(), strict=True
        ):
            situation = decode_situation(BirdsEyeEstimate(mean, log_variance), row)
            found.append(replace(situation_to_reference(situation, transform), text=text))
        return found

    @torch.no_grad()
    def ask(
        self,
        state: SceneState,
        question: str,
        *,
        situation: str | Situation | None = None,
        max_new_tokens: int = 40,
    ) -> str:
        """The language model's own words about an encoded scene, generated greedily.

        `situation` is where the question is asked from: a description, or what `locate` found.
        """
        if self.spatial is None and situation is None:
            ids, _ = self.backbone.query_ids(check_query(question))
        else:
            self._spatial_heads("answer from a situation")
            words = check_query(situation_text(situation))
            ids, _, _ = self.backbone.situation_ids(words, check_query(question))
        return self.backbone.generate(cast(PrefixState, state.language), ids, max_new_tokens=max_new_tokens)

    def _spatial_heads(self, what: str) -> SpatialHeads:
        if self.spatial is None:
            raise ValueError(
                f"this model has no situation head, so it can't {what}; use a model whose config has "
                "`spatial`, as configs/loc3r_sim.yaml trains"
            )
        return self.spatial


def situation_text(situation: str | Situation | None) -> str:
    """The words of a situation: its own, those it was found from, or its place in words."""
    if situation is None:
        return NO_SITUATION
    if isinstance(situation, str):
        return situation
    if situation.text:
        return situation.text
    x, y = situation.position.tolist()
    front = f"{abs(x):.1f} metres {'in front of' if x >= 0 else 'behind'} your car"
    side = f"{abs(y):.1f} metres to its {'left' if y >= 0 else 'right'}"
    turn = round(torch.rad2deg(torch.tensor(situation.yaw)).item())
    facing = f"turned by {abs(turn)} degrees to the {'left' if turn >= 0 else 'right'} of its heading"
    return f"I am standing {front} and {side}, {facing}"
