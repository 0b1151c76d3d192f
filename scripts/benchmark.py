"""Benchmarks; `tables` and `ablations` take fields of `vlm_occ.eval.contest.ContestConfig` (--steps 1000)."""

import argparse
import sys
from pathlib import Path

from vlm_occ.cli import overrides
from vlm_occ.config import TrainConfig, read_yaml

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    kinds = parser.add_subparsers(dest="what", required=True)
    latency, loader, scale = (kinds.add_parser(name) for name in ("latency", "loader", "paper-scale"))
    latency.add_argument("--model", default="nano", help="nano, a checkpoint folder or a Hub id")
    latency.add_argument("--scene", default="sim:7", help="keyframe folder, sim:SEED or nuscenes:ROOT:TOKEN")
    latency.add_argument("--repeat", type=int, default=7)
    loader.add_argument("--config", required=True, help="of the run whose loader is measured")
    loader.add_argument("--workers", type=int, nargs="+", default=[0, 1, 2], help="loader processes")
    loader.add_argument("--steps", type=int, default=10, help="training steps that are timed")
    scale.add_argument("--text", default="FacebookAI/roberta-base", help="or a folder with its tokenizer")
    contest = tuple(f"contest-{name}" for name in ("prepare", "pace", "worker", "references", "progress"))
    for name in contest:
        kinds.add_parser(name, allow_abbrev=False)
    for name in ("tables", "ablations"):
        table = kinds.add_parser(name, allow_abbrev=False)
        table.add_argument("--results", default=f"results/{name}.json")
    free = sys.argv[1:2] and sys.argv[1] in ("tables", "ablations", *contest)
    options, rest = parser.parse_known_args() if free else (parser.parse_args(), [])
    if options.what == "latency":
        from vlm_occ.latency import latency_command

        latency_command(options.model, options.scene, repeat=options.repeat)
    elif options.what == "loader":
        from vlm_occ.throughput import throughput_command

        config = read_yaml(TrainConfig, options.config)
        throughput_command(config, workers=tuple(options.workers), steps=options.steps)
    elif options.what == "paper-scale":
        from vlm_occ.eval.paper_scale import paper_scale_command

        paper_scale_command(options.text)
    elif options.what in contest:
        from vlm_occ.eval.workers import workers_command

        workers_command(options.what, overrides(rest))
    elif options.what == "ablations":
        from vlm_occ.eval.ablations import ablations_command

        ablations_command(overrides(rest), Path(options.results))
    else:
        from vlm_occ.eval.tables import tables_command

        tables_command(overrides(rest), Path(options.results))
