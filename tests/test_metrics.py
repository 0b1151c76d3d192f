"""Metrics: hand-made cases, other libraries, and the arithmetic of Table II of Talk2Occ."""

import dataclasses
import json
import math

import numpy as np
import pytest
import torch
from scipy.stats import binomtest
from shapely.affinity import rotate
from shapely.geometry import box as rectangle

from vlm_occ.eval.metrics import (
    QueryRecord,
    bootstrap_intervals,
    calibration,
    distance_name,
    matched_box_iou,
    occupancy_iou,
    paired_difference,
    summarise,
    truncated_percent,
    wilson_interval,
)


def record(scene="a", query=0, iou=0.0, **changes) -> QueryRecord:
    base = QueryRecord(scene, query, "car", 15.0, False, iou, iou, 1, 1, score=0.5)
    return dataclasses.replace(base, **changes)


def test_occupancy_iou_equals_that_of_python_sets():
    generator = torch.Generator().manual_seed(0)
    first = torch.rand(6, 5, 4, generator=generator) < 0.3
    second = torch.rand(6, 5, 4, generator=generator) < 0.4
    a = {tuple(i) for i in first.nonzero().tolist()}
    b = {tuple(i) for i in second.nonzero().tolist()}
    assert occupancy_iou(first, second) == len(a & b) / len(a | b)


def test_occupancy_iou_of_two_empty_masks_is_one_and_of_one_empty_mask_zero():
    empty, full = torch.zeros(2, 2, 2, dtype=torch.bool), torch.ones(2, 2, 2, dtype=torch.bool)
    assert occupancy_iou(empty, empty) == 1.0
    assert occupancy_iou(empty, full) == 0.0


def test_masks_of_different_grids_are_refused():
    with pytest.raises(ValueError, match=r"\[2, 2, 2\].*\[2, 2, 3\]"):
        occupancy_iou(torch.zeros(2, 2, 2), torch.zeros(2, 2, 3))


def test_an_iou_of_exactly_the_threshold_is_a_miss():
    summary = summarise(
        [record(iou=0.25), record(query=1, iou=0.5), record(query=2, iou=0.5000001)], draws=10
    )
    assert summary["overall"]["acc25"] == pytest.approx(2 / 3)  # type: ignore[index]
    assert summary["overall"]["acc50"] == pytest.approx(1 / 3)  # type: ignore[index]


def test_box_iou_of_one_pair_equals_polygon_clipping():
    a = torch.tensor([[1.0, 2.0, 0.5, 4.0, 2.0, 1.5, 0.3]])
    b = torch.tensor([[1.5, 1.8, 0.7, 4.2, 1.8, 1.6, -0.2]])

    def footprint(row):
        x, y, _, dx, dy, _, yaw = row.tolist()
        return rotate(rectangle(x - dx / 2, y - dy / 2, x + dx / 2, y + dy / 2), yaw, use_radians=True)

    height = min(1.25, 1.5) - max(-0.25, -0.1)
    shared = footprint(a[0]).intersection(footprint(b[0])).area * height
    expected = shared / (4 * 2 * 1.5 + 4.2 * 1.8 * 1.6 - shared)
    assert matched_box_iou(a, b) == pytest.approx(expected, abs=1e-5)


def test_box_matching_takes_the_best_assignment_and_charges_superfluous_boxes():
    one = torch.tensor([[0.0, 0, 0, 2, 2, 2, 0]])
    two = torch.tensor([[0.0, 0, 0, 2, 2, 2, 0], [10.0, 0, 0, 2, 2, 2, 0]])
    assert matched_box_iou(two, two.flip(0)) == pytest.approx(1.0)
    assert matched_box_iou(two, one) == pytest.approx(0.5)
    assert matched_box_iou(one, two) == pytest.approx(0.5)
    assert matched_box_iou(one[:0], two) == 0.0
    assert matched_box_iou(one[:0], one[:0]) == 1.0


