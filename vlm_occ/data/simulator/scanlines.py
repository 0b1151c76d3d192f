"""Exact nearest hits of many rays with many solids, without a loop over either.

Intervals are found per pair of a solid and a line (`spans`), so only true hits become pairs of a ray and a
solid; these are made in chunks and reduced by the largest w = 1 / t.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from vlm_occ.data.simulator.objects import Solids
from vlm_occ.data.simulator.spans import Candidates, Scanlines, Spans, find_spans


@dataclass(frozen=True)
class Hits:
    """Nearest hits of rays in lines, and the parts of lines that each solid would cover if it were alone."""

    inverse: Tensor  # float32 [L, S]: 1 / t, 0 where nothing is hit
    solid: Tensor  # long [L, S], -1 where nothing is hit
    face: Tensor  # long [L, S]: 2 * axis + side, or CURVED
    span_line: Tensor  # long [R]
    span_solid: Tensor  # long [R]
    span_range: Tensor  # long [R, 2]: first sample, one past the last


def cast(solids: Solids, lines: Scanlines, candidates: Candidates, *, chunk: int | None = None) -> Hits:
    """Nearest hit of every ray; a solid that holds the origin of a ray is not seen by it.

    `chunk` bounds the pairs of a ray and a solid in memory at once; by default what suits the device.
    """
    if chunk is None:
        chunk = 1 << (17 if lines.base.device.type == "cpu" else 23)
    groups = find_spans(solids, lines, candidates)
    num_lines, num_samples = len(lines.base), len(lines.position)
    nearest = torch.zeros(num_lines * num_samples, dtype=torch.long, device=lines.base.device)
    offset = 0
    for spans in groups:
        for part in _slices(spans.count, chunk):
            _rasterise(spans, part, lines.position.double(), nearest, offset)
        offset += len(spans.line)
    span_solid, start, count, face, line = (
        torch.cat([getattr(spans, name) for spans in groups])
        for name in ("solid", "start", "count", "face", "line")
    )
    found = nearest >= 1 << 32
    index = nearest & 0xFFFFFFFF
    absent = torch.full_like(span_solid[:1], -1) if len(span_solid) else span_solid.new_full((1,), -1)
    # Row 0 stands for "nothing", so that one gather serves all rays.
    solid = torch.cat([absent, span_solid])[torch.where(found, index + 1, 0)]
    code = torch.cat([absent, face])[torch.where(found, index + 1, 0)]
    inverse = (nearest >> 32).int().view(torch.float32)
    shape = (num_lines, num_samples)
    extent = torch.stack([start, start + count], dim=-1)
    return Hits(inverse.view(shape), solid.view(shape), code.view(shape), line, span_solid, extent)


def _slices(count: Tensor, chunk: int) -> list[slice]:
    """Slices of spans whose counts [R] add up to about `chunk` (one long span may exceed it)."""
    if len(count) == 0:
        return []
    total = torch.cumsum(count, 0)
    steps = torch.arange(chunk, int(total[-1]) + chunk, chunk, device=count.device)
    edges = [0, *torch.searchsorted(total, steps, right=True).tolist()]
    edges[-1] = len(count)
    return [slice(low, high) for low, high in pairwise(edges) if low < high]


def _rasterise(spans: Spans, part: slice, position: Tensor, nearest: Tensor, offset: int) -> None:
    """Put a slice of spans into `nearest` [L * S]: w above the span's number, the largest wins."""
    count = spans.count[part]
    row = torch.repeat_interleave(count)  # [N]: the span of each pair
    first = torch.cumsum(count, 0) - count
    sample = torch.arange(len(row), device=row.device) + (spans.start[part] - first)[row]
    delta = (position[sample] - spans.middle[part][row]).float()
    w = _gather(spans.linear[part], row, delta)
    if spans.root is not None and spans.along is not None:
        along = spans.along[part]
        w = w + _gather(spans.root[part], row, delta).clamp(min=0).sqrt()
        height = (along[:, 0][row] * w + _gather(along[:, 1:], row, delta)).abs()
        w = torch.where(height <= w, w, 0)
    key = (w.clamp(min=0).view(torch.int32).long() << 32) | (row + (offset + part.start))
    index = (spans.line[part] * len(position))[row] + sample
    nearest.scatter_reduce_(0, index, key, "amax")


def _gather(coefficients: Tensor, row: Tensor, delta: Tensor) -> Tensor:
    """Polynomials [N] in `delta` with the coefficients [R, 2 or 3] of each pair's span."""
    value = coefficients[:, -1].contiguous()[row]
    for power in range(coefficients.shape[1] - 2, -1, -1):
        value = value * delta + coefficients[:, power].contiguous()[row]
    return value


def covered_samples(hits: Hits, group: Tensor, *, num_groups: int) -> Tensor:
    """How many rays would meet each group of solids alone, [num_groups]; `group` [P], -1 for none.

    The union of the spans of a group on each line: sorted by start, each adds what lies beyond the
    farthest end so far.
    """
    member = group[hits.span_solid]
    keep = member >= 0
    member, line, extent = member[keep], hits.span_line[keep], hits.span_range[keep]
    num_lines, num_samples = hits.inverse.shape
    stride = num_samples + 1
    key = member * num_lines + line
    order = torch.argsort(key * stride + extent[:, 0])
    key, member, extent = key[order], member[order], extent[order]
    end = torch.cummax(key * stride + extent[:, 1], dim=0).values - key * stride
    before = torch.cat([end.new_zeros(1), end[:-1]])
    same = torch.cat([key.new_zeros(1, dtype=torch.bool), key[1:] == key[:-1]])
    start = torch.where(same, torch.maximum(extent[:, 0], before), extent[:, 0])
    added = (extent[:, 1] - start).clamp(min=0)
    return torch.zeros(num_groups, dtype=torch.long, device=added.device).scatter_add_(0, member, added)
