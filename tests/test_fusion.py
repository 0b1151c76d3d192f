"""Words meet voxel tokens: against torch's own attention, and symmetries that the decoder must have."""

from __future__ import annotations

import torch
from torch import nn

from vlm_occ.heads.fusion import FusionDecoder, FusionLayer, QueryStates, pair_features


def a_query(count: int, length: int, *, seed: int = 0) -> QueryStates:
    bits = torch.Generator().manual_seed(seed)
    words = torch.randn(count, length, 12, generator=bits)
    return QueryStates(torch.randn(count, 6, generator=bits), words, torch.ones(count, length).bool())


def some_tokens(count: int, *, seed: int = 1) -> tuple[torch.Tensor, torch.Tensor]:
    bits = torch.Generator().manual_seed(seed)
    return torch.randn(count, 16, generator=bits), 20 * torch.randn(count, 7, generator=bits)


def a_decoder(layers: int = 2) -> FusionDecoder:
    torch.manual_seed(3)
    return FusionDecoder(12, 16, layers=layers, heads=4).eval()


def test_a_layer_is_torch_attention_over_words_then_over_tokens_with_a_bias() -> None:
    torch.manual_seed(0)
    layer = FusionLayer(16, 4)
    x, words, bias = torch.randn(2, 5, 16), torch.randn(2, 3, 16), torch.randn(4, 5, 5)
    hidden = torch.tensor([[False, False, False], [False, False, True]])
    cross = nn.MultiheadAttention(16, 4, batch_first=True)
    own = nn.MultiheadAttention(16, 4, batch_first=True)
    with torch.no_grad():
        cross.in_proj_weight.copy_(torch.cat([layer.to_words.weight, layer.words.weight]))
        cross.in_proj_bias.copy_(torch.cat([layer.to_words.bias, layer.words.bias]))
        own.in_proj_weight.copy_(layer.tokens.weight)
        own.in_proj_bias.copy_(layer.tokens.bias)
        for theirs, ours in ((cross, layer.from_words), (own, layer.from_tokens)):
            theirs.out_proj.load_state_dict(ours.state_dict())
        expected = x + cross(layer.norms[0](x), words, words, key_padding_mask=hidden)[0]
        y = layer.norms[1](expected)
        expected = expected + own(y, y, y, attn_mask=bias.repeat(2, 1, 1))[0]
        expected = expected + layer.mlp(layer.norms[2](expected))
        torch.testing.assert_close(layer(x, words, hidden, bias), expected, atol=1e-5, rtol=1e-5)


def test_tokens_in_another_order_give_the_same_states_in_that_order() -> None:
    decoder, query = a_decoder(), a_query(3, 4)
    tokens, boxes = some_tokens(7)
    order = torch.tensor([4, 0, 6, 2, 1, 5, 3])
    straight, turned = decoder(tokens, boxes, query), decoder(tokens[order], boxes[order], query)
    torch.testing.assert_close(turned, straight[:, order], atol=1e-5, rtol=1e-5)


def test_a_query_alone_and_padded_beside_others_is_the_same() -> None:
    decoder, query = a_decoder(), a_query(3, 5)
    tokens, boxes = some_tokens(6)
    valid = query.valid.clone()
    valid[1, 3:] = False
    together = decoder(tokens, boxes, QueryStates(query.ground, query.words, valid))
    alone = QueryStates(query.ground[1:2], query.words[1:2, :3], query.valid[1:2, :3])
    torch.testing.assert_close(decoder(tokens, boxes, alone)[0], together[1], atol=1e-5, rtol=1e-5)


def test_pairs_know_who_is_nearer_to_us_and_where_the_other_lies() -> None:
    boxes = torch.tensor([[10.0, 0, 0, 1, 1, 1, 0], [10.0, 5, 0, 1, 1, 1, 0]])
    pairs = pair_features(boxes)
    torch.testing.assert_close(pairs[0, 1, :2] * 20, torch.tensor([0.0, 5.0]))
    torch.testing.assert_close(pairs[0, 1, 5:], torch.tensor([0.0, 1.0]))
    assert pairs[0, 1, 4] == 1 and pairs[1, 0, 4] == -1  # the second is further away
    torch.testing.assert_close(pairs[..., :2], -pairs[..., :2].transpose(0, 1))


def test_without_layers_and_without_tokens_nothing_happens() -> None:
    tokens, boxes = some_tokens(4)
    assert torch.equal(a_decoder(0)(tokens, boxes, a_query(2, 3)), tokens.expand(2, -1, -1))
    assert a_decoder()(tokens[:0], boxes[:0], a_query(2, 3)).shape == (2, 0, 16)
