"""Kill a tiny training run at random moments: `python scripts/check_resume.py --kills 20`."""

import argparse
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from tiny_runs import prepare, tiny_config, tiny_scenes

from vlm_occ.run_check import check_resume, write_report

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("results/resume.json"))
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = prepare(Path(name) / "tiny")
        config = tiny_config(folder, Path(name) / "run", augment=True)
        config = replace(config, steps=arguments.steps, save_every=1, ema=0.9)
        report = check_resume(config, tiny_scenes(folder), kills=arguments.kills, seed=arguments.seed)
    write_report(report, arguments.out)
    print(f"{report['identical']} of {report['killed']} resumed runs end bit-identical: {arguments.out}")
