"""Any model by its name: VLM-Occ or one of the paper's systems."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import torch

from vlm_occ.models.checkpoint import CONFIG_FILE, find_checkpoint, read_about
from vlm_occ.models.groundingocc_config import NAMED

if TYPE_CHECKING:
    from vlm_occ.models.adapter import VLMOcc
    from vlm_occ.models.baselines import Baseline


def load_model(name: str, *, device: str | torch.device | None = None) -> VLMOcc | Baseline:
    """The model of "nano", "groundingocc-nano" (or another of NAMED), a checkpoint folder or a Hub id."""
    if name in NAMED or _holds_system(name):
        from vlm_occ.models.baselines import Baseline

        return Baseline.from_pretrained(name, device=device)
    from vlm_occ.models.adapter import VLMOcc

    return VLMOcc.from_pretrained(name, device=device)


def _holds_system(name: str) -> bool:
    """Whether a checkpoint folder or a Hub id is one of the paper's systems."""
    remote = name.count("/") == 1 and not name.startswith((".", "/", "~")) and not Path(name).exists()
    folder = find_checkpoint(name) if remote else Path(name)
    return folder is not None and (folder / CONFIG_FILE).is_file() and "system" in read_about(folder)