@pytest.mark.parametrize(
    ("hits", "total", "printed"),
    [
        *[(k, 91, p) for k, p in ((1, 1.09), (2, 2.19), (3, 3.29), (4, 4.39), (5, 5.49), (7, 7.69))],
        *[(k, 91, p) for k, p in ((14, 15.38), (18, 19.78))],
        *[(k, 885, p) for k, p in ((199, 22.48), (253, 28.58), (301, 34.01), (84, 9.49), (68, 7.68))],
        *[(k, 976, p) for k, p in ((267, 27.35), (319, 32.68), (88, 9.01))],
    ],
)
def test_table_2_prints_whole_hits_truncated_to_two_decimals(hits, total, printed):
    assert truncated_percent(hits, total) == printed


def test_table_2_truncates_where_rounding_would_differ():
    assert round(100 * 253 / 885, 2) == 28.59
    assert truncated_percent(253, 885) == 28.58


@pytest.mark.parametrize(
    ("unique", "multiple", "printed", "sum_gives"), [(4, 68, 7.47, 7.37), (2, 23, 2.46, 2.56)]
)
def test_two_overall_cells_of_table_2_are_not_the_sum_of_their_parts(unique, multiple, printed, sum_gives):
    assert truncated_percent(unique + multiple, 976) == sum_gives != printed


def test_the_other_overall_cells_of_table_2_are_the_sum_of_their_parts():
    assert truncated_percent(14 + 253, 976) == 27.35
    assert truncated_percent(18 + 301, 976) == 32.68
    assert truncated_percent(4 + 84, 976) == 9.01


def test_a_table_2_row_comes_out_of_records():
    hits = [True] * 14 + [False] * 77 + [True] * 253 + [False] * 632
    records = [record(str(i % 75), i, iou=0.3 if hit else 0.1, unique=i < 91) for i, hit in enumerate(hits)]
    summary = json.loads(json.dumps(summarise(records, draws=200)))
    cells = [
        truncated_percent(summary[g]["acc25_hits"], summary[g]["n"])
        for g in ("unique", "multiple", "overall")
    ]
    assert cells == [15.38, 28.58, 27.35]
    assert summary["overall"]["n"] == 976
    low, high = summary["unique"]["acc25_interval"]
    assert low < 14 / 91 < high


@pytest.mark.parametrize(("hits", "total"), [(0, 91), (14, 91), (91, 91), (253, 885)])
def test_wilson_interval_equals_scipy(hits, total):
    expected = binomtest(hits, total).proportion_ci(method="wilson")
    assert wilson_interval(hits, total) == pytest.approx([expected.low, expected.high], abs=1e-12)


def test_bootstrap_over_scenes_equals_a_naive_resampling_loop():
    generator = np.random.default_rng(3)
    scenes = [f"s{i}" for i in generator.integers(0, 12, size=80)]
    values = generator.random((80, 1)) + np.array([[int(s[1:]) * 0.1] for s in scenes])
    names = sorted(set(scenes))
    means = []
    for _ in range(4000):
        drawn = [
            v
            for name in generator.choice(names, len(names))
            for v, s in zip(values, scenes, strict=True)
            if s == name
        ]
        means.append(np.mean(drawn))
    expected = np.percentile(means, [2.5, 97.5])
    assert bootstrap_intervals(values, scenes, draws=20000)[0] == pytest.approx(expected, abs=0.02)


def test_intervals_are_wider_when_sentences_of_a_scene_agree():
    together = np.repeat(np.arange(20) % 2, 10).astype(float)[:, None]
    scenes = [str(i) for i in np.repeat(np.arange(20), 10)]
    low, high = bootstrap_intervals(together, scenes)[0]
    low_alone, high_alone = bootstrap_intervals(together, [str(i) for i in range(200)])[0]
    assert high - low > 2 * (high_alone - low_alone)


