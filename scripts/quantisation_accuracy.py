"""What rounding costs a model's answers: `python scripts/quantisation_accuracy.py [MODEL] [SCENES]`.

The same scenes and sentences of the simulator's validation split in bf16, int8 and nf4; pairs by sentence.
"""

import json
import subprocess
import sys
from pathlib import Path

import torch
from tqdm import tqdm

from vlm_occ.data.store import SimulatedScenes
from vlm_occ.eval.evaluate import evaluate_scene
from vlm_occ.eval.metrics import paired_difference, summarise
from vlm_occ.models.checkpoint import load_checkpoint

ROOT = Path(__file__).parents[1]

if __name__ == "__main__":
    name = sys.argv[1] if len(sys.argv) > 1 else "nano"
    count = int(sys.argv[2]) if len(sys.argv) > 2 else 60
    split = SimulatedScenes("val", count, num_frames=2, num_queries=6)
    scenes = [split[i] for i in tqdm(range(count), desc="scenes", unit="scene")]
    rows, exact = [], None
    for kind in ("none", "int8", "nf4"):
        model = load_checkpoint(name, quantization=kind).eval()
        assert model.config.trained, f"{name} has no trained weights"
        bar = tqdm(scenes, desc=kind, unit="scene")
        records = [outcome.plain for item in bar for outcome in evaluate_scene(model, item)]
        found = summarise(records)
        exact = exact or records
        first, second = ([r for r in some if r.num_true] for some in (exact, records))
        row = {"quantization": kind, "overall": found["overall"], "no_target": found["no_target"]}
        row["acc25_against_bf16"] = paired_difference(first, second, lambda r: float(r.iou > 0.25))
        row["same_answer"] = sum(
            a.iou == b.iou and a.num_predicted == b.num_predicted for a, b in zip(exact, records, strict=True)
        ) / len(records)
        rows.append(row)
        print(json.dumps(row), flush=True)
    commit = subprocess.run(
        ["git", "describe", "--always", "--dirty"], capture_output=True, text=True, cwd=ROOT
    )
    about = {"model": name, "split": "val", "scenes": count, "commit": commit.stdout.strip(), "device": "cpu"}
    about |= {"command": "python scripts/quantisation_accuracy.py", "torch": torch.__version__}
    path = ROOT / "results" / "quantisation_accuracy.json"
    path.write_text(json.dumps({**about, "rows": rows}, indent=1) + "\n")
