"""What a language model makes of words: its state where it is about to say what they mean.

Told that "there is a digger. In simple words, it is a", it is about to say that it is an excavator, and its
state there is near its state after the same words about an excavator. A `Bank` holds such states of wordings
whose meaning is known. How much likelier than usual the known word's beginning is to come next counts too.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional

from vlm_occ.language.phrase_forms import filled
from vlm_occ.types import Wording

if TYPE_CHECKING:
    from vlm_occ.language.backbones import Backbone

NAMED = "In the driving scene there is {}"
NOUN = NAMED + ". In simple words, it is a"
ADJECTIVE = NAMED + " thing. In simple words, it is a"
PHRASE = "Where is the car? It is {}. In other words, it is"
DEPTHS = {NOUN: 26 / 30, ADJECTIVE: 24 / 30, PHRASE: 24 / 30}
KIND_DEPTH = 18 / 30
"""Layers whose states are read, as shares of the language model's: chosen among training words, by how often
the nearest other one has the same meaning."""
SHARPNESS, SURPRISE = 10.0, 0.05
"""Of the softmax over similarities that makes them shares, and how much a nat of surprise counts beside
them: the likeliest shares of the training nouns, each left out in turn."""
SAME = 0.3
"""By how much a known word is nearer that is one of a phrase's other names: chosen likewise."""


@dataclass(frozen=True)
class Meaning:
    """A known wording for an unknown word, with its share of the belief."""

    wording: Wording
    share: float


Meanings = list[list[Meaning]]


@dataclass(frozen=True)
class Way:
    """What the language model is asked about for a phrase, and the other names of that sense."""

    text: str
    names: tuple[str, ...] = ()


@dataclass(frozen=True)
class Bank:
    """P wordings under one template: the mean of their states [D], directions from it [P, D], the id of each
    one's first token [P], how likely that is to come next, on average over all, and how likely each is meant
    before it is looked at (logarithms [P]). The first `learned` wordings are what the heads learned from, the
    others only tell what they mean.
    """

    wordings: tuple[Wording, ...]
    mean: Tensor
    directions: Tensor
    beginnings: Tensor
    usual: Tensor
    prior: Tensor
    learned: int

    @cached_property
    def parts(self) -> frozenset[str]:
        """The words that a noun group of learned wordings may hold, in lower case."""
        learned = self.wordings[: self.learned]
        texts = [text for wording in learned for text in (wording.phrase, wording.plural)]
        words = frozenset(word for text in texts for word in text.lower().split())
        return words - {"of", "on", "a", "in", "for"}

    @cached_property
    def by_phrase(self) -> dict[str, Wording]:
        """The wordings by their phrases."""
        return {wording.phrase: wording for wording in self.wordings}

    def nearest(
        self,
        backbone: Backbone,
        template: str,
        phrases: Sequence[Sequence[Way]],
        fits: Callable[[int, Wording], bool] = lambda _, __: True,
    ) -> Meanings:
        """The meanings of each of n phrases, the likeliest first; their shares add up to 1.

        Of a phrase's several ways, `a digger` and `a digger, or a power shovel`, the one that is nearest to a
        meaning tells how near the phrase is to it. A known word among a sense's other names is nearer.
        Phrase i means a wording for which `fits(i, wording)` only.
        """
        if not phrases:
            return []
        ways = [way for phrase in phrases for way in phrase]
        states, likely = meaning_states(backbone, template, [way.text for way in ways], self.beginnings)
        similarity = functional.normalize(states - self.mean, dim=-1) @ self.directions.T  # [ways, P]
        similarity += SURPRISE * (likely - self.usual)
        similarity += SAME * torch.tensor([[w.phrase in way.names for w in self.wordings] for way in ways])
        rows = [own.amax(0) for own in similarity.split([len(phrase) for phrase in phrases])]
        return [self._ranked(SHARPNESS * row + self.prior, partial(fits, i)) for i, row in enumerate(rows)]

    def _ranked(self, belief: Tensor, fits: Callable[[Wording], bool]) -> list[Meaning]:
        """Meanings by their likeliest wordings, from the logarithms [P] of the wordings' shares."""
        best: dict[str, tuple[float, Wording]] = {}
        for value, wording in zip(belief.tolist(), self.wordings, strict=True):
            if fits(wording) and value > best.get(wording.singular, (-math.inf, wording))[0]:
                best[wording.singular] = (value, wording)
        ranked = sorted(best.values(), key=lambda item: -item[0])
        shares = torch.tensor([value for value, _ in ranked]).softmax(0).tolist()
        return [Meaning(wording, share) for (_, wording), share in zip(ranked, shares, strict=True)]


def with_article(phrase: str) -> str:
    """A noun phrase with `a` or `an`."""
    return f"{'an' if phrase[0].lower() in 'aeio' else 'a'} {phrase}"


def first_tokens(backbone: Backbone, phrases: Sequence[str]) -> Tensor:
    """Id of the first token of each phrase within a sentence: [P]."""
    told = [f" {filled(phrase)}" for phrase in phrases]
    tokens = [backbone.tokenizer(text, add_special_tokens=False)["input_ids"] for text in told]
    return torch.tensor([ids[0] for ids in tokens])


def meaning_states(
    backbone: Backbone, template: str, phrases: Sequence[str], beginnings: Tensor
) -> tuple[Tensor, Tensor]:
    """States [n, D] from which the language model would go on to say what each phrase is, and how likely it
    is to go on with each of `beginnings`: logarithms [n, P].
    """
    states, last = _states(backbone, template, phrases, DEPTHS[template])
    likely = backbone.logits(last.to(backbone.device)).float().log_softmax(-1).cpu()
    return states, likely[:, beginnings]


def kind_states(backbone: Backbone, words: Sequence[str]) -> Tensor:
    """States [n, D] of words as what is there, which tell a noun from what must be followed by one."""
    return _states(backbone, NAMED, words, KIND_DEPTH)[0]


def _states(backbone: Backbone, template: str, phrases: Sequence[str], depth: float) -> tuple[Tensor, Tensor]:
    """States [n, D] of the last word of each text after `depth` of the language model's layers, and after
    all.
    """
    dtype, device = backbone.dtype, backbone.device
    layer = round(depth * backbone.model.config.get_text_config().num_hidden_layers)
    mixed = torch.autocast(device.type, dtype=dtype, enabled=dtype != torch.float32)
    rows, last = [], []
    for phrase in phrases:
        text = template.format(filled(phrase) if template == PHRASE else with_article(phrase))
        ids = torch.tensor([backbone.tokenizer(text, add_special_tokens=False)["input_ids"]], device=device)
        with mixed:
            output = backbone.language_model(input_ids=ids, use_cache=False, output_hidden_states=True)
        rows.append(output.hidden_states[layer][0, -1].float().cpu())
        last.append(output.last_hidden_state[0, -1].float().cpu())
    return torch.stack(rows), torch.stack(last)
