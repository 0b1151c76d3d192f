"""Compares depth from occupancy with depth from LiDAR on simulated scenes, and times exact ray casting."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path

import torch

from vlm_occ.data.simulator.scene import simulate, split_seed
from vlm_occ.eval.depth_truth import benchmark_casting, compare_sources, depth_maps, draw_comparison
from vlm_occ.types import FREE


def main() -> None:
    """Write `depth_ground_truth.json` and `.png`."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("results"))
    parser.add_argument("--scenes", type=int, default=20)
    given = parser.parse_args()
    torch.set_num_threads(1)
    seeds = [split_seed("val", i) for i in range(given.scenes)]
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True).stdout
    drive = simulate(seeds[0])
    result = {
        "command": " ".join(sys.argv),
        "commit": commit.strip(),
        "sweeps": 5,
        "sources": compare_sources(seeds),
        "casting": benchmark_casting(drive.labels.semantics != FREE, drive.scene.rig),
    }
    draw_comparison(depth_maps(seeds[0]), given.out / "depth_ground_truth.png")
    (given.out / "depth_ground_truth.json").write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
