"""Who stands where: objects in the layout frame, how they move, and whether a new one has room."""

from __future__ import annotations

import math
from dataclasses import dataclass

from vlm_occ.data.simulator.assemblies import Assembly
from vlm_occ.data.simulator.objects import Motion

FRAME_SECONDS = 0.5
Rectangle = tuple[float, float, float, float, float, float]
"""Centre x, y; cosine and sine of the yaw; half length and half width."""


@dataclass(frozen=True)
class Placed:
    """An object in the layout frame at the reference time; it moves on an arc."""

    assembly: Assembly
    half: tuple[float, float]  # half length and width of its footprint
    x: float
    y: float
    yaw: float
    speed: float
    yaw_rate: float
    motion: Motion

    def rectangle(self, time: float) -> Rectangle:
        """Its footprint `time` seconds after the reference."""
        x, y, yaw = arc(self.x, self.y, self.yaw, self.speed, self.yaw_rate, time)
        return (x, y, math.cos(yaw), math.sin(yaw), *self.half)


def arc(
    x: float, y: float, yaw: float, speed: float, yaw_rate: float, time: float
) -> tuple[float, float, float]:
    """Pose after `time` seconds on a circular arc."""
    half = 0.5 * yaw_rate * time
    chord = speed * time * (1.0 if abs(half) < 1e-9 else math.sin(half) / half)
    return x + chord * math.cos(yaw + half), y + chord * math.sin(yaw + half), yaw + 2 * half


def overlap(a: Rectangle, b: Rectangle, margin: float) -> bool:
    """Whether two rectangles come closer than `margin` (separating axes; corners count as slightly wider)."""
    dx, dy = b[0] - a[0], b[1] - a[1]
    reach = a[4] + a[5] + b[4] + b[5] + margin  # more than the two radii
    if dx > reach or -dx > reach or dy > reach or -dy > reach:
        return False
    cos, sin = abs(a[2] * b[2] + a[3] * b[3]), abs(a[2] * b[3] - a[3] * b[2])
    if abs(dx * a[2] + dy * a[3]) > a[4] + b[4] * cos + b[5] * sin + margin:
        return False
    if abs(dy * a[2] - dx * a[3]) > a[5] + b[4] * sin + b[5] * cos + margin:
        return False
    if abs(dx * b[2] + dy * b[3]) > b[4] + a[4] * cos + a[5] * sin + margin:
        return False
    return abs(dy * b[2] - dx * b[3]) <= b[5] + a[4] * sin + a[5] * cos + margin


class Clearance:
    """The footprints taken so far: one rectangle for what stands still, one a time for what moves."""

    def __init__(self, num_frames: int) -> None:
        self.times = [-FRAME_SECONDS * i for i in range(num_frames)]
        self._taken: list[list[Rectangle]] = []

    def fits(self, rectangles: list[Rectangle], margin: float) -> bool:
        """Whether rectangles (one, or one a time) keep `margin` metres from everything taken."""
        still = len(rectangles) == 1
        for taken in self._taken:
            if len(taken) == 1:
                other = taken[0]
                if any(overlap(mine, other, margin) for mine in rectangles):
                    return False
            elif still:
                mine = rectangles[0]
                if any(overlap(mine, other, margin) for other in taken):
                    return False
            elif any(overlap(mine, other, margin) for mine, other in zip(rectangles, taken, strict=True)):
                return False
        return True

    def take(self, rectangles: list[Rectangle]) -> None:
        """Mark rectangles (one, or one a time) as taken."""
        self._taken.append(rectangles)

    def footprints(self, item: Placed) -> list[Rectangle]:
        """An object's footprint, or one a time where it moves."""
        return [item.rectangle(time) for time in (self.times if item.speed else (0.0,))]

    def has_room(self, item: Placed, margin: float, headway: float = 0.0) -> bool:
        """Whether an object keeps `margin` from everything taken, and `headway` before and behind it."""
        longer = max(0.0, headway - margin)
        rectangles = [(*r[:4], r[4] + longer, r[5]) for r in self.footprints(item)]
        return self.fits(rectangles, margin)

    def place(self, item: Placed, margin: float = 0.5, headway: float = 0.0) -> bool:
        """Take an object's footprint if it has room."""
        if not self.has_room(item, margin, headway):
            return False
        self.take(self.footprints(item))
        return True
