"""The Talk2Occ builder and its dataset: what comes out is what the (faked) simulator put in."""

import json
import math
import runpy
import shutil
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from shapely.affinity import rotate
from shapely.geometry import box as rectangle
from test_export import SEEDS, SETTINGS, fake_drive

from vlm_occ.data import talk2occ
from vlm_occ.data.export import ExportSettings, Split, export_scenes
from vlm_occ.data.export_rows import sample_token, scene_name
from vlm_occ.data.occ3d import labels_path
from vlm_occ.data.talk2occ import build_talk2occ, talk2occ_command
from vlm_occ.types import FREE, TALK2OCC_CLASSES, GroundingQuery, LabelledScene, VoxelGrid

GRID = VoxelGrid()


def filter_drive(seed: int, split: Split, settings: ExportSettings) -> LabelledScene:
    """A drive with one box beyond the range, one without a voxel, and sentences about them."""
    drive = fake_drive(seed, split, settings)
    drive.labels.boxes[2, :3] = torch.tensor([40.5, 0.0, 1.0])
    drive.labels.boxes[3] = torch.tensor([-30.0, -30.0, 1.0, 2.0, 2.0, 2.0, 0.4])
    drive.labels.semantics[20:30, 20:30] = FREE
    queries = (
        GroundingQuery("the one beyond", (2,), True),
        GroundingQuery("the hollow one", (3,), True),
        GroundingQuery("both", (0, 3), False, kind="many"),
        GroundingQuery("the one ahead", (0,), True),
        GroundingQuery("none", (), False, kind="none"),
    )
    return LabelledScene(drive.scene, drive.labels, queries)


