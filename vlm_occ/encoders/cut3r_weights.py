"""Published CUT3R checkpoints: read without running their code, and kept as safetensors.

A published file is a pickle of `{"args": OmegaConf, "model": state dict, "epoch": ...}`. torch's own
restricted unpickler reads it; the few configuration classes in it are replaced by empty ones, and any other
class is refused.
"""

from __future__ import annotations

import json
import os
import pickle
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from vlm_occ.encoders.cut3r import Cut3r, Cut3rConfig

PUBLISHED = ("cut3r_512_dpt_4_64.pth", "cut3r_224_linear_4.pth")
"""The two checkpoints that CUT3R's authors published; both have the default `Cut3rConfig`."""

_IGNORED_CLASSES = ("omegaconf.", "typing.Any", "argparse.Namespace", "numpy.")
_PLAIN_CLASSES = {f"builtins.{kind.__name__}": kind for kind in (dict, list, tuple, int, float, str, bool)}


class _Ignored:
    """Takes the place of a configuration class: it can be built and filled, and does nothing."""

    def __new__(cls, *_: object) -> _Ignored:
        return super().__new__(cls)

    def __init__(self, *_: object) -> None:
        pass

    def __setstate__(self, state: object) -> None:
        pass


def _empty_dict(*_: object) -> dict[object, object]:
    """Takes the place of defaultdict: torch's unpickler fills plain dicts only."""
    return {}


def _stand_in(name: str) -> Callable[..., object]:
    """What unpickling may use as the class `name`; ValueError if it is no container and no config."""
    if name in _PLAIN_CLASSES:
        return _PLAIN_CLASSES[name]
    if name == "collections.defaultdict":
        return _empty_dict
    if name.startswith(_IGNORED_CLASSES):
        return type(name.rpartition(".")[2], (_Ignored,), {})
    raise ValueError(f"it wants to run {name!r}, expected tensors and plain values; do not open it elsewhere")


def read_state_dict(path: str | Path) -> dict[str, Tensor]:
    """The tensors of a checkpoint (.pth as published, or .safetensors), CPU, `module.` prefixes dropped.

    ValueError where the file is missing, damaged, holds code, or holds no state dict under "model".
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(
            f"CUT3R checkpoint {path} does not exist; give the path of {' or '.join(PUBLISHED)} (from "
            "CUT3R's page, CC BY-NC-SA 4.0), or of its conversion to .safetensors"
        )
    tensors = _read_safetensors(path) if path.suffix == ".safetensors" else _read_pickle(path)
    return {name.removeprefix("module."): tensor for name, tensor in tensors.items()}


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    try:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
    except SafetensorError as error:
        raise ValueError(f"{path} is not a safetensors file ({error}); convert the .pth again") from error


def _read_pickle(path: Path) -> dict[str, Tensor]:
    try:
        names = torch.serialization.get_unsafe_globals_in_checkpoint(str(path))
        stand_ins: list[Callable[..., object] | tuple[Callable[..., object], str]]
        stand_ins = [(_stand_in(name), name) for name in names]
        with torch.serialization.safe_globals(stand_ins):
            content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except ValueError as error:
        raise ValueError(f"{path} is refused: {error}") from error
    except (pickle.UnpicklingError, RuntimeError, EOFError, KeyError, AttributeError) as error:
        lines = str(error).partition("WeightsUnpickler error:")[2] or str(error) or type(error).__name__
        reason = lines.strip().splitlines()[0]
        raise ValueError(f"{path} is no readable torch checkpoint ({reason}); download it again") from error
    tensors = content.get("model", content) if isinstance(content, dict) else content
    if not isinstance(tensors, dict) or not all(isinstance(value, Tensor) for value in tensors.values()):
        raise ValueError(f'{path} holds no state dict under "model"; expected {" or ".join(PUBLISHED)}')
    return tensors


def _needed(tensors: dict[str, Tensor], config: Cut3rConfig, path: Path) -> dict[str, Tensor]:
    """The tensors that `Cut3r(config)` needs; ValueError names the first missing or misshapen one."""
    with torch.device("meta"):
        wanted = Cut3r(config).state_dict()
    for name, like in wanted.items():
        if name not in tensors:
            raise ValueError(
                f"{path} has no {name!r} (it holds {len(tensors)} tensors, {len(wanted)} are needed); "
                f"expected {' or '.join(PUBLISHED)}"
            )
        if tensors[name].shape != like.shape:
            raise ValueError(
                f"{name!r} in {path} is {list(tensors[name].shape)}, expected {list(like.shape)}; "
                "is this a model of another size?"
            )
    return {name: tensors[name] for name in wanted}


def load_cut3r(
    path: str | Path, *, config: Cut3rConfig | None = None, device: torch.device | str = "cpu"
) -> Cut3r:
    """A frozen CUT3R from a published .pth or its conversion; errors as `read_state_dict`."""
    config = config or Cut3rConfig()
    tensors = _needed(read_state_dict(path), config, Path(path))
    with torch.device("meta"):
        model = Cut3r(config)
    # The clone makes the model independent of the memory-mapped file.
    model.load_state_dict({name: t.to(device, copy=True) for name, t in tensors.items()}, assign=True)
    return model.requires_grad_(False).eval()


@dataclass(frozen=True)
class Cut3rSettings:
    """How a CUT3R file is used: its sizes, and how frames are made ready for it."""

    config: Cut3rConfig
    recipe: Literal["vlm3r", "cut3r"] = "vlm3r"
    long_edge: int = 512  # pixels, for the recipe "cut3r"


def read_settings(path: Path) -> Cut3rSettings:
    """The settings that a file of ours carries; a published one has the default sizes and VLM-3R's frames."""
    if path.suffix == ".safetensors" and path.is_file():
        try:
            with safe_open(path, framework="pt") as file:
                about = json.loads((file.metadata() or {}).get("settings", "null"))
        except (SafetensorError, json.JSONDecodeError) as error:
            raise ValueError(f"{path} is not a safetensors file ({error}); convert the .pth again") from error
        if about is not None:
            return Cut3rSettings(Cut3rConfig(**about["config"]), about["recipe"], about["long_edge"])
    elif not path.is_file():
        read_state_dict(path)  # says what is missing
    return Cut3rSettings(Cut3rConfig())


def save_cut3r(model: Cut3r, path: str | Path, *, recipe: Literal["vlm3r", "cut3r"], long_edge: int) -> Path:
    """Write a CUT3R of any size with its settings to the safetensors file `path`."""
    settings = {"config": asdict(model.config), "recipe": recipe, "long_edge": long_edge}
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.part")
    tensors = {
        name: tensor.detach().cpu().contiguous().clone() for name, tensor in model.state_dict().items()
    }
    save_file(tensors, str(temporary), metadata={"format": "pt", "settings": json.dumps(settings)})
    os.replace(temporary, path)
    return path


def convert_cut3r(source: str | Path, target: str | Path, *, config: Cut3rConfig | None = None) -> Path:
    """Write the needed tensors of a published checkpoint `source` to the safetensors file `target`."""
    tensors = _needed(read_state_dict(source), config or Cut3rConfig(), Path(source))
    target = Path(target)
    target.parent.mkdir(parents=True, exist_ok=True)
    unshared = {name: tensor.contiguous().clone() for name, tensor in tensors.items()}
    save_file(unshared, str(target), metadata={"format": "pt", "source": Path(source).name})
    return target
