"""What a contest is: its settings, and how the command line gives them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from vlm_occ.config import from_dict
from vlm_occ.run_config import plain_value


@dataclass(frozen=True)
class ContestConfig:
    """What a contest is; a folder holds one only, budgets excepted."""

    trunk: str  # checkpoint of stage "perception"
    out: str = "runs/contest"
    data: str = "sim"  # or the folder of `vlm-occ data talk2occ`
    pool: str | None = None  # folder that keeps the simulated training scenes
    keep_features: bool = True  # of the frozen trunk, 9 MB for each training scene and sensor set
    scenes: int = 600  # of training
    first_scene: int = 0  # where they start; give scenes that the trunk was not trained on
    eval_scenes: int = 200
    num_frames: int = 2
    camera_frames: int = 1  # frames with images; multi-frame fusion has nothing to join below 2
    queries: int = 48  # sentences written for each training scene
    queries_per_scene: int = 16  # of them in a step
    eval_queries: int = 6
    lexicon: Literal["train", "both"] = "train"  # of the evaluation; both: unseen words besides
    steps: int = 1000
    ablation_steps: int = 0  # of Tables III and IV; 0: the same budget as Table II
    until: float = 0.30  # Acc@0.25 of GroundingOcc-Refine up to which `steps` is doubled
    most_steps: int = 0  # but never beyond; 0: `steps` stays
    seeds: int = 3  # of GroundingOcc and VLM-Occ; the others have one
    reference_seeds: int = 20
    draws: int = 2000
    rate: float = 4e-3  # of the paper's systems
    base: str = "nano"  # VLM-Occ's pretrained model
    pointer_share: float = 0.1  # of VLM-Occ's steps that train its pointer, before its language model runs
    vlm_token_rate: float = 4e-4  # of what makes voxel tokens of the trunk's features: no other system's
    vlm_head_rate: float = 1e-3
    vlm_pointer_rate: float = 1e-3  # of the pointer once the language model runs; before that, as the heads
    vlm_input_rate: float = 3e-4
    vlm_lora_rate: float = 4e-4
    vlm_clip: float = 1.0
    vlm_dtype: Literal["auto", "float32", "bfloat16"] = "auto"  # of VLM-Occ's frozen language model
    width: int = 0  # of the paper's systems; 0: the nano scale's
    text: str = "minilm"  # their text encoder
    save_every: int = 100
    sample_scene: str = "sim:7"  # on which latency and memory are measured
    pictures: int = 6
    until_time: float = 0  # seconds since 1970 at which training stops, its run undone; 0: never
    assemble: bool = False  # tables of the runs that are done, whatever is missing; nothing is trained
    costs: bool = True  # whether tables measure them


CONTENDING = ("GroundingOcc", "VLM-Occ")
"""Systems that are trained with several seeds."""
FREE_TO_CHANGE = (
    *("trunk", "pool", "keep_features"),
    *("out", "steps", "ablation_steps", "until", "most_steps", "seeds"),
    *("reference_seeds", "draws", "pictures", "save_every", "until_time", "assemble", "costs"),
)
"""Fields that may differ when a contest goes on in its folder; of the trunk its weights count."""


def contest_config(fields: Mapping[str, str], **defaults: object) -> ContestConfig:
    """A contest's settings from the command line; ValueError where one is unknown or no trunk given."""
    values = {**defaults, **{name.replace("-", "_"): plain_value(text) for name, text in fields.items()}}
    if "trunk" not in values:
        raise ValueError(
            "--trunk is missing; give a checkpoint of stage 'perception', as nano_cpu_perception.yaml"
        )
    return from_dict(ContestConfig, values)
