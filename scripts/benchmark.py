"""Benchmarks; `tables` and `ablations` take fields of `vlm_occ.eval.contest_config.ContestConfig` (--steps 1000)."""

import sys

from vlm_occ.benchmarks import main

if __name__ == "__main__":
    sys.exit(main())
