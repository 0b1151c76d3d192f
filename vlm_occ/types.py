"""The few types that every part of VLM-Occ shares: scenes, labels, queries and answers.

Frames: `ego` is x forward, y left, z up, in metres, radians; cameras have OpenCV axes (x right, y down, z
forward).
A box is [7]: geometric centre x, y, z, sizes dx, dy, dz along its own axes, yaw (0 along +x, counter-
clockwise).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from vlm_occ.situated import Lexicon, SituationQuery, SpatialQuestion

TALK2OCC_CLASSES = (
    "car",
    "pedestrian",
    "truck",
    "bicycle",
    "animal",
    "movable object",
    "traffic cone",
    "debris",
    "construction vehicle",
    "trailer",
    "emergency vehicle",
    "bicycle rack",
    "barrier",
    "motorcycle",
    "bus",
)
"""The 15 classes of Talk2Occ, in the order of Table I."""

OCC3D_CLASSES = (
    "others",
    "barrier",
    "bicycle",
    "bus",
    "car",
    "construction_vehicle",
    "motorcycle",
    "pedestrian",
    "traffic_cone",
    "trailer",
    "truck",
    "driveable_surface",
    "other_flat",
    "sidewalk",
    "terrain",
    "manmade",
    "vegetation",
    "free",
)
"""The 18 classes of Occ3D-nuScenes; a label's value is its index here."""

FREE = OCC3D_CLASSES.index("free")

COLOURS = ("white", "black", "grey", "red", "blue", "green", "yellow", "orange", "brown")
"""The colours that the simulator names; -1 in a label means unknown."""

CAMERAS = ("CAM_FRONT", "CAM_FRONT_RIGHT", "CAM_BACK_RIGHT", "CAM_BACK", "CAM_BACK_LEFT", "CAM_FRONT_LEFT")
"""The nuScenes cameras, clockwise from the front."""


@dataclass(frozen=True)
class VoxelGrid:
    """A regular grid of cubes in the reference ego frame; indices are in the order x, y, z."""

    origin: tuple[float, float, float] = (-40.0, -40.0, -1.0)  # lower corner, metres
    voxel_size: float = 0.4  # metres
    shape: tuple[int, int, int] = (200, 200, 16)

    def centers(self, *, device: torch.device | str = "cpu") -> Tensor:
        """Voxel centres [X, Y, Z, 3] in metres."""
        axes = [
            self.origin[i]
            + (torch.arange(self.shape[i], device=device, dtype=torch.float32) + 0.5) * self.voxel_size
            for i in range(3)
        ]
        return torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=-1)

    def center_of(self, index: Tensor) -> Tensor:
        """Centres [..., 3] in metres of voxel indices [..., 3]."""
        origin = torch.tensor(self.origin, device=index.device)
        return origin + (index.float() + 0.5) * self.voxel_size

    def index_of(self, points: Tensor) -> tuple[Tensor, Tensor]:
        """Voxel indices [..., 3] (long, clamped) of points [..., 3] and whether each lies inside the grid
        [...].
        """
        origin = torch.tensor(self.origin, device=points.device, dtype=points.dtype)
        shape = torch.tensor(self.shape, device=points.device)
        index = torch.floor((points - origin) / self.voxel_size).long()
        inside = ((index >= 0) & (index < shape)).all(-1)
        return torch.minimum(index.clamp(min=0), shape - 1), inside


@dataclass(frozen=True)
class CameraRig:
    """The cameras of a scene; `image_size` is (H, W) of the images that `intrinsics` belong to."""

    names: tuple[str, ...]
    intrinsics: Tensor  # [V, 3, 3] float32
    ego_from_camera: Tensor  # [V, 4, 4] float32
    image_size: tuple[int, int]


@dataclass(frozen=True)
class Frame:
    """One moment: images of all cameras, the pose of the vehicle and the LiDAR sweep (in this frame's ego
    axes).
    """

    timestamp: float  # seconds
    images: Tensor  # uint8 [V, 3, H, W]; V = 0 without cameras
    world_from_ego: Tensor  # [4, 4] float64
    points: Tensor | None  # float32 [N, 4]: x, y, z (ego, metres), intensity in [0, 1]; None without LiDAR


@dataclass(frozen=True)
class Scene:
    """Sensor data in time order; the last frame is the reference, and every answer is in its ego frame."""

    rig: CameraRig
    frames: tuple[Frame, ...]
    grid: VoxelGrid = field(default_factory=VoxelGrid)
    name: str = "scene"

    @property
    def reference(self) -> Frame:
        """The frame whose ego axes all answers use."""
        return self.frames[-1]


@dataclass(frozen=True)
class SceneLabels:
    """What is true in the reference frame of a scene."""

    semantics: Tensor  # uint8 [X, Y, Z], index in OCC3D_CLASSES
    mask_lidar: Tensor  # bool [X, Y, Z]: seen by the LiDAR
    mask_camera: Tensor  # bool [X, Y, Z]: seen by a camera
    boxes: Tensor  # float32 [M, 7], ego frame
    classes: Tensor  # long [M], index in TALK2OCC_CLASSES
    colours: Tensor  # long [M], index in COLOURS, -1 unknown
    velocities: Tensor  # float32 [M, 2], m/s over ground, ego axes
    visibility: Tensor  # float32 [M] in [0, 1]: visible fraction, all cameras together
    num_points: Tensor  # long [M]: LiDAR points of the reference sweep inside the box

    @property
    def seen(self) -> Tensor:
        """Whether a sensor saw an object at all, bool [M]: those that a candidate is asked for."""
        return (self.visibility >= 0.1) | (self.num_points >= 3)


