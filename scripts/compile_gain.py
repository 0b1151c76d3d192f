"""What torch.compile gains on the dense parts of the trunk, on one core: `python scripts/compile_gain.py`."""

import statistics
import time
from pathlib import Path
from typing import Any

import torch

from vlm_occ.config import PerceptionConfig
from vlm_occ.eval.report import write_json
from vlm_occ.models.parts import BirdsEye, ImageMaps
from vlm_occ.models.perception import Perception


def seconds(run: Any, inputs: list[torch.Tensor], dtype: torch.dtype) -> float:
    """Processor time of one call, which does not count what other processes take."""
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16, enabled=dtype == torch.bfloat16):
        start = time.process_time()
        run(*inputs)
    return time.process_time() - start


if __name__ == "__main__":
    torch.set_num_threads(1)
    trunk, rows = Perception(PerceptionConfig(image_backbone="random")).eval(), []
    volume, lidar = torch.randn(1, 32, 100, 100, 8), torch.randn(1, 48, 200, 200)
    parts = [(BirdsEye(trunk), [volume, lidar]), (ImageMaps(trunk), [torch.rand(6, 3, 256, 704)])]
    for (part, inputs), dtype in ((part, d) for part in parts for d in (torch.bfloat16, torch.float32)):
        fast = torch.compile(part)
        seconds(fast, inputs, dtype)  # compiles
        times = [(seconds(part, inputs, dtype), seconds(fast, inputs, dtype)) for _ in range(7)]
        plain, quick = (round(1e3 * statistics.median(column)) for column in zip(*times, strict=True))
        row = {"part": type(part).__name__, "dtype": str(dtype), "eager_ms": plain, "compiled_ms": quick}
        rows.append({**row, "ratio": round(plain / quick, 2)})
        print(rows[-1], flush=True)
    about = {"command": "python scripts/compile_gain.py", "threads": 1, "torch": torch.__version__}
    write_json({**about, "rows": rows}, Path(__file__).parents[1] / "results" / "compile.json")
