"""What a build of Talk2Occ says about itself: Table I under both rules, and what each filter removed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import cast

from vlm_occ.data.talk2occ_index import Record
from vlm_occ.data.talk2occ_join import SOURCE_SPLITS, SPLIT_OF_SOURCE
from vlm_occ.types import TALK2OCC_CLASSES


def summarise_build(rows: Sequence[Record], outside: Record) -> dict[str, object]:
    """Counts of a build; a row's `removed` and `removed_centre` say what dropped it under either rule."""
    return {
        "filters": {
            split: _filter_counts(
                [row for row in rows if row["source_split"] == split], outside.get(split, 0)
            )
            for split in SOURCE_SPLITS
        },
        "splits": {
            split: sum(
                not row["removed"] and SPLIT_OF_SOURCE[str(row["source_split"])] == split for row in rows
            )
            for split in ("train", "val")
        },
        "kinds": dict(Counter(str(row["kind"]) for row in rows if not row["removed"])),
        "unique": sum(bool(row["unique"]) for row in rows if not row["removed"] and row["boxes"]),
        "table_1": _table_1(rows),
    }


def _filter_counts(rows: Sequence[Record], outside: object) -> dict[str, object]:
    """What the filters removed from the sentences of one source split."""
    return {
        "sentences": len(rows) + int(str(outside)),
        "not_in_tables": outside,
        "out_of_range": sum(row["removed"] == "range" for row in rows),
        "no_voxel_touching": sum(row["removed"] == "voxels" for row in rows),
        "no_voxel_centre": sum(row["removed_centre"] == "voxels" for row in rows),
        "kept": sum(not row["removed"] for row in rows),
        "kept_centre": sum(not row["removed_centre"] for row in rows),
    }


def _table_1(rows: Sequence[Record]) -> dict[str, dict[str, float | int]]:
    """Sentences with one target and their mean number of voxels by class, under both rules (Table I)."""
    table: dict[str, dict[str, float | int]] = {}
    for name in TALK2OCC_CLASSES:
        single = [row for row in rows if row["label"] == name and len(cast(list, row["boxes"])) == 1]
        entry: dict[str, float | int] = {}
        for rule, dropped, count in (
            ("touching", "removed", "num_voxels"),
            ("centre", "removed_centre", "num_voxels_centre"),
        ):
            voxels = [int(str(row[count])) for row in single if not row[dropped]]
            entry[f"objects_{rule}"] = len(voxels)
            entry[f"mean_voxels_{rule}"] = round(sum(voxels) / len(voxels), 2) if voxels else 0.0
        table[name] = entry
    return table


def print_report(summary: Mapping[str, object], out: Path) -> None:
    """Print Table I, the filters and the split rule."""
    table = cast(dict[str, dict[str, float]], summary["table_1"])
    filters = cast(dict[str, dict[str, int]], summary["filters"])
    splits = cast(dict[str, int], summary["splits"])
    print("Table I: sentences with one target, and the mean number of its occupied voxels")
    print(f"{'':<22}{'touching':^20}{'centre':^20}")
    print(f"{'class':<22}" + f"{'objects':>10}{'voxels':>10}" * 2)
    for name, row in table.items():
        cells = "".join(
            f"{row[f'objects_{r}']:>10}{row[f'mean_voxels_{r}']:>10.1f}" for r in ("touching", "centre")
        )
        print(f"{name:<22}{cells}")
    total = [sum(int(row[f"objects_{rule}"]) for row in table.values()) for rule in ("touching", "centre")]
    print(f"{'all':<22}{total[0]:>10}{'':>10}{total[1]:>10}")
    print("\nFilters, by Talk2Car's split")
    columns = ("sentences", "not_in_tables", "out_of_range", "no_voxel_touching", "no_voxel_centre", "kept")
    print(f"{'':<8}" + "".join(f"{name.replace('_', ' '):>19}" for name in columns))
    for split, counts in filters.items():
        print(f"{split:<8}" + "".join(f"{counts[name]:>19}" for name in columns))
    print(f"\nSplit rule: {summary['split_rule']}")
    print(f"{splits['train']} training and {splits['val']} validation sentences in {out}")
