"""A check that every part learns: the ten sentences of the real keyframe, through the whole path."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

from vlm_occ.config import DataConfig, ModelConfig, TrainConfig
from vlm_occ.data.keyframe_labels import load_labelled_keyframe
from vlm_occ.eval.report import evaluate_keyframe, real_data, write_json
from vlm_occ.models.adapter import VLMOcc
from vlm_occ.train import train


def overfit_config(out: str, steps: int) -> TrainConfig:
    """Joint training on one scene: base model frozen but for LoRA, encoders and heads trained."""
    return TrainConfig(
        out=out,
        stage="joint",
        model=ModelConfig(),
        data=DataConfig(augment=False),
        steps=steps,
        queries_per_scene=10,
        language_share=0.0,
        warmup=20,
        perception_rate=1.5e-3,
        lora_rate=4e-4,
        input_rate=3e-4,
        clip=1.0,
        save_every=max(steps // 4, 1),
        tracker="none",
    )


def overfit(out: str, *, steps: int = 250) -> dict[str, object]:
    """Train on the keyframe, then ground its sentences in a new process; the result is written to `out`."""
    folder = real_data()
    known = load_labelled_keyframe(folder / "nuscenes_keyframe", folder / "nuscenes_keyframe_queries.json")
    start = time.perf_counter()
    train(overfit_config(out, steps), source=[known.item])
    seconds = time.perf_counter() - start
    command = [sys.executable, "-c", _CHECK, str(Path(out) / "final"), str(Path(out) / "check.json")]
    subprocess.run(command, check=True)
    return {"steps": steps, "seconds": round(seconds, 1), "check": str(Path(out) / "check.json")}


def check(model: str, out: str) -> None:
    """Ground the keyframe's sentences with a saved model and write what came out."""
    write_json(evaluate_keyframe(VLMOcc.from_pretrained(model)), Path(out))


_CHECK = "import sys; from vlm_occ.overfit import check; check(sys.argv[1], sys.argv[2])"
