"""The GroundingOcc that the package brings answers as its records in `results/contest` say."""

from __future__ import annotations

import json
from pathlib import Path

from vlm_occ.data.store import SimulatedScenes
from vlm_occ.eval.contenders import Scores, score
from vlm_occ.eval.contest import OneTarget
from vlm_occ.models.groundingocc import GroundingOcc
from vlm_occ.models.load import load_model

RECORDS = Path(__file__).parents[1] / "results/contest/steps-000700/GroundingOcc-seed0/scores.json"


def test_the_shipped_groundingocc_answers_as_its_records_say() -> None:
    known = Scores.from_dict(json.loads(RECORDS.read_text()))
    scenes = OneTarget(SimulatedScenes("val", 3, num_frames=2, camera_frames=2, num_queries=6))
    system = load_model("groundingocc-nano")
    assert isinstance(system, GroundingOcc) and system.config.trained
    found = score(system, scenes)
    count = len(found.plain)
    assert [(r.scene, r.query, r.label) for r in found.plain] == [
        (r.scene, r.query, r.label) for r in known.plain[:count]
    ]
    pairs = list(zip(found.refined, known.refined[:count], strict=True))
    assert count == 12 and sum(new.iou > 0.25 for new, _ in pairs) >= 4
    assert sum(abs(new.iou - old.iou) < 0.1 for new, old in pairs) >= count - 1  # bfloat16 turns one at most
