"""`vlm-occ demo | ground | chat | data | train | merge | eval | doctor`: results to stdout, everything else
to stderr.

Exit codes: 0 done, 2 wrong use or bad input (one line on stderr), 1 our fault. `--help` imports no torch.
"""

from __future__ import annotations

import argparse
import io
import os
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import NoReturn

from vlm_occ import commands
from vlm_occ.commands import one_line

SCENE_HELP = "a keyframe folder, sim:SEED, nuscenes:ROOT:SAMPLE_TOKEN, a video file or folder of pictures"


class Parser(argparse.ArgumentParser):
    """A parser whose errors are one line."""

    def error(self, message: str) -> NoReturn:
        """Say what is wrong in one line and leave with code 2."""
        self.exit(2, f"vlm-occ: error: {one_line(message)} (see {self.prog} --help)\n")


def build_parser() -> Parser:
    """The command line of ARCHITECTURE 9."""
    parser = Parser(prog="vlm-occ", description="Point at things in a 3D driving scene with words.")
    parser.add_argument("--debug", action="store_true", help="show tracebacks; may stand anywhere")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    demo = commands.add_parser("demo", help="ground a few sentences in a bundled scene; a table and pictures")
    demo.add_argument("--out", type=Path, default=Path("vlm_occ_demo"), help="folder of the pictures")
    demo.add_argument("--seed", type=int, help="another simulated scene")
    _add_model(demo)

    ground = commands.add_parser("ground", help="ground one sentence in a scene")
    ground.add_argument("scene", metavar="SCENE", help=SCENE_HELP)
    ground.add_argument("query", metavar="QUERY", help="a sentence, such as 'the red car on the left'")
    ground.add_argument("--out", type=Path, help="write grounding.npz and pictures into this folder")
    ground.add_argument("--json", action="store_true", help="print one JSON object")
    ground.add_argument("--refine", action="store_true", help="voxels: the occupied ones in the box")
    _add_sensors(ground)
    _add_model(ground)

    chat = commands.add_parser("chat", help="ask about a scene in a loop")
    chat.add_argument("scene", metavar="SCENE", help=SCENE_HELP)
    _add_sensors(chat)
    _add_model(chat)

    _add_data(commands.add_parser("data", help="simulate drives, build Talk2Occ"))

    train = commands.add_parser("train", help="train in one process: train CONFIG.yaml [--field value]")
    train.add_argument("config", metavar="CONFIG.yaml", type=Path)

    merge = commands.add_parser("merge", help="fold a checkpoint's LoRA into its base model")
    merge.add_argument("model", metavar="MODEL", help="nano, a checkpoint folder or a Hub id")
    merge.add_argument("--out", type=Path, required=True, help="a new folder")

    calibrate = commands.add_parser("calibrate", help="set a checkpoint's cut of the scores, and save it")
    calibrate.add_argument("model", metavar="MODEL", help="a checkpoint folder or a Hub id")
    calibrate.add_argument("--out", type=Path, required=True, help="folder of the calibrated checkpoint")
    calibrate.add_argument("--scenes", type=int, default=60, help="simulated scenes of the calibration split")
    calibrate.add_argument(
        "--lexicon", choices=("train", "wide"), default="train", help="data.lexicon of its training"
    )
    calibrate.add_argument("--half", action="store_true", help="save bfloat16 weights")

    _add_eval(commands.add_parser("eval", help="metrics of a model on a data set"))
    commands.add_parser("doctor", help="what is installed, what runs, what is missing and how to mend it")
    return parser


def _add_eval(parser: argparse.ArgumentParser) -> None:
    """`eval`, of grounding or of situations, layout and questions."""
    parser.add_argument(
        "--model", required=True, help="nano, groundingocc-nano, a checkpoint folder or a Hub id"
    )
    _add_device(parser)
    parser.add_argument("--data", required=True, help="folder of `vlm-occ data talk2occ`, or sim")
    parser.add_argument("--split", choices=("train", "calibration", "val", "test"), default="val")
    parser.add_argument("--scenes", type=int, default=200, help="simulated scenes")
    parser.add_argument("--out", type=Path, required=True, help="file of the results, JSON")
    parser.add_argument("--workers", type=int, default=1, metavar="N", help="processes that share the scenes")
    parser.add_argument("--spatial", action="store_true", help="situations, layout and questions instead")
    parser.add_argument(
        "--ablation", nargs="*", default=[], metavar="STEP=MODEL", help="with --spatial: other models"
    )
    parser.add_argument(
        "--ablation-scenes", type=int, metavar="N", help="with --ablation: the first N scenes only"
    )
    parser.add_argument("--keep", metavar="DIR", help="with --spatial: keep simulated scenes here")
    parser.add_argument("--no-questions", action="store_true", help="with --spatial: ask no questions")


def _add_model(parser: argparse.ArgumentParser) -> None:
    """Options that choose a model and a device."""
    parser.add_argument(
        "--model", default="nano", help="nano (default), groundingocc-nano, a checkpoint folder or a Hub id"
    )
    _add_device(parser)


def _add_device(parser: argparse.ArgumentParser) -> None:
    """Where a model runs."""
    parser.add_argument("--device", help="cpu, cuda, cuda:1 ...; default: cuda where there is one")


