"""The export: what it writes in nuScenes', Occ3D's and Talk2Car's formats reads back as simulated."""

import dataclasses
import hashlib
import json
import math
import resource
from pathlib import Path

import pytest
import torch

from vlm_occ.data.annotations import load_boxes
from vlm_occ.data.export import ExportSettings, Split, deal, export_scenes
from vlm_occ.data.export_rows import lidar_records, sample_token, scene_name
from vlm_occ.data.nuscenes import NuScenesTables, load_scene
from vlm_occ.data.occ3d import labels_path, read_labels
from vlm_occ.data.simulator.rig import LIDAR_POSITION, nuscenes_rig
from vlm_occ.data.talk2car import box_in_ego, read_commands
from vlm_occ.geometry import project, rigid, rotation_z
from vlm_occ.situated import SituationQuery
from vlm_occ.types import (
    FREE,
    TALK2OCC_CLASSES,
    Frame,
    GroundingQuery,
    LabelledScene,
    Scene,
    SceneLabels,
    VoxelGrid,
)
from vlm_occ.voxels import voxels_in_box

SETTINGS = ExportSettings(num_frames=2, image_size=(32, 48))
SEEDS: list[tuple[int, Split]] = [(i, "val" if i == 4 else "test" if i == 9 else "train") for i in range(10)]
QUERIES = 5
SPLITS_OF_TEN = [split for _, split in SEEDS]


