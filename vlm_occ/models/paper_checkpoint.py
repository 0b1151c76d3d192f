"""Checkpoints of the paper's systems: config and weights as safetensors; what packages ship stays out."""

from __future__ import annotations

import importlib.resources
import json
from pathlib import Path

from torch import Tensor

from vlm_occ.config import FORMAT_VERSION, from_dict, to_dict
from vlm_occ.models.baselines import Baseline
from vlm_occ.models.checkpoint import (
    CONFIG_FILE,
    check_state,
    check_target,
    find_checkpoint,
    read_about,
    read_shards,
    write_folder,
    write_shards,
)
from vlm_occ.models.groundingocc import build_system
from vlm_occ.models.groundingocc_config import NAMED, GroundingOccConfig


def paper_state(system: Baseline) -> dict[str, Tensor]:
    """A system's weights by name, its trunk's included, without those that the package index ships."""
    outside = ["sensors.trunk.image_network."]
    if system.config.text_weights == "pretrained" and not system.config.train_text:
        outside.append("text.model.")
    return {name: value for name, value in system.state_dict().items() if not name.startswith(tuple(outside))}


def load_paper_state(system: Baseline, state: dict[str, Tensor], *, where: str) -> None:
    """Put weights of `paper_state` into a system; ValueError names the first that does not fit."""
    check_state(paper_state(system), state, where=where)
    system.load_state_dict(state, strict=False)


def load_paper_trunk(system: Baseline, name: str) -> None:
    """Take over the trunk of the checkpoint `name`, of VLM-Occ or of another system."""
    folder = find_checkpoint(name)
    if folder is None:
        raise ValueError(f"trunk {name!r} has no trained weights; give the folder of a checkpoint")
    own = "sensors.trunk."
    wanted = [key for key in paper_state(system) if key.startswith(own)]
    given = {key.replace("perception.", own, 1): value for key, value in read_shards(folder).items()}
    if not wanted:
        raise ValueError(
            f"trunk {name!r} for a system with encoders 'paper', which has no trunk; leave it out"
        )
    if missing := [key for key in wanted if key not in given]:
        raise ValueError(f"checkpoint {folder} lacks the trunk's weight {missing[0].removeprefix(own)!r}")
    trunk = {key: given[key] for key in wanted}
    load_paper_state(system, {**paper_state(system), **trunk}, where=f"trunk {folder}")


def save_system(system: Baseline, folder: Path) -> None:
    """Write a checkpoint of one of the paper's systems, at once or not at all."""
    check_target(folder)
    state = {name: value.detach().cpu() for name, value in paper_state(system).items()}

    def write(path: Path) -> None:
        about = {"format_version": FORMAT_VERSION, "system": to_dict(system.config)}
        (path / CONFIG_FILE).write_text(json.dumps(about, indent=2) + "\n")
        write_shards(state, path)

    write_folder(folder, write)


def find_system(name: str) -> Path | None:
    """The folder of a system's name; None for one of NAMED whose weights are not shipped."""
    if name not in NAMED:
        return find_checkpoint(name)
    shipped = Path(str(importlib.resources.files("vlm_occ"))) / "checkpoints" / name
    return shipped if (shipped / CONFIG_FILE).exists() else None


def load_system(name: str) -> Baseline:
    """The system of a checkpoint, or one of NAMED (untrained where its weights are not shipped)."""
    folder = find_system(name)
    if folder is None:
        if name not in NAMED:
            raise ValueError(f"{name!r} is VLM-Occ; the paper's systems are {', '.join(NAMED)}")
        return build_system(NAMED[name])
    about = read_about(folder)
    if "system" not in about:
        raise ValueError(f"checkpoint {folder} holds VLM-Occ, not one of the paper's systems")
    system = build_system(from_dict(GroundingOccConfig, about["system"]))
    load_paper_state(system, read_shards(folder), where=f"checkpoint {folder}")
    return system


def take_over(system: Baseline, given: Baseline) -> None:
    """Put into a system what another has of the same name and shape: an M-baseline's part of GroundingOcc.

    ValueError where nothing fits.
    """
    state, known = system.state_dict(), given.state_dict()
    fitting = {n: v for n, v in known.items() if n in state and state[n].shape == v.shape}
    if not fitting:
        raise ValueError("no weight of the initial system fits; give a checkpoint of the same scale")
    system.load_state_dict({**state, **fitting})
