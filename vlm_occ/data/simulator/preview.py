"""A contact sheet of labelled scenes: six cameras, voxels from above and some sentences."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from PIL import Image, ImageDraw
from torch import Tensor

from vlm_occ.geometry import box_corners, project
from vlm_occ.types import FREE, TALK2OCC_CLASSES, LabelledScene

_FRONT_ROW = ("CAM_FRONT_LEFT", "CAM_FRONT", "CAM_FRONT_RIGHT")
_BACK_ROW = ("CAM_BACK_LEFT", "CAM_BACK", "CAM_BACK_RIGHT")

_PALETTE = (  # colours of OCC3D_CLASSES
    (60, 60, 60),
    (255, 120, 50),
    (255, 192, 203),
    (255, 255, 0),
    (0, 150, 245),
    (0, 255, 255),
    (200, 180, 0),
    (255, 0, 0),
    (255, 240, 150),
    (135, 60, 0),
    (160, 32, 240),
    (165, 125, 165),
    (139, 137, 137),
    (75, 0, 75),
    (150, 200, 100),
    (215, 215, 220),
    (0, 130, 0),
    (255, 255, 255),
)

_EDGES = ((0, 1), (1, 2), (2, 3), (3, 0), (4, 5), (5, 6), (6, 7), (7, 4), (0, 4), (1, 5), (2, 6), (3, 7))


def contact_sheet(
    scenes: Sequence[LabelledScene], path: str | Path, *, boxes: bool = False, num_sentences: int = 5
) -> None:
    """Write a PNG with one strip a scene; `boxes` outlines the objects in the images.

    From above, x (ahead) is up and y (left) is left; the colour is that of the highest voxel's class, dots
    are LiDAR points, numbers are rows of the labels as in the sentences below.
    """
    strips = [_strip(scene, boxes=boxes, num_sentences=num_sentences) for scene in scenes]
    width, height = max(strip.width for strip in strips), sum(strip.height + 8 for strip in strips)
    sheet = Image.new("RGB", (width, height), "white")
    top = 0
    for strip in strips:
        sheet.paste(strip, (0, top))
        top += strip.height + 8
    sheet.save(path)


def _strip(labelled: LabelledScene, *, boxes: bool, num_sentences: int) -> Image.Image:
    """One scene: images left, map right, sentences below."""
    images = labelled.scene.reference.images.cpu()
    height, width = labelled.scene.rig.image_size
    side = 2 * height
    sentences = labelled.queries[:num_sentences]
    strip = Image.new("RGB", (3 * width + side, side + 15 * len(sentences) + 4), "white")
    for camera in range(len(images)):
        picture = Image.fromarray(images[camera].permute(1, 2, 0).contiguous().numpy())
        if boxes:
            _outline(picture, labelled, camera)
        name = labelled.scene.rig.names[camera]
        row, order = (0, _FRONT_ROW) if name in _FRONT_ROW else (1, _BACK_ROW)
        ImageDraw.Draw(picture).text((4, 2), name, fill="yellow")
        strip.paste(picture, (order.index(name) * width, row * height))
    strip.paste(_map(labelled, side), (3 * width, 0))
    draw = ImageDraw.Draw(strip)
    for line, query in enumerate(sentences):
        targets = ", ".join(map(str, query.targets)) or "none"
        draw.text((4, side + 2 + 15 * line), f"{query.text}  ->  {targets}", fill="black")
    return strip


def _outline(picture: Image.Image, labelled: LabelledScene, camera: int) -> None:
    """Draw the boxes of objects that are seen into one camera's image."""
    rig, labels = labelled.scene.rig, labelled.labels
    corners = box_corners(labels.boxes).reshape(-1, 3)
    pixels, depth = project(
        corners, rig.intrinsics[camera : camera + 1], rig.ego_from_camera[camera : camera + 1]
    )
    pixels, depth = pixels.view(-1, 8, 2).tolist(), depth.view(-1, 8)
    draw = ImageDraw.Draw(picture)
    for row, points in enumerate(pixels):
        if depth[row].min() > 0.5 and labels.visibility[row] > 0.1:
            for a, b in _EDGES:
                draw.line([*points[a], *points[b]], fill=(255, 0, 160))
            draw.text((points[0][0], points[0][1] - 10), str(row), fill=(255, 0, 160))


def _map(labelled: LabelledScene, side: int) -> Image.Image:
    """Voxels, LiDAR points and boxes from above, `side` pixels wide and high."""
    grid, labels = labelled.scene.grid, labelled.labels
    semantics = labels.semantics.cpu().long()
    layers = torch.arange(1, grid.shape[2] + 1) * (semantics != FREE)
    top = layers.amax(-1)  # [X, Y], 0 where all is free
    colour = torch.tensor(_PALETTE)[semantics.gather(2, (top - 1).clamp(min=0)[..., None])[..., 0]]
    shade = 0.6 + 0.4 * top / grid.shape[2]
    picture = (colour * shade[..., None]).where(top[..., None] > 0, torch.tensor(255.0)).byte()
    canvas = Image.fromarray(picture.flip(0, 1).contiguous().numpy())
    canvas = canvas.resize((side, side), Image.Resampling.NEAREST)
    draw = ImageDraw.Draw(canvas)

    def place(points: Tensor) -> list[tuple[float, float]]:
        low, extent = grid.origin, [grid.voxel_size * n for n in grid.shape]
        right = 1 - (points[:, 1] - low[1]) / extent[1]
        down = 1 - (points[:, 0] - low[0]) / extent[0]
        return [(float(x), float(y)) for x, y in zip(right * side, down * side, strict=True)]

    if labelled.scene.reference.points is not None:
        draw.point(place(labelled.scene.reference.points[::4, :2].cpu()), fill=(30, 30, 30))
    for row, corners in enumerate(box_corners(labels.boxes.cpu())[:, :4]):
        ring = place(corners)
        draw.polygon(ring, outline=(255, 0, 160))
        name = TALK2OCC_CLASSES[int(labels.classes[row])]
        draw.text((ring[0][0] + 2, ring[0][1] - 4), f"{row} {name}", fill=(180, 0, 110))
    draw.polygon(place(torch.tensor([[3.0, 0.0], [-1.0, 0.9], [-1.0, -0.9]])), fill=(255, 0, 0))
    return canvas
