"""Pretrained bases: where they are, what identifies them, and the number format that suits the machine."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from vlm_occ.language.bars import without_bars
from vlm_occ.language.families import FAMILIES
from vlm_occ.language.quantisation import Quantization, keep_exact, quantised_loading

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

HUB_FILES = ("*.json", "*.safetensors", "*.txt", "*.jinja", "*.model")


def default_dtype() -> torch.dtype:
    """bf16 where the GPU, else the CPU, computes with it; else fp32."""
    if torch.cuda.is_available():
        return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float32
    probes = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")  # private: absent ones count as no
    fast = any(getattr(torch.cpu, probe, bool)() for probe in probes)
    return torch.bfloat16 if fast else torch.float32


def base_folder(base: str) -> Path:
    """The folder of a base: `base` itself, else a snapshot of that Hub id.

    ValueError where neither exists or the Hub can't be reached.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    if Path(base).is_dir():
        return Path(base)
    reason = "no such folder"
    if base.count("/") == 1 and not base.startswith((".", "/", "~")):
        try:
            return Path(snapshot_download(base, allow_patterns=list(HUB_FILES)))
        except (OSError, HfHubHTTPError, HFValidationError) as error:
            reason = f"{type(error).__name__}: {str(error).strip().splitlines()[0]}"
    raise ValueError(
        f"unknown base model {base!r} ({reason}); give 'nano', a folder of a model in transformers' "
        f"format ({', '.join(sorted(FAMILIES))}), or the Hub id of one"
    )


def model_type(folder: Path) -> str:
    """The family of the model in a folder; ValueError where it is none that we know."""
    path = folder / "config.json"
    try:
        found = json.loads(path.read_text()).get("model_type")
    except (FileNotFoundError, json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{folder} holds no readable config.json; expected a transformers model") from error
    if found not in FAMILIES:
        raise ValueError(f"{folder} holds a {found!r} model, expected one of {', '.join(sorted(FAMILIES))}")
    return found


def load_base(
    folder: Path, dtype: torch.dtype, quantization: Quantization = "none"
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The model and tokenizer in a folder. ValueError where its files are missing or damaged."""
    from safetensors import SafetensorError
    from transformers import AutoModelForImageTextToText, AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(folder)
        with without_bars():
            model = AutoModelForImageTextToText.from_pretrained(
                folder,
                dtype=dtype,
                attn_implementation="sdpa",
                use_safetensors=True,
                **quantised_loading(quantization, dtype),
            )
    except (OSError, SafetensorError) as error:
        reason = str(error).strip().splitlines()[0]
        raise ValueError(f"cannot load the base model in {folder}: {reason}") from error
    template = folder / "chat_template.json"  # where older processors keep it
    if not tokenizer.chat_template and template.is_file():
        tokenizer.chat_template = json.loads(template.read_text())["chat_template"]
    keep_exact(model)
    return model.eval(), tokenizer


def base_hash(folder: Path, *, skip: tuple[str, ...] = ()) -> str:
    """A sha256 that identifies the weights in a folder: names, types and shapes of all tensors, and samples.

    Of each tensor 17 blocks of 256 bytes, evenly spaced, are read, so that 15 GB take a second; how tensors
    are dealt to files does not matter. Tensors whose name ends in one of `skip` are left out. ValueError
    where the folder holds no safetensors or a damaged one.
    """
    digest = hashlib.sha256()
    tensors = []
    for path in sorted(folder.rglob("*.safetensors")):
        header, start = _header(path)
        for name, item in header.items():
            if name != "__metadata__" and not name.endswith(skip or ("\0",)):
                tensors.append((name, str(path.relative_to(folder).parent), path, start, item))
    if not tensors:
        raise ValueError(f"{folder} holds no *.safetensors; expected the weights of a transformers model")
    for name, place, path, start, item in sorted(tensors, key=lambda entry: entry[:2]):
        begin, end = item["data_offsets"]
        digest.update(f"{place}/{name} {item['dtype']} {item['shape']}\n".encode())
        with path.open("rb") as file:
            for step in range(17):
                file.seek(start + begin + max(0, end - begin - 256) * step // 16)
                digest.update(file.read(min(256, end - begin)))
    return digest.hexdigest()


def _header(path: Path) -> tuple[dict, int]:
    """The header of a safetensors file and where its data starts."""
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        try:
            if length > path.stat().st_size:
                raise ValueError("its header is longer than the file")
            return json.loads(file.read(length)), 8 + length
        except (ValueError, UnicodeDecodeError) as error:
            raise ValueError(f"{path} is not a safetensors file ({error}); copy it anew") from error
