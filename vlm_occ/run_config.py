"""The config of a run: its checks, fields from the command line, the copy that is kept beside the weights."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any, TypeVar, cast

import yaml
from accelerate import Accelerator

from vlm_occ.config import TrainConfig, from_dict, to_dict
from vlm_occ.run_state import remove_leftovers, whole_text

Run = TypeVar("Run", bound=TrainConfig)


def trains(path: str | Path) -> str:
    """What a config file trains, by the section that it has: "system" (one of the paper's) or "network" (a
    CUT3R), else "model" (VLM-Occ; also where the file can't be read).
    """
    try:
        values = yaml.safe_load(Path(path).read_text())
    except (OSError, yaml.YAMLError, UnicodeDecodeError):
        return "model"
    found = [name for name in ("system", "network") if isinstance(values, dict) and name in values]
    return found[0] if found else "model"


def check_config(config: TrainConfig) -> None:
    """ValueError where a number makes no sense."""
    for name in ("steps", "scenes_per_step", "accumulation", "save_every", "keep_checkpoints", "log_every"):
        if getattr(config, name) < 1:
            raise ValueError(f"{name} = {getattr(config, name)}, expected at least 1")
    model, turns = config.model, config.turns_per_scene
    if turns and model.spatial is None:
        raise ValueError(
            f"turns_per_scene = {turns}, but the model has no heads for them; give model.spatial"
        )
    if keeps_language(config):
        check_repeats(config)
    if model.full_language and model.lora is not None:
        raise ValueError(
            "model.full_language trains the whole language model; set model.lora: null beside it"
        )
    if not 0 <= config.ema < 1:
        raise ValueError(f"ema = {config.ema}, expected 0 (no average) to below 1, such as 0.999")


def keeps_language(config: TrainConfig) -> bool:
    """Whether a run keeps the states of its frozen language model."""
    return config.stage in ("language", "grounding") and not config.data.renew


def check_repeats(config: TrainConfig) -> None:
    """ValueError where a frozen language model's states could not be found again."""
    data = config.data
    if config.queries_per_scene < data.queries or config.language_share > 0:
        raise ValueError(
            f"data.renew is false, but queries_per_scene = {config.queries_per_scene} draws from "
            f"data.queries = {data.queries}, or language_share = "
            f"{config.language_share} draws answers; what is kept must "
            "come again: set queries_per_scene to at least data.queries and language_share to 0"
        )
    if config.turns_per_scene:
        raise ValueError(
            f"data.renew is false, but turns_per_scene = {config.turns_per_scene}: of situations and "
            "questions no states are kept; set turns_per_scene to 0, or data.renew to true"
        )


def tell_deepspeed(accelerator: Accelerator, config: TrainConfig) -> None:
    """Give DeepSpeed the batch size, which it cannot see; ValueError for what its engine does not do."""
    if config.accumulation > 1:
        raise ValueError(
            f"accumulation = {config.accumulation} under DeepSpeed, whose engine updates after every "
            "backward; raise scenes_per_step instead, or use configs/accelerate/fsdp2.yaml"
        )
    plugin = cast(Any, accelerator.state).deepspeed_plugin
    plugin.deepspeed_config["train_micro_batch_size_per_gpu"] = config.scenes_per_step


def overridden(config: Run, fields: dict[str, str]) -> Run:
    """The config with fields by dotted names, such as `model.lora.rank`, set to words of a command line.

    ValueError names an unknown field and those that there are.
    """
    values = to_dict(config)
    for name, text in fields.items():
        *path, last = name.split(".")
        place = values
        for part in path:
            if not isinstance(place.get(part), dict):
                raise ValueError(f"unknown field --{name}; {part!r} is not a section of the config")
            place = place[part]
        if last not in place:
            raise ValueError(f"unknown field --{name}; the config has {', '.join(sorted(place))}")
        place[last] = plain_value(text)
    return from_dict(type(config), values)


def plain_value(text: str) -> Any:
    """The value of a word of the command line: as in YAML, and 1e-3 is a number too."""
    value = yaml.safe_load(text)
    try:
        return float(value) if isinstance(value, str) else value
    except ValueError:
        return value


def keep_config(config: TrainConfig, out: Path, *, resumed: bool) -> None:
    """Write `out`/config.yaml; says which fields changed since the steps before."""
    out.mkdir(parents=True, exist_ok=True)
    remove_leftovers(out)
    path = out / "config.yaml"
    if resumed and path.exists():
        before, now = flat(yaml.safe_load(path.read_text())), flat(to_dict(config))
        for name in sorted(now):
            if before.get(name) != now[name]:
                print(f"vlm-occ: {name} was {before.get(name)}, is now {now[name]}", file=sys.stderr)
    whole_text(path, yaml.safe_dump(to_dict(config), sort_keys=False))


def flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested values under dotted names."""
    items: dict[str, Any] = {}
    for name, value in values.items():
        items.update(flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {prefix + name: value})
    return items
