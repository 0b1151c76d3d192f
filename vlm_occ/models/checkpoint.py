"""Checkpoints of VLM-Occ: config and our own weights as safetensors, never the base model's."""

from __future__ import annotations

import importlib.resources
import json
import os
import shutil
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from vlm_occ.config import FORMAT_VERSION, ModelConfig, SpatialConfig, from_dict, to_dict
from vlm_occ.language.known_words import WORDS_FILE, KnownWords

if TYPE_CHECKING:
    from vlm_occ.language.quantisation import Quantization
    from vlm_occ.models.adapter import VLMOcc

CONFIG_FILE, INDEX_FILE = "config.json", "weights.json"
FROZEN = "perception.image_network."
"""Weights that come from the package index, not from a checkpoint."""
SHARD_BYTES = 14 * 2**20
"""Size of one weight file: small enough for any transfer."""


def model_state(model: VLMOcc) -> dict[str, Tensor]:
    """Our weights by name: encoders, heads and projectors, then the backbone's adapter and token rows."""
    state = {
        name: tensor
        for name, tensor in model.state_dict().items()
        if not name.startswith(("backbone.", FROZEN))
    }
    state.update({f"backbone.{name}": tensor for name, tensor in model.backbone.trainable_state().items()})
    return state


def load_model_state(model: VLMOcc, state: dict[str, Tensor], *, where: str) -> None:
    """Put weights of `model_state` into a model; ValueError names the first missing, odd or misshapen one."""
    check_state(model_state(model), state, where=where)
    own = {name: tensor for name, tensor in state.items() if not name.startswith("backbone.")}
    model.load_state_dict(own, strict=False)
    model.backbone.load_trainable_state(
        {k.removeprefix("backbone."): v for k, v in state.items() if k.startswith("backbone.")}
    )


def check_state(expected: dict[str, Tensor], state: dict[str, Tensor], *, where: str) -> None:
    """ValueError names the first weight of `state` that is missing, odd or misshapen."""
    for name, tensor in expected.items():
        if name not in state:
            raise ValueError(
                f"{where} lacks the weight {name!r}; it was saved by another model configuration"
            )
        if state[name].shape != tensor.shape:
            raise ValueError(
                f"{where}: weight {name!r} has shape {list(state[name].shape)}, expected {list(tensor.shape)}"
            )
    odd = sorted(set(state) - set(expected))
    if odd:
        raise ValueError(
            f"{where} holds the unknown weight {odd[0]!r}; it was saved by another configuration"
        )


