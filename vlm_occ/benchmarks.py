"""The commands of scripts/benchmark.py."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from vlm_occ.cli import overrides
from vlm_occ.config import TrainConfig, read_yaml

TABLES = ("tables", "ablations")
WORKERS = tuple(f"contest-{name}" for name in ("prepare", "pace", "worker", "references", "progress"))
FREE = (*TABLES, *WORKERS)
"""Commands that take fields of a config as options."""


def parser() -> argparse.ArgumentParser:
    """All options of all commands."""
    result = argparse.ArgumentParser(prog="benchmark.py", description=__doc__)
    kinds = result.add_subparsers(dest="what", required=True)
    latency = kinds.add_parser("latency", help="of grounding with one model")
    latency.add_argument("--model", default="nano", help="nano, a checkpoint folder or a Hub id")
    latency.add_argument("--scene", default="sim:7", help="keyframe folder, sim:SEED or nuscenes:ROOT:TOKEN")
    latency.add_argument("--repeat", type=int, default=7)
    loader = kinds.add_parser("loader", help="whether it keeps up with training")
    loader.add_argument("--config", required=True, help="of the run whose loader is measured")
    loader.add_argument("--workers", type=int, nargs="+", default=[0, 1, 2], help="loader processes")
    loader.add_argument("--steps", type=int, default=10, help="training steps that are timed")
    scale = kinds.add_parser("paper-scale")
    scale.add_argument("--text", default="FacebookAI/roberta-base", help="or a folder with its tokenizer")
    for name in WORKERS:
        kinds.add_parser(name, allow_abbrev=False)
    for name in TABLES:
        table = kinds.add_parser(name, allow_abbrev=False)
        table.add_argument("--results", default=f"results/{name}.json")
    sparse = kinds.add_parser("sparse", help="sparse convolution on every backend: errors, times, memory")
    sparse.add_argument("--results", default="results/sparse_gpu.json")
    sparse.add_argument("--voxels", type=int, nargs="+", default=[20_000, 120_000])
    sparse.add_argument("--widths", type=int, nargs="+", default=[16, 32, 64])
    names = ("reference", "spconv", "spconv-triton")
    sparse.add_argument("--backends", nargs="+", choices=names, default=names)
    sparse.add_argument("--repeat", type=int, default=20)
    sparse.add_argument("--tilings", type=int, default=6, help="of spconv-triton's that are tried; 0: all")
    sparse.add_argument("--processes", type=int, default=12, help="that compile them")
    backbones = kinds.add_parser("backbones", help="latency of grounding on models of published sizes")
    backbones.add_argument("--results", default="results/latency_gpu.json")
    backbones.add_argument("--scene", default="sim:7")
    backbones.add_argument("--bases", nargs="*", default=[], help="only these; default: all")
    backbones.add_argument("--repeat", type=int, default=7)
    for kind in (latency, sparse, backbones):
        kind.add_argument("--device", help="cuda or cpu; default: the GPU, where there is one")
    speed = kinds.add_parser("training-gpu", help="samples a second, share of the peak, memory")
    speed.add_argument("--results", default="results/training_gpu.json")
    speed.add_argument("--config", default="configs/nano_sim.yaml", help="of the run that is measured")
    speed.add_argument("--scenes-per-step", type=int, nargs="+", default=[1, 8])
    speed.add_argument("--steps", type=int, default=10, help="that are timed")
    speed.add_argument("--scenes", type=int, default=16, help="made beforehand")
    speed.add_argument("--workers", type=int, help="loader processes; default: the config's")
    speed.add_argument("--keep", help="folder of simulated scenes; default: the config's data.keep")
    speed.add_argument("--peak-tflops", type=float, default=989.0, help="dense bf16: an H100 SXM's")
    return result


def main(arguments: list[str] | None = None) -> int:
    """Run one command."""
    given = sys.argv[1:] if arguments is None else arguments
    known = parser()
    free = given[:1] and given[0] in FREE
    options, rest = known.parse_known_args(given) if free else (known.parse_args(given), [])
    if options.what in FREE:
        _contest(options, rest)
    elif options.what == "latency":
        from vlm_occ.latency import latency_command

        latency_command(options.model, options.scene, repeat=options.repeat, device=options.device)
    elif options.what == "loader":
        from vlm_occ.throughput import throughput_command

        config = read_yaml(TrainConfig, options.config)
        throughput_command(config, workers=tuple(options.workers), steps=options.steps)
    elif options.what == "paper-scale":
        from vlm_occ.eval.paper_scale import paper_scale_command

        paper_scale_command(options.text)
    else:
        _on_a_gpu(options)
    return 0


def _contest(options: argparse.Namespace, rest: list[str]) -> None:
    """The commands that train and compare."""
    if options.what in WORKERS:
        from vlm_occ.eval.workers import workers_command

        workers_command(options.what, overrides(rest))
    elif options.what == "ablations":
        from vlm_occ.eval.ablations import ablations_command

        ablations_command(overrides(rest), Path(options.results))
    else:
        from vlm_occ.eval.tables import tables_command

        tables_command(overrides(rest), Path(options.results))


def _on_a_gpu(options: argparse.Namespace) -> None:
    """The commands whose figures are of use on a GPU; on a CPU they run, too."""
    results = Path(options.results)
    if options.what == "sparse":
        from vlm_occ.sparse_speed import sparse_command

        sparse_command(
            results,
            voxels=options.voxels,
            widths=options.widths,
            backends=options.backends,
            repeat=options.repeat,
            tilings=options.tilings,
            processes=options.processes,
            device=options.device,
        )
    elif options.what == "backbones":
        from vlm_occ.backbone_latency import backbones_command

        backbones_command(
            results,
            scene=options.scene,
            bases=options.bases,
            repeat=options.repeat,
            device=options.device,
        )
    else:
        from vlm_occ.training_speed import training_command, training_config

        training_command(
            training_config(options.config, workers=options.workers, keep=options.keep),
            results,
            scenes_per_step=options.scenes_per_step,
            steps=options.steps,
            scenes=options.scenes,
            peak_tflops=options.peak_tflops,
        )
