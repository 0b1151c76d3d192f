"""Splice: features over placeholder tokens of an embedding layer."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from vlm_occ.language.splice import Placeholder, Splice

VOXEL, POSE, WIDTH = 7, 8, 4
PLACEHOLDERS = {
    VOXEL: Placeholder("<|voxel|>", "voxel feature"),
    POSE: Placeholder("<|pose|>", "pose feature"),
}


@pytest.fixture
def embeddings() -> nn.Embedding:
    torch.manual_seed(0)
    return nn.Embedding(10, WIDTH)


def test_features_stand_over_placeholders_in_order_and_words_stay(embeddings: nn.Embedding) -> None:
    splice = Splice(embeddings, PLACEHOLDERS)
    ids = torch.tensor([[VOXEL, 1, VOXEL, POSE], [2, VOXEL, 3, 4]])
    voxels, poses = torch.randn(3, WIDTH), torch.randn(1, WIDTH)
    with splice.features({VOXEL: voxels, POSE: poses}):
        output = embeddings(ids)
    rows = iter(voxels)
    for b in range(2):
        for place in range(4):
            index = int(ids[b, place])
            expected = (
                next(rows) if index == VOXEL else poses[0] if index == POSE else embeddings.weight[index]
            )
            assert torch.equal(output[b, place], expected)


def test_gradients_reach_the_features(embeddings: nn.Embedding) -> None:
    splice = Splice(embeddings.requires_grad_(False), PLACEHOLDERS)
    voxels = torch.randn(2, WIDTH, requires_grad=True)
    weights = torch.randn(1, 3, WIDTH)
    with splice.features({VOXEL: voxels}):
        (embeddings(torch.tensor([[VOXEL, 5, VOXEL]])) * weights).sum().backward()
    assert voxels.grad is not None and torch.equal(voxels.grad, weights[0, [0, 2]])


def test_features_take_the_type_of_the_embeddings(embeddings: nn.Embedding) -> None:
    splice = Splice(embeddings.bfloat16(), PLACEHOLDERS)
    with splice.features({VOXEL: torch.randn(1, WIDTH)}):
        assert embeddings(torch.tensor([[VOXEL]])).dtype == torch.bfloat16


def test_outside_of_the_context_nothing_is_replaced(embeddings: nn.Embedding) -> None:
    splice = Splice(embeddings, PLACEHOLDERS)
    with splice.features({VOXEL: torch.randn(1, WIDTH)}):
        embeddings(torch.tensor([[VOXEL]]))
    assert torch.equal(embeddings(torch.tensor([[VOXEL]]))[0, 0], embeddings.weight[VOXEL])


@pytest.mark.parametrize(("found", "given"), [(12, 16), (3, 2), (2, 0), (0, 1)])
def test_a_wrong_count_names_token_counts_and_cause(embeddings: nn.Embedding, found: int, given: int) -> None:
    splice = Splice(embeddings, PLACEHOLDERS)
    ids = torch.tensor([[VOXEL] * found + [1]])
    expected = rf"{found} <\|voxel\|> placeholders but {given} voxel features; was the prompt truncated"
    with pytest.raises(ValueError, match=expected), splice.features({VOXEL: torch.randn(given, WIDTH)}):
        embeddings(ids)


def test_placeholders_without_any_features_are_an_error(embeddings: nn.Embedding) -> None:
    splice = Splice(embeddings, PLACEHOLDERS)
    with (
        pytest.raises(ValueError, match=r"1 <\|pose\|> placeholders but 0 pose features"),
        splice.features({}),
    ):
        embeddings(torch.tensor([[POSE]]))


def test_features_of_another_width_are_an_error(embeddings: nn.Embedding) -> None:
    splice = Splice(embeddings, PLACEHOLDERS)
    wide = {VOXEL: torch.randn(1, 5)}
    with pytest.raises(ValueError, match="5 channels, the language model has 4"), splice.features(wide):
        embeddings(torch.tensor([[VOXEL]]))


def test_a_hook_that_is_never_called_is_an_error_and_not_silence(embeddings: nn.Embedding) -> None:
    splice = Splice(embeddings, PLACEHOLDERS)
    with pytest.raises(RuntimeError, match="after peft"), splice.features({VOXEL: torch.randn(1, WIDTH)}):
        nn.functional.embedding(torch.tensor([[VOXEL]]), embeddings.weight)  # as peft's wrapper does


def test_a_failed_forward_leaves_the_splice_usable(embeddings: nn.Embedding) -> None:
    splice = Splice(embeddings, PLACEHOLDERS)
    with pytest.raises(ValueError, match="placeholders"), splice.features({}):
        embeddings(torch.tensor([[VOXEL]]))
    row = torch.randn(1, WIDTH)
    with splice.features({VOXEL: row}):
        assert torch.equal(embeddings(torch.tensor([[VOXEL]]))[0], row)
