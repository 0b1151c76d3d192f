"""VLM-Occ: a pretrained video VLM that points at voxels (ARCHITECTURE 1)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import cast

import torch
from torch import Tensor, nn

from vlm_occ.chat import Chat
from vlm_occ.config import ModelConfig
from vlm_occ.data.video import is_calibrated
from vlm_occ.encoders.inputs import prepare_scene
from vlm_occ.encoders.pose import PoseEncoder
from vlm_occ.encoders.refine import CODE_CHANNELS
from vlm_occ.encoders.sight import Sight, SightProjector
from vlm_occ.encoders.voxel_tokens import DESCRIBED_CHANNELS, VoxelProjector, described, score_tokens
from vlm_occ.heads.box import BoxHead, JointState, PointerHead, TokenState
from vlm_occ.heads.factors import FactorHead
from vlm_occ.heads.occupancy import ObjectMaskHead
from vlm_occ.heads.words import WordEncoder
from vlm_occ.language.backbones import Backbone
from vlm_occ.language.full import train_whole
from vlm_occ.language.known_words import KnownWords
from vlm_occ.language.loading import load_backbone
from vlm_occ.language.prefixes import Prefix
from vlm_occ.language.vision_tokens import vision_tokens
from vlm_occ.models.batch import Batch, GroundingOutput, SceneStates, VideoFrames, video_frames
from vlm_occ.models.decoding import decode_objects, pairs_to_decode
from vlm_occ.models.perception import Perception, PerceptionOutput, SceneTokens
from vlm_occ.models.saving import Saving
from vlm_occ.models.sighted import batch_sights, encoded_sight
from vlm_occ.models.spatial import SpatialAnswers, spatial_output
from vlm_occ.models.spatial_heads import SpatialHeads
from vlm_occ.models.turns import batch_turns
from vlm_occ.types import Scene, SceneState


class VLMOcc(SpatialAnswers, Saving, nn.Module):
    """Grounds sentences in a driving scene: voxels and a box for each object that a sentence means."""

    def __init__(self, config: ModelConfig, backbone: Backbone) -> None:
        super().__init__()
        self.config, self.backbone = config, backbone
        self.known: KnownWords | None = None  # what training's words are; then others are put into them
        self.perception = Perception(config.perception)
        hidden, width, tokens = backbone.hidden_size, config.head_width, config.perception.token_width
        if config.pose_source != "none":
            self.pose = PoseEncoder(hidden, config.pose_source, weights=config.cut3r)
        embeddings = cast(nn.Embedding, backbone.model.get_input_embeddings())
        scale = float(embeddings.weight.detach().float().std())
        self.voxel_projector = VoxelProjector(tokens, hidden, scale)
        self.ground_norm = nn.LayerNorm(hidden)
        self.token_state = TokenState(hidden, tokens, DESCRIBED_CHANNELS, CODE_CHANNELS, width)
        self.word_encoder = WordEncoder(hidden, width, layers=config.word_layers)
        self.factors = FactorHead(width)
        self.pointer = PointerHead(hidden, width, width)
        self.joint = JointState(hidden, width, CODE_CHANNELS, width)
        self.mask = ObjectMaskHead(
            width, voxel_width=config.perception.fine_width + 1, width=width, radius=config.mask_radius
        )
        self.box = BoxHead(width)
        self.spatial = SpatialHeads(hidden, width, config.spatial) if config.spatial is not None else None
        sees = config.spatial is not None and config.spatial.sight
        self.sight = SightProjector(hidden, scale) if sees else None
        if backbone.dtype == torch.float32:
            self.perception.compute_dtype = torch.float32

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.factors.bias.device

    # ------------------------------------------------------------------ one forward for training and
    # inference

    def forward(self, batch: Batch, *, extra_voxels: Tensor | None = None) -> GroundingOutput:
        """Ground every query of a batch; with `batch.boxes` the true objects' tokens are decoded, else the
        found.
        """
        perception = self.perception(batch.inputs, extra_voxels=extra_voxels)
        return self.ground_batch(batch, perception)

    def ground_batch(
        self,
        batch: Batch,
        perception: PerceptionOutput,
        *,
        decode: bool = True,
        states: Sequence[SceneStates] | None = None,
    ) -> GroundingOutput:
        """The language half of `forward`, on a trunk's output and states that may have been cached.

        Without `decode` it stops at the scores: no boxes and masks.
        """
        if states is None:
            states = self.language_states(batch, perception)
        turns = batch_turns(self.backbone, batch)
        scores, matches, objects, placed = [], [], [], []
        for b, scene in enumerate(states):
            ids = [self.backbone.query_ids(q.text, q.answer or None) for q in batch.queries[b]]
            found = perception.tokens[b]
            boxes, tokens = found.candidates.box, self._token_states(scene.tokens, found)
            query = self._read(scene.queries, ids)
            scores.append(self._point(tokens, boxes, query))
            pairs, match = pairs_to_decode(batch, found, b, scores[-1], self.chosen_tokens)
            matches.append(match)
            objects += decode_objects(self, b, pairs, query.ground, tokens, perception) if decode else []
            if self.spatial is not None:
                frame = batch.first_frames[b]
                own = self.placed_turns(self.spatial, turns[b], scene.turns, tokens, boxes, frame)
                placed.append(own)
        answers = tuple(scene.queries for scene in states)
        spatial = spatial_output(self.spatial, states, turns, placed) if self.spatial is not None else None
        return GroundingOutput(perception, tuple(scores), answers, tuple(matches), tuple(objects), spatial)

    def language_states(self, batch: Batch, perception: PerceptionOutput) -> list[SceneStates]:
        """Scenes, their queries and their situated turns through the language model."""
        prefixes = [self._prefix(f, t) for f, t in zip(batch.frames, perception.tokens, strict=True)]
        sights = batch_sights(self, batch, prefixes, perception)
        scenes = zip(batch.frames, perception.tokens, sights, strict=True)
        features = [self._features(*scene) for scene in scenes]
        turns = batch_turns(self.backbone, batch)
        asked = [
            [*(self.backbone.query_ids(q.text, q.answer or None)[0] for q in scene), *(t.ids for t in own)]
            for scene, own in zip(batch.queries, turns, strict=True)
        ]
        joint = self.backbone.forward_joint(prefixes, features, asked)
        states = []
        for one, prefix, queries, tokens, sight in zip(
            joint, prefixes, batch.queries, perception.tokens, sights, strict=True
        ):
            split = len(queries)
            heard = self._heard(one.prefix, prefix, tokens)
            own = SceneStates(heard, tuple(one.queries[:split]), tuple(one.queries[split:]))
            if self.spatial is not None:
                seen = vision_tokens(self.backbone, prefix)
                own = replace(own, vision=one.prefix[seen.index], grids=seen.grids, sight=sight)
            states.append(own)
        return states

    def _prefix(self, frames: VideoFrames, tokens: SceneTokens) -> Prefix:
        count = len(tokens.features) if self.config.voxel_tokens else 0
        return self.backbone.build_prefix(frames.images, count, pose=self.config.pose_source != "none")

    def _heard(self, hidden: Tensor, prefix: Prefix, tokens: SceneTokens) -> Tensor:
        """What the language model says [N, D] of a scene's voxel tokens; zeros where it sees none."""
        if self.config.voxel_tokens:
            return hidden[prefix.voxel_index]
        return hidden.new_zeros(len(tokens.features), hidden.shape[-1])

    def _features(self, frames: VideoFrames, tokens: SceneTokens, sight: Sight | None) -> dict[str, Tensor]:
        """Embeddings for the placeholders of one scene, and what is added to its vision tokens'."""
        result: dict[str, Tensor] = {}
        if self.config.voxel_tokens:
            known = described(tokens.attributes, tokens.candidates.box)
            embeddings = self.voxel_projector(tokens.features, known)
            result["voxel"] = score_tokens(embeddings, tokens.candidates.score)
        if self.config.pose_source != "none" and len(frames.images):
            result["pose"] = self.pose_tokens(frames)
        if self.sight is not None and sight is not None:
            result["vision"] = self.sight(sight)
        return result

    @torch.no_grad()
    def encode(self, scene: Scene) -> SceneState:
        """Everything about a scene that does not depend on a query, with the language model's cache.

        Of a plain video it is the language model's part alone: see `encode_video`.
        """
        if not is_calibrated(scene.rig):
            return self.encode_video(scene)
        perception = self.perception(prepare_scene(scene, self.config.perception).to(self.device))
        frames, tokens = video_frames(scene, self.config.vlm_frames), perception.tokens[0]
        prefix = self._prefix(frames, tokens)
        occupancy = perception.occupancy_logits[0].sigmoid() > self.config.occupancy_threshold
        sight = encoded_sight(self, scene, frames, prefix, occupancy)
        language = self.backbone.encode_prefix(prefix, self._features(frames, tokens, sight))
        state = SceneState(
            name=scene.name,
            grid=scene.grid,
            occupancy=occupancy,
            voxel_index=perception.voxel_index[:, 1:],
            voxel_features=perception.voxel_features,
            token_boxes=tokens.candidates.box,
            token_labels=tokens.class_logits.argmax(-1),
            token_states=self._token_states(self._heard(language.hidden, prefix, tokens), tokens),
            token_codes=tokens.code,
            language=language,
        )
        return self.with_layout(state, scene, frames, prefix, sight)

    def _token_states(self, states: Tensor, tokens: SceneTokens) -> Tensor:
        """What the heads know of a scene's voxel tokens [N, width]."""
        known = described(tokens.attributes, tokens.candidates.box)
        return self.token_state(states, tokens.features, known, tokens.code)

    def chat(self, scene: Scene) -> Chat:
        """A conversation about a scene, which is encoded now and once."""
        return Chat(self, self.encode(scene))

    @classmethod
    def from_config(cls, config: ModelConfig, *, seed: int = 0) -> VLMOcc:
        """A model with pretrained base weights and untrained heads, the same for the same seed."""
        dtype = {"auto": None, "float32": torch.float32, "bfloat16": torch.bfloat16}[config.dtype]
        backbone = load_backbone(
            config.base,
            dtype=dtype,
            lora=config.lora,
            quantization=config.quantization,
            weights=config.language_weights,
        )
        if config.full_language:
            train_whole(backbone)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return cls(config, backbone)

    @classmethod
    def from_pretrained(
        cls, name: str, *, device: str | torch.device | None = None, trainable: bool = False
    ) -> VLMOcc:
        """The embedded default ("nano"), a checkpoint folder, or a Hub id; see
        vlm_occ/models/checkpoint.py.

        Unless it is to be `trainable`, LoRA is added to the weights that it changes: a query takes a quarter
        less time. What is saved of the model stays the same; layers of few bits stay as they are.
        """
        from vlm_occ.models.checkpoint import load_checkpoint

        model = load_checkpoint(name)
        if not trainable and model.config.lora is not None and model.config.quantization == "none":
            model.backbone.merge()
        return model.to(device).eval() if device is not None else model.eval()