def test_same_seed_gives_the_same_summary():
    records = [record(str(i % 7), i, iou=(i * 37 % 100) / 100) for i in range(60)]
    assert summarise(records, seed=1) == summarise(records, seed=1)
    assert summarise(records, seed=1) != summarise(records, seed=2)


def test_paired_difference_sees_a_gain_that_unpaired_intervals_hide():
    generator = np.random.default_rng(0)
    base = generator.random(200) * 0.8
    first = [record(str(i // 10), i, iou=float(v)) for i, v in enumerate(base)]
    second = [dataclasses.replace(r, iou=r.iou + 0.02) for r in first]
    result = paired_difference(first, second[::-1], lambda r: r.iou)
    assert result["difference"] == pytest.approx(0.02)
    assert result["interval"] == pytest.approx([0.02, 0.02])
    overlap = summarise(first)["overall"]["miou_interval"], summarise(second)["overall"]["miou_interval"]  # type: ignore[index]
    assert overlap[0][1] > overlap[1][0]


def test_paired_difference_refuses_different_queries():
    with pytest.raises(ValueError, match="1 in one list only"):
        paired_difference([record()], [record(), record(query=1)], lambda r: r.iou)


def test_macro_mean_weighs_classes_alike():
    records = [record("a", i, iou=1.0) for i in range(9)] + [record("b", 9, iou=0.0, label="bus")]
    summary = summarise(records, draws=10)
    assert summary["macro_acc25"] == 0.5
    assert summary["overall"]["acc25"] == 0.9  # type: ignore[index]
    assert set(summary["per_class"]) == {"car", "bus"}  # type: ignore[arg-type]


def test_distance_bins_hold_their_lower_edge():
    assert [distance_name(d) for d in (0.0, 9.99, 10.0, 29.0, 30.0, 80.0)] == [
        "0-10",
        "0-10",
        "10-20",
        "20-30",
        "30+",
        "30+",
    ]
    with pytest.raises(ValueError, match="nan"):
        distance_name(math.nan)


def test_no_target_queries_count_as_rejections_and_not_as_accuracy():
    none = dict(num_true=0, distance=math.nan, kind="none")
    records = [
        record("a", 0, iou=1.0, num_predicted=0, near_miss=True, **none),
        record("a", 1, iou=0.0, num_predicted=1, near_miss=True, **none),
        record("a", 2, iou=1.0, num_predicted=0, **none),
        record("a", 3, iou=0.9),
        record("a", 4, iou=0.0, num_predicted=0),
    ]
    summary = summarise(records, draws=10)
    told = summary["no_target"]
    assert isinstance(told, dict)
    assert told["n"] == 3
    assert told["rejected"] == told["recall"] == pytest.approx(2 / 3)
    assert told["false_rejected"] == 0.5
    assert told["precision"] == pytest.approx(2 / 3)
    assert told["near_miss_rejected"] == 0.5
    assert summary["overall"]["n"] == 2  # type: ignore[index]


def test_a_summary_without_records_is_still_json():
    summary = json.loads(json.dumps(summarise([], draws=10), allow_nan=False))
    assert summary["overall"]["n"] == 0
    assert summary["overall"]["acc25"] is None
    assert summary["macro_acc25"] is None


def test_calibration_error_vanishes_for_calibrated_scores_and_is_the_gap_for_constant_ones():
    generator = np.random.default_rng(0)
    scores = generator.random(100_000)
    assert calibration(scores.tolist(), (generator.random(100_000) < scores).tolist())["ece"] < 0.01  # type: ignore[operator]
    sure = calibration([0.9] * 10, [True] * 5 + [False] * 5)
    assert sure["ece"] == pytest.approx(0.4)
    assert sure["bins"] == [{"low": 0.9, "high": 1.0, "n": 10, "score": pytest.approx(0.9), "accuracy": 0.5}]
    with pytest.raises(ValueError, match="expected"):
        calibration([1.5], [True])