QueryKind = Literal["expression", "command", "none", "many"]


UNARY = ("noun", "colour", "size", "side", "depth", "range", "motion", "place")
"""Kinds of what a description says of one object by itself."""


@dataclass(frozen=True)
class QueryPart:
    """One factor that a sentence states, and the boxes of `SceneLabels` that have it.

    `sure` and `possible` are bit masks over the boxes: one that is possible but not sure is borderline.
    `kind` is one of UNARY, of what is meant or (after "anchor ") of what it is related to, or "relation",
    "anchor" (the related object itself), "filter" (all that an order chooses from) or "order".
    """

    kind: str
    sure: int
    possible: int


@dataclass(frozen=True)
class GroundingQuery:
    """A sentence and the boxes of `SceneLabels` that it means (none, one or several)."""

    text: str
    targets: tuple[int, ...]
    unique: bool  # the target's class occurs once in the scene (Talk2Occ's Unique)
    lexicon: Lexicon = "train"
    kind: QueryKind = "expression"
    near_miss: bool = False  # no target although the class is there
    answer: str = ""  # the words after the grounding token
    parts: tuple[QueryPart, ...] = ()  # what the sentence states, where it is known (simulated sentences)


@dataclass(frozen=True)
class SceneDepth:
    """What the cameras' pixels are away, for the latest of a scene's frames; the images' own resolution
    does not matter.
    """

    depth: Tensor  # [T, V, h, w] metres along the optical axis; infinite or 0 where there is none
    intrinsics: Tensor  # [T, V, 3, 3] of these depth images (pixel i covers [i, i + 1))
    least: float = 0.1  # share of a token's pixels that must have a depth


@dataclass(frozen=True)
class LabelledScene:
    """A scene with its truth and its sentences: what training and evaluation read."""

    scene: Scene
    labels: SceneLabels
    queries: tuple[GroundingQuery, ...] = ()
    situations: tuple[SituationQuery, ...] = ()
    questions: tuple[SpatialQuestion, ...] = ()
    depth: SceneDepth | None = None


@dataclass(frozen=True)
class Layout:
    """Where what each vision token sees lies from above, reference ego frame (Loc3R-VLM 3.2)."""

    position: Tensor  # [N, 2] metres, frame by frame, row by row
    position_std: Tensor  # [N, 2] metres
    grids: tuple[tuple[int, int], ...]  # rows and columns of each frame's tokens


@dataclass(frozen=True)
class SceneState:
    """A scene encoded once: everything that a query needs but the query itself (ARCHITECTURE 1)."""

    name: str
    grid: VoxelGrid
    occupancy: Tensor  # bool [X, Y, Z], the same for every query
    voxel_index: Tensor  # long [M, 3]: the voxels that have fine features
    voxel_features: Tensor  # [M, C]: fine features, and the logit of occupancy
    token_boxes: Tensor  # [N, 7] first boxes of the candidate objects
    token_labels: Tensor  # long [N], most likely class in TALK2OCC_CLASSES
    token_states: Tensor  # [N, W], what the heads know of the voxel tokens
    token_codes: Tensor  # [N, C], what the last look at their boxes holds
    language: object  # the backbone's PrefixState: key/value cache and next position
    calibrated: bool = True  # False: a plain video, of which nothing can be grounded
    reference_from_first: Tensor | None = None  # [4, 4] from the first view's level frame (Loc3R-VLM 3.2)
    layout: Layout | None = None  # None without a layout head or without images


@dataclass(frozen=True)
class GroundedObject:
    """One object that a query points at."""

    occupancy: Tensor  # bool [X, Y, Z]
    box: Tensor  # float32 [7]
    score: float


WORD = r"[^\W\d_]+(?:['\u2019-][^\W\d_]+)*"
"""Pattern of a word: `stop-over` and `driver's` are one."""
NUMBER_WORDS = (
    "zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve",
    "thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen", "twenty",
)  # fmt: skip
"""The numbers from 0 on, as words."""


@dataclass(frozen=True)
class Wording:
    """A phrase of the training lexicon, and the plainest wording of what it means; "" leaves a word alone."""

    phrase: str
    singular: str
    plural: str = ""  # of nouns


@dataclass(frozen=True)
class Vocabulary:
    """A training lexicon: every word of its sentences in lower case, and its wordings by meaning.

    Phrases stand behind a noun and hold `{n}` for a number, `{c}` for a colour and a final `{a}` for the
    other thing. What is `more` only tells what it means: no model learned it.
    """

    words: frozenset[str]
    nouns: tuple[Wording, ...]
    adjectives: tuple[Wording, ...]
    phrases: tuple[Wording, ...]
    more_adjectives: tuple[Wording, ...] = ()
    more_phrases: tuple[Wording, ...] = ()


@dataclass(frozen=True)
class GroundingResult:
    """The answer to one query; no object is a legal answer."""

    query: str
    text: str
    objects: tuple[GroundedObject, ...]
    scene_occupancy: Tensor  # bool [X, Y, Z], the same for every query of a scene
    grid: VoxelGrid
    read_as: str = ""  # the query in words that training knew; "" where nothing was asked of it

    @property
    def occupancy(self) -> Tensor:
        """uint8 [X, Y, Z]: 0 free, 1 occupied, 2 referred (Talk2Occ, section IV-A)."""
        values = self.scene_occupancy.to(torch.uint8)
        for item in self.objects:
            values = torch.where(item.occupancy, torch.full_like(values, 2), values)
        return values
