"""The words that a model learned from, and what its language model makes of others: their nearest known ones.

A head that learned what `excavator` looks like has no use for the embedding of `digger`. The language model
knows that the two are one thing: told that "there is a digger. In simple words, it is a", it is about to say
so, and its state there is near its state after the same words about an excavator. That state, of the language
model alone and without a scene, is what a `KnownWords` keeps of every noun and adjective of the training
lexicon. How much likelier than usual the known word's beginning is to come next counts besides. A noun that
the thesaurus has other names for is also asked about with these, sense by sense.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional

from vlm_occ.language.colour_names import basic_colours
from vlm_occ.language.thesaurus import other_names
from vlm_occ.types import Wording

if TYPE_CHECKING:
    from vlm_occ.language.backbones import Backbone

WORDS_FILE = "words.safetensors"
NAMED = "In the driving scene there is {}"
NOUN = NAMED + ". In simple words, it is a"
ADJECTIVE = NAMED + " thing. In simple words, it is a"
MEANING_DEPTH, KIND_DEPTH = 26 / 30, 18 / 30
"""Layers whose states are read, as shares of the language model's: chosen among training nouns, by how often
the nearest other noun has the same meaning."""
SHARPNESS, SURPRISE = 10.0, 0.05
"""Of the softmax over similarities that makes them shares, and how much a nat of surprise counts beside
them: the likeliest shares of the training nouns, each left out in turn."""
SAME = 0.2
"""By how much a known noun is nearer that is one of a phrase's other names: chosen likewise."""
RIDGE = 0.3
ANYTHING, LEAST = "object", 0.1
"""The known noun that fits everything, and its share of the belief where something is surely there."""
MOST_READ = 10_000
"""Phrases that are remembered before all are forgotten."""
Kind = Literal["noun", "adjective", "other"]
Role = Literal["thing", "place", "either"]
"""What a noun stands for: `the digger`, `on the footpath`; `at the verge` and `at the digger` may be both."""
T = TypeVar("T")
KINDS: tuple[Kind, ...] = ("noun", "adjective", "other")


@dataclass(frozen=True)
class Meaning:
    """A known wording for an unknown word, with its share of the belief."""

    wording: Wording
    share: float


Meanings = list[list[Meaning]]


@dataclass(frozen=True)
class Way:
    """What the language model is asked about for a phrase, and the other names that it holds."""

    text: str
    names: tuple[str, ...] = ()


@dataclass(frozen=True)
class Bank:
    """P wordings under one template: the mean of their states [D], directions from it [P, D], the id of each
    one's first token [P], and how likely that is to come next, on average over all (logarithms [P]).
    """

    wordings: tuple[Wording, ...]
    mean: Tensor
    directions: Tensor
    beginnings: Tensor
    usual: Tensor

    @cached_property
    def parts(self) -> frozenset[str]:
        """The words that a noun group of these wordings may hold, in lower case."""
        texts = [text for wording in self.wordings for text in (wording.phrase, wording.plural)]
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
        most: int,
        role: Role = "either",
    ) -> Meanings:
        """The `most` likeliest meanings of each of n phrases in that role, the likeliest first.

        Of a phrase's several wordings, `a digger` and `a digger, or a power shovel`, the one that is nearest
        to a meaning tells how near the phrase is to it. A known noun among a phrase's other names is nearer.
        """
        if not phrases:
            return []
        ways = [way for phrase in phrases for way in phrase]
        states, likely = _meanings(backbone, template, [way.text for way in ways], self.beginnings)
        similarity = functional.normalize(states - self.mean, dim=-1) @ self.directions.T  # [ways, P]
        similarity += SURPRISE * (likely - self.usual)
        similarity += SAME * torch.tensor([[w.phrase in way.names for w in self.wordings] for way in ways])
        result = []
        for rows in similarity.split([len(phrase) for phrase in phrases]):
            row = rows.amax(0).tolist()
            best: dict[str, tuple[float, Wording]] = {}
            for value, wording in zip(row, self.wordings, strict=True):
                if not _plays(wording, role):
                    continue
                if wording.singular not in best or value > best[wording.singular][0]:
                    best[wording.singular] = (value, wording)
            ranked = sorted(best.values(), key=lambda item: -item[0])
            weights = (SHARPNESS * torch.tensor([value for value, _ in ranked])).softmax(0).tolist()
            pairs = zip(ranked[:most], weights, strict=False)
            result.append([Meaning(wording, weight) for (_, wording), weight in pairs])
        return result


