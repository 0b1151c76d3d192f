"""Grounding in an encoded scene: words read, voxel tokens scored, the chosen ones decoded into objects."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import cast, overload

import torch
from torch import Tensor, nn

from vlm_occ.config import ModelConfig
from vlm_occ.data.scenes import check_query
from vlm_occ.heads.box import BoxHead, JointState, PointerHead
from vlm_occ.heads.factors import FactorHead, Factors
from vlm_occ.heads.occupancy import ObjectMaskHead
from vlm_occ.heads.words import QueryStates, WordEncoder, read_queries
from vlm_occ.language.backbones import Backbone
from vlm_occ.language.counts import presupposes, stated_count
from vlm_occ.language.known_words import KnownWords
from vlm_occ.language.prefixes import PrefixState
from vlm_occ.language.rewording import Reading, asked_plainly, readings
from vlm_occ.models.decoding import best_overlap, chosen_rows, object_masks
from vlm_occ.models.describe import describe
from vlm_occ.types import GroundedObject, GroundingResult, SceneState
from vlm_occ.voxels import voxels_in_box


def check_groundable(state: SceneState) -> None:
    """ValueError where nothing can be grounded in an encoded scene."""
    if not state.calibrated:
        raise ValueError(
            f"nothing can be grounded in the plain video {state.name!r}: grounding needs a pose source, that "
            "is cameras of known calibration and poses (a keyframe folder or nuscenes:ROOT:TOKEN); use ask "
            "or locate"
        )


@dataclass(frozen=True)
class Understood:
    """Q queries as they were read in a scene of N voxel tokens."""

    texts: list[str]
    states: QueryStates
    scores: Tensor  # in (0, 1), [Q, N]: of every token


class GroundingAnswers:
    """`ground` of VLMOcc and the steps that it is made of."""

    backbone: Backbone
    config: ModelConfig
    known: KnownWords | None
    ground_norm: nn.LayerNorm
    factors: FactorHead
    pointer: PointerHead
    word_encoder: WordEncoder
    joint: JointState
    mask: ObjectMaskHead
    box: BoxHead

    @overload
    def ground(self, state: SceneState, query: str, *, refine: bool = ...) -> GroundingResult: ...
    @overload
    def ground(
        self, state: SceneState, query: list[str] | tuple[str, ...], *, refine: bool = ...
    ) -> list[GroundingResult]: ...

    @torch.no_grad()
    def ground(
        self, state: SceneState, query: str | list[str] | tuple[str, ...], *, refine: bool = False
    ) -> GroundingResult | list[GroundingResult]:
        """Ground one query or a list of them in an encoded scene; `refine` cuts voxels to the predicted
        box.
        """
        queries = [check_query(text) for text in ([query] if isinstance(query, str) else query)]
        heard = self.understood(state, queries)
        results = [
            replace(
                self.answer(state, text, ground, row, self.chosen_tokens(row, text), refine=refine),
                read_as=read,
            )
            for text, read, ground, row in zip(
                queries, heard.texts, heard.states.ground, heard.scores, strict=True
            )
        ]
        return results[0] if isinstance(query, str) else results

    @torch.no_grad()
    def understood(self, state: SceneState, queries: Sequence[str]) -> Understood:
        """Queries in words that training knew; as they are where all words are known, or none are kept.

        Of several readings the one whose share of the belief times its best score in this scene is greatest:
        what is there tells what was meant. All of them run together.
        """
        known = self.known
        options = [
            [Reading(text, 1.0)]
            if known is None
            else readings(known, self.backbone, asked_plainly(known, self.backbone, text))
            for text in queries
        ]
        texts = [reading.text for own in options for reading in own]
        states = self.query_states(state, texts)
        scores = self.state_scores(state, states)
        worth = scores.amax(1).tolist() if scores.shape[1] else [0.0] * len(texts)
        chosen, start = [], 0
        for own in options:
            values = [reading.share * worth[start + i] for i, reading in enumerate(own)]
            chosen.append(start + values.index(max(values)))
            start += len(own)
        return Understood([texts[row] for row in chosen], states.rows(chosen), scores[chosen])

    @torch.no_grad()
    def token_scores(self, state: SceneState, queries: Sequence[str]) -> Tensor:
        """Scores in (0, 1) of every voxel token for every query: [Q, N]."""
        return self.state_scores(state, self.query_states(state, queries))

    @torch.no_grad()
    def state_scores(self, state: SceneState, query: QueryStates) -> Tensor:
        """Scores [Q, N] of every voxel token for what `query_states` gave."""
        return self._point(state.token_states, state.token_boxes, query).scores()

    def chosen_tokens(self, scores: Tensor, query: str) -> Tensor:
        """Rows of the tokens of scores [N] that are the answer to a query, best first: see `chosen_rows`."""
        threshold, asked = self.config.score_threshold, self.config.existence_threshold
        if asked is not None and not presupposes(query):
            threshold = asked
        return chosen_rows(scores, threshold, self.config.score_ratio, count=stated_count(query))

    @torch.no_grad()
    def query_states(self, state: SceneState, queries: Sequence[str]) -> QueryStates:
        """What the heads read of queries, run together on the scene's cache."""
        check_groundable(state)
        ids = [self.backbone.query_ids(text) for text in queries]
        hidden = self.backbone.forward_queries(cast(PrefixState, state.language), [i for i, _ in ids])
        return self._read(hidden, ids)

    @torch.no_grad()
    def answer(
        self, state: SceneState, query: str, ground: Tensor, scores: Tensor, rows: Tensor, *, refine: bool
    ) -> GroundingResult:
        """The answer if a query of state `ground` [D] and `scores` [N] means the voxel tokens `rows` [K]."""
        objects: list[GroundedObject] = []
        if len(rows):
            codes = state.token_codes[rows]
            joint = self.joint(ground.expand(len(rows), -1), state.token_states[rows], codes)
            boxes = self.box(joint, state.token_boxes[rows])
            centers = state.grid.center_of(state.voxel_index)
            masks = object_masks(self.mask, joint, boxes, centers, state.voxel_features)
            for row, box, (window, logits) in zip(rows.tolist(), boxes, masks, strict=True):
                occupancy = torch.zeros_like(state.occupancy)
                chosen = state.voxel_index[window[best_overlap(logits)]]
                occupancy[chosen[:, 0], chosen[:, 1], chosen[:, 2]] = True
                if refine:
                    occupancy = state.occupancy & voxels_in_box(box, state.grid)
                objects.append(GroundedObject(occupancy, box, float(scores[row])))
        text = describe(objects, [int(state.token_labels[row]) for row in rows.tolist()])
        return GroundingResult(query, text, tuple(objects), state.occupancy, state.grid)

    def _read(self, states: Sequence[Tensor], ids: Sequence[tuple[Tensor, int]]) -> QueryStates:
        """What the heads read of queries whose final states are [l, D]: all up to <|ground|>."""
        words = [self.backbone.word_embeddings(row[: place + 1]) for row, place in ids]
        return read_queries(states, words, self.ground_norm)

    def _point(self, tokens: Tensor, boxes: Tensor, query: QueryStates) -> Factors:
        """Scores of voxel tokens [N, width] with boxes [N, 7], by factor and in all."""
        factors = self.factors(self._encoded(query), query.valid, tokens, boxes)
        return replace(factors, logits=factors.logits + self.pointer(query.ground, tokens))

    def _encoded(self, query: QueryStates) -> Tensor:
        """Words [Q, l, W] as the heads read them."""
        dtype, device = self.backbone.dtype, query.states.device.type
        with torch.autocast(device, dtype=dtype, enabled=dtype != torch.float32):
            return self.word_encoder(query)
