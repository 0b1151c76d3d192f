"""Builds Talk2Occ from nuScenes, Occ3D and Talk2Car, as `vlm-occ data talk2occ`, with --processes."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from vlm_occ.data.talk2occ import talk2occ_command


def main() -> int:
    """Read the arguments and build; 2 where the input is wrong."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--nuscenes", type=Path, required=True, help="data root with v1.0-*/ and samples/")
    parser.add_argument("--occ3d", type=Path, required=True, help="Occ3D's gts folder")
    parser.add_argument("--talk2car", type=Path, required=True, help="folder of {split}_commands.json")
    parser.add_argument("--out", type=Path, required=True, help="folder of the index")
    parser.add_argument("--processes", type=int, help="default: one for each core")
    given = parser.parse_args()
    try:
        talk2occ_command(given.nuscenes, given.occ3d, given.talk2car, given.out, processes=given.processes)
    except ValueError as error:
        print(f"prepare_talk2occ: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
