"""VLM-Occ in training: what a forward of each stage runs, keeps and is judged by."""

from __future__ import annotations

import contextlib
import zlib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vlm_occ.config import TRUNK_STAGES, TrainConfig
from vlm_occ.encoders.inputs import collate_inputs, prepare_scene
from vlm_occ.models.adapter import VLMOcc
from vlm_occ.models.batch import Batch, GroundingOutput
from vlm_occ.models.checkpoint import load_model_state, save_checkpoint
from vlm_occ.models.kept_states import (
    KeptLanguage,
    blind,
    joined,
    silent_states,
    slim,
    without_voxels,
)
from vlm_occ.models.label_tokens import label_tokens
from vlm_occ.models.perception import PerceptionOutput
from vlm_occ.models.sighted import with_sights
from vlm_occ.models.spatial_batch import keep_clips, make_spatial_batch, without_pictures
from vlm_occ.objectives import (
    GROUNDING_WEIGHTS,
    PERCEPTION_WEIGHTS,
    attribute_terms,
    grounding_terms,
    language_term,
    perception_terms,
    refine_terms,
    weighted_sum,
)
from vlm_occ.objectives_pointer import pointer_terms
from vlm_occ.objectives_spatial import SPATIAL_WEIGHTS, spatial_terms
from vlm_occ.run_config import keeps_language
from vlm_occ.run_model import recompute_activations, trainable
from vlm_occ.run_state import TrainingState, Weight, load_weights, weight_names
from vlm_occ.trainee import Trainee, occupied, to_device
from vlm_occ.types import LabelledScene, SceneLabels

TOKEN_DROPOUT = 0.1
"""Share of what voxel tokens are read from that stage "pointer" leaves out."""
CACHED_SCENES = 4000
"""Outputs of the frozen trunk that are kept: 2 MB each in stage "grounding", 0.1 MB in stage "pointer"."""