def write_folder(folder: Path, write: Any) -> None:
    """Fill a temporary folder by `write(path)` and rename it to `folder`, replacing an older one."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    try:
        write(temporary)
        if folder.exists():
            stale = temporary.with_name(temporary.name + ".old")
            os.replace(folder, stale)
            os.replace(temporary, folder)
            shutil.rmtree(stale)
        else:
            os.replace(temporary, folder)
    except OSError as error:
        raise ValueError(
            f"can't write {folder}: {error.strerror or error}; free space or choose another folder"
        ) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def check_target(folder: Path) -> None:
    """ValueError where saving a checkpoint into `folder` would replace something else."""
    if folder.exists() and any(folder.iterdir()) and not (folder / CONFIG_FILE).exists():
        raise ValueError(f"{folder} is not empty and holds no checkpoint; choose another folder")


def save_checkpoint(model: VLMOcc, folder: Path, *, dtype: torch.dtype | None = None) -> None:
    """Write a checkpoint; `dtype` bfloat16 halves it (the shipped default does so)."""
    check_target(folder)
    state = {name: tensor.detach().cpu() for name, tensor in model_state(model).items()}
    if dtype is not None:
        state = {k: v.to(dtype) if v.is_floating_point() else v for k, v in state.items()}

    def write(path: Path) -> None:
        config = {
            "model_type": "vlm_occ",  # by which transformers' Auto classes know it: models/auto.py
            "format_version": FORMAT_VERSION,
            "base_hash": model.backbone.base_hash,
            "model": to_dict(model.config),
        }
        (path / CONFIG_FILE).write_text(json.dumps(config, indent=2) + "\n")
        write_shards(state, path)
        if model.known is not None:
            model.known.save(path / WORDS_FILE)

    write_folder(folder, write)


def write_shards(state: dict[str, Tensor], path: Path) -> None:
    """Save weights in files of at most about SHARD_BYTES, with an index of which file holds what."""
    shards: list[dict[str, Tensor]] = [{}]
    size = 0
    for name, tensor in state.items():
        bytes_ = tensor.numel() * tensor.element_size()
        if size + bytes_ > SHARD_BYTES and shards[-1]:
            shards.append({})
            size = 0
        shards[-1][name] = tensor.contiguous()
        size += bytes_
    index = {}
    for number, shard in enumerate(shards):
        file = f"weights-{number:02d}.safetensors"
        save_file(shard, path / file)
        index.update(dict.fromkeys(shard, file))
    (path / INDEX_FILE).write_text(json.dumps(index, indent=0) + "\n")


def read_shards(folder: Path) -> dict[str, Tensor]:
    """All weights of a checkpoint folder; ValueError where a file is missing or damaged."""
    try:
        index = json.loads((folder / INDEX_FILE).read_text())
        state: dict[str, Tensor] = {}
        for file in sorted(set(index.values())):
            if Path(file).name != file:
                raise ValueError(f"{folder / INDEX_FILE} names a file outside the folder: {file!r}")
            state.update(load_file(folder / file))
    except (OSError, SafetensorError, json.JSONDecodeError, AttributeError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"checkpoint {folder} is damaged ({reason}); copy or download it again") from error
    missing = sorted(set(index) - set(state))
    if missing:
        raise ValueError(f"checkpoint {folder} lacks {missing[0]!r}; copy or download it again")
    return state


def read_about(folder: Path) -> dict[str, Any]:
    """What the config file of a checkpoint folder says; ValueError where it is none of this version."""
    path = folder / CONFIG_FILE
    try:
        values = json.loads(path.read_text())
        version = values["format_version"]
    except (OSError, json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError) as error:
        raise ValueError(
            f"{path} is not the config of a VLM-Occ checkpoint; copy or download it again"
        ) from error
    if version != FORMAT_VERSION:
        raise ValueError(
            f"checkpoint {folder} has format version {version}, this program reads {FORMAT_VERSION}; "
            "use the release of vlm-occ that wrote it, or train it again"
        )
    return values


def read_config(folder: Path) -> tuple[ModelConfig, str]:
    """The config of a checkpoint folder and the hash of the base model that it was trained on."""
    values = read_about(folder)
    if "model" not in values:
        raise ValueError(
            f"checkpoint {folder} holds one of the paper's systems, not VLM-Occ; `vlm-occ ground --model` "
            "and vlm_occ.models.load.load_model take both"
        )
    return from_dict(ModelConfig, values["model"]), str(values["base_hash"])


def find_checkpoint(name: str) -> Path | None:
    """The folder of a model name; None for the embedded default while no trained weights are shipped."""
    if name == "nano":
        shipped = Path(str(importlib.resources.files("vlm_occ"))) / "checkpoints" / "nano"
        return shipped if (shipped / CONFIG_FILE).exists() else None
    folder = Path(name)
    if folder.is_dir():
        return folder
    if folder.exists() or name.startswith((".", "/", "~")) or name.count("/") != 1:
        raise ValueError(
            f"unknown model {name!r}: expected 'nano', the folder of a checkpoint, or a Hub id (owner/name)"
        )
    return download(name)


def download(repo_id: str, revision: str | None = None) -> Path:
    """A checkpoint from the Hub, safetensors and JSON only."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        patterns = ["*.json", "*.safetensors"]
        return Path(snapshot_download(repo_id, revision=revision, allow_patterns=patterns))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        raise ValueError(
            f"could not fetch the model {repo_id!r} from the Hub ({str(error).splitlines()[0]}); check the "
            "name and the network, or download the folder elsewhere and give its path"
        ) from error


def load_checkpoint(name: str, *, quantization: Quantization | None = None) -> VLMOcc:
    """The model of a checkpoint; for "nano" without shipped weights, one with untrained heads.

    `quantization` is that of the frozen language layers; None: as the checkpoint's config says.
    """
    from vlm_occ.models.adapter import VLMOcc

    folder = find_checkpoint(name)
    config, base_hash = (ModelConfig(spatial=SpatialConfig()), "") if folder is None else read_config(folder)
    if quantization is not None:
        config = replace(config, quantization=quantization)
    if folder is None:
        return VLMOcc.from_config(config)
    state = read_shards(folder)
    model = VLMOcc.from_config(config)
    if model.backbone.base_hash != base_hash:
        raise ValueError(
            f"checkpoint {folder} was trained on a base model with hash {base_hash[:12]}, but "
            f"{config.base!r} has {model.backbone.base_hash[:12]}; use the base that it was trained on"
        )
    load_model_state(model, state, where=f"checkpoint {folder}")
    if (folder / WORDS_FILE).exists():
        model.known = KnownWords.load(folder / WORDS_FILE)
    return model


def push_checkpoint(
    model: VLMOcc, repo_id: str, *, private: bool = False, results: Path | None = None
) -> str:
    """Upload a checkpoint to the Hub, with a card of the figures in a results file; the commit's address."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    from vlm_occ.models.card import model_card

    card = model_card(model, repo_id, results)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "checkpoint"
        save_checkpoint(model, path)
        (path / "README.md").write_text(card)
        try:
            api = HfApi()
            api.create_repo(repo_id, private=private, exist_ok=True)
            commit = api.upload_folder(
                repo_id=repo_id, folder_path=path, delete_patterns=["*.safetensors"]
            )  # an older version may have more files
        except (HfHubHTTPError, HFValidationError, OSError) as error:
            raise ValueError(
                f"could not upload to {repo_id!r} ({str(error).splitlines()[0]}); check the name, and that "
                "`hf auth login` was done with a token that may write"
            ) from error
    return str(commit.commit_url)
