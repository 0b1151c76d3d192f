"""Loc3R-VLM's half of the model: layout of the vision tokens, situations, and answers from them."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from vlm_occ.config import ModelConfig, SpatialConfig
from vlm_occ.data.scenes import check_query
from vlm_occ.data.video import is_calibrated
from vlm_occ.encoders.pose import PoseEncoder
from vlm_occ.encoders.refine import CODE_CHANNELS
from vlm_occ.encoders.sight import SIGHT_CHANNELS, Sight, sight_features
from vlm_occ.geometry import invert_rigid
from vlm_occ.heads.anchored import ReadSituation, SituationReader, anchored_pose, mention_spans
from vlm_occ.heads.factors import FactorHead
from vlm_occ.heads.layout import (
    BirdsEyeEstimate,
    LayoutHead,
    first_view_frame,
    planar_part,
    split_estimate,
    to_reference_frame,
)
from vlm_occ.heads.situation import (
    OrientationHead,
    PositionHead,
    decode_situation,
    situation_to_reference,
)
from vlm_occ.heads.words import QueryStates, WordEncoder, read_queries
from vlm_occ.language.backbones import Backbone
from vlm_occ.language.known_words import KnownWords
from vlm_occ.language.prefixes import Prefix, PrefixState
from vlm_occ.language.rewording import plain
from vlm_occ.language.vision_tokens import vision_tokens
from vlm_occ.models.batch import Batch, SceneStates, SpatialTurn, VideoFrames, video_frames
from vlm_occ.types import MENTIONS, NO_SITUATION, Layout, Scene, SceneState, Situation

WHERE = "Where am I?"
"""The question of a situation that is only to be found."""

SIGHT_DOUBT = 2.0
"""Metres that a surface may be from where the trunk's occupancy shows it, before anything is learnt of it."""


class SpatialHeads(nn.Module):
    """The heads of Loc3R-VLM 3.2 and 3.3 on final states of the language model, and the reader of situations.

    The layer norms are ours: a few channels of a small model's final states are a hundred times the others.
    Position and orientation heads start without effect: what the words say of the tokens comes first. So does
    the layout head where vision tokens have a sight: what is seen comes first.
    """

    def __init__(self, width: int, word_width: int, config: SpatialConfig) -> None:
        super().__init__()
        self.vision_norm, self.turn_norm = nn.LayerNorm(width), nn.LayerNorm(width)
        self.layout = LayoutHead(width, scale=config.scale) if config.layout else None
        self.position = PositionHead(width, scale=config.scale, hidden=config.hidden)
        self.orientation = OrientationHead(width, bins=config.bins, hidden=config.hidden)
        self.reader = SituationReader(word_width)
        self.scale, self.bins = config.scale, config.bins
        silent = [cast(nn.Linear, head.layers[-1]) for head in (self.position, self.orientation)]
        self.sighted = nn.Linear(SIGHT_CHANNELS, 4) if config.layout and config.sight else None
        if self.layout is not None and self.sighted is not None:
            silent += [self.layout.linear, self.sighted]
        for last in silent:
            nn.init.zeros_(last.weight)
            nn.init.zeros_(last.bias)
        if self.sighted is not None:
            nn.init.constant_(self.sighted.bias[2:], 2 * math.log(SIGHT_DOUBT / config.scale))

    def see(self, states: Tensor, sight: Sight | None = None) -> BirdsEyeEstimate | None:
        """Bird's-eye positions of N vision tokens in the first view's frame.

        From their states [N, D] and, where it is known, from where their rays meet the trunk's occupancy:
        then the states tell how far the surface is from there, and how sure that is. None without a layout
        head, and where a head that starts from a sight has none: in a plain video.
        """
        if self.layout is None or (self.sighted is not None and sight is None):
            return None
        raw = self.layout.linear(self.vision_norm(states.float()))
        if self.sighted is None or sight is None:
            return split_estimate(raw, scale=self.scale)
        estimate = split_estimate(raw + self.sighted(sight_features(sight)), scale=self.scale)
        met = (sight.share > 0)[:, None]
        return replace(estimate, mean=estimate.mean + torch.where(met, sight.point[:, :2], 0.0))

    def place(
        self, read: ReadSituation, objects: Tensor, boxes: Tensor, car: Tensor, where: Tensor, facing: Tensor
    ) -> tuple[BirdsEyeEstimate, Tensor]:
        """Positions [Q, 2] and orientation logits [Q, B]: what the words say, and what the states add.

        See `anchored_pose`; states [Q, D] of `<|pos|>` and `<|ori|>`. Without a token the states are all.
        """
        added = self.position(self.turn_norm(where.float()))
        turned = self.orientation(self.turn_norm(facing.float()))
        if not len(boxes):
            return added, turned
        estimate, logits = anchored_pose(read, objects, boxes, car, bins=self.bins)
        doubt = added.log_variance - 2 * math.log(self.scale)
        return BirdsEyeEstimate(estimate.mean + added.mean, estimate.log_variance + doubt), logits + turned


