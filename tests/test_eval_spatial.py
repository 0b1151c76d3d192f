"""Figures of situations, layout and questions against hand-made records; the command, untrained."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from small_scenes import numbers
from tiny_models import save_tiny_llava
from tiny_spatial import scene_of_grid, tiny, wall_depth

from vlm_occ.cli import main
from vlm_occ.eval import spatial_report
from vlm_occ.eval.spatial import Answered, LaidOut, Located, evaluate_spatial_scene
from vlm_occ.eval.spatial_figures import layout_figures, localisation_figures, qa_figures, uncertainty_figures
from vlm_occ.situated import SpatialQuestion
from vlm_occ.types import LabelledScene


def located(
    number: int, error: float, turn: float, *, kind: str = "exact", lexicon: str = "train"
) -> Located:
    chances = torch.full((36,), 1 / 36)
    place, scene = torch.tensor([error, 0.0]), f"s{number % 4}"
    return Located(
        scene, kind, lexicon, place, torch.ones(2), math.radians(turn), chances, torch.zeros(2), 0.0
    )


def test_accuracies_count_exact_situations_of_known_words_strictly_below_the_bounds() -> None:
    rows = [located(0, 0.4, 10), located(1, 0.5, 15), located(2, 0.9, 29.9), located(3, 3.0, 180)]
    others = [located(4, 0.0, 0.0, kind="vague"), located(5, 0.0, 0.0, lexicon="heldout")]
    figures = localisation_figures([*rows, *others])
    assert [figures[k] for k in ("n", "acc_0.5m", "acc_1m", "acc_15deg", "acc_30deg")] == [
        4,
        0.25,
        0.75,
        0.25,
        0.75,
    ]
    low, high = figures["acc_1m_interval"]  # type: ignore[misc]
    assert low < 0.75 < high
    assert figures["heldout_words"]["n"] == figures["vague"]["n"] == 1  # type: ignore[index]


def test_honest_uncertainties_cover_what_they_promise_and_know_their_likelihood() -> None:
    bits = numbers(0)
    std = 0.5 + 2 * torch.rand(4000, 2, generator=bits)
    truth = std * torch.randn(4000, 2, generator=bits)
    chances = torch.full((36,), 1 / 36)
    rows = [
        Located(f"s{n % 50}", "vague", "train", torch.zeros(2), std[n], 0.0, chances, truth[n], 0.3)
        for n in range(4000)
    ]
    figures = uncertainty_figures(rows)
    for level, share in figures["coverage"].items():  # type: ignore[union-attr]
        assert share == pytest.approx(float(level), abs=0.025)
    entropy = (std.log().sum(-1) + 1 + math.log(2 * math.pi)).mean().item()
    assert figures["position_nll"] == pytest.approx(entropy, abs=0.06)
    assert figures["yaw_nll"] == pytest.approx(math.log(2 * math.pi), abs=1e-4)
    assert figures["spread_error_rank_correlation"] > 0.2  # type: ignore[operator]


def test_layout_counts_tokens_within_thirty_metres() -> None:
    error, distance = torch.tensor([1.0, 2.0, 3.0, 50.0]), torch.tensor([5.0, 29.0, 30.0, 31.0])
    figures = layout_figures([LaidOut("a", error, torch.ones(4), distance)])
    assert (figures["n"], figures["median_error_m"]) == (3, 2.0)
    assert layout_figures([])["median_error_m"] is None


def test_answers_are_counted_by_category_and_numbers_by_their_relative_error() -> None:
    def asked(answer: str, category: str, prediction: str, lexicon: str = "train") -> Answered:
        return Answered(SpatialQuestion("1", "s", "?", (answer,), category, lexicon=lexicon), prediction)  # type: ignore[arg-type]

    rows = [
        asked("left", "direction", "Left."),
        asked("right", "direction", "left"),
        asked("10 metres", "distance", "9 metres"),
        asked("10 metres", "distance", "ten metres"),
        asked("2", "counting", "two", "heldout"),
    ]
    figures = qa_figures(rows)
    assert figures["direction"]["accuracy"] == 0.5 and figures["direction"]["commonest_answer"] == 0.5  # type: ignore[index]
    assert figures["distance"]["accuracy"] == 0.5 and figures["distance"]["commonest_answer"] == 1.0  # type: ignore[index]
    assert figures["distance"]["mean_relative_accuracy"] == pytest.approx((0.9 + 0.0) / 2)  # type: ignore[index]
    assert figures["overall"]["n"] == 4 and figures["heldout_words"]["accuracy"] == 1.0  # type: ignore[index]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_llava(tmp_path_factory.mktemp("eval") / "base")


def test_records_of_a_scene_are_in_the_reference_frame(base: Path) -> None:
    model = tiny(base)
    item = scene_of_grid()
    item = replace(item, depth=wall_depth(item, 6.0))
    records = evaluate_spatial_scene(model, item)
    state = model.encode(item.scene)
    assert len(records.located) == len(item.situations) and len(records.answered) == 1
    torch.testing.assert_close(
        records.located[0].position,
        model.locate(state, item.situations[0].text).position,
        atol=1e-4,
        rtol=1e-4,
    )
    (laid_out,) = records.laid_out
    assert state.layout is not None and len(laid_out.error) == len(state.layout.position)
    ego = torch.stack([pose[:2, 3] for pose in item.scene.rig.ego_from_camera])
    # Walls 6 m deep: no point that the reference frame's pictures see is much nearer to the ego origin.
    assert (laid_out.distance[8:] > 6.0 * 0.9 - ego.norm(dim=-1).max()).all()


class Scenes:
    """Two scenes in place of the simulator's."""

    split, num_situations = "val", 2

    def __init__(self, items: list[LabelledScene]) -> None:
        self.items = items

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> LabelledScene:
        return self.items[index]

    def with_facts(self, index: int) -> tuple[LabelledScene, tuple[()]]:
        return self.items[index], ()


