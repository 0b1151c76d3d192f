"""A trained model with parts added that it was trained without: heads, another pose source, more frames."""

from __future__ import annotations

from dataclasses import replace

from vlm_occ.config import ModelConfig
from vlm_occ.models.adapter import VLMOcc
from vlm_occ.models.checkpoint import load_model_state, model_state

WIDENING = ("spatial", "pose_source", "cut3r", "vlm_frames", "full_language")
"""Fields in which a run's model may differ from the checkpoint that it starts from."""


def widened(model: VLMOcc, wanted: ModelConfig, *, seed: int = 0) -> VLMOcc:
    """`model` as it is where `wanted` has no spatial heads; else with the parts of `wanted` that it lacks.

    What both have keeps its weights, new parts are untrained. ValueError where LoRA would be lost.
    """
    if wanted.spatial is None:
        return model
    changes = {name: getattr(wanted, name) for name in WIDENING}
    if changes["full_language"]:
        if model.config.lora is not None:
            raise ValueError(
                "the checkpoint of init has LoRA, which model.full_language would drop; fold it into its "
                "base by `vlm-occ merge` first"
            )
        changes["lora"] = None
    config = replace(model.config, **changes)
    if config == model.config:
        return model
    wide = VLMOcc.from_config(config, seed=seed)
    state, known = model_state(wide), model_state(model)
    for name, value in state.items():
        if name in known and known[name].shape == value.shape:
            state[name] = known[name]
    load_model_state(wide, state, where="the widened model")
    return wide
