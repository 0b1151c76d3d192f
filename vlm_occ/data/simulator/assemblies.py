"""Assemblies: objects as oriented boxes, ellipsoids and cylinders, and the tight boxes around them."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from vlm_occ.data.simulator.draws import RGB
from vlm_occ.data.simulator.objects import BOX, CYLINDER, ELLIPSOID, Solids
from vlm_occ.geometry import rotation_z
from vlm_occ.types import OCC3D_CLASSES, TALK2OCC_CLASSES

Point = tuple[float, float, float]
Part = tuple[int, float, float, float, float, float, float, float, float, float, float, float, float, float]
"""Shape; centre x, y, z; half sizes; yaw, pitch, roll (Rz Ry Rx); red, green, blue; reflectance."""

_SAME_NAME = {"traffic cone": "traffic_cone", "construction vehicle": "construction_vehicle"}
SEMANTIC_OF_LABEL = tuple(
    OCC3D_CLASSES.index(_SAME_NAME.get(name, name if name in OCC3D_CLASSES else "others"))
    for name in TALK2OCC_CLASSES
)
"""Occ3D class of each Talk2Occ class; those that Occ3D lacks are `others` (FACTS 2.3)."""


class Parts:
    """Solids in a frame of their own: x forward, y left, z up, the ground at z = 0, metres."""

    def __init__(self) -> None:
        self.parts: list[Part] = []

    def box(
        self,
        centre: Point,
        size: Point,
        colour: RGB,
        *,
        yaw: float = 0.0,
        pitch: float = 0.0,
        roll: float = 0.0,
        reflectance: float = 0.35,
    ) -> None:
        """Add a box of full `size`."""
        half = (size[0] / 2, size[1] / 2, size[2] / 2)
        self.parts.append((BOX, *centre, *half, yaw, pitch, roll, *colour, reflectance))

    def ellipsoid(
        self,
        centre: Point,
        size: Point,
        colour: RGB,
        *,
        yaw: float = 0.0,
        pitch: float = 0.0,
        reflectance: float = 0.3,
    ) -> None:
        """Add an ellipsoid with full axes `size`."""
        half = (size[0] / 2, size[1] / 2, size[2] / 2)
        self.parts.append((ELLIPSOID, *centre, *half, yaw, pitch, 0.0, *colour, reflectance))

    def wheel(self, centre: Point, radius: float, width: float, colour: RGB, *, yaw: float = 0.0) -> None:
        """Add a cylinder whose axis is y."""
        self.parts.append((CYLINDER, *centre, radius, radius, width / 2, yaw, 0.0, math.pi / 2, *colour, 0.1))

    def rod(self, start: Point, end: Point, radius: float, colour: RGB, *, reflectance: float = 0.3) -> None:
        """Add a cylinder from `start` to `end`: limbs, tubes, poles, tanks."""
        dx, dy, dz = end[0] - start[0], end[1] - start[1], end[2] - start[2]
        length = math.sqrt(dx * dx + dy * dy + dz * dz)
        centre = ((start[0] + end[0]) / 2, (start[1] + end[1]) / 2, (start[2] + end[2]) / 2)
        tilt = math.acos(max(-1.0, min(1.0, dz / max(length, 1e-9))))
        heading = math.atan2(dy, dx) if tilt > 1e-6 else 0.0
        self.parts.append(
            (CYLINDER, *centre, radius, radius, length / 2, heading, tilt, 0.0, *colour, reflectance)
        )

    def beam(
        self, start: Point, end: Point, width: float, height: float, colour: RGB, *, reflectance: float = 0.35
    ) -> None:
        """Add a box whose x axis runs from `start` to `end`: booms, rails, pillars."""
        dx, dy, dz = end[0] - start[0], end[1] - start[1], end[2] - start[2]
        length = math.sqrt(dx * dx + dy * dy + dz * dz)
        centre = ((start[0] + end[0]) / 2, (start[1] + end[1]) / 2, (start[2] + end[2]) / 2)
        pitch = -math.asin(max(-1.0, min(1.0, dz / max(length, 1e-9))))
        heading = math.atan2(dy, dx) if math.hypot(dx, dy) > 1e-6 else 0.0
        self.box(centre, (length, width, height), colour, yaw=heading, pitch=pitch, reflectance=reflectance)

    def merge(
        self, other: Parts, *, x: float = 0.0, y: float = 0.0, z: float = 0.0, yaw: float = 0.0
    ) -> None:
        """Add other parts, turned by `yaw` and moved."""
        cos, sin = math.cos(yaw), math.sin(yaw)
        for shape, px, py, pz, hx, hy, hz, az, ay, ax, r, g, b, f in other.parts:
            moved = (x + cos * px - sin * py, y + sin * px + cos * py, z + pz)
            self.parts.append((shape, *moved, hx, hy, hz, az + yaw, ay, ax, r, g, b, f))

    def extent(self) -> tuple[Point, Point]:
        """Lower and upper corner of the parts in their frame."""
        lows, highs = [1e9] * 3, [-1e9] * 3
        for part in self.parts:
            reach = _reach(part)
            for axis in range(3):
                lows[axis] = min(lows[axis], part[1 + axis] - reach[axis])
                highs[axis] = max(highs[axis], part[1 + axis] + reach[axis])
        return (lows[0], lows[1], lows[2]), (highs[0], highs[1], highs[2])

    def size(self) -> Point:
        """Full sizes of the parts together, metres."""
        low, high = self.extent()
        return (high[0] - low[0], high[1] - low[1], high[2] - low[2])

    def centred(self) -> tuple[float, float]:
        """Move the footprint's middle to the origin, the feet to the ground; half length and width."""
        low, high = self.extent()
        x, y, z = (low[0] + high[0]) / 2, (low[1] + high[1]) / 2, low[2]
        self.parts = [(p[0], p[1] - x, p[2] - y, p[3] - z, *p[4:]) for p in self.parts]  # type: ignore[misc]
        return (high[0] - low[0]) / 2, (high[1] - low[1]) / 2


