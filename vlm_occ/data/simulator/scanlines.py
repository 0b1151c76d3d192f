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
    solid: Tensor  # int32 [L, S], -1 where nothing is hit
    face: Tensor  # int32 [L, S]: 2 * axis + side, or CURVED
    span_line: Tensor  # int32 [R]
    span_solid: Tensor  # int32 [R]
    span_range: Tensor  # int32 [R, 2]: first sample, one past the last


def cast(solids: Solids, lines: Scanlines, candidates: Candidates, *, chunk: int | None = None) -> Hits:
    """Nearest hit of every ray; a solid that holds the origin of a ray is not seen by it.

    `chunk` bounds the pairs of a ray and a solid in memory at once; by default what suits the device.
    """
    if chunk is None:
        chunk = 1 << (17 if lines.base.device.type == "cpu" else 23)
    groups = find_spans(solids, lines, candidates)
    shape = (len(lines.base), len(lines.position))
    nearest = torch.zeros(shape[0] * shape[1], dtype=torch.long, device=lines.base.device)
    offset = 1  # number 0 stands for no hit
    for spans in groups:
        for part in _slices(spans.count, chunk):
            _rasterise(spans, part, lines.position, nearest, offset)
        offset += len(spans.line)
    span_solid, start, count, face, line = (
        torch.cat([getattr(spans, name) for spans in groups])
        for name in ("solid", "start", "count", "face", "line")
    )
    halves = nearest.view(torch.int32).view(-1, 2)  # little-endian: number, bits of w
    number, inverse = halves[:, 0].contiguous(), halves[:, 1].contiguous().view(torch.float32)
    absent = span_solid.new_full((1,), -1)
    solid, code = (torch.cat([absent, value]).index_select(0, number) for value in (span_solid, face))
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
    """Put a slice of spans into `nearest` [L * S]: w above the span's number, the largest wins.

    Indices are int32 and gathered by index_select, which is several times faster on a CPU.
    """
    count, start = spans.count[part], spans.start[part]
    row = torch.repeat_interleave(count)  # int32 [N]: the span of each pair
    first = (torch.cumsum(count, 0) - count).int()
    sample = torch.arange(len(row), device=row.device, dtype=torch.int32)
    sample = sample + (start - first).index_select(0, row)
    delta = position.index_select(0, sample) - position.index_select(0, start).index_select(0, row)
    w = _polynomial(spans.linear[:, part], row, delta)
    index = (spans.line[part] * len(position)).index_select(0, row) + sample
    key = row + (offset + part.start)
    if spans.root is not None and spans.along is not None:
        along = spans.along[:, part]
        w = w + _polynomial(spans.root[:, part], row, delta).clamp(min=0).sqrt()
        height = along[0].index_select(0, row) * w + _polynomial(along[1:], row, delta)
        off = (height.abs() > w) | (w <= 0)
        w, key = w.masked_fill(off, 0), key.masked_fill(off, 0)
    key = w.clamp(min=0).view(torch.int32).long().bitwise_left_shift_(32).bitwise_or_(key)
    nearest.scatter_reduce_(0, index.long(), key, "amax")


def _polynomial(coefficients: Tensor, row: Tensor, delta: Tensor) -> Tensor:
    """Polynomials [N] in `delta` with the coefficients [2 or 3, R] of each pair's span."""
    value = coefficients[-1].index_select(0, row)
    for lower in coefficients[:-1].flip(0):
        value = torch.addcmul(lower.index_select(0, row), value, delta)
    return value


def covered_samples(hits: Hits, group: Tensor, *, num_groups: int) -> Tensor:
    """How many rays would meet each group of solids alone, [num_groups]; `group` [P], -1 for none.

    The union of the spans of a group on each line: sorted by start, each adds what lies beyond the
    farthest end so far.
    """
    member = group[hits.span_solid.long()]
    keep = member >= 0
    member, line, extent = member[keep], hits.span_line[keep].long(), hits.span_range[keep].long()
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
