"""Talk2OccDataset: an item is the (faked) simulated drive that was exported and built."""

import shutil
from pathlib import Path

import pytest
import torch
from test_export import SEEDS, SETTINGS, fake_drive

from vlm_occ.data.dataset import Talk2OccDataset
from vlm_occ.data.export import export_scenes
from vlm_occ.data.export_rows import sample_token
from vlm_occ.data.talk2occ import build_talk2occ


@pytest.fixture(scope="module")
def exported(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("export")
    export_scenes(out, [SEEDS[i] for i in (0, 1, 4, 9)], settings=SETTINGS, produce=fake_drive, processes=1)
    return out


@pytest.fixture(scope="module")
def built(exported, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("index")
    build_talk2occ(exported, exported / "gts", exported / "commands", out)
    return out


def test_the_dataset_gives_back_the_drives(built):
    data = Talk2OccDataset(built, "train", num_frames=2)
    assert len(data) == 3
    for i in (0, 2):
        seed = next(s for s, _ in SEEDS if sample_token(s, 1) == data.samples[i])
        truth, item = fake_drive(seed, "train", SETTINGS), data[i]
        assert item.queries == truth.queries
        assert item.situations == truth.situations
        torch.testing.assert_close(item.labels.boxes, truth.labels.boxes, atol=1e-4, rtol=0)
        for name in ("semantics", "mask_lidar", "mask_camera", "classes", "colours", "num_points"):
            assert torch.equal(getattr(item.labels, name), getattr(truth.labels, name)), name
        for name in ("velocities", "visibility"):
            torch.testing.assert_close(getattr(item.labels, name), getattr(truth.labels, name))
        assert len(item.scene.frames) == 2
        for own, true in zip(item.scene.frames, truth.scene.frames, strict=True):
            torch.testing.assert_close(own.world_from_ego, true.world_from_ego)
            assert own.points is not None and true.points is not None
            torch.testing.assert_close(own.points, true.points, atol=1e-5, rtol=0)
        torch.testing.assert_close(item.scene.rig.ego_from_camera, truth.scene.rig.ego_from_camera)
        assert item.scene.rig.names == truth.scene.rig.names


def test_the_dataset_knows_the_test_part_sensors_and_moved_roots(built, exported, tmp_path):
    assert len(Talk2OccDataset(built, "test")) == len(Talk2OccDataset(built, "val")) == 1
    shutil.copytree(built, tmp_path / "index")
    moved = Talk2OccDataset(
        tmp_path / "index", "val", nuscenes=exported, occ3d=exported / "gts", cameras=["CAM_BACK"]
    )
    assert moved[0].scene.rig.names == ("CAM_BACK",)
    assert Talk2OccDataset(built, "val", lidar=False)[0].scene.reference.points is None
    with pytest.raises(ValueError, match="missing"):
        Talk2OccDataset(tmp_path / "index", "val", occ3d=tmp_path)[0]
    with pytest.raises(ValueError, match=r"no talk2occ\.json"):
        Talk2OccDataset(tmp_path, "val")
    with pytest.raises(ValueError, match="num_frames = 9"):
        Talk2OccDataset(built, "val", num_frames=9)


def test_loader_processes_give_the_same_items(built):
    data = Talk2OccDataset(built, "train")
    loader = torch.utils.data.DataLoader(
        data, batch_size=None, num_workers=1, multiprocessing_context="spawn"
    )
    items = list(loader)
    assert [item.scene.name for item in items] == list(data.samples)
    assert torch.equal(items[2].scene.reference.images, data[2].scene.reference.images)
