"""LoRA folded into the base model: a checkpoint that needs no adapter."""

from __future__ import annotations

import json
import os
import shutil
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

from torch import Tensor

from vlm_occ.language.backbones import Backbone
from vlm_occ.language.quantisation import forget_quantisation
from vlm_occ.models.adapter import VLMOcc
from vlm_occ.models.checkpoint import load_checkpoint, load_model_state, model_state, save_checkpoint

FOLDED = ("backbone.lora.", "backbone.projector.")
"""Weights of a checkpoint that become part of the base model; the rows of our tokens stay trainable."""


def merge_checkpoint(model: VLMOcc, out: Path) -> VLMOcc:
    """Write `model` with its LoRA folded into the base model; the merged model.

    `out` becomes a checkpoint whose base model is in `out`/base, in transformers' format, with tokenizer; its
    config holds that folder's full path and no LoRA. `model` itself is merged for good. Quantised layers
    become plain ones, for LoRA has learned beside the rounded weights: what is written answers as `model`
    did, and may be quantised anew by its config. ValueError where `out` exists or `model` has no LoRA.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ValueError(f"{out} exists; give a new folder for the merged checkpoint")
    if model.config.lora is None:
        raise ValueError("this model has no LoRA to fold; it is a merged checkpoint already")
    state = {name: value for name, value in model_state(model).items() if not name.startswith(FOLDED)}
    out.parent.mkdir(parents=True, exist_ok=True)
    base = Path(tempfile.mkdtemp(prefix=f".{out.name}.", dir=out.parent))
    try:
        write_base(model.backbone, base)
        merged = VLMOcc.from_config(replace(model.config, base=str(base), lora=None, quantization="none"))
        load_model_state(merged, state, where="the merged model")
        merged.config = replace(merged.config, base=str((out / "base").resolve()))
        merged.known = model.known
        save_checkpoint(merged, out)
        os.replace(base, out / "base")
        (out / "base").chmod(0o755)
    finally:
        shutil.rmtree(base, ignore_errors=True)
    return merged.eval()


def write_base(backbone: Backbone, folder: Path) -> None:
    """Write a backbone's base model with LoRA and token rows added, its tokenizer and normalisation."""
    backbone.merge()
    forget_quantisation(backbone.model)
    backbone.model.save_pretrained(folder, state_dict=merged_weights(backbone))
    backbone.tokenizer.save_pretrained(folder)
    family = backbone._family
    values = {"image_mean": list(family.mean), "image_std": list(family.std)}
    (folder / "preprocessor_config.json").write_text(json.dumps(values) + "\n")


def merged_weights(backbone: Backbone) -> dict[str, Tensor]:
    """A merged backbone's weights under the names that they have without peft."""
    weights = {}
    for name, value in backbone.model.state_dict().items():
        if ".lora_" in name or "trainable_tokens" in name:
            continue
        for wrapper in (".base_layer", ".token_adapter", ".original_module"):
            name = name.replace(wrapper, "")
        weights[name] = value
    return weights


def merge_command(model: str, out: Path) -> None:
    """`vlm-occ merge`."""
    merged = merge_checkpoint(load_checkpoint(model), out)
    print(f"vlm-occ: {sum(p.numel() for p in merged.parameters()) / 1e6:.1f} M weights", file=sys.stderr)
    print(out.resolve())
