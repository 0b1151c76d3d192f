"""LLaVA-Video's published weights (`llava_qwen`) as a transformers LLaVA-OneVision."""

from __future__ import annotations

import json
import math
import re
import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vlm_occ.weights import cached

if TYPE_CHECKING:
    from torch import Tensor

FORMAT = 1
"""Version of the conversion, part of the folder's name."""
TOKENIZER_FILES = ("*.txt", "*.jinja", "*.model", "*token*.json", "vocab.json")
IMAGE, VIDEO = "<image>", "<video>"
VISION = "model.vision_tower.vision_tower.vision_model."
RENAMED = (
    (re.escape(VISION), "vision_tower.vision_model."),
    (r"model\.mm_projector\.0\.", "multi_modal_projector.linear_1."),
    (r"model\.mm_projector\.2\.", "multi_modal_projector.linear_2."),
    (r"model\.image_newline$", "image_newline"),
    (r"lm_head\.", "language_model.lm_head."),
    (r"model\.(?=(?:embed_tokens|layers|norm)\.)", "language_model.model."),
)
"""Beginnings of published names and what transformers' published LLaVA-OneVisions call them."""
VISION_HEADS, VISION_LAYERS = 16, 26
"""Of SigLIP-so400m without its last layer, whose output the model was trained without."""


def is_published(folder: Path) -> bool:
    """Whether a folder holds weights under the published names, which transformers does not know."""
    try:
        return json.loads((folder / "config.json").read_text()).get("model_type") == "llava_qwen"
    except (OSError, ValueError, AttributeError):
        return False


def converted(folder: Path, digest: str) -> Path:
    """The cache's folder with the conversion of a published one, made on first use (as large as that)."""

    def build(into: Path) -> None:
        print(f"vlm-occ: converting {folder} (once)", file=sys.stderr, flush=True)
        convert(folder, into)

    return cached(f"llava-video-{FORMAT}-{digest[:16]}", build)


def convert(folder: Path, into: Path) -> None:
    """Write a published folder as transformers reads it; ValueError for what its class cannot hold."""
    from safetensors import safe_open
    from safetensors.torch import save_file

    published = json.loads((folder / "config.json").read_text())
    check(published, folder)
    shapes: dict[str, list[int]] = {}
    index: dict[str, str] = {}
    total = 0
    for path in sorted(folder.glob("*.safetensors")):
        weights: dict[str, Tensor] = {}
        with safe_open(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118
                if (new := new_name(name)) is not None:
                    weights[new] = file.get_tensor(name)
        shapes.update({name: list(weight.shape) for name, weight in weights.items()})
        index.update(dict.fromkeys(weights, path.name))
        total += sum(weight.nbytes for weight in weights.values())
        save_file(weights, into / path.name, metadata={"format": "pt"})
    listed = {"metadata": {"total_size": total}, "weight_map": index}
    (into / "model.safetensors.index.json").write_text(json.dumps(listed))
    for pattern in TOKENIZER_FILES:
        for path in folder.glob(pattern):
            shutil.copy(path, into / path.name)
    ids = add_vision_tokens(into)
    (into / "config.json").write_text(json.dumps(new_config(published, shapes, ids), indent=1))


def check(published: dict[str, Any], folder: Path) -> None:
    """ValueError for settings that transformers' class has no counterpart of."""
    known = {
        "mm_newline_position": ("grid", "one_token"),
        "mm_spatial_pool_mode": ("bilinear",),
        "mm_spatial_pool_stride": (2,),
        "mm_projector_type": ("mlp2x_gelu",),
        "add_faster_video": (False,),
    }
    for name, allowed in known.items():
        if (value := published.get(name, allowed[0])) not in allowed:
            expected = " or ".join(map(str, allowed))
            raise ValueError(
                f"{folder / 'config.json'} has {name} = {value!r}, expected {expected}; only LLaVA-Video and "
                "LLaVA-OneVision models of that kind can be converted"
            )


def new_name(name: str) -> str | None:
    """What transformers calls a published weight; None for one that is not used. ValueError if unknown."""
    layer = re.match(re.escape(VISION) + r"encoder\.layers\.(\d+)\.", name)
    if (layer and int(layer[1]) >= VISION_LAYERS) or name.startswith(f"{VISION}head."):
        return None
    for old, new in RENAMED:
        if re.match(old, name):
            return re.sub(f"^{old}", new, name)
    raise ValueError(f"unknown weight {name!r}; expected those of a published LLaVA-Video or LLaVA-OneVision")


def add_vision_tokens(folder: Path) -> tuple[int, int]:
    """Give the tokenizer in a folder tokens for images and videos; their ids."""
    from tokenizers import AddedToken
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokens = [AddedToken(token, normalized=False, special=True) for token in (IMAGE, VIDEO)]
    tokenizer.add_tokens([t for t in tokens if t.content not in tokenizer.get_vocab()], special_tokens=True)
    tokenizer.save_pretrained(folder)
    return int(tokenizer.get_vocab()[IMAGE]), int(tokenizer.get_vocab()[VIDEO])


def new_config(
    published: dict[str, Any], shapes: dict[str, list[int]], ids: tuple[int, int]
) -> dict[str, Any]:
    """The transformers config of converted weights; the tower's sizes are those of its weights."""
    tower = "vision_tower.vision_model."
    needed = (f"{tower}embeddings.patch_embedding.weight", "image_newline")
    for name in needed:
        if name not in shapes:
            raise ValueError(f"the published weights hold no {name}; expected a model with its vision tower")
    width, _, patch, _ = shapes[needed[0]]
    side = math.isqrt(shapes[f"{tower}embeddings.position_embedding.weight"][0])
    layers = {name.split(".")[4] for name in shapes if name.startswith(f"{tower}encoder.layers.")}
    text = {
        "model_type": "qwen2",
        **{name: published[name] for name in TEXT_FIELDS if name in published},
        "rope_parameters": {"rope_type": "default", "rope_theta": float(published.get("rope_theta", 1e6))},
    }
    vision = {
        "model_type": "siglip_vision_model",
        "hidden_size": width,
        "intermediate_size": shapes[f"{tower}encoder.layers.0.mlp.fc1.weight"][0],
        "num_hidden_layers": len(layers),
        "num_attention_heads": VISION_HEADS,
        "image_size": side * patch,
        "patch_size": patch,
        "vision_use_head": False,
    }
    return {
        "architectures": ["LlavaOnevisionForConditionalGeneration"],
        "model_type": "llava_onevision",
        "text_config": text,
        "vision_config": vision,
        "image_token_index": ids[0],
        "video_token_index": ids[1],
        "vision_feature_layer": -1,
        "vision_feature_select_strategy": "full",
        "tie_word_embeddings": bool(published.get("tie_word_embeddings", False)),
        "mm_newline_position": published.get("mm_newline_position", "one_token"),
        "dtype": published.get("torch_dtype", "bfloat16"),
    }


TEXT_FIELDS = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "max_position_embeddings",
    "rms_norm_eps",
    "hidden_act",
    "bos_token_id",
    "eos_token_id",
    "tie_word_embeddings",
)
"""Fields that a published config shares with transformers' Qwen2."""
