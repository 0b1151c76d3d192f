"""The gallery of a contact sheet: what each class looks like, close up."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from vlm_occ.data.simulator.preview_maps import class_colour
from vlm_occ.data.simulator.scene import Simulation
from vlm_occ.geometry import box_corners, project
from vlm_occ.types import TALK2OCC_CLASSES

MIN_VISIBILITY, MIN_PIXELS = 0.75, 24
"""A view is shown if this fraction of the object is visible and its longer side has so many pixels."""

LARGE = 200
"""Pixels from which on a larger view is not better."""


@dataclass(frozen=True)
class View:
    """An object as one camera sees it."""

    label: int
    variant: str
    size: float  # pixels of the longer side
    score: float  # larger is shown first: large, little hidden, seen from the side
    image: Image.Image
    frame: tuple[int, int, int, int]  # left, top, right, bottom of the square around it


def views_of(simulation: Simulation) -> list[View]:
    """Every object that lies wholly in one image and is hardly hidden, with room around it."""
    labelled = simulation.labelled
    rig, labels, images = labelled.scene.rig, labelled.labels, labelled.scene.reference.images
    height, width = rig.image_size
    corners = box_corners(labels.boxes).reshape(-1, 3)
    found = []
    for camera in range(len(images)):
        place, depth = project(corners, rig.intrinsics[[camera]], rig.ego_from_camera[[camera]])
        place, depth = place.view(-1, 8, 2), depth.view(-1, 8)
        low, high = place.amin(1), place.amax(1)  # [M, 2]
        whole = (depth.amin(1) > 1) & (low.amin(1) >= 0) & (high[:, 0] < width) & (high[:, 1] < height)
        image = Image.fromarray(images[camera].permute(1, 2, 0).contiguous().cpu().numpy())
        for row in (whole & (labels.visibility >= MIN_VISIBILITY)).nonzero()[:, 0].tolist():
            size = float((high[row] - low[row]).amax())
            if MIN_PIXELS <= size <= height:
                frame = _square((low[row] + high[row]).tolist(), round(1.24 * size), width, height)
                label, variant = int(labels.classes[row]), simulation.facts[row].variant
                score = min(size, LARGE) * float(labels.visibility[row]) ** 3 * _sideways(labels.boxes[row])
                found.append(View(label, variant, size, score, image, frame))
    return found


def _sideways(box: Tensor) -> float:
    """From 0.4 for a box [7] whose front or back the vehicle sees to 1 for its side."""
    bearing = torch.atan2(box[1], box[0])
    return 0.4 + 0.6 * float((box[6] - bearing).sin().abs())


def _square(twice_centre: list[float], side: int, width: int, height: int) -> tuple[int, int, int, int]:
    """A square about a point, moved and, where it is too large, shrunk to lie in the image."""
    side = min(side, width, height)
    left, top = (round((twice - side) / 2) for twice in twice_centre)
    left, top = max(0, min(left, width - side)), max(0, min(top, height - side))
    return left, top, left + side, top + side


def draw_gallery(simulations: Sequence[Simulation], width: int, *, rows: int, text: int) -> Image.Image:
    """A column a class with its `rows` best views, different kinds first; names `text` pixels high."""
    tile = width // len(TALK2OCC_CLASSES)
    line = round(1.4 * text)
    found = sorted((v for s in simulations for v in views_of(s)), key=lambda view: -view.score)
    canvas = Image.new("RGB", (tile * len(TALK2OCC_CLASSES), line + rows * (tile + line)), "white")
    draw, letters = ImageDraw.Draw(canvas), font(text)
    for label, name in enumerate(TALK2OCC_CLASSES):
        left = label * tile
        draw.rectangle((left, 0, left + tile - 4, 3), fill=class_colour(name))
        draw.text((left, 4), name, fill="black", font=letters)
        for row, view in enumerate(_different([v for v in found if v.label == label])[:rows]):
            top = line + row * (tile + line)
            picture = view.image.crop(view.frame).resize((tile - 4, tile - 4), Image.Resampling.BICUBIC)
            canvas.paste(picture, (left, top))
            draw.text((left, top + tile - 4), view.variant, fill=(90, 90, 90), font=letters)
    return canvas


def _different(views: Sequence[View]) -> list[View]:
    """The views, the first of each kind of object before all others."""
    kinds: dict[str, View] = {}
    for view in views:
        kinds.setdefault(view.variant, view)
    firsts = list(kinds.values())
    return firsts + [view for view in views if not any(view is first for first in firsts)]


def font(size: int) -> ImageFont.FreeTypeFont:
    """Letters `size` pixels high; the typeface comes with matplotlib."""
    from matplotlib import get_data_path

    return ImageFont.truetype(f"{get_data_path()}/fonts/ttf/DejaVuSans.ttf", size)