def _add_sensors(parser: argparse.ArgumentParser) -> None:
    """Options that leave sensors out."""
    parser.add_argument("--cameras", metavar="NAMES", help="use only these, separated by commas; or none")
    parser.add_argument("--no-lidar", action="store_true", help="leave the LiDAR out")
    parser.add_argument(
        "--frames", type=int, help=f"at most so many (default {commands.NUM_FRAMES}; 32 of a video)"
    )


def _add_data(parser: argparse.ArgumentParser) -> None:
    """`data simulate` and `data talk2occ`."""
    kinds = parser.add_subparsers(dest="kind", required=True, metavar="KIND")
    simulate = kinds.add_parser("simulate", help="simulated drives in the real formats")
    simulate.add_argument("--out", type=Path, required=True)
    simulate.add_argument("--scenes", type=int, required=True, help="how many scenes")
    simulate.add_argument("--seed", type=int, required=True)
    simulate.add_argument("--split", choices=("train", "val", "test"), help="default: dealt 80/10/10")
    simulate.add_argument("--preview", action="store_true", help="also draw a contact sheet, DIR/preview.png")
    _add_processes(simulate)
    talk2occ = kinds.add_parser("talk2occ", help="build the benchmark from nuScenes, Occ3D and Talk2Car")
    talk2occ.add_argument("--nuscenes", type=Path, required=True, metavar="DIR")
    talk2occ.add_argument("--occ3d", type=Path, required=True, metavar="DIR/gts")
    talk2occ.add_argument("--talk2car", type=Path, required=True, metavar="DIR/commands")
    talk2occ.add_argument("--out", type=Path, required=True, metavar="DIR")
    _add_processes(talk2occ)


def _add_processes(parser: argparse.ArgumentParser) -> None:
    """How many processes work at once."""
    parser.add_argument("--processes", type=int, metavar="N", help="at most so many (default: one a core)")


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; the exit code. Unexpected errors leave it, and `report_crash` words them."""
    parser = build_parser()
    words = sys.argv[1:] if argv is None else list(argv)
    debug = "--debug" in words
    arguments, rest = parser.parse_known_args(_join_cameras([word for word in words if word != "--debug"]))
    if rest and arguments.command != "train":
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    if argv is None and not debug:
        sys.excepthook = report_crash
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # a terminal without UTF-8 must not end in an error
    try:
        _run(arguments, rest)
        sys.stdout.flush()
    except BrokenPipeError:  # the reader of our stdout has left, as `head` does; spare it Python's own flush
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except (ValueError, OSError) as error:  # bad input, or a disk or network that refuses
        if debug:
            traceback.print_exc()
        print(f"vlm-occ: error: {one_line(str(error))}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("vlm-occ: stopped", file=sys.stderr)
        return 130
    return 0


def report_crash(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """The last words of a fault of ours, in one line; Python then leaves with code 1."""
    words = f"{kind.__name__}: {one_line(str(error))}"
    remedy = "vlm-occ doctor says what is missing" if issubclass(kind, ImportError) else "--debug shows where"
    print(f"vlm-occ: internal error: {words} ({remedy})", file=sys.stderr)


def _run(arguments: argparse.Namespace, rest: list[str]) -> None:
    """Hand the arguments to their command."""
    match arguments.command:
        case "demo":
            commands.demo(arguments)
        case "ground":
            commands.ground(arguments)
        case "chat":
            commands.chat(arguments)
        case "data":
            commands.data(arguments)
        case "train":
            if not arguments.config.is_file():
                raise ValueError(
                    f"config {arguments.config} does not exist; give a YAML file, as in configs/"
                )
            from vlm_occ.train import train_command

            train_command(str(arguments.config), overrides(rest))
        case "merge":
            from vlm_occ.models.merge import merge_command

            merge_command(arguments.model, arguments.out)
        case "calibrate":
            from vlm_occ.eval.calibration import calibrate_command

            calibrate_command(
                arguments.model,
                arguments.out,
                scenes=arguments.scenes,
                half=arguments.half,
                lexicon=arguments.lexicon,
            )
        case "eval" if arguments.spatial:
            commands.evaluate_spatial(arguments)
        case "eval":
            commands.evaluate(arguments)
        case "doctor":
            from vlm_occ.doctor import examine, format_report

            print(format_report(examine()))


def overrides(words: Sequence[str]) -> dict[str, str]:
    """The fields of `--field value` and `--field=value`, by name."""
    fields: dict[str, str] = {}
    rest = list(words)
    while rest:
        name, equals, value = rest.pop(0).partition("=")
        if not name.startswith("--") or not (equals or rest):
            raise ValueError(f"unexpected {name!r}; give fields of the config as --field value")
        fields[name.removeprefix("--")] = value if equals else rest.pop(0)
    return fields


def _join_cameras(argv: Sequence[str]) -> list[str]:
    """The arguments with `--cameras CAM_A CAM_B` joined by commas, so that both spellings work."""
    joined: list[str] = []
    for argument in argv:
        if len(joined) > 1 and joined[-2] == "--cameras" and argument.startswith("CAM_"):
            joined[-1] += f",{argument}"
        else:
            joined.append(argument)
    return joined