@dataclass(frozen=True)
class KnownWords:
    """The vocabulary of a model's training sentences, and states of its nouns and adjectives.

    What the language model makes of a phrase is remembered: it depends on no sentence or scene, and asking
    again takes as long as a query.
    """

    words: frozenset[str]  # in lower case
    nouns: Bank
    adjectives: Bank
    kinds: Tensor  # [1 + len(KINDS), D]: a mean, and the weights of each of KINDS
    read: dict[tuple[str, str], Any] = field(default_factory=dict, init=False, repr=False, compare=False)

    def __contains__(self, word: str) -> bool:
        """Whether a word, or a number, is known."""
        return word.lower() in self.words or word[0].isdigit()

    @torch.no_grad()
    def name(
        self, backbone: Backbone, phrases: Sequence[str], *, most: int = 4, role: Role = "either"
    ) -> Meanings:
        """The likeliest known nouns for unknown noun phrases."""
        return self._remembered(
            f"{role} {most}",
            phrases,
            lambda some: self.nouns.nearest(backbone, NOUN, [named_ways(noun) for noun in some], most, role),
        )

    def or_anything(self, meanings: Sequence[Meaning]) -> list[Meaning]:
        """Meanings of a noun that surely stands for something: for any object, if for none of them."""
        anything = self.nouns.by_phrase.get(ANYTHING)
        if anything is None:
            return list(meanings)
        own = [meaning for meaning in meanings if meaning.wording.singular == anything.singular]
        others = [meaning for meaning in meanings if meaning not in own]
        return [*others, Meaning(anything, max([LEAST, *(meaning.share for meaning in own)]))]

    @torch.no_grad()
    def describe(self, backbone: Backbone, words: Sequence[str], *, most: int = 2) -> Meanings:
        """The likeliest known adjectives for unknown ones; for a colour's name, the colours it may be."""
        colours = [self.colours(word) for word in words]
        others = [word for word, own in zip(words, colours, strict=True) if not own]
        nearest = iter(
            self._remembered(
                f"adjective {most}",
                others,
                lambda some: self.adjectives.nearest(
                    backbone, ADJECTIVE, [[Way(word)] for word in some], most
                ),
            )
        )
        return [own[:most] or next(nearest) for own in colours]

    def colours(self, word: str) -> list[Meaning]:
        """The known colours that a word may name, the likeliest first; none if it names none."""
        wordings, shares = self.adjectives.by_phrase, basic_colours(word)
        return [Meaning(wordings[name], share) for name, share in shares.items() if name in wordings]

    @torch.no_grad()
    def kinds_of(self, backbone: Backbone, words: Sequence[str]) -> list[Kind]:
        """What each word most likely is where a noun phrase may stand."""

        def ask(some: Sequence[str]) -> list[Kind]:
            rows = functional.normalize(_kinds(backbone, some) - self.kinds[0], dim=-1)
            return [KINDS[best] for best in (rows @ self.kinds[1:].T).argmax(1).tolist()]

        return self._remembered("kind", words, ask)

    def _remembered(
        self, what: str, phrases: Sequence[str], ask: Callable[[Sequence[str]], list[T]]
    ) -> list[T]:
        """What `ask` says of each phrase; it is asked of those only that it was not asked of before."""
        new = [phrase for phrase in dict.fromkeys(phrases) if (what, phrase) not in self.read]
        if new:
            if len(self.read) > MOST_READ:
                self.read.clear()
                new = list(dict.fromkeys(phrases))
            self.read.update({(what, phrase): said for phrase, said in zip(new, ask(new), strict=True)})
        return [self.read[what, phrase] for phrase in phrases]

    def save(self, path: Path) -> None:
        """Write everything as one safetensors file, states in bfloat16."""
        tables = {
            name: [[w.phrase, w.singular, w.plural] for w in bank.wordings]
            for name, bank in (("nouns", self.nouns), ("adjectives", self.adjectives))
        }
        tensors = {"kinds": self.kinds.float()}
        for name, bank in (("nouns", self.nouns), ("adjectives", self.adjectives)):
            tensors[f"{name}.mean"], tensors[f"{name}.usual"] = bank.mean.float(), bank.usual.float()
            tensors[f"{name}.directions"] = bank.directions.to(torch.bfloat16)
            tensors[f"{name}.beginnings"] = bank.beginnings
        about = {"words": json.dumps(sorted(self.words)), **{k: json.dumps(v) for k, v in tables.items()}}
        save_file({k: v.cpu().contiguous() for k, v in tensors.items()}, path, about)

    @classmethod
    def load(cls, path: Path) -> KnownWords:
        """What `save` wrote; ValueError where the file is damaged."""
        try:
            with safe_open(path, framework="pt") as file:
                about = {k: json.loads(v) for k, v in file.metadata().items()}
                tensors = {k: file.get_tensor(k) for k in file.keys()}  # noqa: SIM118
            nouns, adjectives = (
                Bank(
                    tuple(Wording(*row) for row in about[name]),
                    tensors[f"{name}.mean"],
                    tensors[f"{name}.directions"].float(),
                    tensors[f"{name}.beginnings"],
                    tensors[f"{name}.usual"],
                )
                for name in ("nouns", "adjectives")
            )
            return cls(frozenset(about["words"]), nouns, adjectives, tensors["kinds"])
        except (SafetensorError, OSError, KeyError, TypeError, AttributeError, json.JSONDecodeError) as error:
            raise ValueError(f"{path} is damaged ({error}); copy or download the checkpoint again") from error


