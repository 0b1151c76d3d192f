"""Benchmarks: `benchmark.py latency [--model nano --scene sim:7]`, `benchmark.py loader --config CONFIG`."""

import argparse

from vlm_occ.config import TrainConfig, read_yaml

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=("latency", "loader"))
    parser.add_argument("--model", default="nano", help="nano, a checkpoint folder or a Hub id")
    parser.add_argument("--scene", default="sim:7", help="keyframe folder, sim:SEED or nuscenes:ROOT:TOKEN")
    parser.add_argument("--repeat", type=int, default=7)
    parser.add_argument("--config", help="of the run whose loader is measured, such as configs/nano_sim.yaml")
    parser.add_argument("--workers", type=int, nargs="+", default=[0, 1, 2], help="loader processes")
    parser.add_argument("--steps", type=int, default=10, help="training steps that are timed")
    arguments = parser.parse_args()
    if arguments.what == "latency":
        from vlm_occ.latency import latency_command

        latency_command(arguments.model, arguments.scene, repeat=arguments.repeat)
    elif arguments.config is None:
        parser.error("loader needs --config")
    else:
        from vlm_occ.throughput import throughput_command

        config = read_yaml(TrainConfig, arguments.config)
        throughput_command(config, workers=tuple(arguments.workers), steps=arguments.steps)