class TrainingModule(Trainee[VLMOcc]):
    """VLM-Occ in training, at any stage."""

    def __init__(self, model: VLMOcc, config: TrainConfig) -> None:
        super().__init__()
        self.model, self.config = model, config
        self.cache: dict[str, PerceptionOutput] = {}
        self.language: KeptLanguage | None = None
        keep_clips(model, keep=not config.data.augment)
        model.word_encoder.drop = 0.0 if config.stage == "pointer" else config.data.drop_words
        model.perception.refiner.shakes = config.stage in TRUNK_STAGES
        layers = model.backbone.language_model.layers
        self._no_split_modules = [type(layers[0]).__name__]  # what accelerate shards one by one under FSDP

    def forward(self, scenes: Sequence[LabelledScene]) -> tuple[Tensor, dict[str, float]]:
        """The mean loss over the scenes and its terms."""
        model, stage = self.model, self.config.stage
        labels = [to_device(item.labels, model.device) for item in scenes]
        terms, weights = {}, {}
        if stage == "pointer":
            output, batch = self._listen(scenes, labels)
            terms, weights = pointer_terms(output, batch, labels), dict(GROUNDING_WEIGHTS)
            terms.update(spatial_terms(model, output, batch, labels))
            if self.config.perception_rate > 0 and self.config.data.label_tokens < 1:
                terms.update(attribute_terms(output.perception, labels))
                weights.update(PERCEPTION_WEIGHTS)
        elif stage == "language":
            output, batch = self._describe(scenes, labels)
            terms, weights = pointer_terms(output, batch, labels), dict(GROUNDING_WEIGHTS)
            terms["language"] = language_term(model, output, batch)
            terms.update(spatial_terms(model, output, batch, labels))
        elif stage == "perception":
            inputs = collate_inputs([prepare_scene(s.scene, model.config.perception) for s in scenes])
            output = model.perception(inputs.to(model.device), extra_voxels=occupied(labels))
            terms, weights = perception_terms(output, labels, model.perception.grid), PERCEPTION_WEIGHTS
        elif stage == "refine":
            inputs = collate_inputs([prepare_scene(s.scene, model.config.perception) for s in scenes])
            output = model.perception(inputs.to(model.device))
            terms, weights = refine_terms(output, labels), PERCEPTION_WEIGHTS
        else:
            output, batch = self._ground(scenes, labels)
            terms, weights = grounding_terms(model, output, batch, labels), dict(GROUNDING_WEIGHTS)
            terms.update(spatial_terms(model, output, batch, labels))
            if stage == "joint":
                terms.update(perception_terms(output.perception, labels, model.perception.grid))
                weights.update(PERCEPTION_WEIGHTS)
        total, log = weighted_sum(terms, {**weights, **SPATIAL_WEIGHTS})
        return total + self.touch(), log

    def _listen(
        self, scenes: Sequence[LabelledScene], labels: Sequence[SceneLabels]
    ) -> tuple[GroundingOutput, Batch]:
        """The heads alone, on words and on tokens that the trunk found or that are made of labels."""
        model, share = self.model, self.config.data.label_tokens
        batch = make_spatial_batch([blind(item) for item in scenes], model.config)
        turns = tuple(tuple(turn for turn in scene if not turn.answer) for scene in batch.turns)
        batch = replace(batch, boxes=tuple(item.boxes for item in labels), turns=turns)
        made = []
        for item in scenes:
            if float(torch.rand(())) < share:
                bits = torch.Generator().manual_seed(int(torch.randint(2**62, ())))
                made.append(label_tokens(item.labels, model.config.perception, bits, device=model.device))
            else:
                made.append(self._described_anew(self._trunk_tokens(item)))
        output = joined(made)
        states = silent_states(model, batch, output)
        return model.ground_batch(batch, output, decode=False, states=states), batch

    @torch.no_grad()
    def _trunk_tokens(self, item: LabelledScene) -> PerceptionOutput:
        """The trunk's tokens of a scene, kept at the first sight where scenes are not augmented."""
        name, keeps = item.scene.name, not self.config.data.augment
        seen = self.cache.get(name) if keeps else None
        if seen is None:
            inputs = collate_inputs([prepare_scene(item.scene, self.model.config.perception)])
            seen = without_voxels(self.model.perception(inputs.to(self.model.device)))
            if keeps:
                self._keep(name, seen)
        return seen

    def _keep(self, name: str, seen: PerceptionOutput) -> None:
        """Remember what the trunk said of a scene, and forget the oldest of too many."""
        self.cache[name] = seen
        if len(self.cache) > CACHED_SCENES:
            self.cache.pop(next(iter(self.cache)))

    def _described_anew(self, output: PerceptionOutput) -> PerceptionOutput:
        """The trunk's output of one scene with what its token encoder says now, as it is trained."""
        if self.config.perception_rate == 0:
            return output
        tokens = output.tokens[0]
        assert tokens.inputs is not None
        known = (tokens.candidates, tokens.inputs, tokens.moving_logits, tokens.code)
        new = self.model.perception.describe(*known, drop=TOKEN_DROPOUT)
        return replace(output, tokens=(new,))

    def _describe(
        self, scenes: Sequence[LabelledScene], labels: Sequence[SceneLabels]
    ) -> tuple[GroundingOutput, Batch]:
        """The language half on tokens made of labels; sensors are not looked at."""
        batch = make_spatial_batch([blind(item) for item in scenes], self.model.config)
        batch = replace(batch, boxes=tuple(item.boxes for item in labels))
        words = self.language if len(scenes) == 1 else None
        name = scenes[0].scene.name  # what is kept must not depend on when it was seen
        seed = int(torch.randint(2**62, ())) if words is None else zlib.crc32(name.encode())
        bits = torch.Generator().manual_seed(seed)
        made = [
            label_tokens(s.labels, self.model.config.perception, bits, device=self.model.device)
            for s in scenes
        ]
        output = joined(made)
        states = words and (
            words.find(name, False, scenes[0].queries) or words.keep(batch, output, name, False)
        )
        return self.model.ground_batch(batch, output, decode=False, states=states and [states]), batch

    def _ground(
        self, scenes: Sequence[LabelledScene], labels: Sequence[SceneLabels]
    ) -> tuple[GroundingOutput, Batch]:
        """A full forward, or in stage "grounding" what follows a frozen trunk (and a frozen language model).

        What is kept must not depend on when it was seen, or a resumed run would differ.
        """
        model, config, name = self.model, self.config, scenes[0].scene.name
        frozen = config.stage == "grounding"
        pictures = not (frozen and float(torch.rand(())) < config.data.drop_vlm_frames)
        keeps = frozen and len(scenes) == 1 and not config.data.augment
        seen = self.cache.get(name) if keeps else None
        words = self.language if keeps else None
        states = words and words.find(name, pictures, scenes[0].queries)
        if seen is not None and (states is not None or not pictures):
            scenes = [blind(item) for item in scenes]  # their sensors are not needed again
        batch = make_spatial_batch(scenes, model.config)
        batch = replace(
            batch, inputs=batch.inputs.to(model.device), boxes=tuple(item.boxes for item in labels)
        )
        if seen is None:
            with torch.no_grad() if frozen else contextlib.nullcontext():
                seen = model.perception(batch.inputs)
            if keeps:
                seen = slim(with_sights(model, batch, seen))
                self._keep(name, seen)
        if not pictures:
            batch = without_pictures(batch)
        if words is not None and states is None:
            states = words.keep(batch, seen, name, pictures)
        return model.ground_batch(batch, seen, states=states and [states]), batch

    def weight_names(self) -> dict[str, Weight]:
        """See `vlm_occ.run_state.weight_names`."""
        return weight_names(self.model)

    def load(self, state: TrainingState, *, where: str) -> None:
        """Put the weights of a state into the model."""
        load_weights(state, self.model, where=where)

    def groups(self) -> list[dict[str, Any]]:
        """Parameter groups of the stage."""
        groups = trainable(self.model, self.config)
        if keeps_language(self.config):
            self.language = KeptLanguage(self.model)
        return groups

    def recompute(self) -> None:
        """Of the language model's layers."""
        recompute_activations(self.model)

    def finish(self, weights: dict[str, Tensor] | None, folder: Path | None) -> VLMOcc:
        """The finished model; every stage that trains the heads makes it a trained one."""
        model = self.model
        trained = self.config.stage not in TRUNK_STAGES or model.config.trained
        if weights is not None:
            model = VLMOcc.from_config(model.config)
            load_model_state(model, weights, where="the trained model")
        model.config = replace(model.config, trained=trained)
        if folder is not None:
            save_checkpoint(model, folder)
        return model
