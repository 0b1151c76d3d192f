"""What frozen parts say of scenes and sentences, kept in memory, so that a step is what still trains."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from vlm_occ.data.augment import without_cameras, without_lidar
from vlm_occ.encoders.voxel_tokens import TokenInputs
from vlm_occ.models.batch import Batch, SceneStates
from vlm_occ.models.perception import PerceptionOutput
from vlm_occ.models.turns import batch_turns
from vlm_occ.types import GroundingQuery, LabelledScene

if TYPE_CHECKING:
    from vlm_occ.models.adapter import VLMOcc

Sentences = tuple[tuple[str, str], ...]


class KeptLanguage:
    """States of voxel tokens and sentences by scene, its sentences and whether it came with pictures.

    At half precision about 20 kB a sentence. All sentences of a scene run together and in the order of the
    alphabet, so that what is kept does not depend on when it was seen, and a resumed run does not differ.
    """

    def __init__(self, model: VLMOcc) -> None:
        """ValueError where something trains that the states depend on."""
        asked = ("backbone.", "voxel_projector.", "pose.", "sight.")
        trained = [n for n, p in model.named_parameters() if p.requires_grad and n.startswith(asked)]
        if trained:
            raise ValueError(
                f"{trained[0]} is trained, so the language model's states can't be kept; set lora_rate and "
                "input_rate to 0, or data.renew to true"
            )
        self.model = model
        self._scenes: dict[tuple[str, bool, Sentences], tuple[Tensor, dict[tuple[str, str], Tensor]]] = {}

    def find(self, name: str, pictures: bool, queries: Sequence[GroundingQuery]) -> SceneStates | None:
        """The states of a scene's queries in the given order, or None where they are not kept."""
        found = self._scenes.get((name, pictures, sentences(queries)))
        if found is None:
            return None
        tokens, states = found
        return SceneStates(tokens.float(), tuple(states[q.text, q.answer].float() for q in queries))

    @torch.no_grad()
    def keep(self, batch: Batch, perception: PerceptionOutput, name: str, pictures: bool) -> SceneStates:
        """Run the language model on a batch of one scene, keep what it says and give it."""
        queries = batch.queries[0]
        asked = {(q.text, q.answer): q for q in queries}
        ordered = tuple(asked[key] for key in sorted(asked))
        (states,) = self.model.language_states(replace(batch, queries=(ordered,)), perception)
        self._scenes[name, pictures, sentences(queries)] = (
            states.tokens.bfloat16(),
            {(q.text, q.answer): s.bfloat16() for q, s in zip(ordered, states.queries, strict=True)},
        )
        found = self.find(name, pictures, queries)
        assert found is not None
        return found


def silent_states(model: VLMOcc, batch: Batch, perception: PerceptionOutput) -> list[SceneStates]:
    """States of a language model that says nothing: the heads are left with words and voxel tokens."""
    hidden, result = model.backbone.hidden_size, []
    told = batch_turns(model.backbone, batch)
    for queries, tokens, turns in zip(batch.queries, perception.tokens, told, strict=True):
        lengths = [len(model.backbone.query_ids(q.text, q.answer or None)[0]) for q in queries]
        states = tuple(tokens.features.new_zeros(length, hidden) for length in lengths)
        heard = tuple(tokens.features.new_zeros(len(turn.ids), hidden) for turn in turns)
        result.append(SceneStates(tokens.features.new_zeros(len(tokens.features), hidden), states, heard))
    return result


def joined(outputs: Sequence[PerceptionOutput]) -> PerceptionOutput:
    """The tokens of scenes that a trunk saw one by one; dense maps and voxels are the first's."""
    return replace(outputs[0], tokens=tuple(tokens for output in outputs for tokens in output.tokens))


def sentences(queries: Sequence[GroundingQuery]) -> Sentences:
    """The sentences of a scene without their order."""
    return tuple(sorted({(q.text, q.answer) for q in queries}))


def blind(item: LabelledScene) -> LabelledScene:
    """A scene without what its sensors saw."""
    return replace(item, scene=without_lidar(without_cameras(item.scene)))


def slim(output: PerceptionOutput) -> PerceptionOutput:
    """A trunk's output of one scene at half precision and without dense maps."""
    return replace(
        _without_maps(output),
        tokens=tuple(replace(tokens, inputs=None, looks=()) for tokens in output.tokens),
        voxel_index=output.voxel_index.int(),
        voxel_features=output.voxel_features.bfloat16(),
    )


def without_voxels(output: PerceptionOutput) -> PerceptionOutput:
    """A trunk's output with its tokens only, what they were read from at half precision: 0.1 MB a scene."""
    tokens = []
    for scene in output.tokens:
        read = scene.inputs
        half = read and TokenInputs(read.birds_eye.bfloat16(), read.image.bfloat16())
        tokens.append(replace(scene, inputs=half, looks=()))
    return replace(
        _without_maps(output),
        tokens=tuple(tokens),
        voxel_index=output.voxel_index[:0],
        voxel_features=output.voxel_features[:0],
    )


def _without_maps(output: PerceptionOutput) -> PerceptionOutput:
    empty = torch.zeros(0)
    return replace(
        output,
        coarse_logits=empty,
        occupancy_logits=empty,
        heatmap_logits=empty,
        regression=empty,
        semantic_logits=empty,
    )
