"""The paper's scale on the real keyframe: parameters, and what one training step costs."""

from __future__ import annotations

import os
import platform
import time
from dataclasses import replace
from pathlib import Path

import torch

from vlm_occ.config import read_yaml
from vlm_occ.data.keyframe_labels import load_labelled_keyframe
from vlm_occ.eval.report import commit_of_tree, real_data, write_json
from vlm_occ.models.groundingocc import build_system
from vlm_occ.paper_train import PaperTrainConfig, PaperTraining
from vlm_occ.timing import peak_gib


def paper_scale_command(
    text: str,
    *,
    config: Path = Path("configs/groundingocc_paper.yaml"),
    results: Path = Path("results/paper_scale.json"),
) -> dict[str, object]:
    """Forward, backward and update of one sentence about the real keyframe, written to `results`.

    `text`: a folder with RoBERTa-base's config and tokenizer; its weights are drawn at random here, as every
    other weight, which changes no cost.
    """
    run = read_yaml(PaperTrainConfig, config)
    system = replace(run.system, text=text, text_weights="random")
    run = replace(run, system=system, data=replace(run.data, augment=False))
    folder = real_data()
    known = load_labelled_keyframe(folder / "nuscenes_keyframe", folder / "nuscenes_keyframe_queries.json")
    item = replace(known.item, queries=known.item.queries[:1])
    model = build_system(system)
    training = PaperTraining(model, run).train()
    if run.checkpointing:
        training.recompute()
    optimizer = torch.optim.AdamW(training.groups(), weight_decay=run.weight_decay)
    built = peak_gib(torch.device("cpu"))
    start = time.perf_counter()
    total, terms = training([item])
    forward = time.perf_counter() - start
    total.backward()
    backward = time.perf_counter() - start - forward
    norms = [p.grad.norm().item() for p in model.parameters() if p.grad is not None]
    optimizer.step()
    result: dict[str, object] = {
        "parameters": sum(p.numel() for p in model.parameters()),
        "trained_parameters": sum(p.numel() for p in model.parameters() if p.requires_grad),
        "parameters_by_part": {
            name: sum(p.numel() for p in part.parameters()) for name, part in model.named_children()
        },
        "images": len(item.scene.rig.names) * len(item.scene.frames[-system.frames :]),
        "forward_s": round(forward, 1),
        "backward_s": round(backward, 1),
        "peak_gib": round(peak_gib(torch.device("cpu")), 2),
        "cpu_s_of_the_process": round(time.process_time(), 1),
        "peak_gib_before_the_step": round(built, 2),
        "total_loss": total.item(),
        "terms": terms,
        "gradients_finite": all(map(torch.isfinite, map(torch.tensor, norms))),
        "checkpointing": run.checkpointing,
        "commit": commit_of_tree(),
        "hardware": f"{platform.machine()}, {os.cpu_count()} CPU cores shared with other jobs, "
        f"{torch.get_num_threads()} thread(s)",
        "torch": torch.__version__,
    }
    write_json(result, results)
    print(f"{result['parameters']:,} parameters, {forward:.0f} s, {backward:.0f} s, {result['peak_gib']} GiB")
    return result
