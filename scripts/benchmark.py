"""Benchmarks: `python scripts/benchmark.py latency --model nano --scene sim:7`."""

import argparse

from vlm_occ.latency import latency_command

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=("latency",))
    parser.add_argument("--model", default="nano", help="nano, a checkpoint folder or a Hub id")
    parser.add_argument("--scene", default="sim:7", help="keyframe folder, sim:SEED or nuscenes:ROOT:TOKEN")
    parser.add_argument("--repeat", type=int, default=7)
    arguments = parser.parse_args()
    latency_command(arguments.model, arguments.scene, repeat=arguments.repeat)
