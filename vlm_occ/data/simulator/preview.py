"""A contact sheet of labelled scenes: cameras, voxels and LiDAR from above, sentences, classes close up."""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from PIL import Image, ImageDraw

from vlm_occ.data.simulator.preview_gallery import draw_gallery, font
from vlm_occ.data.simulator.preview_maps import PALETTE, Colour, point_map, voxel_map
from vlm_occ.data.simulator.scene import Simulation, simulate_details
from vlm_occ.data.storage import write_atomic
from vlm_occ.geometry import box_corners, project
from vlm_occ.types import OCC3D_CLASSES, TALK2OCC_CLASSES, GroundingQuery, LabelledScene

_FRONT_ROW = ("CAM_FRONT_LEFT", "CAM_FRONT", "CAM_FRONT_RIGHT")
_BACK_ROW = ("CAM_BACK_LEFT", "CAM_BACK", "CAM_BACK_RIGHT")
_EDGES = ((0, 1), (1, 2), (2, 3), (3, 0), (4, 5), (5, 6), (6, 7), (7, 4), (0, 4), (1, 5), (2, 6), (3, 7))

GALLERY_SEEDS = (6, 10, 18, 22, 23)
"""Balanced worlds that show every class, excavators among them, from nearby."""

_LETTERS = "ABCDEFGH"
_INKS: tuple[Colour, ...] = (  # of the sentences, in order
    (255, 20, 147),
    (30, 144, 255),
    (255, 140, 0),
    (0, 190, 90),
    (170, 80, 255),
    (230, 190, 0),
    (0, 190, 200),
    (220, 60, 40),
)


def contact_sheet(
    scenes: Sequence[LabelledScene],
    path: str | Path,
    *,
    gallery: Sequence[Simulation] = (),
    num_sentences: int = 6,
) -> None:
    """Write a PNG with one strip a scene, and the classes close up as `gallery` shows them.

    Each sentence has a letter and a colour, in which its objects are outlined in images and maps. From above,
    x (ahead) is up and y (left) is left. The file is whole or absent; ValueError where it can't be written.
    """
    parts = [_strip(scene, min(num_sentences, len(_INKS))) for scene in scenes]
    width = max(part.width for part in parts)
    text = _text_size(scenes[0])
    parts.append(_legend(width, text))
    if gallery:
        parts.append(draw_gallery(gallery, width, rows=2, text=text))
    sheet = Image.new("RGB", (width, sum(part.height + 8 for part in parts)), "white")
    top = 0
    for part in parts:
        sheet.paste(part, (0, top))
        top += part.height + 8
    buffer = io.BytesIO()
    sheet.save(buffer, "PNG")
    write_atomic(Path(path), buffer.getvalue())


def gallery_scenes() -> tuple[Simulation, ...]:
    """The scenes whose objects are shown close up, with images of twice the usual size; takes seconds."""
    return tuple(
        simulate_details(seed, balanced=True, image_size=(512, 1408), lidar=False) for seed in GALLERY_SEEDS
    )


def _text_size(labelled: LabelledScene) -> int:
    """Height of letters that fits the size of the images, pixels."""
    return max(8, round(20 * labelled.scene.rig.image_size[1] / 704))