@torch.no_grad()
def measure_words(
    backbone: Backbone, words: frozenset[str], nouns: Sequence[Wording], adjectives: Sequence[Wording]
) -> KnownWords:
    """States of a training lexicon in a backbone as it is: call it when its LoRA is trained."""
    banks = []
    for template, wordings in ((NOUN, nouns), (ADJECTIVE, adjectives)):
        phrases = [wording.phrase for wording in wordings]
        beginnings = _beginnings(backbone, phrases)
        states, likely = _meanings(backbone, template, phrases, beginnings)
        mean = states.mean(0)
        directions = functional.normalize(states - mean, dim=-1)
        banks.append(Bank(tuple(wordings), mean, directions, beginnings, likely.mean(0)))
    single = [[w.phrase for w in part if " " not in w.phrase] for part in (nouns, adjectives)]
    within = {word.lower() for part in (nouns, adjectives) for w in part for word in w.phrase.split()}
    single.append(sorted(words - within))
    states = _kinds(backbone, [word for part in single for word in part])
    middle = states.mean(0)
    rows = functional.normalize(states - middle, dim=-1)
    of = torch.tensor([kind for kind, part in enumerate(single) for _ in part])
    target = functional.one_hot(of, len(KINDS)).float() - 1 / len(KINDS)
    rarity = of.bincount().float()[of] / len(of) * len(KINDS)  # below 1 where a kind has few words
    dual = torch.linalg.solve(rows @ rows.T + RIDGE * torch.diag(rarity), target)
    return KnownWords(words, banks[0], banks[1], torch.cat([middle[None], dual.T @ rows]))


def with_article(phrase: str) -> str:
    """A noun phrase with `a` or `an`."""
    return f"{'an' if phrase[0].lower() in 'aeio' else 'a'} {phrase}"


def named_ways(noun: str) -> list[Way]:
    """A noun by itself, and with its other names for each of its senses: `digger, or a power shovel`.

    A compound that has none gets those of its last word: `squad auto, or a squad car`.
    """
    first, _, last = noun.rpartition(" ")
    known = other_names(noun)
    if not known and first and " of " not in noun:
        known = [tuple(f"{first} {name}" for name in names) for names in other_names(last)]
    named = [Way(noun + "".join(f", or {with_article(name)}" for name in names), names) for names in known]
    return [Way(noun), *named]


def _plays(wording: Wording, role: Role) -> bool:
    """Whether a noun of the training lexicon has a role: things have a plural, places mean something."""
    return role == "either" or bool(wording.plural) == (role == "thing") or not wording.singular


def _beginnings(backbone: Backbone, phrases: Sequence[str]) -> Tensor:
    """Id of the first token of each phrase within a sentence: [P]."""
    tokens = [backbone.tokenizer(f" {phrase}", add_special_tokens=False)["input_ids"] for phrase in phrases]
    return torch.tensor([ids[0] for ids in tokens])


def _meanings(
    backbone: Backbone, template: str, phrases: Sequence[str], beginnings: Tensor
) -> tuple[Tensor, Tensor]:
    """States [n, D] from which the language model would go on to say what each phrase is, and how likely it
    is to go on with each of `beginnings`: logarithms [n, P].
    """
    states, last = _states(backbone, template, phrases, MEANING_DEPTH)
    likely = backbone.logits(last.to(backbone.device)).float().log_softmax(-1).cpu()
    return states, likely[:, beginnings]


def _kinds(backbone: Backbone, words: Sequence[str]) -> Tensor:
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
        text = template.format(with_article(phrase))
        ids = torch.tensor([backbone.tokenizer(text, add_special_tokens=False)["input_ids"]], device=device)
        with mixed:
            output = backbone.language_model(input_ids=ids, use_cache=False, output_hidden_states=True)
        rows.append(output.hidden_states[layer][0, -1].float().cpu())
        last.append(output.last_hidden_state[0, -1].float().cpu())
    return torch.stack(rows), torch.stack(last)
