"""The two maps of a contact sheet: voxels by class, and LiDAR points with boxes, both from above."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from PIL import Image, ImageDraw
from torch import Tensor

from vlm_occ.geometry import box_corners
from vlm_occ.types import FREE, OCC3D_CLASSES, TALK2OCC_CLASSES, LabelledScene, VoxelGrid

Colour = tuple[int, int, int]
DARK: Colour = (22, 24, 28)

PALETTE: tuple[Colour, ...] = (  # of OCC3D_CLASSES, those of Occ3D's pictures, ground and plants muted
    (120, 120, 120),
    (255, 120, 50),
    (255, 192, 203),
    (255, 255, 0),
    (0, 150, 245),
    (0, 255, 255),
    (200, 180, 0),
    (255, 0, 0),
    (255, 240, 150),
    (165, 85, 20),
    (160, 32, 240),
    (150, 110, 150),
    (139, 137, 137),
    (85, 20, 85),
    (120, 165, 75),
    (215, 215, 230),
    (0, 140, 0),
    DARK,
)

_OTHERS: dict[str, Colour] = {  # classes that Occ3D lacks
    "animal": (255, 105, 180),
    "movable object": (0, 215, 155),
    "debris": (190, 150, 120),
    "emergency vehicle": (255, 70, 130),
    "bicycle rack": (130, 205, 255),
}

EGO = ((3.1, 0.85), (-0.95, 0.85), (-0.95, -0.85), (3.1, -0.85))
"""Outline of the recording vehicle (x, y) about its rear axle, metres."""


def class_colour(name: str) -> Colour:
    """The colour of a Talk2Occ class."""
    key = name.replace(" ", "_")
    return PALETTE[OCC3D_CLASSES.index(key)] if key in OCC3D_CLASSES else _OTHERS[name]


def voxel_map(labelled: LabelledScene, side: int) -> Image.Image:
    """The highest voxel of each column by its class, brighter where higher; `side` pixels wide and high."""
    semantics = labelled.labels.semantics.cpu().long()
    depth = semantics.shape[2]
    top = (torch.arange(1, depth + 1) * (semantics != FREE)).amax(-1)  # [X, Y], 0 where all is free
    colour = torch.tensor(PALETTE)[semantics.gather(2, (top - 1).clamp(min=0)[..., None])[..., 0]]
    shade = (0.62 + 0.38 * top / depth).where(top > 0, torch.tensor(1.0))
    picture = (colour * shade[..., None]).byte()  # [X, Y, 3]
    canvas = Image.fromarray(picture.flip(0, 1).contiguous().numpy())
    canvas = canvas.resize((side, side), Image.Resampling.NEAREST)
    _draw_rings(canvas, labelled.scene.grid)
    return canvas


def point_map(labelled: LabelledScene, side: int, outlined: Mapping[int, Colour]) -> Image.Image:
    """LiDAR points coloured by height and every box with a line to its front, in its class's colour.

    `outlined` gives the objects (rows of the labels) that are drawn thick, and in which colour.
    """
    grid, labels = labelled.scene.grid, labelled.labels
    picture = torch.tensor(DARK, dtype=torch.uint8).repeat(side, side, 1)
    points = labelled.scene.reference.points
    if points is not None:
        points = points.cpu()[points[:, 2].cpu().argsort()]  # higher points hide lower ones
        column, row = (pixels(points, grid, side) + 0.5).long().unbind(-1)
        inside = (column >= 0) & (column < side) & (row >= 0) & (row < side)
        picture[row[inside], column[inside]] = _height_colours(points[inside, 2])
    canvas = Image.fromarray(picture.numpy())
    draw = ImageDraw.Draw(canvas)
    _draw_rings(canvas, grid)
    for i, (box, corners) in enumerate(zip(labels.boxes.cpu(), box_corners(labels.boxes.cpu()), strict=True)):
        colour = outlined.get(i, class_colour(TALK2OCC_CLASSES[int(labels.classes[i])]))
        width = 3 if i in outlined else 1
        ahead = box[:2] + torch.stack([box[6].cos(), box[6].sin()]) * (box[3] / 2 + 0.8)
        for ring in (corners[[0, 1, 2, 3, 0]], torch.stack([box[:2], ahead])):
            draw.line(_places(ring, grid, side), fill=colour, width=width)
    return canvas


def pixels(points: Tensor, grid: VoxelGrid, side: int) -> Tensor:
    """Pixels (right, down) [N, 2] of ego points [N, 2 or more]: x (ahead) is up, y (left) is left."""
    high = [grid.origin[i] + grid.shape[i] * grid.voxel_size for i in range(2)]
    extent = [grid.shape[i] * grid.voxel_size for i in range(2)]
    right = (high[1] - points[:, 1]) / extent[1]
    down = (high[0] - points[:, 0]) / extent[0]
    return side * torch.stack([right, down], dim=-1)


def _places(points: Tensor, grid: VoxelGrid, side: int) -> list[tuple[float, float]]:
    """As `pixels`, for drawing."""
    return [(float(x), float(y)) for x, y in pixels(points, grid, side)]


def _height_colours(height: Tensor) -> Tensor:
    """Colours uint8 [N, 3]: blue on the ground, over green to red at 3 m and above."""
    t = ((height + 0.3) / 3.3).clamp(0, 1)
    return (255 * torch.stack([(1.5 * t).clamp(0.25, 1), 1.1 - 0.9 * t, 1 - 1.1 * t], -1).clamp(0, 1)).byte()


def _draw_rings(canvas: Image.Image, grid: VoxelGrid) -> None:
    """Circles every 10 m and the recording vehicle."""
    draw, side = ImageDraw.Draw(canvas), canvas.width
    for radius in range(10, 40, 10):
        turn = [2 * math.pi * i / 72 for i in range(73)]
        ring = torch.tensor([(radius * math.cos(a), radius * math.sin(a)) for a in turn])
        draw.line(_places(ring, grid, side), fill=(105, 110, 120))
    draw.polygon(_places(torch.tensor(EGO), grid, side), fill=(255, 255, 255), outline=(0, 0, 0))
