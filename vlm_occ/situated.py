"""Types of situated language: where one stands, as told and as found, and what is asked from there.

Frame: the reference ego frame, x forward, y left, in metres and radians.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from torch import Tensor


@dataclass(frozen=True)
class Situation:
    """Where a described agent stands, in the reference ego frame (Loc3R-VLM 3.3)."""

    position: Tensor  # [2] metres
    position_std: Tensor  # [2] metres
    yaw: float  # radians
    yaw_probabilities: Tensor  # [B] over orientation bins from -pi
    text: str = ""  # the description that it was found from; "" where there was none


Lexicon = Literal["train", "wide", "heldout"]
"""Whose words a sentence uses: see `vlm_occ.data.simulator.lexicon`."""
MentionRole = Literal["place", "far", "target"]
MENTIONS: tuple[MentionRole, ...] = get_args(MentionRole)
"""Roles of objects that a situation names: where one stands, the other end of a line, what one looks at."""
PlaceFrame = Literal["car", "object", "line"]
PLACE_FRAMES: tuple[PlaceFrame, ...] = get_args(PlaceFrame)
"""Frames in which a situation gives its position: the ego vehicle's; that of the object `place`, at its
centre and along its heading; that at `place`'s centre with its x axis towards `far`'s."""
Facing = Literal["car heading", "place heading", "to car", "to place", "to far", "to target"]
FACINGS: tuple[Facing, ...] = get_args(Facing)
"""Directions against which a situation gives its heading; `to` means from where one stands."""


@dataclass(frozen=True)
class Mention:
    """Where a situation's text names an object, and which."""

    role: MentionRole
    start: int  # characters
    end: int
    row: int  # of the scene's boxes
    seen: int | None = None  # quarter of the view in which it is said to be, counter-clockwise from ahead


@dataclass(frozen=True)
class SituationParts:
    """What a situation is made of: position = metres + share * half size, in its frame, axis by axis.

    The half size is the object's (length, width) / 2; of a line half its length along it; of the car 0.
    """

    mentions: tuple[Mention, ...]
    frame: PlaceFrame
    metres: tuple[float, float] | None  # None where the text leaves them open
    share: tuple[float, float]
    facing: Facing
    turn: int  # quarters, counter-clockwise, from the direction `facing` to the heading


@dataclass(frozen=True)
class SituationQuery:
    """A described situation with its true position [2] (metres) and yaw (radians), reference ego frame."""

    text: str
    position: tuple[float, float]
    yaw: float
    kind: Literal["exact", "vague"] = "exact"
    lexicon: Lexicon = "train"
    parts: SituationParts | None = None  # where its maker knows them


NO_SITUATION = "I am standing in the room"
"""The situation of a question that comes without one (Loc3R-VLM 4.1)."""


@dataclass(frozen=True)
class SpatialQuestion:
    """One question about a scene, with the situation that it is asked from."""

    identifier: str
    scene: str
    question: str
    answers: tuple[str, ...]  # every right answer; empty in a hidden test set
    category: str  # the data set's own name of the kind of question; "" where it has none
    situation: str = NO_SITUATION
    position: tuple[float, float, float] | None = None  # where the situation is, metres
    yaw: float | None = None  # where it looks, radians about z
    options: tuple[str, ...] = ()  # of a multiple choice, as "A. left"
    object_names: tuple[str, ...] = ()  # what it is about, where the file says so
    lexicon: Lexicon = "train"
