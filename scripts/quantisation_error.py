"""What rounding costs a base's language model: `python scripts/quantisation_error.py [BASE]`."""

import json
import subprocess
import sys
from pathlib import Path
from typing import get_args

import torch

from vlm_occ.language.loading import load_backbone
from vlm_occ.language.quantisation import Quantization

ROOT = Path(__file__).parents[1]
KINDS = zip(("float32", "bfloat16", "bfloat16", "bfloat16"), ("none", *get_args(Quantization)), strict=True)

if __name__ == "__main__":
    base = sys.argv[1] if len(sys.argv) > 1 else "nano"
    text = (ROOT / "docs" / "training.md").read_text()
    rows, exact = [], torch.zeros(0)
    for dtype, kind in KINDS:
        backbone = load_backbone(base, dtype=getattr(torch, dtype), quantization=kind)
        ids = torch.tensor(backbone.tokenizer(text)["input_ids"][:512])
        place = torch.arange(len(ids)).expand(backbone._family.axes, 1, -1)
        with torch.no_grad():
            states = backbone._run(ids[None], place, None, {})[0]
            scores = backbone.logits(states).float().log_softmax(-1)
        states, exact = states.float(), states.float() if not rows else exact
        row: dict[str, object] = {"dtype": dtype, "quantization": kind}
        row["nats_per_token"] = round(-scores[:-1].gather(1, ids[1:, None]).mean().item(), 4)
        row["cosine_to_float32"] = round(torch.cosine_similarity(states, exact, dim=-1).mean().item(), 5)
        row["megabytes"] = round(sum(p.nbytes for p in backbone.parameters()) / 1e6, 1)
        rows.append(row)
        print(row, flush=True)
    commit = subprocess.run(
        ["git", "describe", "--always", "--dirty"], capture_output=True, text=True, cwd=ROOT
    )
    about = {"base": base, "text": "512 tokens of docs/training.md", "commit": commit.stdout.strip()}
    about |= {"command": "python scripts/quantisation_error.py", "device": "cpu", "torch": torch.__version__}
    (ROOT / "results" / "quantisation.json").write_text(json.dumps({**about, "rows": rows}, indent=1) + "\n")