@pytest.fixture(scope="module")
def exported(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("export")
    export_scenes(out, SEEDS, settings=SETTINGS, produce=fake_drive, processes=1)
    return out


@pytest.fixture
def copy(exported, tmp_path) -> Path:
    """A copy of the export to damage."""
    shutil.copytree(exported, tmp_path / "sim")
    return tmp_path / "sim"


def build(root: Path, out: Path, **options) -> dict:
    return build_talk2occ(root, root / "gts", root / "commands", out, **options)


def rows_of(out: Path, split: str = "train") -> list[dict]:
    return pq.read_table(out / f"{split}.parquet").to_pylist()


@pytest.fixture(scope="module")
def built(exported, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("index")
    build(exported, out)
    return out


def touched(box: list[float], grown: float = 0.0) -> set[tuple[int, int, int]]:
    """Voxels whose cube meets a box whose sides are moved out by `grown` metres, by polygon clipping."""
    x, y, z, yaw = *box[:3], box[6]
    dx, dy, dz = (side + 2 * grown for side in box[3:6])
    footprint = rotate(rectangle(x - dx / 2, y - dy / 2, x + dx / 2, y + dy / 2), yaw, use_radians=True)
    reach = math.hypot(dx, dy) / 2 + 0.4
    found = set()
    for i in range(max(0, int((x - reach + 40) / 0.4)), min(200, int((x + reach + 40) / 0.4) + 1)):
        for j in range(max(0, int((y - reach + 40) / 0.4)), min(200, int((y + reach + 40) / 0.4) + 1)):
            low = (-40 + 0.4 * i, -40 + 0.4 * j)
            if not footprint.intersects(rectangle(*low, low[0] + 0.4, low[1] + 0.4)):
                continue
            for k in range(16):
                if min(z + dz / 2, -1 + 0.4 * (k + 1)) > max(z - dz / 2, -1 + 0.4 * k):
                    found.add((i, j, k))
    return found


def test_every_box_and_voxel_is_that_of_the_simulator(built):
    rows = {split: {row["token"]: row for row in rows_of(built, split)} for split in ("train", "val")}
    checked = 0
    for seed, split in SEEDS:
        drive, sample = fake_drive(seed, "train", SETTINGS), sample_token(seed, 1)
        own = [r for r in rows["val" if split == "val" else "train"].values() if r["sample_token"] == sample]
        assert [row["query"] for row in own] == [query.text for query in drive.queries]
        occupied = drive.labels.semantics != FREE
        for row, query in zip(own, drive.queries, strict=True):
            targets = drive.labels.boxes[list(query.targets)]
            assert np.array(row["boxes"]).reshape(-1, 7) == pytest.approx(targets.numpy(), abs=1e-4)
            surely, possibly = (
                {v for box in targets.tolist() for v in touched(box, grown) if occupied[v]}
                for grown in (-1e-4, 1e-4)
            )
            index = np.array(row["voxels"], dtype=int)
            found = set(zip(*(axis.tolist() for axis in np.unravel_index(index, GRID.shape)), strict=True))
            assert surely <= found <= possibly
            assert row["num_voxels"] == len(row["voxels"])
            assert [row["unique"], row["lexicon"], row["kind"]] == [query.unique, query.lexicon, query.kind]
            checked += len(found)
    assert checked > 1000


def test_table_1_counts_sentences_with_one_target(built):
    summary = json.loads((built / "talk2occ.json").read_text())
    expected: Counter[str] = Counter()
    for seed, _ in SEEDS:
        drive = fake_drive(seed, "train", SETTINGS)
        for query in drive.queries:
            if len(query.targets) == 1:
                expected[TALK2OCC_CLASSES[int(drive.labels.classes[query.targets[0]])]] += 1
    table = summary["table_1"]
    assert {
        name: row["objects_touching"] for name, row in table.items() if row["objects_touching"]
    } == expected
    for row in table.values():
        assert row["mean_voxels_centre"] <= row["mean_voxels_touching"]
    assert summary["splits"] == {"train": 45, "val": 5}


def test_test_scenes_join_train_and_the_rule_is_stated(built):
    assert Counter(row["source_split"] for row in rows_of(built)) == {"train": 40, "test": 5}
    assert {row["source_split"] for row in rows_of(built, "val")} == {"val"}
    scenes = [{row["scene_token"] for row in rows_of(built, split)} for split in ("train", "val")]
    assert not scenes[0] & scenes[1]
    assert "Talk2Car train + test" in (built / "README.md").read_text()
    assert "Talk2Car train + test" in json.loads((built / "talk2occ.json").read_text())["split_rule"]


def test_each_filter_removes_what_it_should_and_says_so(tmp_path, capsys):
    export_scenes(tmp_path, [(1, "train")], settings=SETTINGS, produce=filter_drive)
    summary = talk2occ_command(tmp_path, tmp_path / "gts", tmp_path / "commands", tmp_path / "index")
    assert [row["query"] for row in rows_of(tmp_path / "index")] == ["the one ahead", "none"]
    counts = summary["filters"]["train"]  # type: ignore[index]
    assert (counts["out_of_range"], counts["no_voxel_touching"], counts["kept"]) == (1, 2, 2)
    shown = capsys.readouterr().out
    assert "Table I" in shown and "out of range" in shown and "Talk2Car train + test" in shown


def test_commands_alone_are_enough_and_unique_is_then_counted(copy, tmp_path, built):
    for path in (copy / "commands").glob("queries_*.json"):
        path.unlink()
    summary = build(copy, tmp_path / "index")
    rows = rows_of(tmp_path / "index")
    assert {row["query"] for row in rows} == {"the thing ahead", "drive to the thing ahead"}
    assert len(rows) == 18 and summary["kinds"] == {"command": 20}
    full = {row["token"]: row for row in rows_of(built)}
    for row in rows:
        assert row["boxes"] == pytest.approx(np.array(full[row["token"]]["boxes"]), abs=1e-4)
        assert len(set(row["voxels"]) ^ set(full[row["token"]]["voxels"])) <= 1
    for seed in (0, 1, 2):
        labels = fake_drive(seed, "train", SETTINGS).labels
        same = [
            i
            for i in range(6)
            if labels.classes[i] == labels.classes[0]
            and any(labels.semantics[v] != FREE for v in touched(labels.boxes[i].tolist()))
        ]
        own = next(row for row in rows if row["sample_token"] == sample_token(seed, 1))
        assert own["unique"] == (len(same) == 1)


def subset(root: Path, version: str) -> Path:
    """Keep one validation and one training scene of the tables, as nuScenes mini does."""
    old, new = root / "v1.0-sim", root / version
    old.rename(new)
    keep = {scene_name(seed) for seed, split in SEEDS if seed in (1,) or split == "val"}
    tables = {p.stem: json.loads(p.read_text()) for p in new.glob("*.json")}
    scenes = {row["token"] for row in tables["scene"] if row["name"] in keep}
    samples = {row["token"] for row in tables["sample"] if row["scene_token"] in scenes}
    tables["sample"] = [row for row in tables["sample"] if row["token"] in samples]
    for name in ("sample_data", "sample_annotation"):
        tables[name] = [row for row in tables[name] if row["sample_token"] in samples]
    for name, rows in tables.items():
        (new / f"{name}.json").write_text(json.dumps(rows))
    for path in (root / "commands").glob("queries_*.json"):
        path.unlink()
    return root


def test_hugging_face_datasets_reads_the_index(built, tmp_path):
    datasets = pytest.importorskip("datasets")
    queries = datasets.load_dataset(str(built), cache_dir=str(tmp_path))
    frames = datasets.load_dataset(str(built), "frames", split="frames", cache_dir=str(tmp_path))
    for split in ("train", "val"):
        own = rows_of(built, split)
        assert [row["token"] for row in queries[split]] == [row["token"] for row in own]
        assert queries[split][0]["voxels"] == own[0]["voxels"]
    assert frames[0]["cameras"][0]["name"].startswith("CAM_") and len(frames) == 20


def test_nuscenes_mini_keeps_the_commands_of_its_scenes(copy, tmp_path):
    summary = build(subset(copy, "v1.0-mini"), tmp_path / "index")
    assert summary["splits"] == {"train": 2, "val": 2}
    filters = summary["filters"]
    assert [filters[s]["not_in_tables"] for s in ("train", "val", "test")] == [14, 0, 2]
    assert len(rows_of(tmp_path / "index", "val")) == 2


def test_trainval_must_hold_every_commands_frame(copy, tmp_path):
    with pytest.raises(ValueError, match=r"command .*train_commands\.json refers to sample_data token"):
        build(subset(copy, "v1.0-trainval"), tmp_path / "index")


def test_every_missing_file_is_named(copy, tmp_path, capsys):
    gone = [labels_path(copy / "gts", scene_name(2), sample_token(2, 1))]
    gone += sorted((copy / "samples").glob("*/sim-0000003__*__00.*"))[:2]
    for path in gone:
        path.unlink()
    with pytest.raises(ValueError, match=r"3 of .* files are missing"):
        build(copy, tmp_path / "index")
    shown = capsys.readouterr().err
    assert all(f"missing: {path}" in shown for path in gone)


def test_a_killed_build_continues_and_ends_as_if_it_had_not_been_killed(copy, tmp_path, monkeypatch):
    path = labels_path(copy / "gts", scene_name(6), sample_token(6, 1))
    content = path.read_bytes()
    path.write_bytes(content[:-100])
    with pytest.raises(ValueError, match=r"sim-0000006.*labels\.npz are truncated"):
        build(copy, tmp_path / "index", processes=1)
    assert not (tmp_path / "index" / "train.parquet").exists()
    path.write_bytes(content)
    done, label_item = [], talk2occ.label_item
    monkeypatch.setattr(talk2occ, "label_item", lambda item: done.append(item) or label_item(item))
    build(copy, tmp_path / "index", processes=1)
    assert 0 < len(done) < 10
    build(copy, tmp_path / "fresh", processes=1)
    for name in ("train.parquet", "val.parquet", "frames.parquet", "talk2occ.json"):
        assert (tmp_path / "index" / name).read_bytes() == (tmp_path / "fresh" / name).read_bytes()
    assert not (tmp_path / "index" / ".parts").exists()


def test_two_processes_write_the_same_bytes_as_one(copy, built, tmp_path):
    build(copy, tmp_path / "index", processes=2)
    for name in ("train.parquet", "val.parquet", "frames.parquet"):
        assert (tmp_path / "index" / name).read_bytes() == (built / name).read_bytes()


def test_a_command_that_contradicts_its_query_is_an_error(copy, tmp_path):
    path = copy / "commands" / "val_commands.json"
    content = json.loads(path.read_text())
    content["commands"][0]["translation"][2] += 3.0
    path.write_text(json.dumps(content))
    with pytest.raises(ValueError, match=r"val_commands\.json means"):
        build(copy, tmp_path / "index")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c["queries"][0].update(sample_token="lost"), "sample token 'lost'"),
        (lambda c: c["queries"][0].update(box_tokens=["lost"]), "sample_annotation token 'lost'"),
        (lambda c: c["queries"][0].pop("boxes"), r"queries_val\.json is no queries file"),
        (lambda c: c["queries"][0].update(boxes=[]), r"queries_val\.json is no queries file"),
    ],
)
def test_a_damaged_queries_file_is_named(copy, tmp_path, change, message):
    path = copy / "commands" / "queries_val.json"
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))
    with pytest.raises(ValueError, match=message):
        build(copy, tmp_path / "index")


def test_a_folder_without_commands_is_named(exported, tmp_path):
    with pytest.raises(ValueError, match="holds no train_, val_ or test_commands"):
        build_talk2occ(exported, exported / "gts", exported / "gts", tmp_path)


def test_the_script_builds_and_names_its_mistakes(exported, tmp_path, monkeypatch, capsys):
    script = str(Path(__file__).resolve().parents[1] / "scripts" / "prepare_talk2occ.py")
    folders = [
        "--occ3d",
        str(exported / "gts"),
        "--talk2car",
        str(exported / "commands"),
        "--out",
        str(tmp_path),
    ]
    for root, code, said in ((exported, 0, "5 validation sentences"), (tmp_path, 2, "no nuScenes tables")):
        monkeypatch.setattr(sys, "argv", [script, *folders, "--nuscenes", str(root)])
        with pytest.raises(SystemExit) as stopped:
            runpy.run_path(script, run_name="__main__")
        assert stopped.value.code == code
        shown = capsys.readouterr()
        assert said in (shown.err if code else shown.out)
