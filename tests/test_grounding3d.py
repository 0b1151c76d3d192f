"""Grounding queries to boxes: frames of the map, iterative references, pooling, and a box that is learnt."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from vlm_occ.encoders.voxel_queries import DeformableAttention
from vlm_occ.heads.grounding3d import MEAN_SIZE, BoxDecoder, BoxProposals, QueryStarts, birds_eye
from vlm_occ.losses.geometric import box_terms
from vlm_occ.types import VoxelGrid

GRID = VoxelGrid(origin=(-8.0, -8.0, -1.0), shape=(40, 40, 8))


def _decoder(*, layers: int = 2, queries: int = 4, seed: int = 0, known: int = 0) -> BoxDecoder:
    torch.manual_seed(seed)
    attentions = [DeformableAttention(16, heads=2, levels=1, points=2) for _ in range(layers)]
    return BoxDecoder(16, (5,), attentions, queries=queries, heads=2, hidden=16, known=known, grid=GRID)


def _run(decoder: BoxDecoder, maps: Tensor, words: Tensor, starts: QueryStarts | None = None) -> BoxProposals:
    mask = torch.ones(words.shape[:2], dtype=torch.bool)
    content, position = decoder.start(words, mask, starts)
    return decoder(content, position, [maps], words, mask, starts)


def test_the_birds_eye_view_is_the_mean_over_height() -> None:
    torch.manual_seed(0)
    features = torch.randn(2, 3 * 4 * 5, 6)
    dense = features.transpose(1, 2).reshape(2, 6, 3, 4, 5)
    torch.testing.assert_close(birds_eye(features, torch.arange(60), (3, 4, 5)), dense.mean(-1))
    some = torch.tensor([0, 7, 8, 59])
    sparse = torch.zeros_like(dense).flatten(2).index_copy(2, some, features[:, some].transpose(1, 2))
    expected = sparse.reshape(dense.shape).mean(-1)
    torch.testing.assert_close(birds_eye(features[:, some], some, (3, 4, 5)), expected)


def test_fresh_queries_answer_mean_boxes_on_a_regular_grid() -> None:
    out = _run(_decoder(), torch.randn(1, 5, 40, 40), torch.randn(1, 3, 16))
    expected = torch.tensor([[-4.0, -4.0], [-4.0, 4.0], [4.0, -4.0], [4.0, 4.0]])
    for boxes in out.boxes:
        torch.testing.assert_close(boxes[0, :, :2], expected)
        torch.testing.assert_close(boxes[0, :, 3:6], torch.tensor(MEAN_SIZE).expand(4, 3))
        torch.testing.assert_close(boxes[0, :, 6], torch.zeros(4))


def test_fresh_queries_at_candidates_answer_their_boxes_and_absent_ones_never_win() -> None:
    torch.manual_seed(1)
    boxes = torch.cat(
        [6 * torch.randn(4, 2), torch.rand(4, 1), 1 + torch.rand(4, 3), torch.randn(4, 1)], dim=1
    )
    known = torch.rand(4, 7)
    known[2:, -1] = 0
    decoder, maps, words = _decoder(known=7), torch.randn(3, 5, 40, 40), torch.randn(3, 5, 16)
    out = _run(decoder, maps, words, QueryStarts(boxes, known))
    for found, logits in zip(out.boxes, out.class_logits, strict=True):
        torch.testing.assert_close(found, boxes.expand(3, -1, -1))
        assert (logits[:, 2:] < logits[:, :2].amin() - 5).all()
    assert (out.best()[0][:, None] == boxes[:2]).all(-1).any(-1).all()
    none = _run(decoder, maps, words, QueryStarts(0 * boxes, 0 * known))
    assert all(part.isfinite().all() for part in (*none.boxes, *none.class_logits))


def test_queries_look_at_the_map_where_their_box_is() -> None:
    # x is a map's row, y its column: a query sees a bump only in its own corner.
    decoder = _decoder(layers=1)
    words = torch.randn(1, 3, 16)
    attend = decoder.attentions[0]
    assert isinstance(attend, DeformableAttention)
    torch.nn.init.zeros_(attend.offsets.bias)
    maps = torch.zeros(1, 5, 40, 40)
    plain = _run(decoder, maps, words).class_logits[0][0]
    maps[:, :, 28:32, 8:12] = 3.0  # x in 3.2 to 4.8 m, y in -4.8 to -3.2 m: around the query at (4, -4)
    layer = decoder.layers[0]
    seen: list[Tensor] = []
    attend.register_forward_hook(lambda m, i, o: seen.append(o))  # type: ignore[arg-type]
    _run(decoder, torch.zeros_like(maps), words)
    bumped = _run(decoder, maps, words).class_logits[0][0]
    assert layer is not None and plain.shape == bumped.shape
    moved = (seen[1] - seen[0]).abs().amax(-1)[0] > 1e-5
    assert moved.tolist() == [False, False, True, False]


def test_each_layer_starts_from_the_box_before() -> None:
    decoder = _decoder()
    with torch.no_grad():
        for box in decoder.box:
            box[2].bias[:2] += torch.tensor([1.0, -0.5])  # type: ignore[index]
    out = _run(decoder, torch.randn(1, 5, 40, 40), torch.randn(1, 3, 16))
    torch.testing.assert_close(out.boxes[1][..., 0], out.boxes[0][..., 0] + 1.0)
    torch.testing.assert_close(out.boxes[1][..., 1], out.boxes[0][..., 1] - 0.5)


def test_the_surest_query_of_the_last_layer_answers() -> None:
    boxes = torch.randn(2, 3, 7)
    logits = torch.full((2, 3, 15), -5.0)
    logits[0, 2, 4], logits[1, 0, 1] = 2.0, 0.0
    wrong = torch.full_like(logits, 9.0)
    box, label, score = BoxProposals((boxes * 0, boxes), (wrong, logits)).best()
    assert torch.equal(box, torch.stack([boxes[0, 2], boxes[1, 0]])) and label.tolist() == [4, 1]
    torch.testing.assert_close(score, torch.tensor([2.0, 0.0]).sigmoid())


def test_the_number_of_queries_is_a_square() -> None:
    with pytest.raises(ValueError, match="8 grounding queries"):
        _decoder(queries=8)


def test_the_head_learns_where_the_sentence_points() -> None:
    # Two bumps on the map; one word says which of them is meant.
    decoder = _decoder(queries=9)
    targets = torch.tensor([[4.0, -4.0, 0.5, 4.0, 2.0, 1.5, 0.5], [-4.0, 4.0, 0.5, 1.0, 1.0, 1.8, 0.0]])
    maps = torch.zeros(1, 5, 40, 40)
    maps[0, 0, 28:32, 8:12], maps[0, 1, 8:12, 28:32] = 2.0, 2.0
    maps = maps.expand(2, -1, -1, -1)
    words = torch.randn(2, 1, 16)
    optimizer = torch.optim.Adam(decoder.parameters(), lr=0.01)
    for _ in range(60):
        out = _run(decoder, maps, words)
        layers = list(zip(out.boxes, out.class_logits, strict=True))
        terms = box_terms(layers, list(targets[:, None]), [torch.tensor([0]), torch.tensor([1])])
        optimizer.zero_grad()
        sum(t.total for t in terms.values()).backward()  # type: ignore[union-attr]
        optimizer.step()
    box, label, score = _run(decoder, maps, words).best()
    assert (box[:, :2] - targets[:, :2]).norm(dim=-1).max() < 0.8
    assert label.tolist() == [0, 1] and (score > 0.3).all()
    dead = [n for n, p in decoder.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert not dead
