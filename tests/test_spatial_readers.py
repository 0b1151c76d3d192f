"""Annotation readers: SQA3D's real test files, and small ones written to the other documented formats."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from scipy.spatial.transform import Rotation

from vlm_occ.data.spatial_readers import (
    READERS,
    SpatialQuestion,
    distinct_situations,
    read_beacon3d,
    read_msqa,
    read_scanqa,
    read_sqa3d,
    read_vsi_bench,
    yaw_of_direction,
    yaw_of_quaternion,
)
from vlm_occ.situated import NO_SITUATION

DATA = Path(os.environ.get("VLM_OCC_REAL_DATA", Path(__file__).parents[2] / "shared" / "data"))


def _write(folder: Path, name: str, content: object) -> Path:
    path = folder / name
    if path.suffix == ".jsonl":
        assert isinstance(content, list)
        path.write_text("\n".join(json.dumps(row) for row in content) + "\n")
    else:
        path.write_text(json.dumps(content))
    return path


SCANQA = {
    "answers": ["brown chair", "chair"],
    "object_ids": [8],
    "object_names": ["chair"],
    "question": "What is left of the desk?",
    "question_id": "val-scene0011-0",
    "scene_id": "scene0011_00",
}
MSQA = {
    "index": 7,
    "scan_id": "scene0000_00",
    "question": "Is the <office chair-3-IMG> in front of me?",
    "answers": ["yes"],
    "type": "existence",
    "situation": "To my left there is a <bin-12-IMG>.",
    "location": [0.1, -0.2, 0.03],
    "orientation": [0.0, -2.0, 0],
    "raw_thought": "chair-3",
}
BEACON3D = {**SCANQA, "question_id": "scannet_scene0011_00_8_Appearance_1"}
VSI = {
    "id": 0,
    "dataset": "arkitscenes",
    "scene_name": "41069025",
    "question_type": "object_counting",
    "question": "How many table(s) are in this room?",
    "ground_truth": "4",
    "options": None,
}
ROWS = {"scanqa": SCANQA, "msqa": MSQA, "beacon3d": BEACON3D, "vsi_bench": VSI}


def _sqa3d() -> list[SpatialQuestion]:
    folder = DATA / "sqa3d"
    if not folder.is_dir():
        pytest.skip(f"{folder} is absent (set VLM_OCC_REAL_DATA)")
    return read_sqa3d(
        folder / "v1_balanced_questions_test_scannetv2.json",
        folder / "v1_balanced_sqa_annotations_test_scannetv2.json",
    )


def test_the_real_sqa3d_test_set_is_read() -> None:
    questions = _sqa3d()
    assert len(questions) == 3519
    assert len({question.scene for question in questions}) == 67
    assert len(distinct_situations(questions)) == 719  # the number of localisation samples in the papers
    first = questions[0]
    assert first.situation == "I am standing by the ottoman on my right facing a couple of toolboxes."
    assert (first.scene, first.answers) == ("scene0050_00", ("piano",))
    assert first.position == (0.7110268899979686, -0.03219739162793617, 0)
    # Quaternion (0, 0, -0.99957, -0.02920): the same turn as (0, 0, 0.99957, 0.02920).
    assert first.yaw == pytest.approx(2 * math.atan2(0.9995736, 0.0291995), abs=1e-5)


def test_each_real_situation_has_one_pose() -> None:
    poses: dict[tuple[str, str], set[object]] = {}
    for question in _sqa3d():
        poses.setdefault((question.scene, question.situation), set()).add((question.position, question.yaw))
    assert all(len(pose) == 1 for pose in poses.values())


def test_sqa3d_rotations_are_read_by_key_whatever_their_order(tmp_path: Path) -> None:
    question = {"scene_id": "s", "situation": "I sit.", "question": "What?", "question_id": 1}
    half = math.sqrt(0.5)
    truth = {"question_id": 1, "answer_type": "other", "answers": [{"answer": "chair"}]}
    truth["position"] = {"z": 3, "x": 1, "y": 2}
    truth["rotation"] = {"_w": half, "_x": 0, "_y": 0, "_z": half}
    files = (
        _write(tmp_path, "q.json", {"questions": [question]}),
        _write(tmp_path, "a.json", {"annotations": [truth]}),
    )
    (read,) = read_sqa3d(*files)
    assert read.yaw == pytest.approx(math.pi / 2)
    assert read.position == (1, 2, 3)
    assert read.identifier == "1"


def test_sqa3d_files_of_different_splits_are_refused(tmp_path: Path) -> None:
    question = {"scene_id": "s", "situation": "I sit.", "question": "What?", "question_id": 1}
    files = (
        _write(tmp_path, "q.json", {"questions": [question]}),
        _write(tmp_path, "a.json", {"annotations": []}),
    )
    with pytest.raises(ValueError, match="no question 1"):
        read_sqa3d(*files)


def test_scanqa_is_read_with_and_without_answers(tmp_path: Path) -> None:
    hidden = {key: value for key, value in SCANQA.items() if key != "answers"}
    with_answers, without = read_scanqa(_write(tmp_path, "scanqa.json", [SCANQA, hidden]))
    assert with_answers.answers == ("brown chair", "chair")
    assert with_answers.object_names == ("chair",)
    assert without.answers == ()
    assert with_answers.situation == NO_SITUATION == "I am standing in the room"


def test_msqa_pictures_become_nouns_and_directions_become_yaws(tmp_path: Path) -> None:
    (question,) = read_msqa(_write(tmp_path, "msqa_scannet_test.json", [MSQA]))
    assert question.question == "Is the office chair in front of me?"
    assert question.situation == "To my left there is a bin."
    assert question.position == (0.1, -0.2, 0.03)
    assert question.yaw == pytest.approx(-math.pi / 2)


def test_beacon3d_kinds_come_from_the_identifier(tmp_path: Path) -> None:
    (question,) = read_beacon3d(_write(tmp_path, "scannet_qa.json", [BEACON3D]))
    assert question.category == "appearance"
    with pytest.raises(ValueError, match="val-scene0011-0"):
        read_beacon3d(_write(tmp_path, "other.json", [SCANQA]))


def test_vsi_bench_lines_are_read_with_and_without_options(tmp_path: Path) -> None:
    choice = {**VSI, "id": 1, "question_type": "route_planning", "options": ["A. Left", "B. Right"]}
    number, letter = read_vsi_bench(_write(tmp_path, "test.jsonl", [VSI, choice]))
    assert number.scene == "arkitscenes/41069025"
    assert (number.answers, number.options) == (("4",), ())
    assert letter.options == ("A. Left", "B. Right")


def test_vsi_bench_parquet_gives_the_same_as_its_lines(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow", reason="pyarrow is not installed")
    from pyarrow import parquet

    choice = {**VSI, "id": 1, "options": ["A. Left", "B. Right"]}
    parquet.write_table(pyarrow.Table.from_pylist([VSI, choice]), tmp_path / "test.parquet")
    lines = read_vsi_bench(_write(tmp_path, "test.jsonl", [VSI, choice]))
    assert read_vsi_bench(tmp_path / "test.parquet") == lines


@pytest.mark.parametrize("name", list(READERS))
def test_a_missing_field_is_named(tmp_path: Path, name: str) -> None:
    reader: Callable[[Path], object] = READERS[name]  # type: ignore[index]
    row = {key: value for key, value in ROWS[name].items() if key != "question"}
    with pytest.raises(ValueError, match="no 'question'"):
        reader(_write(tmp_path, "rows.json", [row]))


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("absent.json", None, "cannot read"),
        ("broken.json", "[{", "not valid JSON"),
        ("other.json", '{"a": 1}', "no list of questions"),
        ("binary.json", b"\xff\xfe\x00", "no text file"),
    ],
)
def test_unreadable_files_are_answered_with_their_name(
    tmp_path: Path, name: str, text: str | bytes | None, words: str
) -> None:
    if text is not None:
        (tmp_path / name).write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(ValueError, match=words) as caught:
        read_scanqa(tmp_path / name)
    assert name in str(caught.value)


def test_wrong_kinds_of_values_are_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"'location'.*list of numbers"):
        read_msqa(_write(tmp_path, "a.json", [{**MSQA, "location": "here"}]))
    with pytest.raises(ValueError, match="2 numbers, expected x, y, z"):
        read_msqa(_write(tmp_path, "b.json", [{**MSQA, "location": [1, 2]}]))
    with pytest.raises(ValueError, match="no heading"):
        yaw_of_direction([0.0, 0.0, 1.0])


def test_yaw_is_the_z_of_scipys_rotation_vector() -> None:
    generator = torch.Generator().manual_seed(0)
    for quaternion in [
        *torch.randn(50, 4, generator=generator).tolist(),
        [0, 0, -0.99957, -0.0292],
        [0, 0, 0, 1],
    ]:
        x, y, z, w = quaternion
        expected = Rotation.from_quat(quaternion).as_rotvec()[2]
        assert yaw_of_quaternion(x=x, y=y, z=z, w=w) == pytest.approx(expected, abs=1e-6)
    with pytest.raises(ValueError, match="no rotation"):
        yaw_of_quaternion(0, 0, 0, 0)
