"""What a model is (`ModelConfig`, saved with its weights) and what a run is (`TrainConfig`)."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar

import yaml

FORMAT_VERSION = 1
"""Version of the checkpoint format; a checkpoint of another version is refused."""


@dataclass(frozen=True)
class RefinerConfig:
    """The second stage of the candidates' boxes (`encoders.refine`)."""

    passes: int = 3
    points: int = 256  # of a box that are looked at; of more, evenly chosen ones
    point_widths: tuple[int, int] = (96, 128)
    fine: bool = True  # points are told how far beyond the faces they lie, and waves of their place
    end_pixels: tuple[int, int] = (12, 5)  # across and up the front and the rear
    side_pixels: tuple[int, int] = (20, 4)  # along and up a side, along and across the top
    beyond: bool = True  # pixels reach beyond the box's edges
    painted: bool = True  # points have the colours that cameras see there; the road around is looked at


@dataclass(frozen=True)
class PerceptionConfig:
    """The encoders from sensors to voxel features and candidate objects."""

    cameras: bool = True
    lidar: bool = True
    image_size: tuple[int, int] = (256, 704)  # (H, W) that the image network sees
    image_backbone: Literal["efficientnet_lite0", "random"] = "efficientnet_lite0"
    image_width: int = 64  # channels after the feature pyramid, stride 8
    lidar_width: int = 32  # channels of the fine sparse convolutions
    volume_width: int = 32  # channels of the 100 x 100 x 8 volume where the sensors are fused
    bev_width: int = 64  # channels of the bird's-eye features at 0.8 m; twice that at 1.6 m
    fine_bev_width: int = 48  # channels of the bird's-eye features at 0.4 m
    fine_width: int = 32  # channels of a fine voxel feature (0.4 m)
    voxel_threshold: float = 0.05  # voxels around candidates that are likelier occupied get a fine feature
    max_frames: int = 4  # LiDAR sweeps that are merged
    camera_frames: int = 1  # latest frames whose images are lifted to voxels
    max_tokens: int = 128  # voxel tokens (candidate objects) a scene
    token_threshold: float = 0.05  # candidates below this objectness are dropped
    token_width: int = 192
    refiner: RefinerConfig = field(default_factory=RefinerConfig)


@dataclass(frozen=True)
class LoraSettings:
    """LoRA on the language model's linear layers (never on the vision tower)."""

    rank: int = 16
    alpha: int = 32
    dropout: float = 0.0


@dataclass(frozen=True)
class SpatialConfig:
    """The heads of Loc3R-VLM (3.2, 3.3): layout, position and orientation."""

    scale: float = 10.0  # metres, about the spread of positions; a head's unit
    bins: int = 36  # of the orientation
    layout: bool = True  # 3.2; without it the model has situations and questions only
    hidden: int | None = None  # width within the position and orientation heads; None: the language model's
    sight: bool = False  # vision tokens are told where their rays meet the trunk's occupancy


@dataclass(frozen=True)
class ModelConfig:
    """Everything that is needed to build a `VLMOcc` before its weights are loaded."""

    base: str = "nano"  # "nano", a local folder, or a Hub id
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    quantization: Literal["none", "int8", "nf4"] = "none"  # of the language model's frozen layers
    pose_source: Literal["known", "learned", "cut3r", "none"] = "known"
    cut3r: str | None = None  # CUT3R's weights, for pose_source "cut3r"
    vlm_frames: int = 1  # how many of a scene's latest frames the VLM sees; the voxel encoder sees them all
    lora: LoraSettings | None = field(default_factory=LoraSettings)
    language_weights: Literal["pretrained", "random"] = "pretrained"  # random: an ablation
    voxel_tokens: bool = True  # whether the language model sees them; false: an ablation
    full_language: bool = False  # train the whole language model, as the paper; then without `lora`
    spatial: SpatialConfig | None = None  # layout, situations and questions from them
    perception: PerceptionConfig = field(default_factory=PerceptionConfig)
    head_width: int = 256
    word_layers: int = 2  # of the small transformer that reads a query's words for the heads
    mask_radius: float = 9.0  # most metres around a token's position in which its mask may lie
    score_threshold: float = 0.5  # voxel tokens above it are the answer; set by `vlm-occ calibrate`
    existence_threshold: float | None = None  # of sentences such as `is there a ...?`; None: the same
    score_ratio: float = 0.0  # and above this share of the best score
    occupancy_threshold: float = 0.5
    trained: bool = False  # False: the heads are untrained, and the command line says so


T = TypeVar("T")


def from_dict(kind: type[T], values: dict[str, Any], *, where: str = "") -> T:
    """A (nested) config dataclass from plain values; an unknown key is an error that names the allowed
    ones.
    """
    import typing

    hints = typing.get_type_hints(kind)
    unknown = sorted(set(values) - set(hints))
    if unknown:
        raise ValueError(
            f"unknown config key {where}{unknown[0]!r}; {kind.__name__} has {', '.join(sorted(hints))}"
        )
    arguments: dict[str, Any] = {}
    for name, value in values.items():
        options = [o for o in typing.get_args(hints[name]) or (hints[name],) if dataclasses.is_dataclass(o)]
        if options and isinstance(value, dict):
            value = from_dict(options[0], value, where=f"{where}{name}.")  # type: ignore[arg-type]
        elif isinstance(value, list):
            value = tuple(value)
        else:
            _check_value(hints[name], value, where + name)
        arguments[name] = value
    return kind(**arguments)


