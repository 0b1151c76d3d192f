"""An answer in words, composed from the objects found."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from vlm_occ.types import TALK2OCC_CLASSES, GroundedObject


def describe(objects: Sequence[GroundedObject], labels: Sequence[int]) -> str:
    """The answer in words, composed from the objects found and their most likely classes."""
    if not objects:
        return "There is no such object."
    box = objects[0].box
    x, y = float(box[0]), float(box[1])
    bearing = torch.rad2deg(torch.atan2(box[1], box[0])).item()
    side = "ahead" if abs(bearing) < 15 else "behind" if abs(bearing) > 165 else ""
    if not side:
        side = "ahead" if abs(bearing) < 75 else "behind" if abs(bearing) > 105 else "to the side"
        side += " on the left" if bearing > 0 else " on the right"
    name = TALK2OCC_CLASSES[labels[0]]
    if len(objects) > 1:
        return f"{len(objects)} objects; the surest is a {name} {(x * x + y * y) ** 0.5:.0f} m {side}."
    return f"It is a {name} {(x * x + y * y) ** 0.5:.0f} m {side}."
