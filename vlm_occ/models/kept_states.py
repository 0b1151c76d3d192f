"""What frozen parts say of scenes and sentences, kept in memory, so that a step is what still trains."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from vlm_occ.data.augment import without_cameras, without_lidar
from vlm_occ.heads.occupancy import mask_window
from vlm_occ.models.batch import Batch, SceneStates
from vlm_occ.models.perception import PerceptionOutput
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
        asked = ("backbone.", "voxel_projector.", "pose.")
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
        (states,), _ = self.model.language_states(replace(batch, queries=(ordered,)), perception)
        self._scenes[name, pictures, sentences(queries)] = (
            states.tokens.bfloat16(),
            {(q.text, q.answer): s.bfloat16() for q, s in zip(ordered, states.queries, strict=True)},
        )
        found = self.find(name, pictures, queries)
        assert found is not None
        return found


def sentences(queries: Sequence[GroundingQuery]) -> Sentences:
    """The sentences of a scene without their order."""
    return tuple(sorted({(q.text, q.answer) for q in queries}))


def blind(item: LabelledScene) -> LabelledScene:
    """A scene without what its sensors saw."""
    return replace(item, scene=without_lidar(without_cameras(item.scene)))


def slim(output: PerceptionOutput, model: VLMOcc) -> PerceptionOutput:
    """A trunk's output of one scene: voxels near candidates only, at half precision, and no dense maps."""
    empty = torch.zeros(0)
    centers = model.perception.grid.center_of(output.voxel_index[:, 1:])
    near = torch.zeros(len(centers), dtype=torch.bool, device=centers.device)
    for box in output.tokens[0].candidates.box:
        wide = box + box.new_tensor([0, 0, 0, 2, 2, 0, 0])  # a head may move it
        near[mask_window(wide, centers, model.config.mask_radius)] = True
    return replace(
        output,
        coarse_logits=empty,
        occupancy_logits=empty,
        heatmap_logits=empty,
        regression=empty,
        semantic_logits=empty,
        voxel_index=output.voxel_index[near].int(),
        voxel_features=output.voxel_features[near].bfloat16(),
    )
