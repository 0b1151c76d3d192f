"""What the simulator's parts tell each other: solids to render, and facts about objects to talk about."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import Tensor

Motion = Literal["parked", "stopped", "moving"]
Place = Literal["road", "kerb", "pavement", "terrain", "junction"]

BOX, ELLIPSOID, CYLINDER = 0, 1, 2
"""Shapes of a solid; a cylinder's axis is its own z."""


@dataclass(frozen=True)
class Solids:
    """Oriented solids at one moment, in one frame (world or ego, as said where it is returned)."""

    centre: Tensor  # float32 [P, 3] metres
    rotation: Tensor  # float32 [P, 3, 3]: frame_from_solid
    half_size: Tensor  # float32 [P, 3] metres along the solid's axes
    shape: Tensor  # long [P]: BOX, ELLIPSOID or CYLINDER
    colour: Tensor  # float32 [P, 3] in [0, 1], albedo
    semantic: Tensor  # long [P], index in OCC3D_CLASSES
    instance: Tensor  # long [P], index of the object it belongs to, -1 for background
    reflectance: Tensor  # float32 [P] in [0, 1], LiDAR intensity at normal incidence


@dataclass(frozen=True)
class Ground:
    """The ground: a tilted plane z = height + slope . (x, y) with a raster of surfaces (world frame)."""

    height: float  # metres
    slope: tuple[float, float]
    origin: tuple[float, float]  # lower corner of the raster, metres
    cell: float  # metres
    semantic: Tensor  # uint8 [X, Y], OCC3D_CLASSES: driveable_surface, sidewalk, terrain, other_flat
    colour: Tensor  # float32 [X, Y, 3] in [0, 1]: asphalt, markings, kerbs, grass


@dataclass(frozen=True)
class ObjectFacts:
    """What can be said about one object, in the reference ego frame."""

    label: int  # index in TALK2OCC_CLASSES
    variant: str  # e.g. "excavator", "van", "police car", "dog", "child", "pushchair"
    colour: int  # index in COLOURS, -1 where no colour is dominant
    size: Literal["small", "medium", "large"]  # relative to its class
    box: tuple[float, float, float, float, float, float, float]  # x, y, z, dx, dy, dz, yaw
    velocity: tuple[float, float]  # m/s over ground, ego axes
    motion: Motion
    place: Place
    referable: bool  # in the grid, seen well enough, at least one occupied voxel