def test_the_command_writes_the_fields_that_others_read(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    item = scene_of_grid()
    item = replace(item, depth=wall_depth(item, 6.0))
    monkeypatch.setattr(spatial_report, "open_spatial", lambda *a, **k: Scenes([item, item]))
    tiny(base).save_pretrained(tmp_path / "model")
    name, out = str(tmp_path / "model"), tmp_path / "loc3r_sim.json"
    arguments = ["eval", "--model", name, "--data", "sim", "--spatial", "--out", str(out)]
    assert main([*arguments, "--ablation", f"situation={name}"]) == 0
    result = json.loads(out.read_text())
    assert {"localisation", "layout", "qa", "ablation", "protocol"} <= set(result)
    for part in (result, result["ablation"]["situation"]):
        assert {"n", "acc_0.5m", "acc_1m", "acc_15deg", "acc_30deg"} <= set(part["localisation"])
        assert part["layout"]["median_error_m"] > 0
        assert part["qa"]["counting"]["n"] == 2
    assert result["localisation"]["n"] == 2 and "commit" in result["protocol"]
    assert "OTHER DATA" in result["published"]["data"]
    told = capsys.readouterr().out
    assert "exact situations (n = 2): within 0.5m" in told and "questions, counting (n = 2)" in told
    assert main([*arguments, "--ablation", f"whole={name}", "--ablation-scenes", "1"]) == 0
    result = json.loads(out.read_text())
    assert result["localisation"]["n"] == 2 and result["ablation"]["whole"]["localisation"]["n"] == 1
    assert result["protocol"]["ablation"] == "the first 1 scenes"
    assert main([*arguments, "--no-questions"]) == 0
    result = json.loads(out.read_text())
    assert result["localisation"]["n"] == 2 and result["qa"]["overall"]["n"] == 0
    assert result["protocol"]["questions"] == "none asked"


def test_wrong_use_is_refused(base: Path, tmp_path: Path) -> None:
    tiny(base, spatial=None).save_pretrained(tmp_path / "plain")
    plain = ["eval", "--model", str(tmp_path / "plain"), "--spatial", "--out", str(tmp_path / "o.json")]
    assert main([*plain, "--data", "sim"]) == 2
    assert main([*plain, "--data", "elsewhere"]) == 2
    assert main([*plain, "--data", "sim", "--ablation", "oops"]) == 2
    assert not (tmp_path / "o.json").exists()
