"""Families of VLMs by the `model_type` of their config, and the pixels that each was trained on."""

from __future__ import annotations

import json
from pathlib import Path

from vlm_occ.language.family import Family
from vlm_occ.language.frames import CLIP_MEAN, CLIP_STD, HALF
from vlm_occ.language.llava import LlavaOnevision
from vlm_occ.language.qwen import Qwen3VL, Qwen25VL
from vlm_occ.language.smolvlm import SmolVLM

FAMILIES: dict[str, type[Family]] = {
    "llava_onevision": LlavaOnevision,
    "qwen2_5_vl": Qwen25VL,
    "qwen3_vl": Qwen3VL,
    "smolvlm": SmolVLM,
}
"""A new family is a class in a file of its own and a line here and below: docs/backbones.md."""

NORMALISATIONS = {
    "llava_onevision": (HALF, HALF),
    "qwen2_5_vl": (CLIP_MEAN, CLIP_STD),
    "qwen3_vl": (HALF, HALF),
    "smolvlm": (HALF, HALF),
}
"""Mean and standard deviation of pixels where a model's folder names none."""


def normalisation(folder: Path, model_type: str) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of pixels that a model was trained with, from its processor's files."""
    for name in ("video_preprocessor_config.json", "preprocessor_config.json", "processor_config.json"):
        path = folder / name
        values = json.loads(path.read_text()) if path.is_file() else {}
        for part in (values, values.get("video_processor") or {}, values.get("image_processor") or {}):
            if "image_mean" in part and "image_std" in part:
                return tuple(part["image_mean"]), tuple(part["image_std"])
    return NORMALISATIONS[model_type]