def _strip(labelled: LabelledScene, num_sentences: int) -> Image.Image:
    """One scene: images left, maps right, sentences below."""
    height, width = labelled.scene.rig.image_size
    queries = labelled.queries[:num_sentences]
    inks = {target: ink for query, ink in zip(queries, _INKS, strict=False) for target in query.targets}
    names = labelled.scene.rig.names
    side, text = 2 * height, _text_size(labelled)
    line = round(1.35 * text)
    strip = Image.new("RGB", (3 * width + 2 * side + 16, side + line * (len(queries) + 1) + 4), "white")
    for camera, name in enumerate(names):
        row, order = (0, _FRONT_ROW) if name in _FRONT_ROW else (1, _BACK_ROW)
        picture = _picture(labelled, camera, queries, inks, text)
        strip.paste(picture, (order.index(name) * width, row * height))
    strip.paste(voxel_map(labelled, side), (3 * width + 8, 0))
    strip.paste(point_map(labelled, side, inks), (3 * width + side + 16, 0))
    draw, letters = ImageDraw.Draw(strip), font(text)
    draw.text((4, side + 2), _summary(labelled), fill=(90, 90, 90), font=letters)
    for row, (query, ink) in enumerate(zip(queries, _INKS, strict=False)):
        top = side + 2 + line * (row + 1)
        draw.text((4, top), _LETTERS[row], fill=ink, font=letters)
        draw.text((4 + 2 * text, top), _told(labelled, query), fill="black", font=letters)
    return strip


def _summary(labelled: LabelledScene) -> str:
    """The name of a scene and what is in it."""
    names = Counter(TALK2OCC_CLASSES[label] for label in labelled.labels.classes.tolist())
    points = labelled.scene.reference.points
    heard = f", {len(points)} LiDAR points" if points is not None else ""
    objects = ", ".join(f"{count} {name}" for name, count in names.most_common())
    return f"{labelled.scene.name}: {objects}{heard}; circles every 10 m"


def _told(labelled: LabelledScene, query: GroundingQuery) -> str:
    """A sentence and what it means."""
    labels = labelled.labels
    meant = [
        f"{TALK2OCC_CLASSES[int(labels.classes[row])]} at {float(labels.boxes[row, :2].norm()):.0f} m"
        for row in query.targets
    ]
    nothing = "no such object" + (", but one much like it" if query.near_miss else "")
    return f"{query.text}   →   {', '.join(meant) or nothing}"


def _picture(
    labelled: LabelledScene,
    camera: int,
    queries: Sequence[GroundingQuery],
    inks: dict[int, Colour],
    text: int,
) -> Image.Image:
    """One camera's image with its name and the boxes that sentences mean, where they are seen."""
    rig, labels = labelled.scene.rig, labelled.labels
    image = labelled.scene.reference.images[camera].cpu()
    picture = Image.fromarray(image.permute(1, 2, 0).contiguous().numpy())
    draw, letters = ImageDraw.Draw(picture), font(max(8, round(0.8 * text)))
    for row, ink in inks.items():
        place, depth = project(
            box_corners(labels.boxes[[row]])[0], rig.intrinsics[[camera]], rig.ego_from_camera[[camera]]
        )
        points = [(float(x), float(y)) for x, y in place[0]]
        if depth.min() < 0.5 or labels.visibility[row] < 0.1:
            continue
        for a, b in _EDGES:
            draw.line([*points[a], *points[b]], fill=ink)
        tags = " ".join(_LETTERS[i] for i, query in enumerate(queries) if row in query.targets)
        x, y = min(p[0] for p in points), min(p[1] for p in points)
        draw.text((x, y - 1.1 * text), tags, fill=ink, font=letters, stroke_width=1, stroke_fill="white")
    draw.text((4, 2), rig.names[camera], fill="yellow", font=letters, stroke_width=1, stroke_fill="black")
    return picture


def _legend(width: int, text: int) -> Image.Image:
    """The colours of the voxels' classes."""
    canvas = Image.new("RGB", (width, 2 * round(1.5 * text)), "white")
    draw, letters = ImageDraw.Draw(canvas), font(text)
    left, top = 4, 2
    for name, colour in zip(OCC3D_CLASSES[:-1], PALETTE, strict=False):
        words = name.replace("_", " ")
        room = 3 * text + round(letters.getlength(words))
        if left + room > width:
            left, top = 4, top + round(1.5 * text)
        draw.rectangle((left, top, left + text, top + text), fill=colour)
        draw.text((left + round(1.3 * text), top + text - 2), words, fill="black", font=letters, anchor="ls")
        left += room
    return canvas
