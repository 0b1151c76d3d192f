"""Loc3R-VLM's half of the model: layout of the vision tokens, situations, and answers from them."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import cast

import torch
from torch import Tensor
from torch.nn import functional

from vlm_occ.data.scenes import check_query
from vlm_occ.data.video import is_calibrated
from vlm_occ.encoders.pose import PoseEncoder
from vlm_occ.encoders.refine import CODE_CHANNELS
from vlm_occ.encoders.sight import Sight
from vlm_occ.heads.anchored import ReadSituation
from vlm_occ.heads.layout import (
    BirdsEyeEstimate,
    to_reference_frame,
)
from vlm_occ.heads.situation import (
    decode_situation,
    situation_to_reference,
)
from vlm_occ.heads.words import read_queries
from vlm_occ.language.prefixes import Prefix, PrefixState
from vlm_occ.language.rewording import plain
from vlm_occ.language.vision_tokens import vision_tokens
from vlm_occ.models.batch import SceneStates, SpatialTurn, VideoFrames, video_frames
from vlm_occ.models.first_view import from_reference, scene_frame
from vlm_occ.models.grounding import GroundingAnswers
from vlm_occ.models.spatial_heads import SpatialHeads
from vlm_occ.models.turns import TurnIds, named_spans, situation_text, turn_ids
from vlm_occ.situated import MENTIONS, Situation
from vlm_occ.types import Layout, Scene, SceneState

WHERE = "Where am I?"
"""The question of a situation that is only to be found."""


@dataclass(frozen=True)
class SpatialOutput:
    """What a forward pass says of B scenes' layout and situations, in each first view's frame."""

    layout: tuple[BirdsEyeEstimate | None, ...]  # B x [N, 2]; None without a layout head
    grids: tuple[tuple[tuple[int, int], ...], ...]  # B x F: rows and columns of each frame's tokens
    position: tuple[BirdsEyeEstimate, ...]  # B x [Q, 2]
    orientation: tuple[Tensor, ...]  # B x [Q, bins]
    turns: tuple[tuple[TurnIds, ...], ...]  # B x Q
    states: tuple[tuple[Tensor, ...], ...]  # B x Q tensors [l, D]
    read: tuple[ReadSituation, ...]  # B
    objects: tuple[Tensor, ...]  # B x [Q, len(MENTIONS), N]: log-likelihoods of being what is named


@dataclass(frozen=True)
class PlacedTurns:
    """What one scene's Q situations were read as, and where that is."""

    estimate: BirdsEyeEstimate  # [Q, 2]
    orientation: Tensor  # [Q, bins]
    read: ReadSituation
    objects: Tensor  # [Q, len(MENTIONS), N]


def spatial_output(
    heads: SpatialHeads,
    states: Sequence[SceneStates],
    turns: tuple[tuple[TurnIds, ...], ...],
    placed: Sequence[PlacedTurns],
) -> SpatialOutput:
    """What the heads say of B scenes; their layout where the language model saw pictures."""
    layout = []
    for scene in states:
        vision = scene.tokens[:0] if scene.vision is None else scene.vision
        layout.append(heads.see(vision, scene.sight))
    return SpatialOutput(
        layout=tuple(layout),
        grids=tuple(scene.grids for scene in states),
        position=tuple(own.estimate for own in placed),
        orientation=tuple(own.orientation for own in placed),
        turns=turns,
        states=tuple(scene.turns for scene in states),
        read=tuple(own.read for own in placed),
        objects=tuple(own.objects for own in placed),
    )


class SpatialAnswers(GroundingAnswers):
    """`locate`, `ask`, the layout and the pose tokens of VLMOcc."""

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
            token_codes=none.new_zeros(0, CODE_CHANNELS),
            language=self.backbone.encode_prefix(prefix, features),
        )
        return self.with_layout(state, scene, frames, prefix)

    def with_layout(
        self,
        state: SceneState,
        scene: Scene,
        frames: VideoFrames,
        prefix: Prefix,
        sight: Sight | None = None,
    ) -> SceneState:
        """The state with the layout of what its vision tokens see, and the frame of its first view."""
        transform = scene_frame(scene, frames)
        state = replace(state, reference_from_first=transform, calibrated=is_calibrated(scene.rig))
        if self.spatial is None or not len(frames.images):
            return state
        tokens = vision_tokens(self.backbone, prefix)
        hidden = cast(PrefixState, state.language).hidden
        seen = self.spatial.see(hidden[tokens.index], sight)
        if seen is None:
            return state
        estimate = to_reference_frame(seen, transform)
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
        told = [plain(self.known, self.backbone, check_query(text)) for text in texts]
        turns = [turn_ids(self.backbone, SpatialTurn(text, WHERE)) for text in told]
        if not turns:
            return []
        hidden = self.backbone.forward_queries(
            cast(PrefixState, state.language), [turn.read for turn in turns]
        )
        transform = torch.eye(4) if state.reference_from_first is None else state.reference_from_first
        placed = self.placed_turns(heads, turns, hidden, state.token_states, state.token_boxes, transform)
        found = []
        for text, mean, log_variance, row in zip(
            texts,
            placed.estimate.mean.cpu(),
            placed.estimate.log_variance.cpu(),
            placed.orientation.cpu(),
            strict=True,
        ):
            situation = decode_situation(BirdsEyeEstimate(mean, log_variance), row)
            found.append(replace(situation_to_reference(situation, transform), text=text))
        return found

    def placed_turns(
        self,
        heads: SpatialHeads,
        turns: Sequence[TurnIds],
        states: Sequence[Tensor],
        tokens: Tensor,
        boxes: Tensor,
        reference_from_first: Tensor,
    ) -> PlacedTurns:
        """Q situations, in the first view's frame, from states [>= l, D] of their words.

        `tokens` [N, W] with `boxes` [N, 7] in the reference ego frame. Where a turn's roles are not known,
        those that are read from it tell which words name an object.
        """
        words = [self.backbone.word_embeddings(turn.read) for turn in turns]
        query = read_queries(states, words, self.ground_norm)
        read = heads.reader(self._encoded(query), query.valid)
        objects = tokens.new_zeros(len(turns), len(MENTIONS), len(boxes), dtype=torch.float32)
        phrases = [
            (row, column, span)
            for row, turn in enumerate(turns)
            for column, span in enumerate(named_spans(turn, read.roles[row]))
            if span is not None
        ]
        if phrases and len(boxes):
            ids = [
                self.backbone.processor.phrase_ids(turns[row].ids[slice(*span)]) for row, _, span in phrases
            ]
            spoken = [
                functional.pad(states[row][slice(*span)], (0, 0, 0, len(own) - (span[1] - span[0])))
                for own, (row, _, span) in zip(ids, phrases, strict=True)
            ]
            named = read_queries(
                spoken, [self.backbone.word_embeddings(own) for own in ids], self.ground_norm
            )
            scores = self.factors(self._encoded(named), named.valid, tokens, boxes).logits
            rows, columns = (torch.tensor([p[i] for p in phrases], device=objects.device) for i in (0, 1))
            objects = objects.index_put((rows, columns), scores.float())
        first, car = from_reference(boxes, reference_from_first)
        where, facing = (
            torch.stack([state[place] for state, place in zip(states, places, strict=True)])
            if turns
            else tokens.new_zeros(0, self.backbone.hidden_size)
            for places in ([turn.position for turn in turns], [turn.orientation for turn in turns])
        )
        return PlacedTurns(*heads.place(read, objects, first, car, where, facing), read, objects)

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
