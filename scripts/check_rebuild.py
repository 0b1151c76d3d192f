"""Simulates, exports and rebuilds scenes, and compares all boxes, voxels and sentences with the truth."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import torch

from vlm_occ.data.dataset import Talk2OccDataset
from vlm_occ.data.export import ExportSettings, Split, deal, export_scenes, simulated
from vlm_occ.data.export_rows import sample_token
from vlm_occ.data.talk2occ import talk2occ_command
from vlm_occ.types import FREE, TALK2OCC_CLASSES, LabelledScene
from vlm_occ.voxels import voxels_in_box


def mini(root: Path, scenes: int) -> Path:
    """A root like nuScenes mini beside `root`: tables of scenes of every split, all commands, no queries."""
    out = root.parent / f"{root.name}-mini"
    (out / "v1.0-mini").mkdir(parents=True, exist_ok=True)
    (out / "commands").mkdir(exist_ok=True)
    tables = {path.stem: json.loads(path.read_text()) for path in (root / "v1.0-sim").glob("*.json")}
    every = max(1, len(tables["scene"]) // scenes)  # they stand in the order of the splits
    kept = {row["token"] for row in tables["scene"][::every][:scenes]}
    samples = {row["token"] for row in tables["sample"] if row["scene_token"] in kept}
    for name, rows in tables.items():
        rows = [row for row in rows if row.get("scene_token", next(iter(kept))) in kept]
        rows = [row for row in rows if row.get("sample_token", next(iter(samples))) in samples]
        (out / "v1.0-mini" / f"{name}.json").write_text(json.dumps(rows))
    for path in (root / "commands").glob("*_commands.json"):
        (out / "commands" / path.name).write_bytes(path.read_bytes())
    for name in ("samples", "gts"):
        if not (out / name).exists():
            (out / name).symlink_to((root / name).resolve())
    return out


def compare(item: LabelledScene, truth: LabelledScene, rows: list, *, commands_only: bool) -> Counter[str]:
    """Differences between a rebuilt scene and the truth, by what differs, and counts of what was compared."""
    found: Counter[str] = Counter(scenes=1)
    labels, true = item.labels, truth.labels
    found["labels_differ"] += not torch.equal(labels.semantics, true.semantics)
    found["labels_differ"] += not torch.equal(labels.classes, true.classes)
    found["boxes"] += len(true.boxes)
    found["boxes_differ"] += int(((labels.boxes - true.boxes).abs() > 1e-3).any(-1).sum())
    occupied = true.semantics != FREE
    told = {query.text: query for query in truth.queries}
    for row, query in zip(rows, item.queries, strict=True):
        known = told[query.text]
        found["sentences"] += 1
        found["sentences_differ"] += query.targets != known.targets
        if not commands_only:
            found["sentences_differ"] += query != known
        voxels = torch.zeros_like(occupied)
        for target in known.targets:
            voxels |= voxels_in_box(true.boxes[target], truth.scene.grid) & occupied
        rebuilt = torch.zeros_like(occupied).flatten()
        rebuilt[torch.tensor(row["voxels"], dtype=torch.long)] = True
        found["voxels"] += int(voxels.sum())
        found["voxels_differ"] += int((rebuilt != voxels.flatten()).sum())
    return found


def compare_all(
    index: Path, seeds: list[tuple[int, Split]], settings: ExportSettings, *, commands_only: bool
) -> Counter[str]:
    """Compare all scenes of an index with the truth, simulated again."""
    place: dict[str, tuple[int, Split]] = {
        sample_token(seed, settings.num_frames - 1): (seed, split) for seed, split in seeds
    }
    total: Counter[str] = Counter()
    for part in ("train", "val"):
        data = Talk2OccDataset(index, part)
        for i, sample in enumerate(data.samples):
            truth = simulated(*place[sample], settings)
            total += compare(data[i], truth, data.queries[sample], commands_only=commands_only)
            if not commands_only:
                single = [q for q in truth.queries if len(q.targets) == 1]
                total.update(TALK2OCC_CLASSES[int(truth.labels.classes[q.targets[0]])] for q in single)
    return total


def main() -> int:
    """Run the check; 1 where something differs."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--scenes", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("results/rebuild_check.json"))
    given = parser.parse_args()
    root, settings, seeds = given.folder / "sim", ExportSettings(num_frames=1), deal(given.scenes, given.seed)
    start = time.perf_counter()
    export_scenes(root, seeds, settings=settings)
    seconds = {"export": round(time.perf_counter() - start, 1)}
    results: dict[str, object] = {}
    wrong = 0
    for name, folder in (("all", root), ("mini", mini(root, 10))):
        start = time.perf_counter()
        index = given.folder / f"index-{name}"
        summary = talk2occ_command(folder, folder / "gts", folder / "commands", index)
        seconds[f"build_{name}"] = round(time.perf_counter() - start, 1)
        total = compare_all(index, seeds, settings, commands_only=name == "mini")
        table = summary["table_1"]
        results[name] = {"filters": summary["filters"], "table_1": table, "compared": dict(total)}
        wrong += sum(count for key, count in total.items() if key.endswith("differ"))
        if name == "all" and isinstance(table, dict):
            counted = {c: row["objects_touching"] for c, row in table.items()}
            wrong += sum(counted[c] != total[c] for c in TALK2OCC_CLASSES)
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True)
    head = {
        "command": " ".join(sys.argv),
        "commit": commit.stdout.strip(),
        "seed": given.seed,
        "torch": torch.__version__,
        "cores": os.cpu_count(),
        "seconds": seconds,
        "wrong": wrong,
    }
    given.out.write_text(json.dumps(head | results, indent=1) + "\n")
    print(json.dumps(head, indent=1))
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
