"""What one of the paper's systems is: which parts, how large, what it learns from."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Literal

from vlm_occ.config import PerceptionConfig

System = Literal["L", "C", "M", "GroundingOcc"]
MODULES = ("language_pan", "multi_frame", "depth", "grounding2d")
"""Fields that switch GroundingOcc's modules; the baselines have none of them."""


@dataclass(frozen=True)
class GroundingOccConfig:
    """One of the paper's systems at one scale; each column of Tables III and IV is one field."""

    system: System = "GroundingOcc"
    encoders: Literal["paper", "trunk"] = "trunk"  # the paper's own, or the trunk that all nano systems share
    perception: PerceptionConfig = field(default_factory=PerceptionConfig)  # of the trunk; sizes and frames
    train_trunk: bool = False
    image_weights: str = "random"  # of encoders "paper": "random", or a ResNet-101's Hub id or folder
    resnet_depths: tuple[int, ...] = (3, 4, 23, 3)
    resnet_widths: tuple[int, ...] = (256, 512, 1024, 2048)
    deformable_convolution: bool = True  # in the ResNet's last two stages
    text: str = "minilm"  # or a folder or Hub id, such as FacebookAI/roberta-base
    text_weights: Literal["pretrained", "random"] = "pretrained"
    train_text: bool = False
    width: int = 32  # D
    fine_width: int = 8  # D' of F^O
    hidden: int = 8  # softplus units of the occupancy head
    feed_forward: int = 64
    heads: int = 4
    query_shape: tuple[int, int, int] = (50, 50, 1)  # voxel queries
    likely_voxels: float | None = 0.2  # decode where the trunk's occupancy is as likely; None: everywhere
    query_levels: tuple[int, ...] = (1, 2)  # of strides 8, 16, 32, 64: where voxel queries look
    encoder_layers: int = 2
    sampling_points: int = 2
    decoder_layers: int = 3
    grounding_queries: int = 64  # on a square grid, so a square number; the trunk's likeliest candidates
    sampled_features: int = 16  # k of eq. 8, a picture
    grounding2d_levels: tuple[int, ...] = (2, 3)  # of strides 8, 16, 32, 64
    depth_rays: int = 1  # a cell and direction, for the truth of the depth maps
    # Table III
    language_pan: bool = True
    multi_frame: bool = True
    depth: bool = True
    grounding2d: bool = True
    # Table IV
    semantic_supervision: bool = False  # 18 classes
    geometric_supervision: bool = True  # free, occupied, referred
    geo_affinity: bool = True
    sem_affinity: bool = True
    # answers
    refine_rule: Literal["occupied", "referred"] = "occupied"  # voxels of the box that "refine" keeps
    mask_threshold: float = 0.5
    precision: Literal["float32", "bfloat16"] = "float32"
    score_threshold: float = 0.0  # 0: every query has an answer, as in Talk2Occ
    trained: bool = False

    def __post_init__(self) -> None:
        """Refuse what does not fit together."""
        odd = [name for name in MODULES if getattr(self, name)]
        if self.system != "GroundingOcc" and odd:
            raise ValueError(
                f"the {self.system}-baseline has no {odd[0]}; use `baseline(config, {self.system!r})`, which "
                "switches GroundingOcc's modules off"
            )
        if not self.semantic_supervision and not self.geometric_supervision:
            raise ValueError(
                "no occupancy supervision; switch on semantic_supervision or geometric_supervision"
            )
        if self.encoders == "paper" and self.likely_voxels is not None:
            raise ValueError("likely_voxels needs a trunk that knows them; with encoders 'paper' it is null")
        if self.width % self.heads or self.width % 8:
            raise ValueError(
                f"width {self.width} with {self.heads} heads; expected a multiple of both 8 and heads"
            )

    @property
    def cameras(self) -> bool:
        """Whether the system looks at images."""
        return self.system != "L"

    @property
    def lidar(self) -> bool:
        """Whether the system sees LiDAR points."""
        return self.system != "C"

    @property
    def frames(self) -> int:
        """Latest frames whose images are used: more than one only with multi-frame fusion."""
        return self.perception.camera_frames if self.multi_frame else 1

    def inputs(self) -> PerceptionConfig:
        """How `prepare_scene` makes this system's inputs: only its own sensors and frames."""
        return replace(self.perception, cameras=self.cameras, lidar=self.lidar, camera_frames=self.frames)


def baseline(config: GroundingOccConfig, system: Literal["L", "C", "M"]) -> GroundingOccConfig:
    """The baseline of the same scale: no module of GroundingOcc, semantic supervision, eq. 4."""
    return replace(
        config,
        system=system,
        **dict.fromkeys(MODULES, False),
        semantic_supervision=True,
        geometric_supervision=False,
        geo_affinity=False,
        sem_affinity=False,
    )


def table3(config: GroundingOccConfig) -> tuple[GroundingOccConfig, ...]:
    """The four rows of Table III: the M-baseline, then multi-frame, depth and 2D head are added.

    Its last row equals Table IV's first, so all rows have semantic supervision alone and answer with the
    occupied voxels in the box (docs/paper-notes.md).
    """
    full = replace(
        config,
        semantic_supervision=True,
        geometric_supervision=False,
        geo_affinity=False,
        sem_affinity=False,
    )
    return (
        baseline(config, "M"),
        replace(full, depth=False, grounding2d=False),
        replace(full, grounding2d=False),
        full,
    )


def table4(config: GroundingOccConfig) -> tuple[GroundingOccConfig, ...]:
    """The four rows of Table IV: semantic supervision; geometric instead; with one and two affinities."""
    geometric = replace(config, semantic_supervision=False, geometric_supervision=True)
    return (
        table3(config)[-1],
        replace(geometric, geo_affinity=False, sem_affinity=False),
        replace(geometric, geo_affinity=True, sem_affinity=False),
        replace(geometric, geo_affinity=True, sem_affinity=True),
    )


NAMED = {
    "groundingocc-nano": GroundingOccConfig(),
    "m-baseline-nano": baseline(GroundingOccConfig(), "M"),
    "c-baseline-nano": baseline(GroundingOccConfig(), "C"),
    "l-baseline-nano": baseline(GroundingOccConfig(), "L"),
}
"""Systems with a name of their own; GroundingOcc-Refine is GroundingOcc asked with `refine`."""
