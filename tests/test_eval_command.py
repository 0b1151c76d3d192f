"""`vlm-occ eval`: the fields that others read, the table that it prints, and a run that was killed."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tiny_models import save_tiny_llava
from tiny_paper import GRID, save_tiny_text, tiny_config, tiny_scene
from tiny_spatial import scene_of_grid, tiny

from vlm_occ.cli import main
from vlm_occ.eval import evaluate, report
from vlm_occ.eval.kept_outcomes import KeptOutcomes
from vlm_occ.models.groundingocc import build_system
from vlm_occ.types import GroundingQuery, LabelledScene
from vlm_occ.voxels import voxels_in_box


def scenes(count: int) -> list[LabelledScene]:
    """Scenes whose first object is made of voxels, with three sentences each."""
    item = scene_of_grid()
    semantics = item.labels.semantics.clone()
    semantics[voxels_in_box(item.labels.boxes[0], item.scene.grid)] = 4
    queries = (
        GroundingQuery("the car", (0,), True),
        GroundingQuery("the auto", (0,), True, lexicon="heldout"),
        GroundingQuery("the unicorn", (), False),
    )
    item = replace(item, labels=replace(item.labels, semantics=semantics), queries=queries)
    return [replace(item, scene=replace(item.scene, name=f"scene-{n}")) for n in range(count)]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("eval")
    tiny(save_tiny_llava(folder / "base"), spatial=None).save_pretrained(folder / "model")
    return str(folder / "model")


def test_a_killed_evaluation_goes_on_and_writes_what_an_unbroken_one_writes(
    model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(report, "open_split", lambda *_: scenes(3))
    monkeypatch.setenv("VLM_OCC_REAL_DATA", str(tmp_path / "none"))
    seen, real = list[str](), evaluate.evaluate_scene

    def counted(vlm: object, item: LabelledScene, *, sensors: evaluate.Sensors = "all") -> object:
        seen.append(f"{sensors} {item.scene.name}")
        if len(seen) == 3:
            raise RuntimeError("killed")
        return real(vlm, item, sensors=sensors)  # type: ignore[arg-type]

    monkeypatch.setattr(evaluate, "evaluate_scene", counted)
    out = tmp_path / "results" / "eval.json"
    command = ["eval", "--model", model, "--data", "sim", "--device", "cpu", "--out", str(out)]
    with pytest.raises(RuntimeError, match="killed"):
        main(command)
    assert not out.exists()
    (kept,) = out.parent.iterdir()
    kept.write_text(kept.read_text()[:-20])  # the second scene's line was cut
    assert main(command) == 0
    assert seen[:4] == ["all scene-0", "all scene-1", "all scene-2", "all scene-1"] and len(seen) == 3 + 2 + 6
    assert [path.name for path in out.parent.iterdir()] == ["eval.json"]
    broken, told = json.loads(out.read_text()), capsys.readouterr().out
    assert main([*command[:-1], str(tmp_path / "whole.json")]) == 0 and len(seen) == 3 + 2 + 6 + 9
    whole = json.loads((tmp_path / "whole.json").read_text())
    for result in (broken, whole):
        result["protocol"].pop("command")
    assert json.dumps(broken) == json.dumps(whole)  # as text: a NaN equals itself
    assert whole["overall"]["n"] == whole["heldout_words"]["n"] == whole["no_target"]["n"] == 3
    assert {"unique", "multiple", "macro_acc25", "ceilings", "lidar_only", "protocol"} <= set(whole)
    assert whole["real_keyframe"].startswith("not measured")
    assert "overall                          3" in told and "with perfect masks" in told
    assert "of 3 rejected" in told


def test_outcomes_of_another_model_or_other_sentences_are_not_taken(tmp_path: Path, model: str) -> None:
    from vlm_occ.models.adapter import VLMOcc

    (item,) = scenes(1)
    outcomes = evaluate.evaluate_scene(VLMOcc.from_pretrained(model), item)
    path = tmp_path / "kept.jsonl"
    KeptOutcomes(path, "a")("all", item, lambda: outcomes)
    fewer = replace(item, queries=item.queries[:1])
    for about, sensors, other, known in (
        ("a", "all", item, True),
        ("b", "all", item, False),
        ("a", "lidar", item, False),
        ("a", "all", fewer, False),
    ):
        made = list[int]()
        got = KeptOutcomes(path, about)(sensors, other, lambda made=made: made.append(1) or [])
        assert (not made) == known and (str(got) == str(outcomes)) == known


def test_two_processes_write_what_one_writes(
    model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VLM_OCC_REAL_DATA", str(tmp_path / "none"))
    results = []
    for workers in ("1", "2"):
        out = tmp_path / workers / "eval.json"
        command = ["eval", "--model", model, "--data", "sim", "--scenes", "2", "--device", "cpu"]
        assert main([*command, "--workers", workers, "--out", str(out)]) == 0
        assert [path.name for path in out.parent.iterdir()] == ["eval.json"]
        results.append(json.loads(out.read_text()))
        results[-1]["protocol"].pop("command")
    assert results[0]["overall"]["n"] > 4 and results[0]["lidar_only"]["overall"]["n"] > 4
    assert json.dumps(results[0]) == json.dumps(results[1])


def test_a_tree_that_changes_during_a_run_is_not_what_the_run_names(monkeypatch: pytest.MonkeyPatch) -> None:
    first = report.commit_of_tree()
    monkeypatch.setattr(report.subprocess, "run", lambda *_, **__: pytest.fail("asked again"))
    assert report.commit_of_tree() == first


def test_shares_of_an_evaluation_are_read_and_forgotten_together(tmp_path: Path) -> None:
    (item,) = scenes(1)
    path = tmp_path / ".eval.json.scenes.jsonl"
    first, second = (KeptOutcomes(path, "a", share=number) for number in (0, 1))
    first("all", item, list)
    second("lidar", item, list)
    assert sorted(file.name for file in tmp_path.iterdir()) == [f"{path.name}.0", f"{path.name}.1"]
    whole = KeptOutcomes(path, "a")
    assert len(whole.found) == 2 and not whole.forget() and not list(tmp_path.iterdir())


def test_a_system_of_the_paper_has_the_figures_that_it_can_have(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    item = tiny_scene()
    told = (*item.queries[:1], replace(item.queries[0], lexicon="heldout"))
    monkeypatch.setattr(report, "open_split", lambda *_: [replace(item, queries=told)])
    monkeypatch.setenv("VLM_OCC_REAL_DATA", str(tmp_path / "none"))
    system = build_system(tiny_config(save_tiny_text(tmp_path / "text")), grid=GRID)
    monkeypatch.setattr(report, "load_model", lambda *_, **__: system.eval())
    out = tmp_path / "system.json"
    assert main(["eval", "--model", "groundingocc-nano", "--data", "sim", "--out", str(out)]) == 0
    result = json.loads(out.read_text())
    assert result["overall"]["n"] == result["refined"]["overall"]["n"] == 1
    assert result["heldout_words"]["n"] == 1 and "ceilings" not in result
    assert result["protocol"]["model"] == "groundingocc-nano"
    assert "perfect" not in (table := capsys.readouterr().out) and "cut to the box" in table


def test_wrong_use_is_refused(model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["eval", "--model", model, "--out", str(tmp_path / "o.json"), "--data"]
    assert main([*command, "sim", "--workers", "0"]) == 2
    assert "workers = 0, expected at least 1" in capsys.readouterr().err
    assert main([*command, "sim", "--split", "train"]) == 2
    assert "expected calibration, val or test" in capsys.readouterr().err
    assert main([*command, str(tmp_path / "nothing")]) == 2
    if not torch.cuda.is_available():
        assert main([*command, "sim", "--device", "cuda"]) == 2
        assert "use --device cpu" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
