"""The command line: its contract (ARCHITECTURE 9), one-line errors, and nothing half-written."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from vlm_occ.chat import Chat
from vlm_occ.cli import main, overrides
from vlm_occ.config import ModelConfig
from vlm_occ.demo import choose_queries, format_table, place_of, run_demo
from vlm_occ.doctor import Finding, format_report
from vlm_occ.types import (
    FREE,
    GroundedObject,
    GroundingQuery,
    GroundingResult,
    LabelledScene,
    Scene,
    SceneLabels,
    SceneState,
    VoxelGrid,
)
from vlm_occ.voxels import voxels_in_box

BOX = torch.tensor([12.0, 3.0, 0.8, 4.5, 1.9, 1.6, 0.3])


@dataclass
class StubModel:
    """A model that finds one car whatever is asked, and nothing for "unicorn"; it remembers its calls."""

    config: ModelConfig = field(default_factory=ModelConfig)
    scenes: list[Scene] = field(default_factory=list)
    questions: list[str] = field(default_factory=list)

    def encode(self, scene: Scene) -> SceneState:
        """Remember the scene; print as careless libraries do."""
        self.scenes.append(scene)
        print("library chatter")
        empty = torch.zeros(0)
        occupancy = torch.zeros(scene.grid.shape, dtype=torch.bool)
        occupancy[:, :, 2] = True
        return SceneState(
            scene.name, scene.grid, occupancy, empty.long(), empty, empty, empty.long(), empty, empty, None
        )

    def ground(self, state: SceneState, query: Any, *, refine: bool = False) -> Any:
        """One car, or a list of answers for a list of queries."""
        if not isinstance(query, str):
            return [self.ground(state, text, refine=refine) for text in query]
        member = voxels_in_box(BOX, state.grid)
        found = () if "unicorn" in query else (GroundedObject(member, BOX, 0.875),)
        text = "It is a car." if found else "There is no such object."
        read = query.replace("digger", "excavator")
        return GroundingResult(query, text, found, state.occupancy | member, state.grid, read)

    def ask(self, state: SceneState, question: str) -> str:
        """An answer that tells how much was remembered."""
        self.questions.append(question)
        return f"answer after {question.count(chr(10))} turns"


def replace_models(monkeypatch: pytest.MonkeyPatch, load: Callable[..., object]) -> None:
    """Let `VLMOcc.from_pretrained` be `load`; the real adapter, which takes seconds, is not imported."""
    adapter = SimpleNamespace(VLMOcc=SimpleNamespace(from_pretrained=load))
    monkeypatch.setitem(sys.modules, "vlm_occ.models.adapter", adapter)


@pytest.fixture
def stub(monkeypatch: pytest.MonkeyPatch) -> StubModel:
    """A stub in place of every pretrained model."""
    model = StubModel()
    replace_models(monkeypatch, lambda name, device=None: model)
    return model


def error_of(argv: list[str], capsys: pytest.CaptureFixture[str], *, code: int = 2) -> str:
    """The last line of stderr of a command that must fail, with nothing on stdout and no traceback."""
    try:
        found = main(argv)
    except SystemExit as stop:
        found = stop.code
    streams = capsys.readouterr()
    assert found == code and streams.out == "" and "Traceback" not in streams.err
    errors = [line for line in streams.err.splitlines() if line.startswith("vlm-occ: error: ")]
    assert len(errors) == 1 and streams.err.endswith(errors[0] + "\n")
    return errors[0]


def test_ground_tells_what_unknown_words_were_taken_for(
    stub: StubModel, keyframe_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["ground", str(keyframe_folder), "the digger"]) == 0
    assert capsys.readouterr().out.startswith('(read as "the excavator")\nIt is a car.\n')
    assert main(["ground", str(keyframe_folder), "the digger", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["read_as"] == "the excavator"


def test_ground_prints_one_json_object_and_writes_the_grid(
    stub: StubModel, keyframe_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "new" / "answer"
    assert main(["ground", str(keyframe_folder), " the  red car", "--json", "--out", str(out)]) == 0
    streams = capsys.readouterr()
    record = json.loads(streams.out)
    assert list(record) == ["query", "text", "objects", "seconds"]
    assert record["query"] == "the red car" and record["text"] == "It is a car."
    assert set(record["seconds"]) == {"encode", "query"} and all(v >= 0 for v in record["seconds"].values())
    (item,) = record["objects"]
    assert set(item) == {"score", "box", "num_voxels"} and item["score"] == 0.875
    assert np.allclose(item["box"], BOX.numpy(), atol=1e-4)
    with np.load(out / "grounding.npz") as saved:
        grid = saved["occupancy"]
    assert grid.dtype == np.uint8 and grid.shape == (200, 200, 16) and set(np.unique(grid)) == {0, 1, 2}
    assert (grid == 2).sum() == item["num_voxels"] == int(voxels_in_box(BOX, VoxelGrid()).sum())
    assert sorted(path.name for path in out.iterdir()) == ["birds_eye.png", "cameras.png", "grounding.npz"]
    assert "untrained" in streams.err and "library chatter" in streams.err


def test_no_object_is_an_answer_and_a_trained_model_brings_no_warning(
    stub: StubModel, keyframe_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    stub.config = ModelConfig(trained=True)
    assert main(["ground", str(keyframe_folder), "the unicorn", "--json"]) == 0
    streams = capsys.readouterr()
    assert json.loads(streams.out)["objects"] == [] and "untrained" not in streams.err
    assert main(["ground", str(keyframe_folder), "the unicorn"]) == 0
    assert capsys.readouterr().out.startswith("There is no such object.\n")


@pytest.mark.parametrize(
    ("options", "names"),
    [
        (["--cameras", "CAM_BACK,CAM_FRONT"], ("CAM_FRONT", "CAM_BACK")),
        (["--cameras", "CAM_BACK", "CAM_FRONT"], ("CAM_FRONT", "CAM_BACK")),
        (["--cameras", "none"], ()),
    ],
)
def test_cameras_are_chosen_by_name(
    options: list[str], names: tuple[str, ...], stub: StubModel, keyframe_folder: Path
) -> None:
    assert main(["ground", *options, str(keyframe_folder), "the car"]) == 0
    assert stub.scenes[0].rig.names == names and stub.scenes[0].reference.points is not None


def test_no_lidar_leaves_the_lidar_out(stub: StubModel, keyframe_folder: Path) -> None:
    (keyframe_folder / "sweep.bin").unlink()
    assert main(["ground", str(keyframe_folder), "the car", "--no-lidar"]) == 0
    assert stub.scenes[0].reference.points is None


BAD_INPUT: dict[str, tuple[Callable[[Path], list[str]], str]] = {
    "no scene": (lambda folder: ["ground", "/nowhere", "the car"], "is no folder"),
    "no keyframe": (lambda folder: ["ground", str(folder.parent), "the car"], "no keyframe.json"),
    "bad seed": (lambda folder: ["ground", "sim:seven", "the car"], "sim:SEED"),
    "empty query": (lambda folder: ["ground", str(folder), "  "], "has no words"),
    "10,000 words": (lambda folder: ["ground", str(folder), "car " * 10_000], "10000 words"),
    "unknown camera": (lambda folder: ["ground", str(folder), "car", "--cameras", "TOP"], "unknown camera"),
    "no sensor": (
        lambda folder: ["ground", str(folder), "car", "--cameras", "none", "--no-lidar"],
        "no sensor",
    ),
    "no frame": (lambda folder: ["ground", str(folder), "car", "--frames", "0"], "num_frames = 0"),
    "out is a file": (
        lambda folder: ["ground", str(folder), "car", "--out", str(folder / "0.png")],
        "can't write",
    ),
    "unknown option": (lambda folder: ["ground", str(folder), "car", "--fast"], "--fast"),
    "unknown command": (lambda folder: ["fly"], "invalid choice"),
    "no command": (lambda folder: [], "COMMAND"),
    "no CUDA": (lambda folder: ["ground", str(folder), "car", "--device", "cuda:99"], "cuda"),
    "no config": (lambda folder: ["train", str(folder / "none.yaml")], "does not exist"),
}


@pytest.mark.parametrize("name", BAD_INPUT)
def test_wrong_use_is_one_line_and_code_2(
    name: str, stub: StubModel, keyframe_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make, message = BAD_INPUT[name]
    assert message in error_of(make(keyframe_folder), capsys)


def test_a_damaged_sensor_is_one_line_and_leaves_nothing_behind(
    stub: StubModel, keyframe_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    image = keyframe_folder / "3.png"
    image.write_bytes(image.read_bytes()[:100])
    out = tmp_path / "out"
    message = error_of(["ground", str(keyframe_folder), "the car", "--json", "--out", str(out)], capsys)
    assert "3.png is truncated or damaged" in message and not out.exists()


def test_a_full_disk_is_one_line_and_leaves_nothing_half_written(
    stub: StubModel,
    keyframe_folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refuse(file: Any, **arrays: Any) -> None:
        file.write(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "savez_compressed", refuse)
    message = error_of(["ground", str(keyframe_folder), "the car", "--out", str(tmp_path / "out")], capsys)
    assert "No space left" in message and not list((tmp_path / "out").iterdir())


def test_a_multi_line_error_becomes_one_line_and_debug_shows_the_traceback(
    keyframe_folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:

    def refuse(name: str, device: str | None = None) -> None:
        raise ValueError(f"unknown model {name!r};\nexpected nano")

    replace_models(monkeypatch, refuse)
    argv = ["ground", str(keyframe_folder), "the car", "--model", "mega"]
    assert "unknown model 'mega'; expected nano" in error_of(argv, capsys)
    assert main([*argv, "--debug"]) == 2
    assert "Traceback" in capsys.readouterr().err


def test_a_fault_of_ours_ends_with_code_1_and_one_line(keyframe_folder: Path) -> None:
    code = (
        "import sys; import vlm_occ.commands as commands; from vlm_occ.cli import main\n"
        "def broken(arguments): raise RuntimeError('two\\nlines')\n"
        "commands.ground = broken\n"
        "sys.argv = ['vlm-occ', 'ground', 'x', 'y'] + sys.argv[1:]\n"
        "sys.exit(main())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 1 and done.stdout == ""
    assert (
        done.stderr.startswith("vlm-occ: internal error: RuntimeError: two lines")
        and "Trace" not in done.stderr
    )
    done = subprocess.run(
        [sys.executable, "-c", code, "--debug"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 1 and "Traceback" in done.stderr


def test_chat_answers_line_by_line_remembers_and_survives_a_bad_line(
    stub: StubModel,
    keyframe_folder: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    lines = ["ground the car", "ask what is it?", "", "the unicorn", "ask ?!", "locate me here", "history"]
    monkeypatch.setattr(
        sys, "stdin", io.StringIO("\n".join([*lines, "forget", "ask again", "quit", "ask no"]))
    )
    assert main(["chat", str(keyframe_folder)]) == 0
    streams = capsys.readouterr()
    out = streams.out.splitlines()
    assert out[0] == "It is a car." and "answer after 1 turns" in out and "There is no such object." in out
    assert out[-5:] == [
        "ground: the car -> It is a car.",
        "ask: what is it? -> answer after 1 turns",
        "ground: the unicorn -> There is no such object.",
        "forgotten",
        "answer after 0 turns",
    ]
    assert "has no words" in streams.err and "no situation head" in streams.err
    assert len(stub.scenes) == 1  # encoded once
    assert stub.questions == ["the car It is a car.\nwhat is it?", "again"]


def test_a_chat_keeps_questions_with_answers_in_order(keyframe_folder: Path) -> None:
    from vlm_occ.data.scenes import load_scene

    model = StubModel()
    chat = Chat(model, model.encode(load_scene(keyframe_folder)))
    assert chat.ground("the unicorn").objects == () and chat.ask("why?") == "answer after 1 turns"
    assert chat.history == (("the unicorn", "There is no such object."), ("why?", "answer after 1 turns"))


def test_train_fields_are_read_in_both_spellings() -> None:
    assert overrides(["--lr", "1e-3", "--model.base=nano"]) == {"lr": "1e-3", "model.base": "nano"}
    for wrong in (["lr", "1"], ["--lr"]):
        with pytest.raises(ValueError, match="--field value"):
            overrides(wrong)


def labelled(scene: Scene) -> LabelledScene:
    """A scene with one car where the stub finds it, over a flat ground."""
    semantics = torch.full(scene.grid.shape, FREE, dtype=torch.uint8)
    semantics[:, :, 2] = 11
    semantics[voxels_in_box(BOX, scene.grid)] = 4
    mask = torch.ones(scene.grid.shape, dtype=torch.bool)
    one = torch.zeros(1)
    labels = SceneLabels(
        semantics, mask, mask, BOX[None], one.long(), one.long(), torch.zeros(1, 2), one, one.long()
    )
    queries = (
        GroundingQuery("the car", (0,), unique=True),
        GroundingQuery("the unicorn", (), unique=False, kind="none"),
        GroundingQuery("no animal at all", (), unique=False, kind="none"),
    )
    return LabelledScene(scene, labels, queries)


def test_the_demo_scores_its_answers_by_the_truth_and_draws_each(
    keyframe_folder: Path, tmp_path: Path
) -> None:
    from vlm_occ.data.scenes import load_scene

    sample = labelled(load_scene(keyframe_folder))
    rows = run_demo(sample, StubModel(), tmp_path)  # type: ignore[arg-type]
    assert [row.iou for row in rows] == [1.0, 1.0, 0.0]  # right, rightly none, wrongly the car
    table = format_table(rows)
    assert "2 of 3 answers" in table and "12 m ahead" in table and len(table.splitlines()) == 6
    assert len(list(tmp_path.glob("*_birds_eye.png"))) == len(list(tmp_path.glob("*_cameras.png"))) == 3


def test_the_demo_chooses_different_kinds_and_targets() -> None:
    queries = [GroundingQuery(f"expression {i}", (i % 2,), unique=True) for i in range(6)]
    queries += [GroundingQuery("none", (), unique=False, kind="none")]
    queries += [GroundingQuery("many", (0, 1), unique=False, kind="many")]
    chosen = choose_queries(queries, 4)
    assert [query.text for query in chosen] == ["expression 0", "expression 1", "none", "many"]


def test_places_are_named_by_their_direction() -> None:
    places = {
        (10, 0): "ahead",
        (0, 10): "left",
        (-10, 0): "behind",
        (0, -10): "right",
        (7, -7): "ahead right",
    }
    for (x, y), words in places.items():
        assert place_of(x, y) == f"10 m {words}"


def test_doctor_prints_a_finding_a_line_and_the_remedy_of_each_lack(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("VLM_OCC_CACHE", str(tmp_path))
    monkeypatch.setattr("vlm_occ.doctor.OPTIONAL", {"surely-not-there": ("train", "a test")})
    assert main(["doctor"]) == 0
    report = capsys.readouterr().out
    assert f"torch                    {torch.__version__}" in report and "cpu float32" in report
    broken = [line for line in report.splitlines() if "broken" in line and "torchvision" not in line]
    assert "cpu sparse conv" in report and not broken
    assert str(tmp_path) in report and "pip install 'vlm-occ[train]'" in report
    lacks = [Finding("missing", "gguf", "required", "pip install gguf"), Finding("ok", "numpy", "2")]
    text = format_report(lacks).splitlines()
    assert len(text) == 3 and text[1].strip() == "-> pip install gguf"
