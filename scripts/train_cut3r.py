"""Train a small CUT3R on simulated drives: `python scripts/train_cut3r.py configs/cut3r_small.yaml`."""

import argparse

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("config", metavar="CONFIG.yaml")
    arguments = parser.parse_args()
    from vlm_occ.cut3r_training import train_cut3r_command

    train_cut3r_command(arguments.config)