@dataclass(frozen=True)
class TurnIds:
    """A situated turn as the language model reads it."""

    ids: Tensor  # [l]
    position: int  # of `<|pos|>`; the situation's words are before it
    orientation: int
    ground: int  # of `<|ground|>`, after which the answer's words stand
    roles: Tensor | None = None  # long [position]: 1 + index in MENTIONS of each word, where it is known

    @property
    def read(self) -> Tensor:
        """Ids that tell where somebody stands; what follows can't be seen from there."""
        return self.ids[: self.orientation + 1]


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


def turn_ids(backbone: Backbone, turn: SpatialTurn) -> TurnIds:
    """Ids of a turn: situation, `<|pos|>`, `<|ori|>`, question, and its answer where it has one (3.3)."""
    ids, position, orientation = backbone.situation_ids(turn.situation, turn.question, turn.answer or None)
    ground = int((ids == backbone.token_ids.ground).nonzero()[0])
    roles = None
    if turn.parts is not None:
        roles = torch.zeros(position, dtype=torch.long)
        for place, (start, end) in enumerate(backbone.processor.word_spans(turn.situation)):
            for mention in turn.parts.mentions:
                if start < mention.end and end > mention.start:
                    roles[place] = 1 + MENTIONS.index(mention.role)
    return TurnIds(ids, position, orientation, ground, roles)


def batch_turns(backbone: Backbone, batch: Batch) -> tuple[tuple[TurnIds, ...], ...]:
    """The situated turns of each scene of a batch, none where it has none: B x Q."""
    return tuple(tuple(turn_ids(backbone, turn) for turn in scene) for scene in batch.turns) or tuple(
        () for _ in batch.frames
    )


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


def from_reference(boxes: Tensor, reference_from_first: Tensor) -> tuple[Tensor, Tensor]:
    """Boxes [N, 7] of the reference ego frame in the first view's, and the ego vehicle's x, y, yaw [3] there.

    Heights are left as they are.
    """
    turn, shift = planar_part(torch.linalg.inv(reference_from_first.double()))
    turn, shift = turn.to(boxes), shift.to(boxes)
    yaw = torch.atan2(turn[1, 0], turn[0, 0])
    moved = [boxes[:, :2] @ turn.T + shift, boxes[:, 2:6], boxes[:, 6:] + yaw]
    return torch.cat(moved, dim=1).float(), torch.cat([shift, yaw[None]]).float()


def _spans(turn: TurnIds, roles: Tensor) -> list[tuple[int, int] | None]:
    """Where a turn's words name each of MENTIONS: as it is known, else as `roles` [>= l, 1 + M] say."""
    if turn.roles is None:
        return mention_spans(roles[: turn.position])
    spans: list[tuple[int, int] | None] = []
    for role in range(1, 1 + len(MENTIONS)):
        places = (turn.roles == role).nonzero()[:, 0].tolist()
        spans.append((places[0], places[-1] + 1) if places else None)
    return spans


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
    ground_norm: nn.LayerNorm
    word_encoder: WordEncoder
    factors: FactorHead
    known: KnownWords | None

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
            for column, span in enumerate(_spans(turn, read.roles[row]))
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

    def _encoded(self, query: QueryStates) -> Tensor:
        """Words [Q, l, W] as the heads read them."""
        dtype, device = self.backbone.dtype, query.states.device.type
        with torch.autocast(device, dtype=dtype, enabled=dtype != torch.float32):
            return self.word_encoder(query)

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