class Assembly(Parts):
    """An object: its parts, its class and what it is called."""

    def __init__(self, label: str, variant: str, *, colour: int = -1) -> None:
        super().__init__()
        self.label = TALK2OCC_CLASSES.index(label)
        self.variant = variant
        self.colour = colour  # index in COLOURS, -1 where none is dominant


def _reach(part: Part) -> Point:
    """Half extents of a part along the axes of its object."""
    shape, _, _, _, hx, hy, hz, yaw, pitch, roll = part[:10]
    if yaw == 0.0 and pitch == 0.0 and roll == 0.0:
        return (hx, hy, hz)
    ca, sa, cb, sb, cc, sc = (f(a) for a in (yaw, pitch, roll) for f in (math.cos, math.sin))
    rows = (
        (ca * cb * hx, (ca * sb * sc - sa * cc) * hy, (ca * sb * cc + sa * sc) * hz),
        (sa * cb * hx, (sa * sb * sc + ca * cc) * hy, (sa * sb * cc - ca * sc) * hz),
        (-sb * hx, cb * sc * hy, cb * cc * hz),
    )
    if shape == BOX:
        x, y, z = (abs(a) + abs(b) + abs(c) for a, b, c in rows)
    elif shape == ELLIPSOID:
        x, y, z = (math.sqrt(a * a + b * b + c * c) for a, b, c in rows)
    else:
        x, y, z = (math.hypot(a, b) + abs(c) for a, b, c in rows)
    return (x, y, z)


def euler_rotations(angles: Tensor) -> Tensor:
    """Rotations [P, 3, 3] = Rz(yaw) Ry(pitch) Rx(roll) of angles [P, 3] in radians."""
    (ca, cb, cc), (sa, sb, sc) = torch.cos(angles).unbind(-1), torch.sin(angles).unbind(-1)
    rows = (
        (ca * cb, ca * sb * sc - sa * cc, ca * sb * cc + sa * sc),
        (sa * cb, sa * sb * sc + ca * cc, sa * sb * cc - ca * sc),
        (-sb, cb * sc, cb * cc),
    )
    return torch.stack([torch.stack(row, dim=-1) for row in rows], dim=-2)


def to_solids(parts: Sequence[Part], *, semantic: Sequence[int], instance: Sequence[int]) -> Solids:
    """Solids of parts, each in the frame of its object, with a semantic class and an instance a part."""
    table = torch.tensor(parts, dtype=torch.float32).reshape(-1, 14)  # [P, 14]
    return Solids(
        centre=table[:, 1:4],
        rotation=euler_rotations(table[:, 7:10]),
        half_size=table[:, 4:7],
        shape=table[:, 0].long(),
        colour=table[:, 10:13].clamp(0, 1),
        semantic=torch.tensor(semantic, dtype=torch.long),
        instance=torch.tensor(instance, dtype=torch.long),
        reflectance=table[:, 13].clamp(0, 1),
    )


def solid_reach(rotation: Tensor, half_size: Tensor, shape: Tensor) -> Tensor:
    """Half extents [P, 3] of solids along the axes of the frame of their `rotation` [P, 3, 3]."""
    spread = rotation * half_size[:, None, :]  # [P, 3, 3]
    box = spread.abs().sum(-1)
    ellipsoid = spread.norm(dim=-1)
    cylinder = spread[..., :2].norm(dim=-1) + spread[..., 2].abs()
    is_box, is_ellipsoid = (shape == BOX)[:, None], (shape == ELLIPSOID)[:, None]
    return torch.where(is_box, box, torch.where(is_ellipsoid, ellipsoid, cylinder))


def tight_boxes(solids: Solids, yaw: Tensor) -> Tensor:
    """Tight upright boxes [M, 7] around the solids of each instance 0..M-1, at the given yaw [M]."""
    count = len(yaw)
    mine = solids.instance >= 0
    instance = solids.instance[mine]
    turn = rotation_z(yaw)  # [M, 3, 3]: frame_from_box
    inverse = turn.transpose(-1, -2)[instance]  # [P, 3, 3]
    centre = (inverse @ solids.centre[mine][..., None])[..., 0]
    reach = solid_reach(inverse @ solids.rotation[mine], solids.half_size[mine], solids.shape[mine])
    index = instance[:, None].expand(-1, 3)
    low = yaw.new_full((count, 3), torch.inf).scatter_reduce(0, index, centre - reach, "amin")
    high = yaw.new_full((count, 3), -torch.inf).scatter_reduce(0, index, centre + reach, "amax")
    middle = (turn @ ((low + high) / 2)[..., None])[..., 0]
    return torch.cat([middle, high - low, yaw[:, None]], dim=-1)
