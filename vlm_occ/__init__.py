"""VLM-Occ: point at things in a 3D driving scene with words."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from vlm_occ.data.scenes import load_scene
    from vlm_occ.models.adapter import VLMOcc
    from vlm_occ.types import GroundedObject, GroundingResult, Scene

__all__ = ["GroundedObject", "GroundingResult", "Scene", "VLMOcc", "load_scene"]
_HOMES = {
    "VLMOcc": "vlm_occ.models.adapter",
    "load_scene": "vlm_occ.data.scenes",
    "Scene": "vlm_occ.types",
    "GroundedObject": "vlm_occ.types",
    "GroundingResult": "vlm_occ.types",
}


def __getattr__(name: str) -> object:
    """The public names, imported when first used: `vlm-occ --help` loads no torch."""
    if name not in _HOMES:
        raise AttributeError(f"module 'vlm_occ' has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(_HOMES[name]), name)
