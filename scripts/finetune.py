"""Fine-tune: `accelerate launch scripts/finetune.py configs/nano_sim.yaml --steps 1000`."""

import sys

from vlm_occ.cli import main

if __name__ == "__main__":
    sys.exit(main(["train", *sys.argv[1:]]))
