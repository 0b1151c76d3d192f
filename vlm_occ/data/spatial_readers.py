"""Annotation files of ScanQA, SQA3D, MSQA, Beacon3D and VSI-Bench as one list of questions.

Only sentences, answers and situations are read; images and scans stay where they are. Positions are metres
in the scene's own axes (ScanNet: z up), as the files have them.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal

from vlm_occ.data.rows import (
    number_of,
    numbers_of,
    read_parquet,
    read_rows,
    row_of,
    rows_of,
    text_of,
    texts_of,
    triple,
)
from vlm_occ.situated import SpatialQuestion


def yaw_of_quaternion(x: float, y: float, z: float, w: float) -> float:
    """The z component of a quaternion's rotation vector, radians in [-pi, pi] (SQA3D's yaw).

    Arguments are given by name, because files differ in the order. The quaternion needn't be normalised.
    """
    vector = math.sqrt(x * x + y * y + z * z)
    if vector == 0.0 and w == 0.0:
        raise ValueError("the quaternion (0, 0, 0, 0) is no rotation; check the annotation file")
    if vector == 0.0:
        return 0.0
    angle = 2 * math.atan2(vector, abs(w))  # in [0, pi]
    return angle * z / vector * (1.0 if w >= 0 else -1.0)


def yaw_of_direction(direction: Sequence[float]) -> float:
    """Yaw in radians of a direction (x, y, ...) on the ground; ValueError where it has none."""
    if len(direction) < 2 or (direction[0] == 0 and direction[1] == 0):
        raise ValueError(
            f"the direction {list(direction)} has no heading on the ground; check the annotation"
        )
    return math.atan2(direction[1], direction[0])


def read_scanqa(path: str | Path) -> list[SpatialQuestion]:
    """ScanQA (`ScanQA_v1.0_val.json`): a list of rows; test files without answers are read too."""
    return [
        SpatialQuestion(
            identifier=text_of(row, "question_id", path),
            scene=text_of(row, "scene_id", path),
            question=text_of(row, "question", path),
            answers=texts_of(row, "answers", path) if "answers" in row else (),
            category="",
            object_names=texts_of(row, "object_names", path) if "object_names" in row else (),
        )
        for row in read_rows(path)
    ]


def read_sqa3d(questions: str | Path, annotations: str | Path) -> list[SpatialQuestion]:
    """SQA3D (`v1_balanced_questions_*`, `v1_balanced_sqa_annotations_*`), joined by question.

    The category is the file's answer type. Rotations are read by key (`_x`, `_y`, `_z`, `_w`), in whatever
    order.
    """
    answered = {
        text_of(row, "question_id", annotations): row for row in read_rows(annotations, "annotations")
    }
    result = []
    for row in read_rows(questions, "questions"):
        identifier = text_of(row, "question_id", questions)
        if identifier not in answered:
            raise ValueError(f"{annotations} has no question {identifier} of {questions}; give one split")
        truth = answered[identifier]
        place, turn = row_of(truth, "position", annotations), row_of(truth, "rotation", annotations)
        x, y, z, w = (number_of(turn, f"_{axis}", annotations) for axis in "xyzw")
        result.append(
            SpatialQuestion(
                identifier=identifier,
                scene=text_of(row, "scene_id", questions),
                question=text_of(row, "question", questions),
                answers=tuple(
                    text_of(a, "answer", annotations) for a in rows_of(truth, "answers", annotations)
                ),
                category=text_of(truth, "answer_type", annotations),
                situation=text_of(row, "situation", questions),
                position=triple([number_of(place, axis, annotations) for axis in "xyz"]),
                yaw=yaw_of_quaternion(x=x, y=y, z=z, w=w),
            )
        )
    return result


def distinct_situations(questions: Sequence[SpatialQuestion]) -> list[SpatialQuestion]:
    """One question for each described situation with a position: what localisation is scored on.

    SQA3D's test files hold 719 of them, the paper's number.
    """
    chosen: dict[tuple[str, str], SpatialQuestion] = {}
    for question in questions:
        if question.position is not None and question.yaw is not None:
            chosen.setdefault((question.scene, question.situation), question)
    return list(chosen.values())


def read_msqa(path: str | Path) -> list[SpatialQuestion]:
    """MSQA (`msqa_scannet_*.json`): a list of rows; pictures among words (`<chair-1-IMG>`) become a noun.

    `orientation` is the direction that the agent faces (x, y, z).
    """
    return [
        SpatialQuestion(
            identifier=text_of(row, "index", path),
            scene=text_of(row, "scan_id", path),
            question=_without_pictures(text_of(row, "question", path)),
            answers=texts_of(row, "answers", path),
            category=text_of(row, "type", path),
            situation=_without_pictures(text_of(row, "situation", path)),
            position=triple(numbers_of(row, "location", path)),
            yaw=yaw_of_direction(numbers_of(row, "orientation", path)),
        )
        for row in read_rows(path)
    ]


def read_beacon3d(path: str | Path) -> list[SpatialQuestion]:
    """Beacon3D (`scannet_qa.json`, its ScanQA format): the kind of question is in the identifier.

    An identifier ends in `_<kind>_<1 if it needs more knowledge than the scene, else 0>`.
    """
    result = []
    for question in read_scanqa(path):
        parts = question.identifier.split("_")
        if len(parts) < 3 or parts[-1] not in ("0", "1"):
            raise ValueError(
                f"{path} has the question_id {question.identifier!r}, expected one that ends in "
                "_<kind>_<0 or 1>; is this the file without `metadata` in its name?"
            )
        result.append(replace(question, category=parts[-2].lower()))
    return result


def read_vsi_bench(path: str | Path) -> list[SpatialQuestion]:
    """VSI-Bench (`test.jsonl`, or its .parquet where pyarrow is installed): one row a line."""
    path = Path(path)
    return [
        SpatialQuestion(
            identifier=text_of(row, "id", path),
            scene=f"{text_of(row, 'dataset', path)}/{text_of(row, 'scene_name', path)}",
            question=text_of(row, "question", path),
            answers=(text_of(row, "ground_truth", path),),
            category=text_of(row, "question_type", path),
            options=texts_of(row, "options", path) if row.get("options") is not None else (),
        )
        for row in (read_parquet(path) if path.suffix == ".parquet" else read_rows(path))
    ]


SpatialDataset = Literal["scanqa", "msqa", "beacon3d", "vsi_bench"]

READERS: Mapping[SpatialDataset, Callable[[str | Path], list[SpatialQuestion]]] = {
    "scanqa": read_scanqa,
    "msqa": read_msqa,
    "beacon3d": read_beacon3d,
    "vsi_bench": read_vsi_bench,
}
"""The data sets of one file; SQA3D has two, see `read_sqa3d`."""


def _without_pictures(text: str) -> str:
    return re.sub(r"<([^<>]*?)-\d+-IMG>", r"\1", text)