def fake_drive(seed: int, split: Split, settings: ExportSettings) -> LabelledScene:
    """A drive without meaning but with everything in it: six objects, five sentences, a tilted vehicle."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int, low: float = 0.0, high: float = 1.0) -> torch.Tensor:
        return low + (high - low) * torch.rand(*shape, generator=generator)

    rig = nuscenes_rig(settings.image_size, calibration_seed=seed)
    frames = []
    for i in range(settings.num_frames):
        tilt = torch.linalg.qr(torch.eye(3, dtype=torch.float64) + 0.02 * draw(3, 3).double())[0]
        tilt = tilt * tilt.diagonal().sign()
        turn = rotation_z(torch.tensor(0.3 * seed + 0.05 * i, dtype=torch.float64))
        pose = rigid(turn @ tilt, torch.tensor([411.0 + 4 * i, 1180.0, 0.3], dtype=torch.float64))
        points = torch.cat([draw(50, 3, low=-30, high=30), draw(50, 1)], dim=1)
        images = (draw(6, 3, 1, 1) * 255).to(torch.uint8).expand(-1, -1, *settings.image_size)
        frames.append(Frame(0.5 * (i - settings.num_frames + 1), images, pose, points))
    boxes = torch.cat([draw(6, 2, low=-35, high=35), draw(6, 1, low=0, high=1), draw(6, 3, low=1, high=5)], 1)
    boxes = torch.cat([boxes, draw(6, 1, low=-math.pi, high=math.pi)], dim=1)
    boxes[0, :3] = torch.tensor([15.0, 0.5, 1.0])  # straight ahead: CAM_FRONT sees it
    boxes[1, :3] = torch.tensor([-15.0, 0.5, 1.0])  # behind: it does not
    grid = VoxelGrid()
    semantics = torch.full(grid.shape, FREE, dtype=torch.uint8)
    for row, box in enumerate(boxes[:5]):  # the last box holds no voxel
        semantics[voxels_in_box(box, grid)] = row
    semantics[voxels_in_box(boxes[5], grid)] = FREE
    labels = SceneLabels(
        semantics=semantics,
        mask_lidar=draw(*grid.shape) < 0.1,
        mask_camera=draw(*grid.shape) < 0.1,
        boxes=boxes,
        classes=torch.randint(0, len(TALK2OCC_CLASSES), (6,), generator=generator),
        colours=torch.randint(-1, 9, (6,), generator=generator),
        velocities=draw(6, 2, low=-5, high=5),
        visibility=draw(6, low=0.1),
        num_points=torch.arange(6),
    )
    queries = (
        GroundingQuery("the thing ahead", (0,), True, answer="It is here."),
        GroundingQuery("the thing behind", (1,), False, lexicon="heldout"),
        GroundingQuery("stop at the things", (0, 2), False, kind="many"),
        GroundingQuery("the purple thing", (), False, kind="none", near_miss=True),
        GroundingQuery("drive to the thing ahead", (0,), True, kind="command"),
    )
    situations = (SituationQuery("I stand near the thing", (1.0, 2.0), 0.5),)
    return LabelledScene(Scene(rig, tuple(frames), grid, f"sim:{seed}"), labels, queries, situations)


def fail_on_seed_2(seed: int, split: Split, settings: ExportSettings) -> LabelledScene:
    if seed == 2:
        raise ValueError("killed")
    return fake_drive(seed, split, settings)


def must_not_run(seed: int, split: Split, settings: ExportSettings) -> LabelledScene:
    raise AssertionError(f"seed {seed} was simulated again")


def export(out: Path, count: int = 1, produce=fake_drive, **options) -> Path:
    export_scenes(out, SEEDS[:count], settings=SETTINGS, produce=produce, **options)
    return out


def digests(folder: Path) -> dict[str, str]:
    files = [p for p in sorted(folder.rglob("*")) if p.is_file()]
    return {str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


@pytest.fixture(scope="module")
def exported(tmp_path_factory) -> Path:
    return export(tmp_path_factory.mktemp("export"), 10)


def test_sensors_and_poses_read_back(exported):
    truth = fake_drive(3, "train", SETTINGS).scene
    scene = load_scene(exported, sample_token(3, 1), num_frames=4)
    assert len(scene.frames) == 2
    assert scene.rig.names == truth.rig.names
    torch.testing.assert_close(scene.rig.intrinsics, truth.rig.intrinsics)
    torch.testing.assert_close(scene.rig.ego_from_camera, truth.rig.ego_from_camera, atol=1e-5, rtol=0)
    for own, true in zip(scene.frames, truth.frames, strict=True):
        torch.testing.assert_close(own.world_from_ego, true.world_from_ego, atol=1e-9, rtol=0)
        assert own.points is not None and true.points is not None
        torch.testing.assert_close(own.points, true.points, atol=1e-5, rtol=0)
        assert (own.images.int() - true.images.int()).abs().max() <= 3  # JPEG
    assert scene.frames[1].timestamp - scene.frames[0].timestamp == pytest.approx(0.5)


def test_boxes_and_voxels_read_back(exported):
    truth = fake_drive(3, "train", SETTINGS).labels
    tables, sample = NuScenesTables(exported), sample_token(3, 1)
    found = load_boxes(tables, sample)
    torch.testing.assert_close(found.boxes, truth.boxes, atol=1e-4, rtol=0)
    assert torch.equal(found.classes, truth.classes)
    assert torch.equal(found.num_points, truth.num_points)
    assert (found.visibility - truth.visibility).abs().max() <= 0.2001
    labels = read_labels(labels_path(exported / "gts", scene_name(3), sample))
    for name in ("semantics", "mask_lidar", "mask_camera"):
        assert torch.equal(getattr(labels, name), getattr(truth, name))


def test_commands_hold_only_single_targets_that_cam_front_sees(exported):
    drive = fake_drive(3, "train", SETTINGS)
    commands = [c for c in read_commands(exported / "commands" / "train_commands.json") if "ahead" in c.text]
    every = read_commands(exported / "commands" / "train_commands.json")
    assert {c.text for c in every} == {"the thing ahead", "drive to the thing ahead"}
    tables = NuScenesTables(exported)
    own = [
        c
        for c in commands
        if tables.table("sample_data")[c.sample_data_token]["sample_token"] == sample_token(3, 1)
    ]
    assert len(own) == 2
    row = tables.table("sample_data")[own[0].sample_data_token]
    assert tables.channel(row) == "CAM_FRONT"
    box = box_in_ego(own[0], tables.ego_from_camera(sample_token(3, 1), "CAM_FRONT"))
    torch.testing.assert_close(box, drive.labels.boxes[0], atol=1e-4, rtol=0)
    x, y, width, height = own[0].box_2d or (0, 0, 0, 0)
    rig = drive.scene.rig
    pixel, _ = project(drive.labels.boxes[:1, :3], rig.intrinsics[:1], rig.ego_from_camera[:1])
    assert x <= pixel[0, 0, 0] <= x + width and y <= pixel[0, 0, 1] <= y + height
    raw = json.loads((exported / "commands" / "train_commands.json").read_text())["commands"][0]
    assert all(isinstance(value, str) for value in raw["rotation"])


def test_queries_hold_every_sentence_with_its_boxes(exported):
    content = json.loads((exported / "commands" / "queries_val.json").read_text())
    drive = fake_drive(4, "train", SETTINGS)
    assert len(content["queries"]) == QUERIES
    for row, query in zip(content["queries"], drive.queries, strict=True):
        assert (row["query"], row["unique"], row["lexicon"], row["kind"]) == (
            query.text,
            query.unique,
            query.lexicon,
            query.kind,
        )
        torch.testing.assert_close(
            torch.tensor(row["boxes"]).reshape(-1, 7), drive.labels.boxes[list(query.targets)]
        )
    assert [row["near_miss"] for row in content["queries"]] == [False, False, False, True, False]
    assert content["samples"][0]["situations"][0]["position"] == [1.0, 2.0]


def test_ten_scenes_are_dealt_80_10_10_and_whole(exported):
    scenes = {}
    for split in ("train", "val", "test"):
        content = json.loads((exported / "commands" / f"queries_{split}.json").read_text())
        scenes[split] = {row["scene_token"] for row in content["queries"]}
        commands = json.loads((exported / "commands" / f"{split}_commands.json").read_text())
        assert {c["scene_token"] for c in commands["commands"]} <= set(commands["scene_tokens"])
    assert [len(scenes[s]) for s in ("train", "val", "test")] == [8, 1, 1]
    assert len(set.union(*scenes.values())) == 10


def test_splits_never_share_a_seed_whatever_seeds_are_asked_for():
    train, val = deal(500, 3, "train"), deal(500, 3, "val")
    mixed = deal(500, 100)
    for split in ("train", "val", "test"):
        others = {seed for seed, own in [*train, *val, *mixed] if own != split}
        assert not others & {seed for seed, own in [*train, *val, *mixed] if own == split}
    assert [split for _, split in deal(20, 5)] == [*SPLITS_OF_TEN, *SPLITS_OF_TEN]
    with pytest.raises(ValueError, match="scenes = 0"):
        deal(0, 0)


def test_every_token_of_the_tables_leads_somewhere(exported):
    tables = {p.stem: json.loads(p.read_text()) for p in (exported / "v1.0-sim").glob("*.json")}
    assert len(tables) == 13
    tokens = {name: {row["token"] for row in rows} for name, rows in tables.items()}
    assert all(len(tokens[name]) == len(rows) for name, rows in tables.items())
    own = {"prev": None, "next": None, "first_sample": "sample", "last_sample": "sample"}
    own |= {"first_annotation": "sample_annotation", "last_annotation": "sample_annotation"}
    checked = 0
    for name, rows in tables.items():
        for row in rows:
            for key, value in row.items():
                target = own.get(key.removesuffix("_token"), key.removesuffix("_token")) or name
                for item in value if key in ("log_tokens", "attribute_tokens") else [value]:
                    if key.endswith("_token") or (key in ("prev", "next") and value):
                        assert item in tokens[target], (name, key)
                        checked += 1
    assert checked > 1000
    for row in tables["sample_data"]:
        assert (exported / row["filename"]).is_file()


def test_the_same_seed_writes_the_same_bytes_from_one_process_or_two(tmp_path):
    first = digests(export(tmp_path / "a", 3, processes=1))
    assert digests(export(tmp_path / "b", 3, processes=2)) == first
    assert len(first) == 3 * (2 * 7 + 2) + 13 + 1 + 6


def test_a_killed_export_continues_and_ends_as_if_it_had_not_been_killed(tmp_path):
    with pytest.raises(ValueError, match="killed"):
        export(tmp_path / "a", 3, produce=fail_on_seed_2, processes=1)
    assert len(list((tmp_path / "a" / ".scenes").iterdir())) == 2
    report = export_scenes(tmp_path / "a", SEEDS[:3], settings=SETTINGS, produce=fake_drive)
    assert (report.written, report.kept) == (1, 2)
    assert digests(tmp_path / "a") == digests(export(tmp_path / "b", 3))


def test_finished_scenes_are_kept_and_other_settings_write_them_anew(tmp_path):
    export(tmp_path, 2)
    export(tmp_path, 2, produce=must_not_run)
    other = dataclasses.replace(SETTINGS, num_frames=1)
    with pytest.raises(AssertionError, match="seed 0"):
        export_scenes(tmp_path, SEEDS[:2], settings=other, produce=must_not_run)


def test_two_splits_exported_into_one_folder_stand_beside_each_other(tmp_path):
    for split in ("train", "val"):
        report = export_scenes(
            tmp_path, [(7 if split == "train" else 8, split)], settings=SETTINGS, produce=fake_drive
        )
    assert report.scenes == {"train": 1, "val": 1, "test": 0}
    assert len(NuScenesTables(tmp_path).table("scene")) == 2


def test_a_full_disk_is_named_and_a_rerun_completes(tmp_path):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (700, hard))
    try:
        with pytest.raises(ValueError, match=r"can't write .*sim-0000000.*"):
            export(tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert not [p for p in tmp_path.rglob("*") if p.name.endswith(".tmp")]
    export(tmp_path)
    assert len(NuScenesTables(tmp_path).table("sample")) == 2


def test_the_ring_is_the_beam_that_shot_the_point():
    angles = [math.radians(-30.67 + beam * 41.34 / 31) for beam in range(32)]
    points = [
        [
            LIDAR_POSITION[0] + 9 * math.cos(a) * math.cos(e),
            9 * math.sin(a) * math.cos(e),
            1.84 + 9 * math.sin(e),
            0.5,
        ]
        for a, e in zip([0.7 * beam for beam in range(32)], angles, strict=True)
    ]
    records = lidar_records(torch.tensor(points))
    assert records[:, 4].tolist() == list(range(32))
    assert records[:, 3].tolist() == [127.5] * 32
    assert records[0, 1].item() == pytest.approx(
        9 * math.cos(angles[0]), abs=1e-5
    )  # ahead is the sensor's +y
