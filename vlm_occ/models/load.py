"""Any model by its name: VLM-Occ or one of the paper's systems."""

from __future__ import annotations

import torch

from vlm_occ.models.adapter import VLMOcc
from vlm_occ.models.baselines import Baseline
from vlm_occ.models.checkpoint import find_checkpoint, read_about
from vlm_occ.models.paper_checkpoint import NAMED, load_system


def load_model(name: str, *, device: str | torch.device | None = None) -> VLMOcc | Baseline:
    """The model of "nano", "groundingocc-nano" (and the other NAMED ones), a checkpoint folder or a Hub id."""
    folder = None if name in NAMED else find_checkpoint(name)
    if name in NAMED or (folder is not None and "system" in read_about(folder)):
        system = load_system(name)
        return system.to(device).eval() if device is not None else system.eval()
    return VLMOcc.from_pretrained(name, device=device)
