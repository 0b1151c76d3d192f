"""Overfit the ten sentences of the real keyframe; ground them from the checkpoint in a new process."""

import argparse
from pathlib import Path

from vlm_occ.overfit import overfit

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", default="runs/overfit", help="folder of the run")
    parser.add_argument("--steps", type=int, default=250)
    arguments = parser.parse_args()
    report = overfit(arguments.out, steps=arguments.steps)
    print(report)
    print(Path(str(report["check"])).read_text())
