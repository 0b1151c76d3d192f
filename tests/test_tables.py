"""The contest's bookkeeping on stub systems: figures by hand, restarts, budgets, fields of the results."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tiny_paper import tiny_scene

from vlm_occ.config import PerceptionConfig
from vlm_occ.eval import ablations as ablating
from vlm_occ.eval import contest as contests
from vlm_occ.eval import tables as tabling
from vlm_occ.eval.contenders import Scores, refined, score
from vlm_occ.eval.contest import Contest
from vlm_occ.eval.contest_config import ContestConfig
from vlm_occ.eval.figure6 import choose
from vlm_occ.eval.metrics import QueryRecord
from vlm_occ.eval.tables import GROUPS, PAPER_TABLE2, figures, format_tables, intervals, paired
from vlm_occ.models.checkpoint import write_shards
from vlm_occ.models.references import RandomReference
from vlm_occ.types import GroundingQuery
from vlm_occ.voxels import voxels_in_box


def records(ious: list[float], *, unique: int = 0) -> tuple[QueryRecord, ...]:
    """One sentence a scene; the first `unique` ones mean an object alone of its class."""
    return tuple(
        QueryRecord(f"scene-{n}", 0, "car", 5.0, n < unique, iou, 0.0, 1, 1) for n, iou in enumerate(ious)
    )


def test_figures_count_strictly_above_and_mean_over_seeds() -> None:
    runs = [records([0.25, 0.3, 0.6, 0.0], unique=2), records([0.26, 0.0, 0.51, 0.5], unique=2)]
    assert figures(runs, GROUPS["overall"]) == {"n": 4, "acc25": 5 / 8, "acc50": 2 / 8}
    assert figures(runs, GROUPS["unique"]) == {"n": 2, "acc25": 2 / 4, "acc50": 0.0}
    assert figures([records([0.3])], GROUPS["unique"]) == {"n": 0, "acc25": None, "acc50": None}


def test_intervals_of_sure_things_are_points_and_pairs_compare_the_same_sentences() -> None:
    all_right, all_wrong = [records([0.9] * 6)] * 3, [records([0.1] * 6)]
    found = intervals(all_right, 200)["overall"]
    assert found == {"acc25": [1.0, 1.0], "acc50": [1.0, 1.0]} and intervals(all_right, 9)["unique"] is None
    better = paired(all_wrong, all_right, 200)["acc25"]
    assert better == {"difference": 1.0, "interval": [1.0, 1.0], "share_positive": 1.0}
    half = intervals([records([0.9, 0.1] * 30)], 2000)["overall"]
    assert half is not None and half["acc25"][0] == pytest.approx(0.5 - 1.96 * 0.5 / 60**0.5, abs=0.03)


def test_pictures_show_successes_and_failures_by_turns() -> None:
    ours, theirs = records([0.9, 0.9, 0.0, 0.0, 0.9]), records([0.0, 0.9, 0.9, 0.0, 0.0])
    kinds = [kind for _, _, kind in choose(ours, theirs, 4)]
    assert kinds == ["VLM-Occ alone", "GroundingOcc-Refine alone", "both", "neither"]


def test_a_refined_answer_is_the_occupied_part_of_its_box() -> None:
    item = tiny_scene()
    model = RandomReference("gt_rand")
    state = model.encode(item.labels, item.scene.grid)
    result = refined(model.ground(state, "the car"))
    box = result.objects[0].box
    assert torch.equal(result.objects[0].occupancy, state.occupancy & voxels_in_box(box, item.scene.grid))


@pytest.fixture
def config(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> ContestConfig:
    """A contest whose systems are references: a scene with three sentences, one of them about two cars."""
    scene = tiny_scene()
    several = GroundingQuery("both cars", (0, 1), False, kind="many")
    items = [replace(scene, queries=(*scene.queries, several)), tiny_scene(seed=1)]
    monkeypatch.setattr(Contest, "scenes", lambda self, split: items)
    monkeypatch.setattr(contests, "trunk_config", lambda name, frames: PerceptionConfig())
    monkeypatch.setattr(contests, "trunk_digest", lambda name: f"weights of {name.split('/')[-1]}")

    def trained(self: Contest, name: str, *, seed: int = 0, steps: int | None = None) -> RandomReference:
        made.append((name, seed, steps or self.config.steps))
        return RandomReference("box_rand", seed=seed + (steps or 0))

    monkeypatch.setattr(Contest, "trained", trained)
    cost = {"parameters": 2e6, "trained_parameters": 1e6, "encode_s": 0.1, "query_s": 0.1, "peak_gib": 1.0}
    monkeypatch.setattr(tabling, "costs", lambda contest: {"GroundingOcc": cost})
    monkeypatch.setattr(tabling, "draw_figure6", lambda contest, folder: [])
    made.clear()
    return ContestConfig(
        "trunk", out=str(tmp_path / "contest"), steps=5, seeds=2, reference_seeds=3, draws=50
    )


made: list[tuple[str, int, int]] = []
"""The systems that were trained."""


def test_the_results_have_the_fields_that_the_issue_names(config: ContestConfig, tmp_path: Path) -> None:
    fields = {"trunk": "trunk", "out": config.out, "steps": "5", "seeds": "2", "draws": "50"}
    result = tabling.tables_command({**fields, "reference_seeds": "3"}, tmp_path / "tables.json")
    assert json.loads(json.dumps(result)) == json.loads((tmp_path / "tables.json").read_text())
    assert {"table2", "table3", "table4", "protocol"} <= set(result)
    names = ["GT-Rand", "Box-Rand", "L-baseline", "C-baseline", "M-baseline", "GroundingOcc"]
    table2 = result["table2"]
    assert isinstance(table2, dict)
    assert list(table2) == [*names, "GroundingOcc-Refine", "VLM-Occ", "VLM-Occ-Refine"]
    for groups in table2.values():
        assert list(groups) == ["unique", "multiple", "overall"]
        assert all(list(group) == ["n", "acc25", "acc50"] for group in groups.values())
        assert groups["overall"]["n"] == 4  # the sentence about two cars is left out
    assert len(result["table3"]) == len(result["table4"]) == 4  # type: ignore[arg-type]
    text = format_tables(result)
    assert all(f"{v:.2f}" in text for row in PAPER_TABLE2.values() for v in row)
    assert sorted(name for name, seed, _ in made if seed == 1) == ["GroundingOcc", "VLM-Occ"]
    runs = result["protocol"]["runs"]  # type: ignore[index,call-overload]
    assert sorted((run["system"], run["seed"], run["steps"]) for run in runs) == sorted(made)
    assert all(run["commit"] and run["hardware"] for run in runs)


def test_a_finished_system_is_kept_and_other_settings_are_refused(config: ContestConfig) -> None:
    first = Contest(config).scored("GroundingOcc")
    again = Contest(replace(config, seeds=7)).scored("GroundingOcc")
    assert again == first and made == [("GroundingOcc", 0, 5)]
    with pytest.raises(ValueError, match="queries_per_scene = 16, this one asks for 8"):
        Contest(replace(config, queries_per_scene=8))
    Contest(replace(config, trunk="elsewhere/trunk", pool="elsewhere"))
    with pytest.raises(
        ValueError, match="trunk_sha256 = weights of trunk, this one asks for weights of other"
    ):
        Contest(replace(config, trunk="other"))


def test_a_trunk_is_known_by_its_own_weights(tmp_path: Path) -> None:
    def digest(name: str, **weights: float) -> str:
        (folder := tmp_path / name).mkdir()
        write_shards({k.replace("_", "."): torch.tensor(v) for k, v in weights.items()}, folder)
        (folder / "config.json").write_text("{}")
        return contests.trunk_digest(str(folder))

    first = digest("first", perception_x=1.0, mask_x=1.0)
    assert digest("moved", perception_x=1.0, mask_x=2.0, box_x=1.0) == first
    assert digest("trained", perception_x=1.5, mask_x=1.0) != first


def test_the_budget_doubles_until_the_best_system_is_good_enough(
    config: ContestConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    reached = {5: 0.1, 10: 0.2, 20: 0.9, 40: 0.9}
    monkeypatch.setattr(
        Contest,
        "scored",
        lambda self, name, steps: replace(plain, refined=records([reached[steps]])),
    )
    plain = score(RandomReference("box_rand"), Contest(config).validation)
    assert Contest(replace(config, most_steps=100)).grown(print).config.steps == 20
    assert Contest(replace(config, most_steps=15)).grown(print).config.steps == 10
    assert Contest(config).grown(print).config.steps == 5


def test_all_systems_of_a_seed_see_the_same_sentences_in_the_same_order(config: ContestConfig) -> None:
    from vlm_occ.config import TrainConfig
    from vlm_occ.run_scenes import StepScenes

    contest = Contest(config)
    shared = contest._run(Path("somewhere"), 1, 6)
    whole = StepScenes([tiny_scene(seed=s) for s in range(4)], TrainConfig(**shared))  # type: ignore[arg-type]
    first = replace(whole, config=replace(whole.config, steps=2))
    second = replace(whole, config=replace(whole.config, steps=4, data=replace(whole.config.data, skip=2)))

    def said(scenes: StepScenes) -> list[list[str]]:
        return [
            [q.text for s in scenes[n] for q in s.queries] + [scenes[n][0].scene.name]
            for n in range(len(scenes))
        ]

    assert said(first) + said(second) == said(whole)


def test_ablations_compare_each_row_with_the_whole_on_both_lexicons(
    config: ContestConfig, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def scored(self: Contest, name: str, *, seed: int = 0) -> Scores:
        good = 0.9 if name == "VLM-Occ" else 0.1
        unseen = tuple(replace(r, query=1, lexicon="heldout") for r in records([0.4, 0.0]))
        return Scores((*records([good, 0.3, 0.0]), *unseen), (), 1.0)

    monkeypatch.setattr(Contest, "scored", scored)
    monkeypatch.setattr(Contest, "made", lambda self, name: {"train_seconds": 3.0})
    monkeypatch.setattr(ablating, "Contest", Contest)
    fields = {"trunk": "trunk", "out": config.out, "steps": "5", "seeds": "2", "draws": "50"}
    fields.update(
        num_frames="2",
        camera_frames="1",
        lexicon="train",
        reference_seeds="3",
        pointer_share=str(config.pointer_share),
        vlm_pointer_rate=str(config.vlm_pointer_rate),
    )
    result = ablating.ablations_command(fields, tmp_path / "ablations.json")
    assert json.loads(json.dumps(result)) == json.loads((tmp_path / "ablations.json").read_text())
    rows = result["ablations"]
    assert isinstance(rows, list) and len(rows) == 6
    assert [rows[0]["known_words"][k] for k in ("n", "acc25", "acc50")] == [6, 0.6667, 0.3333]
    assert rows[0]["known_words_difference"]["difference"] == 0
    assert rows[1]["known_words_difference"]["difference"] == pytest.approx(-1 / 3)
    assert rows[1]["heldout_words"]["acc25"] == 0.5
    assert "without LoRA" in ablating.format_ablations(result)
    assert set(Contest(config).own_systems()) == {name for name, _ in ablating.ROWS}
