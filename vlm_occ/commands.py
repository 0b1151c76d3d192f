"""What the commands of `vlm-occ` do; torch is imported inside them, so that `--help` is quick."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, cast

if TYPE_CHECKING:
    import torch

    from vlm_occ.chat import Chat
    from vlm_occ.models.adapter import VLMOcc
    from vlm_occ.models.baselines import Baseline
    from vlm_occ.types import GroundingResult, Scene

NUM_FRAMES = 2  # frames of a scene by default, as many as the default training sees
CHAT_HELP = "ground SENTENCE | ask QUESTION | locate DESCRIPTION | history | forget | help | quit"


def demo(arguments: argparse.Namespace) -> None:
    """`vlm-occ demo`."""
    _check_folder(arguments.out)
    from vlm_occ.data.scenes import DEMO_SEED
    from vlm_occ.demo import demo_scene, format_table, run_demo

    seed = DEMO_SEED if arguments.seed is None else arguments.seed
    with contextlib.redirect_stdout(sys.stderr):
        print(f"vlm-occ: simulating scene {seed}", file=sys.stderr)
        sample = demo_scene(seed)
        model = _load_model(arguments)
        rows = run_demo(sample, model, arguments.out)
    print(format_table(rows))
    print(f"Pictures: {arguments.out.resolve()}")


def ground(arguments: argparse.Namespace) -> None:
    """`vlm-occ ground`."""
    from vlm_occ.data.scenes import check_query

    query = check_query(arguments.query)
    if arguments.out is not None:
        _check_folder(arguments.out)
    with contextlib.redirect_stdout(sys.stderr):  # a library's chatter must not join the results
        scene = _load_scene(arguments)
        model = _load_model(arguments)
        start = time.perf_counter()
        state = model.encode(scene)
        encoded = time.perf_counter()
        result = model.ground(state, query, refine=arguments.refine)  # type: ignore[arg-type]
        seconds = {"encode": round(encoded - start, 4), "query": round(time.perf_counter() - encoded, 4)}
    if arguments.out is not None:
        _write(result, scene, arguments.out)
    print(f"vlm-occ: encoded in {seconds['encode']} s, answered in {seconds['query']} s", file=sys.stderr)
    print(json.dumps(as_record(result, seconds)) if arguments.json else as_text(result))


def as_record(result: GroundingResult, seconds: dict[str, float]) -> dict[str, object]:
    """The JSON object of `vlm-occ ground --json`."""
    objects = [
        {
            "score": round(item.score, 6),
            "box": [round(value, 4) for value in item.box.tolist()],
            "num_voxels": int(item.occupancy.sum()),
        }
        for item in result.objects
    ]
    reading = {"read_as": result.read_as} if _reworded(result) else {}
    return {"query": result.query, "text": result.text, "objects": objects, "seconds": seconds, **reading}


def _reworded(result: GroundingResult) -> bool:
    """Whether a sentence was read in other words than its own."""
    return result.read_as not in ("", result.query)


def as_text(result: GroundingResult) -> str:
    """An answer for people: what unknown words were taken for, the sentence, then one line an object."""
    lines = [f'(read as "{result.read_as}")'] if _reworded(result) else []
    lines.append(result.text)
    for number, item in enumerate(result.objects, start=1):
        x, y, z, dx, dy, dz, yaw = item.box.tolist()
        size = f"{dx:.1f} x {dy:.1f} x {dz:.1f} m"
        place = f"at x {x:.1f} y {y:.1f} z {z:.1f} m, {size}, yaw {yaw:.2f} rad"
        lines.append(f"  {number}  score {item.score:.2f}  {place}, {int(item.occupancy.sum())} voxels")
    return "\n".join(lines)


def _write(result: GroundingResult, scene: Scene, folder: Path) -> None:
    """`grounding.npz` and the pictures, each whole or not at all."""
    import numpy as np

    from vlm_occ.render import draw_birds_eye, draw_cameras, whole_file

    with whole_file(folder / "grounding.npz") as path, path.open("wb") as file:
        np.savez_compressed(file, occupancy=result.occupancy.cpu().numpy())
    draw_birds_eye(result, folder / "birds_eye.png", scene=scene)
    if scene.rig.names:
        draw_cameras(scene, result, folder / "cameras.png")
    print(f"vlm-occ: wrote {folder}/", file=sys.stderr)


def chat(arguments: argparse.Namespace) -> None:
    """`vlm-occ chat`: one question a line until the input ends; a bad question does not end it."""
    from vlm_occ.chat import Chat

    with contextlib.redirect_stdout(sys.stderr):
        scene = _load_scene(arguments)
        model = _load_model(arguments)
        if not hasattr(model, "ask"):
            raise ValueError(
                f"{arguments.model} is one of the paper's systems, which do not talk; use `vlm-occ ground`"
            )
        chat = Chat(cast("VLMOcc", model), cast("VLMOcc", model).encode(scene))
    print(f"vlm-occ: {CHAT_HELP}", file=sys.stderr)
    while True:
        print("> ", end="", file=sys.stderr, flush=True)
        line = sys.stdin.readline()
        if not line or line.split() in (["quit"], ["exit"]):
            return
        if not line.strip():
            continue
        try:
            print(answer_line(chat, line), flush=True)
        except ValueError as error:
            print(f"vlm-occ: error: {one_line(str(error))}", file=sys.stderr)


def answer_line(chat: Chat, line: str) -> str:
    """The answer to one line of a conversation."""
    from vlm_occ.data.scenes import check_query

    word, _, rest = line.strip().partition(" ")
    match word if rest.strip() or word in ("history", "forget", "help") else "":
        case "history" if not rest:
            return (
                "\n".join(f"{turn.kind}: {turn.text} -> {turn.answer}" for turn in chat.turns)
                or "nothing yet"
            )
        case "forget" if not rest:
            chat.forget()
            return "forgotten"
        case "help" if not rest:
            return CHAT_HELP
        case "ask":
            return chat.ask(check_query(rest))
        case "locate":
            place = chat.locate(check_query(rest))
            (x, y), (dx, dy) = place.position.tolist(), place.position_std.tolist()
            return f"at x {x:.1f} m (+- {dx:.1f}), y {y:.1f} m (+- {dy:.1f}), facing {place.yaw:.2f} rad"
        case _:
            return as_text(chat.ground(check_query(rest if word == "ground" and rest else line)))


def data(arguments: argparse.Namespace) -> None:
    """`vlm-occ data simulate` and `vlm-occ data talk2occ`."""
    if arguments.kind == "simulate":
        from vlm_occ.data.export import simulate_command

        simulate_command(
            arguments.out,
            scenes=arguments.scenes,
            seed=arguments.seed,
            split=arguments.split,
            preview=arguments.preview,
            processes=arguments.processes,
        )
    else:
        from vlm_occ.data.talk2occ import talk2occ_command

        talk2occ_command(
            arguments.nuscenes,
            arguments.occ3d,
            arguments.talk2car,
            arguments.out,
            processes=arguments.processes,
        )


def evaluate(arguments: argparse.Namespace) -> None:
    """`vlm-occ eval`."""
    from vlm_occ.eval.report import evaluate_command, format_evaluation

    result = evaluate_command(
        arguments.model,
        arguments.data,
        arguments.split,
        arguments.out,
        scenes=arguments.scenes,
        device=_device(arguments),
        workers=arguments.workers,
    )
    print(format_evaluation(result))
    print(f"vlm-occ: all figures are in {arguments.out}", file=sys.stderr)


def evaluate_spatial(arguments: argparse.Namespace) -> None:
    """`vlm-occ eval --spatial`."""
    if arguments.data != "sim":
        raise ValueError(f"--data {arguments.data} with --spatial, expected sim")
    if arguments.workers != 1:
        raise ValueError(f"--workers {arguments.workers} with --spatial, expected 1: it runs in one process")
    steps = [step.partition("=") for step in arguments.ablation]
    if odd := [step for step, equals, model in steps if not (equals and model)]:
        raise ValueError(f"--ablation {odd[0]!r}, expected STEP=MODEL, such as situation=runs/a/final")
    from vlm_occ.eval.spatial_report import format_spatial, spatial_command

    result = spatial_command(
        arguments.model,
        arguments.split,
        arguments.out,
        scenes=arguments.scenes,
        ablation={step: model for step, _, model in steps},
        ablation_scenes=arguments.ablation_scenes,
        folder=arguments.keep,
        questions=not arguments.no_questions,
        device=_device(arguments),
    )
    print(format_spatial(result))


def _load_scene(arguments: argparse.Namespace) -> Scene:
    """The scene of the command line, with the sensors that it keeps."""
    from vlm_occ.data.scenes import is_video, load_scene

    cameras = None
    if arguments.cameras is not None:
        cameras = [name for name in arguments.cameras.replace(" ", ",").split(",") if name and name != "none"]
    lidar = not arguments.no_lidar
    frames = arguments.frames
    if frames is None and not is_video(arguments.scene):
        frames = NUM_FRAMES
    return load_scene(arguments.scene, cameras=cameras, lidar=lidar, num_frames=frames)


def _load_model(arguments: argparse.Namespace) -> VLMOcc | Baseline:
    """The model of the command line on its device; says where its heads are untrained."""
    from vlm_occ.models.load import load_model

    device = _device(arguments)
    print(f"vlm-occ: loading {arguments.model} on {device}", file=sys.stderr)
    model = load_model(arguments.model, device=device)
    if not model.config.trained:
        words = f"the heads of {arguments.model} are untrained: its answers mean nothing before training"
        print(f"vlm-occ: warning: {words}", file=sys.stderr)
    return model


def _device(arguments: argparse.Namespace) -> torch.device:
    """The device of the command line."""
    import torch

    from vlm_occ.timing import default_device

    device = default_device(arguments.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"--device {device}, but torch finds no CUDA device; use --device cpu")
    return device


def _check_folder(folder: Path) -> None:
    """ValueError where an output folder can't be made or written; it is made with its first file."""
    existing = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    if not existing.is_dir() or not os.access(existing, os.W_OK):
        raise ValueError(f"can't write into --out {folder}: {existing} is no writable folder; choose another")


def one_line(text: str) -> str:
    """A message without line breaks."""
    return " ".join(text.split())
