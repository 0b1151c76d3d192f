"""The model card of a checkpoint: what it is, how it is used, and the figures of a results file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

if TYPE_CHECKING:
    from vlm_occ.models.adapter import VLMOcc

TAGS = ["vlm-occ", "3d-occupancy", "visual-grounding", "autonomous-driving", "vision-language-model"]
GROUPS = {
    "overall": "all sentences with a target",
    "unique": "of them, the only object of its class",
    "multiple": "of them, one of several of its class",
    "heldout_words": "words that training never saw",
    "lidar_only": "without cameras",
    "cameras_only": "without LiDAR",
}
"""Groups of a results file that a card shows, where it has them."""
METRICS = {"acc25": "Acc@0.25", "acc50": "Acc@0.5", "miou": "mIoU"}


def model_card(model: VLMOcc, name: str, results: Path | None = None) -> str:
    """The README.md of a model; figures come from a file of `vlm-occ eval` alone.

    ValueError where `results` is no such file.
    """
    config = model.config
    about: dict[str, Any] = {"library_name": "vlm-occ", "tags": TAGS}
    if "/" in config.base and not Path(config.base).exists():
        about["base_model"] = config.base
    lora = "no LoRA" if config.lora is None else f"LoRA of rank {config.lora.rank}"
    trained = "" if config.trained else "\n**Its heads are untrained: its answers mean nothing.**\n"
    figures = "No results file was given with this checkpoint, so no figure is claimed."
    if results is not None:
        figures = results_table(read_results(results))
    base = config.base if "/" not in config.base or "base_model" in about else Path(config.base).name
    return f"""---
{yaml.safe_dump(about, sort_keys=False).strip()}
---

# {name}

A VLM-Occ checkpoint: grounds sentences in driving scenes, as voxels and 3D boxes. It holds our own weights
({lora}, token rows, encoders, heads) as safetensors; the base model (`{base}`, {config.dtype}, quantisation
{config.quantization}, hash `{model.backbone.base_hash[:12]}`) comes from its publisher, with its licence.
{trained}
```python
from vlm_occ import VLMOcc, load_scene

model = VLMOcc.from_pretrained("{name}")
state = model.encode(load_scene("sim:7"))
print(model.ground(state, "the white sedan on the right").text)
```

## Results

{figures}
"""


def read_results(path: Path) -> dict[str, Any]:
    """A results file of `vlm-occ eval`; ValueError where it is none."""
    try:
        values = json.loads(path.read_text())
        if {"overall", "protocol"} <= set(values) and isinstance(values["overall"], dict):
            return values
    except (OSError, ValueError, TypeError) as error:
        raise ValueError(f"{path} cannot be read ({error}); give a file that `vlm-occ eval` wrote") from error
    raise ValueError(f"{path} has no 'overall' and 'protocol'; give a file that `vlm-occ eval` wrote")


def results_table(results: dict[str, Any]) -> str:
    """The figures as a table with 95 % intervals, then the protocol line by line."""
    lines = ["| group | n | " + " | ".join(METRICS.values()) + " |", "|---|---|" + "---|" * len(METRICS)]
    for group, words in GROUPS.items():
        values = results.get(group) or {}
        values = values.get("overall", values)  # the parts with one kind of sensor hold groups of their own
        if values.get("n"):
            cells = " | ".join(_cell(values, metric) for metric in METRICS)
            lines.append(f"| {words} | {values['n']} | {cells} |")
    lines += ["", "In brackets: 95 % intervals, bootstrapped over scenes. Protocol:", ""]
    return "\n".join(lines + [f"- {key}: {value}" for key, value in results["protocol"].items()])


def _cell(values: dict[str, Any], metric: str) -> str:
    """A mean in per cent and its interval."""
    if values.get(metric) is None:
        return "-"
    text = f"{100 * values[metric]:.1f}"
    interval = values.get(f"{metric}_interval")
    return text if not interval else f"{text} [{100 * interval[0]:.1f}, {100 * interval[1]:.1f}]"
