"""The five tokens that VLM-Occ adds to a VLM's vocabulary."""

from __future__ import annotations

from dataclasses import dataclass

POSE = "<|pose|>"  # one a frame, before the frame's vision tokens (Loc3R-VLM 3.1)
VOXEL = "<|voxel|>"  # one a candidate object of the voxel encoder
GROUND = "<|ground|>"  # opens the assistant's turn; its state points at voxel tokens
POSITION = "<|pos|>"  # situation tokens (Loc3R-VLM 3.3)
ORIENTATION = "<|ori|>"

SPECIAL_TOKENS = (POSE, VOXEL, GROUND, POSITION, ORIENTATION)


@dataclass(frozen=True)
class TokenIds:
    """Vocabulary ids of the special tokens."""

    pose: int
    voxel: int
    ground: int
    position: int
    orientation: int
