"""Relations between two objects, for all pairs of a scene at once, each with a margin.

`sure[i, j]` and `possible[i, j]` say whether object i stands in the relation to anchor j. `behind_it`,
`in_front_of`, `left_of` and `right_of` have two readings for an anchor with a front of its own, the
viewer's and the anchor's: they are sure only where both agree. `beyond_it` and `nearer_than` are the
viewer's alone. Frame: ego, metres.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from vlm_occ.data.simulator.predicates import Flags, Geometry

RELATIONS = (
    "next_to", "near", "behind_it", "in_front_of", "beyond_it", "nearer_than", "left_of", "right_of",
)  # fmt: skip
Floats = NDArray[np.float64]


def footprint_gaps(geometry: Geometry) -> Floats:
    """Distances [M, M] in metres between the footprints of all pairs of objects, 0 where they overlap.

    Two disjoint rectangles are nearest at a corner of one of them: corners to rectangles both ways is exact.
    """
    half = geometry.size[:, :2] / 2  # [M, 2]
    signs = np.array([[1, 1], [1, -1], [-1, -1], [-1, 1]], dtype=np.float64)
    across = np.stack([-geometry.heading[:, 1], geometry.heading[:, 0]], -1)  # [M, 2]
    axes = np.stack([geometry.heading, across], 1)  # [M, axis, 2]
    corners = geometry.position[:, None] + np.einsum("ck,mk,mkd->mcd", signs, half, axes)  # [M, 4, 2]
    offset = corners[:, None] - geometry.position[None, :, None]  # [M, anchor, 4, 2]
    local = np.einsum("ijcd,jkd->ijck", offset, axes)  # [M, M, 4, 2]
    outside = np.maximum(np.abs(local) - half[None, :, None], 0.0)
    gap = np.hypot(outside[..., 0], outside[..., 1]).min(-1)  # [M, M]
    return np.minimum(gap, gap.T)


def _along(offset: Floats, axis: Floats) -> tuple[Floats, Floats]:
    """Components of offsets [M, M, 2] along and to the left of the anchors' axes [M, 2]."""
    ahead = (offset * axis[None]).sum(-1)
    left = axis[None, :, 0] * offset[..., 1] - axis[None, :, 1] * offset[..., 0]
    return ahead, left


def _in_direction(forward: Floats, lateral: Floats, gap: Floats) -> tuple[Flags, Flags]:
    """Whether an object lies in a direction of its anchor: within 34 degrees and 8 m of gap for sure."""
    off = np.abs(lateral)
    sure = (forward >= 1.5) & (off <= 0.67 * forward) & (gap <= 8.0)
    return sure, (forward > 0.5) & (off < 2.0 * forward) & (gap < 14.0)


def relation_tables(geometry: Geometry, has_front: Flags, gap: Floats) -> dict[str, tuple[Flags, Flags]]:
    """`sure` and `possible` [M, M] of every relation but `between`."""
    offset = geometry.position[:, None] - geometry.position[None]  # [M, M, 2], from anchor j to object i
    ray = geometry.position / np.maximum(geometry.distance, 1e-6)[:, None]
    far, left = _along(offset, ray)
    ahead, own_left = _along(offset, geometry.heading)
    headed = has_front[None]
    tables = {"next_to": (gap <= 2.5, gap < 5.0), "near": (gap <= 6.0, gap < 10.0)}
    tables["beyond_it"] = _in_direction(far, left, gap)
    tables["nearer_than"] = _in_direction(-far, left, gap)
    readings = {
        "behind_it": ((far, left), (-ahead, own_left)),
        "in_front_of": ((-far, left), (ahead, own_left)),
        "left_of": ((left, far), (own_left, ahead)),
        "right_of": ((-left, far), (-own_left, ahead)),
    }
    for name, ((forward, lateral), (own_forward, own_lateral)) in readings.items():
        sure, possible = _in_direction(forward, lateral, gap)
        own_sure, own_possible = _in_direction(own_forward, own_lateral, gap)
        tables[name] = (sure & (own_sure | ~headed), possible | (own_possible & headed))
    other = ~np.eye(len(gap), dtype=bool)
    return {name: (sure & other, possible & other) for name, (sure, possible) in tables.items()}


def between(geometry: Geometry, first: int, second: int) -> tuple[Flags, Flags]:
    """Which objects [M] lie between two others: near the segment that joins their centres."""
    start, end = geometry.position[first], geometry.position[second]
    length = float(np.hypot(*(end - start)))
    axis = (end - start) / max(length, 1e-6)
    offset = geometry.position - start
    share = offset @ axis / max(length, 1e-6)  # [M]
    lateral = np.abs(axis[0] * offset[:, 1] - axis[1] * offset[:, 0])
    sure = (share >= 0.2) & (share <= 0.8) & (lateral <= min(1.5, 0.25 * length)) & (3.0 <= length <= 20.0)
    possible = (share > 0.0) & (share < 1.0) & (lateral < 3.5) & (length < 30.0)
    other = ~np.isin(np.arange(len(share)), (first, second))
    return sure & other, possible & other
