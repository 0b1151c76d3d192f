"""Benchmarks; `tables` and `ablations` take fields of `ContestConfig` (--steps 1000)."""

import sys

from vlm_occ.benchmarks import main

if __name__ == "__main__":
    sys.exit(main())
