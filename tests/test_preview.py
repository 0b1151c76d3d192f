"""The contact sheet: voxels, points, boxes and close-ups lie where the labels say."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import numpy as np
import pytest
import torch
from PIL import Image
from test_export import ExportSettings, fake_drive

from vlm_occ.data.simulator.preview import _INKS, contact_sheet
from vlm_occ.data.simulator.preview_gallery import draw_gallery, views_of
from vlm_occ.data.simulator.preview_maps import DARK, PALETTE, point_map, voxel_map
from vlm_occ.data.simulator.scene import Simulation
from vlm_occ.types import FREE, OCC3D_CLASSES, LabelledScene

HEIGHT, WIDTH = 128, 352
SETTINGS = ExportSettings(num_frames=1, image_size=(HEIGHT, WIDTH))


@pytest.fixture
def drive() -> LabelledScene:
    """One car 12 m straight ahead on an empty plain, nothing else; a grey image."""
    item = fake_drive(0, "train", SETTINGS)
    labels = item.labels
    box = torch.tensor([[12.0, 0.0, 0.8, 4.5, 1.9, 1.6, 0.0]])
    semantics = torch.full_like(labels.semantics, FREE)
    one = {name: getattr(labels, name)[:1] for name in ("velocities", "num_points")}
    labels = dataclasses.replace(
        labels,
        semantics=semantics,
        boxes=box,
        classes=torch.tensor([0]),
        colours=torch.tensor([0]),
        visibility=torch.tensor([1.0]),
        **one,
    )
    frame = item.scene.reference
    frame = dataclasses.replace(frame, images=torch.full_like(frame.images, 99), points=torch.zeros(0, 4))
    scene = dataclasses.replace(item.scene, frames=(frame,))
    return dataclasses.replace(item, scene=scene, labels=labels, queries=item.queries[:1], situations=())


def cameras_of(sheet: Path) -> dict[str, np.ndarray]:
    pixels = np.asarray(Image.open(sheet))
    names = [["FRONT_LEFT", "FRONT", "FRONT_RIGHT"], ["BACK_LEFT", "BACK", "BACK_RIGHT"]]
    return {
        f"CAM_{name}": pixels[y * HEIGHT : (y + 1) * HEIGHT, x * WIDTH : (x + 1) * WIDTH]
        for y, row in enumerate(names)
        for x, name in enumerate(row)
    }


def test_a_voxel_is_on_the_map_where_it_lies_in_the_colour_of_its_class(drive: LabelledScene) -> None:
    driveable, car = OCC3D_CLASSES.index("driveable_surface"), OCC3D_CLASSES.index("car")
    drive.labels.semantics[150, 180, 0] = driveable  # 20 m ahead, 32 m to the left
    drive.labels.semantics[150, 180, 15] = car  # hides what is under it
    pixels = np.asarray(voxel_map(drive, 400))  # two pixels a voxel
    row, column = 2 * (199 - 150), 2 * (199 - 180)
    assert (pixels[row : row + 2, column : column + 2] == PALETTE[car]).all()
    assert (pixels[300, 300] == DARK).all()


def test_a_point_is_on_the_map_where_it_lies_and_the_highest_hides_the_others(drive: LabelledScene) -> None:
    points = torch.tensor([[20.0, 32.0, 3.0, 1], [20.0, 32.0, -0.3, 1], [0.0, -35.0, -0.3, 1]])
    frame = dataclasses.replace(drive.scene.reference, points=points)
    scene = dataclasses.replace(drive.scene, frames=(frame,))
    pixels = np.asarray(point_map(dataclasses.replace(drive, scene=scene), 800, {})).astype(int)
    high, low = pixels[200, 80], pixels[400, 750]
    assert high[0] > high[2] and low[2] > low[0]  # red above, blue on the ground
    assert (pixels[600, 600] == DARK).all()


def test_what_a_sentence_means_is_outlined_in_its_colour_where_a_camera_sees_it(
    drive: LabelledScene, tmp_path: Path
) -> None:
    contact_sheet([drive], tmp_path / "told.png")
    contact_sheet([dataclasses.replace(drive, queries=())], tmp_path / "untold.png")
    told, untold = cameras_of(tmp_path / "told.png"), cameras_of(tmp_path / "untold.png")
    ink = (told["CAM_FRONT"] == _INKS[0]).all(-1)
    assert ink.sum() > 100
    middle = np.argwhere(ink).mean(0)
    camera = drive.scene.rig.names.index("CAM_FRONT")
    assert abs(middle[1] - float(drive.scene.rig.intrinsics[camera, 0, 2])) < 15  # straight ahead
    for name, picture in told.items():
        if name != "CAM_FRONT":
            assert (picture == untold[name]).all()
    assert (untold["CAM_FRONT"][20:] == 99).all()  # below the camera's name nothing is painted over


def test_close_ups_are_of_objects_that_one_image_shows_whole(drive: LabelledScene) -> None:
    def simulation(labelled: LabelledScene) -> Simulation:
        facts = (SimpleNamespace(variant="estate"),)
        return cast(Simulation, SimpleNamespace(labelled=labelled, facts=facts))

    def changed(**values: torch.Tensor) -> Simulation:
        return simulation(dataclasses.replace(drive, labels=dataclasses.replace(drive.labels, **values)))

    (view,) = views_of(simulation(drive))
    assert (view.label, view.variant) == (0, "estate")
    left, top, right, bottom = view.frame
    assert 0 <= left < right <= WIDTH and 0 <= top < bottom <= HEIGHT and right - left == bottom - top
    assert view.size <= right - left
    assert not views_of(changed(visibility=torch.tensor([0.5])))  # half hidden
    assert not views_of(changed(boxes=drive.labels.boxes + torch.tensor([0, 6.7, 0, 0, 0, 0, 0])))  # cut
    gallery = np.asarray(draw_gallery([simulation(drive)], 15 * 60, rows=2, text=10))
    assert (gallery[20:50, 10:40] == 99).all()  # the first column is the car's
    assert (gallery[20:50, 70:100] == 255).all()  # no pedestrian was seen


def test_a_sheet_that_cannot_be_written_is_named(drive: LabelledScene, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match=r"can't write .*sheet\.png"):
        contact_sheet([drive], tmp_path / "file" / "sheet.png")
