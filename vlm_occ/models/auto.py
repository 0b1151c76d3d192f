"""VLM-Occ under transformers' Auto classes: `AutoConfig` and `AutoModel` read its checkpoints.

Importing this module registers them. There is no AutoProcessor: a sentence needs its scene, and
`VLMOcc.encode` takes that as it is; the tokenizer is the base model's own.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

import torch
from transformers import AutoConfig, AutoModel, PreTrainedConfig

from vlm_occ.models.adapter import VLMOcc
from vlm_occ.models.checkpoint import download

MODEL_TYPE = "vlm_occ"
FROM_AUTO = {"config", "trust_remote_code", "adapter_kwargs", "_commit_hash", "_from_auto"}
"""Arguments that `AutoModel` adds by itself."""


class VLMOccConfig(PreTrainedConfig):
    """The config.json of a checkpoint as transformers sees it; `model` holds the fields of `ModelConfig`."""

    model_type: ClassVar[str] = MODEL_TYPE  # type: ignore[misc]

    def __init__(
        self,
        *,
        format_version: int = 0,
        base_hash: str = "",
        model: dict[str, Any] | None = None,
        **others: Any,
    ) -> None:
        self.format_version, self.base_hash, self.model = format_version, base_hash, model or {}
        super().__init__(**others)


class AutoVLMOcc:
    """What `AutoModel` calls to load a checkpoint; the result is a plain `VLMOcc`."""

    config_class = VLMOccConfig

    @classmethod
    def from_pretrained(
        cls,
        name: str,
        *,
        device: str | torch.device | None = None,
        revision: str | None = None,
        **others: Any,
    ) -> VLMOcc:
        """`VLMOcc.from_pretrained`, of a Hub id also at a revision; ValueError for other options."""
        odd = sorted(set(others) - FROM_AUTO)
        if odd:
            raise ValueError(
                f"unknown option {odd[0]!r} for a VLM-Occ checkpoint, expected device; dtype and "
                "quantization are fields of its config.json"
            )
        folder = name if revision is None or Path(name).is_dir() else download(name, revision)
        return VLMOcc.from_pretrained(str(folder), device=device)


AutoConfig.register(MODEL_TYPE, VLMOccConfig, exist_ok=True)
AutoModel.register(VLMOccConfig, AutoVLMOcc, exist_ok=True)  # type: ignore[arg-type]
