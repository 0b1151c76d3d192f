"""The two references of Talk2Occ's Table II that see no sensor: GT-Rand and Box-Rand.

Both draw one of the scene's true boxes. Box-Rand answers the truly occupied voxels in it (eq. 1 for the wrong
or, by luck, the right object); GT-Rand answers all voxels of the box, as it knows boxes but no occupancy.
docs/paper-notes.md says why the text is read so.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Literal, overload

import torch
from torch import Tensor

from vlm_occ.types import FREE, TALK2OCC_CLASSES, GroundedObject, GroundingResult, SceneLabels, VoxelGrid
from vlm_occ.voxels import voxels_in_box

ReferenceKind = Literal["gt_rand", "box_rand"]


@dataclass(frozen=True)
class ReferenceState:
    """What a reference knows about a scene: its truth."""

    name: str
    grid: VoxelGrid
    occupancy: Tensor  # bool [X, Y, Z]
    boxes: Tensor  # [M, 7], those that Talk2Occ's filters keep
    classes: Tensor  # long [M], index in TALK2OCC_CLASSES


class RandomReference:
    """Answers every query with a random true box of the scene; one seed gives one answer to a sentence."""

    def __init__(self, kind: ReferenceKind, *, seed: int = 0) -> None:
        self.kind, self.seed = kind, seed

    def encode(self, labels: SceneLabels, grid: VoxelGrid, *, name: str = "scene") -> ReferenceState:
        """The scene's boxes whose centre lies in the grid and that hold an occupied voxel (Talk2Occ, III)."""
        occupancy = labels.semantics != FREE
        _, inside = grid.index_of(labels.boxes[:, :3])
        rows = [
            row
            for row in inside.nonzero()[:, 0].tolist()
            if bool((voxels_in_box(labels.boxes[row], grid) & occupancy).any())
        ]
        return ReferenceState(name, grid, occupancy, labels.boxes[rows], labels.classes[rows])

    @overload
    def ground(self, state: ReferenceState, query: str, *, refine: bool = ...) -> GroundingResult: ...
    @overload
    def ground(
        self, state: ReferenceState, query: list[str] | tuple[str, ...], *, refine: bool = ...
    ) -> list[GroundingResult]: ...

    def ground(
        self, state: ReferenceState, query: str | list[str] | tuple[str, ...], *, refine: bool = False
    ) -> GroundingResult | list[GroundingResult]:
        """One answer a query; `refine` cuts GT-Rand's to occupied voxels, which makes it Box-Rand."""
        queries = [query] if isinstance(query, str) else query
        results = [self._answer(state, text, number, refine) for number, text in enumerate(queries)]
        return results[0] if isinstance(query, str) else results

    def _answer(self, state: ReferenceState, query: str, number: int, refine: bool) -> GroundingResult:
        if not len(state.boxes):
            return GroundingResult(query, "There is no such object.", (), state.occupancy, state.grid)
        row = self.draw(state, query, number)
        voxels = voxels_in_box(state.boxes[row], state.grid)
        if self.kind == "box_rand" or refine:
            voxels &= state.occupancy
        found = GroundedObject(voxels, state.boxes[row], 1 / len(state.boxes))
        text = f"It is a {TALK2OCC_CLASSES[int(state.classes[row])]}, perhaps."
        return GroundingResult(query, text, (found,), state.occupancy, state.grid)

    def draw(self, state: ReferenceState, query: str, number: int = 0) -> int:
        """The row of the box for the `number`th query of a list: uniform over seeds, the same for the same
        seed, scene, sentence and place.
        """
        digest = hashlib.sha256(repr((self.seed, state.name, number, query)).encode()).digest()
        bits = torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))
        return int(torch.randint(len(state.boxes), (), generator=bits))
