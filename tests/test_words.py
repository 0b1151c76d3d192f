"""The words of a query: against torch's own attention, plain loops, and what padding must not change."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from vlm_occ.heads.words import (
    QueryStates,
    WordEncoder,
    WordLayer,
    WordPool,
    left_out,
    read_queries,
    word_positions,
)

HIDDEN, WIDTH = 12, 16


def a_query(count: int, length: int) -> QueryStates:
    """Queries of random words."""
    bits = torch.Generator().manual_seed(count + length)
    states, embeddings = torch.randn(2, count, length, HIDDEN, generator=bits)
    return QueryStates(
        torch.randn(count, HIDDEN, generator=bits), states, embeddings, torch.ones(count, length).bool()
    )


def an_encoder() -> WordEncoder:
    """An encoder that reads states too, as after training."""
    torch.manual_seed(3)
    encoder = WordEncoder(HIDDEN, WIDTH, heads=4).eval()
    nn.init.normal_(encoder.state[1].weight)  # type: ignore[arg-type]
    return encoder


def test_a_layer_is_torch_attention_over_the_words_that_are_there() -> None:
    torch.manual_seed(0)
    layer, theirs = WordLayer(WIDTH, 4), nn.MultiheadAttention(WIDTH, 4, batch_first=True)
    x = torch.randn(2, 3, WIDTH)
    hidden = torch.tensor([[False, False, False], [False, False, True]])
    with torch.no_grad():
        theirs.in_proj_weight.copy_(layer.attention.weight)
        theirs.in_proj_bias.copy_(layer.attention.bias)
        theirs.out_proj.load_state_dict(layer.out.state_dict())
        y = layer.norms[0](x)
        expected = x + theirs(y, y, y, key_padding_mask=hidden)[0]
        expected = expected + layer.mlp(layer.norms[1](expected))
        found = layer(x, torch.zeros(2, 3).masked_fill(hidden, -1e4)[:, None, None])
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


def test_a_query_alone_and_padded_beside_others_is_the_same() -> None:
    encoder, pool, query = an_encoder(), WordPool(WIDTH, 5), a_query(3, 6)
    valid = query.valid.clone()
    valid[1, 4:] = False
    together = encoder(QueryStates(query.ground, query.states, query.embeddings, valid))
    alone = QueryStates(query.ground[1:2], query.states[1:2, :4], query.embeddings[1:2, :4], valid[1:2, :4])
    torch.testing.assert_close(encoder(alone)[0], together[1, :4], atol=1e-5, rtol=1e-5)
    read = pool(together, valid)[1:2], pool(together[1:2, :4], valid[1:2, :4])
    torch.testing.assert_close(*read, atol=1e-5, rtol=1e-5)


def test_states_have_no_effect_before_training_but_are_learned() -> None:
    torch.manual_seed(1)
    encoder, query = WordEncoder(HIDDEN, WIDTH, heads=4), a_query(2, 5)
    other = QueryStates(query.ground, query.states.flip(1), query.embeddings, query.valid)
    assert torch.equal(encoder(query), encoder(other))
    encoder(query).square().mul(torch.arange(WIDTH)).sum().backward()
    weight = encoder.state[1].weight
    assert isinstance(weight, Tensor) and weight.grad is not None and weight.grad.abs().max() > 1e-3
    assert not torch.allclose(an_encoder()(query), an_encoder()(other), atol=1e-2)


def test_words_in_another_order_say_something_else() -> None:
    encoder, query = an_encoder(), a_query(1, 4)
    turned = QueryStates(query.ground, query.states.flip(1), query.embeddings.flip(1), query.valid)
    pool = WordPool(WIDTH, 2)
    one, two = pool(encoder(query), query.valid), pool(encoder(turned), query.valid)
    assert (one - two).abs().max() > 1e-2


def test_places_are_sines_and_cosines_of_falling_rates() -> None:
    found = word_positions(torch.zeros(1, 7, 8))
    for place in range(7):
        angles = [place * 100 ** (-i / 4) for i in range(4)]
        expected = [math.sin(a) for a in angles] + [math.cos(a) for a in angles]
        torch.testing.assert_close(found[place], torch.tensor(expected))


def test_the_pool_reads_the_valid_words_by_their_nearness_to_each_seed() -> None:
    torch.manual_seed(2)
    pool, words = WordPool(WIDTH, 3).eval(), torch.randn(2, 4, WIDTH)
    valid = torch.tensor([[True, True, True, True], [True, True, False, False]])
    with torch.no_grad():
        found = pool(words, valid)
        for q, length in ((0, 4), (1, 2)):
            for s in range(3):
                near = [float(pool.key(words[q, i]) @ pool.seeds[s]) / WIDTH**0.5 for i in range(length)]
                total = sum(math.exp(value) for value in near)
                mixed = sum(math.exp(near[i]) / total * pool.value(words[q, i]) for i in range(length))
                torch.testing.assert_close(found[q, s], pool.norm(mixed), atol=1e-5, rtol=1e-5)


def test_heads_read_the_words_up_to_ground_and_nothing_of_the_answer() -> None:
    norm = nn.LayerNorm(HIDDEN)
    words = [torch.randn(3, HIDDEN), torch.randn(5, HIDDEN)]  # the last of them is <|ground|>
    states = [torch.randn(6, HIDDEN), torch.randn(5, HIDDEN)]  # the first has an answer of three words
    query = read_queries(states, words, norm)
    for q, length in ((0, 3), (1, 5)):
        centred = states[q][length - 1] - states[q][length - 1].mean()
        expected = centred / (centred.square().mean() + norm.eps).sqrt()
        torch.testing.assert_close(query.ground[q], expected, atol=1e-5, rtol=1e-5)
        assert query.valid[q].tolist() == [i < length for i in range(5)]
        assert torch.equal(query.states[q, :length], states[q][:length])
        assert torch.equal(query.embeddings[q, :length], words[q])
    changed = read_queries([torch.cat([states[0][:3], torch.zeros(3, HIDDEN)]), states[1]], words, norm)
    assert torch.equal(changed.ground, query.ground) and torch.equal(changed.states, query.states)


def test_no_query_is_read_as_none() -> None:
    query = read_queries([], [], nn.LayerNorm(HIDDEN))
    words = an_encoder()(query)
    assert len(words) == len(query.valid) == len(query.ground) == 0
    assert WordPool(WIDTH, 3)(words, query.valid).shape == (0, 3, WIDTH)


def test_words_that_are_left_out_are_neighbours_and_as_many_as_asked_for() -> None:
    torch.manual_seed(2)
    out = left_out(torch.ones(4000, 30).bool(), 0.25)
    assert abs(float(out.float().mean()) - (0.25 - 0.25**2 / 3)) < 0.01
    inner = out[:, 1:-1]
    assert not (inner & ~out[:, :-2] & ~out[:, 2:]).any()  # none stands alone
    rates = out.float().mean(1)
    assert float((rates < 0.1).float().mean()) > 0.1 and float((rates > 0.4).float().mean()) > 0.05


def test_a_word_that_is_left_out_is_known_by_its_state_alone() -> None:
    encoder, query = an_encoder().train(), a_query(2, 5)
    encoder.drop, other = 4.0, torch.randn_like(query.embeddings)
    torch.manual_seed(5)
    out = left_out(query.valid, 4.0)[..., None]
    assert out.any() and not out.all()
    changed = QueryStates(query.ground, query.states, query.embeddings + out * other, query.valid)
    made = []
    for each in (query, changed):
        torch.manual_seed(5)
        made.append(encoder(each))
    assert torch.equal(*made)
    assert not torch.allclose(encoder.eval()(query), encoder(changed), atol=1e-2)
    emptied = QueryStates(query.ground, query.states, query.embeddings * ~out, query.valid)
    assert torch.equal(encoder(emptied), made[0])