def _check_value(hint: Any, value: Any, where: str) -> None:
    """Raise ValueError where a plain value does not fit its annotation."""
    import typing

    options = typing.get_args(hint)
    if typing.get_origin(hint) is Literal:
        if value not in options:
            raise ValueError(f"{where} = {value!r}, expected one of {', '.join(map(repr, options))}")
        return
    kinds = tuple(o for o in (options or (hint,)) if isinstance(o, type))
    if float in kinds:
        kinds += (int,)
    if kinds and not isinstance(value, kinds):
        raise ValueError(f"{where} = {value!r}, expected {' or '.join(k.__name__ for k in kinds)}")


def to_dict(config: Any) -> dict[str, Any]:
    """Plain values of a config dataclass, fit for JSON and YAML."""
    return json.loads(json.dumps(dataclasses.asdict(config)))


def read_yaml(kind: type[T], path: str | Path) -> T:
    """A config dataclass from a YAML file."""
    try:
        values = yaml.safe_load(Path(path).read_text())
    except FileNotFoundError as error:
        raise ValueError(
            f"config {path} does not exist; give the path of a YAML file, as in configs/"
        ) from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"config {path} is not valid YAML: {str(error).splitlines()[0]}") from error
    if not isinstance(values, dict):
        raise ValueError(f"config {path} holds {type(values).__name__}, expected a mapping of fields")
    return from_dict(kind, values)


@dataclass(frozen=True)
class DataConfig:
    """Where a run's scenes come from."""

    source: Literal["simulator", "talk2occ", "both"] = "simulator"
    folder: str | None = None  # of `vlm-occ data talk2occ`, for "talk2occ" and "both"
    scenes: int = 0  # simulated scenes in the pool; 0 makes a new one for every step
    first_scene: int = 0  # where the pool starts: a frozen trunk's own scenes look better than new ones do
    keep: str | None = None  # folder in which simulated scenes are kept between epochs and runs
    num_frames: int = 2
    one_target: bool = False  # only sentences that mean exactly one object, as all of Talk2Occ's do
    queries: int = 48  # sentences written for each scene; a step draws from them
    lexicon: Literal["train", "wide"] = "train"  # wide: more wordings than evaluation's known words
    renew: bool = True  # each epoch has new sentences; false: a frozen language model's states are kept
    replays: int = 0  # steps on scenes seen before that follow each step on a new one
    situations: int = 0  # described situations written for each scene (model.spatial)
    questions: int = 0  # spatial questions written for each scene (model.spatial)
    skip: int = 0  # scenes of the run's order that an earlier run has seen
    balanced: bool = True  # classes about equally often, instead of Table I's frequencies
    augment: bool = True
    drop_sensor: float = 0.15  # chance that the LiDAR or the cameras of a scene are left out
    drop_vlm_frames: float = 0.0  # chance that the VLM sees no images in a step (stage "grounding")
    drop_words: float = 0.0  # share of the words that the heads know by their states alone
    label_tokens: float = 1.0  # share of the scenes whose tokens are made of labels (stage "pointer")
    workers: int = 0


TRUNK_STAGES = ("perception", "refine")
"""Stages that train the trunk alone: all of it, or what refines its boxes."""


@dataclass(frozen=True)
class TrainConfig:
    """One run."""

    out: str = "runs/nano"
    stage: Literal["perception", "refine", "pointer", "language", "grounding", "joint"] = "joint"
    init: str | None = None  # checkpoint whose weights the run starts from
    trunk: str | None = None  # checkpoint whose trunk replaces that of `init` (or of a fresh model)
    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    seed: int = 0
    steps: int = 1000
    scenes_per_step: int = 1  # scenes of one process in one forward
    accumulation: int = 1  # forwards per optimiser step
    queries_per_scene: int = 16
    turns_per_scene: int = 0  # situations and questions of a scene in a step (model.spatial)
    perception_rate: float = 1e-3
    head_rate: float = 1e-3  # of masks, boxes and all other heads but the pointer
    pointer_rate: float = 1e-3  # of what chooses among voxel tokens
    input_rate: float = 2e-4  # what is spliced into the language model: projectors, token rows
    lora_rate: float = 3e-4
    weight_decay: float = 0.01
    adam_eps: float = 1e-8  # AdamW divides by the gradient's size plus this
    warmup: int = 50
    clip: float = 5.0
    ema: float = 0.0  # decay of the averaged weights; 0 keeps none
    language_share: float = 0.25  # share of the queries whose answer's words are trained
    checkpointing: bool = False  # recompute activations of the language model to save memory
    save_every: int = 200
    keep_checkpoints: int = 2
    log_every: int = 10
    picture_every: int = 0
    until_time: float = 0  # seconds since 1970 at which the run saves its state and stops; 0: never
    tracker: Literal["tensorboard", "wandb", "trackio", "none"] = "tensorboard"
