"""The words that a model learned from, and what its language model makes of others: their nearest known ones.

A head that learned what `excavator` looks like has no use for the embedding of `digger`. The language model
knows that the two are one thing (`word_bank`). Its states, without a scene, are what a `KnownWords` keeps of
every noun, adjective and phrase behind a noun of the training lexicon. A noun that the thesaurus has other
names for is also asked about with these, sense by sense, and a compound is likely what its last word is. Of
adjectives and phrases, what training often spoke of is likelier.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional

from vlm_occ.language.colour_names import basic_colours
from vlm_occ.language.phrase_forms import frame, frequencies
from vlm_occ.language.thesaurus import other_names
from vlm_occ.language.word_bank import (
    ADJECTIVE,
    NOUN,
    PHRASE,
    Bank,
    Meaning,
    Meanings,
    Way,
    first_tokens,
    kind_states,
    meaning_states,
    with_article,
)
from vlm_occ.types import Vocabulary, Wording

if TYPE_CHECKING:
    from vlm_occ.language.backbones import Backbone

WORDS_FILE = "words.safetensors"
RIDGE = 0.3
ANYTHING, LEAST = "object", 0.1
"""The known noun that fits everything, and its share of the belief where something is surely there."""
HEAD = 0.3
"""Share of the belief that a compound is what its last word is: a `dropside lorry` is a lorry."""
MOST_SENSES, MOST_NAMES = 8, 3
"""Senses of a noun that are looked at, and other names of one sense that are told. With these and HEAD the
training nouns are likeliest, each left out with all that share a word with it."""
OFTEN = 0.5
"""Power of how often training spoke of what an adjective or a phrase means, in how likely it means that.
Which things there are, the scene says."""
MOST_READ = 10_000
"""Phrases that are remembered before all are forgotten."""
Kind = Literal["noun", "adjective", "other"]
Role = Literal["thing", "place", "either"]
"""What a noun stands for: `the digger`, `on the footpath`; `at the verge` and `at the digger` may be both."""
T = TypeVar("T")
P = TypeVar("P", str, tuple[str, ...])
KINDS: tuple[Kind, ...] = ("noun", "adjective", "other")
_TOP = re.compile("est$|most$")  # of a superlative
BANKS = ("nouns", "adjectives", "phrases")


@dataclass(frozen=True)
class KnownWords:
    """The vocabulary of a model's training sentences, and states of its nouns, adjectives and phrases.

    What the language model makes of a phrase is remembered: it depends on no sentence or scene, and asking
    again takes as long as a query.
    """

    words: frozenset[str]  # in lower case
    nouns: Bank
    adjectives: Bank
    phrases: Bank
    kinds: Tensor  # [1 + len(KINDS), D]: a mean, and the weights of each of KINDS
    read: dict[tuple[str, str | tuple[str, ...]], Any] = field(
        default_factory=dict, init=False, repr=False, compare=False
    )

    def __contains__(self, word: str) -> bool:
        """Whether a word, or a number, is known."""
        return word.lower() in self.words or word[0].isdigit()

    @torch.no_grad()
    def name(
        self, backbone: Backbone, phrases: Sequence[str], *, most: int = 4, role: Role = "either"
    ) -> Meanings:
        """The likeliest known nouns for unknown noun phrases."""

        def ask(some: Sequence[str]) -> Meanings:
            every = list(dict.fromkeys(noun for phrase in some for noun in (phrase, last_noun(phrase))))
            ways = [named_ways(noun) for noun in every]
            found = self.nouns.nearest(backbone, NOUN, ways, lambda _, wording: _plays(wording, role))
            of = dict(zip(every, found, strict=True))
            return [mixed(of[phrase], of[last_noun(phrase)], HEAD)[:most] for phrase in some]

        return self._remembered(f"{role} {most}", phrases, ask)

    def or_anything(self, meanings: Sequence[Meaning]) -> list[Meaning]:
        """Meanings of a noun that surely stands for something: for any object, if for none of them."""
        anything = self.nouns.by_phrase.get(ANYTHING)
        if anything is None:
            return list(meanings)
        own = [meaning for meaning in meanings if meaning.wording.singular == anything.singular]
        others = [meaning for meaning in meanings if meaning not in own]
        return [*others, Meaning(anything, max([LEAST, *(meaning.share for meaning in own)]))]

    def names_nothing(self, backbone: Backbone, noun: str) -> bool:
        """Whether an unknown noun rather stands for no thing and no place: a `glance`, an `outline`."""
        best = self.name(backbone, [noun], role="thing")[0][0]
        return not best.wording.singular and best.share > 0.5

    @torch.no_grad()
    def describe(
        self, backbone: Backbone, words: Sequence[str], *, most: int = 2, graded: bool = False
    ) -> Meanings:
        """The likeliest known adjectives for unknown ones; for a colour's name, the colours it may be.

        Superlatives are superlatives, and no other adjective is but behind `most` or `least` (`graded`).
        """
        colours = [self.colours(word) for word in words]
        others = [word for word, own in zip(words, colours, strict=True) if not own]
        nearest = iter(
            self._remembered(
                f"adjective {graded} {most}",
                others,
                lambda some: [
                    own[:most]
                    for own in self.adjectives.nearest(
                        backbone,
                        ADJECTIVE,
                        [[Way(word)] for word in some],
                        lambda i, w: graded or bool(_TOP.search(some[i])) == bool(_TOP.search(w.singular)),
                    )
                ],
            )
        )
        return [own[:most] or next(nearest) for own in colours]

    @torch.no_grad()
    def rephrase(self, backbone: Backbone, phrases: Sequence[tuple[str, ...]], *, most: int = 2) -> Meanings:
        """The likeliest known phrases of the same slots and side for unknown ones, each told in some ways."""

        def ask(some: Sequence[tuple[str, ...]]) -> Meanings:
            ways = [[Way(told) for told in dict.fromkeys(phrase)] for phrase in some]
            frames = [frame(phrase[0]) for phrase in some]
            found = self.phrases.nearest(
                backbone, PHRASE, ways, lambda i, wording: frame(wording.phrase) == frames[i]
            )
            return [own[:most] for own in found]

        return self._remembered(f"phrase {most}", phrases, ask)

    def colours(self, word: str) -> list[Meaning]:
        """The known colours that a word may name, the likeliest first; none if it names none."""
        wordings, shares = self.adjectives.by_phrase, basic_colours(word)
        return [Meaning(wordings[name], share) for name, share in shares.items() if name in wordings]

    @torch.no_grad()
    def kinds_of(self, backbone: Backbone, words: Sequence[str]) -> list[Kind]:
        """What each word most likely is where a noun phrase may stand."""

        def ask(some: Sequence[str]) -> list[Kind]:
            rows = functional.normalize(kind_states(backbone, some) - self.kinds[0], dim=-1)
            return [KINDS[best] for best in (rows @ self.kinds[1:].T).argmax(1).tolist()]

        return self._remembered("kind", words, ask)

    def _remembered(self, what: str, phrases: Sequence[P], ask: Callable[[Sequence[P]], list[T]]) -> list[T]:
        """What `ask` says of each phrase; it is asked of those only that it was not asked of before."""
        new = [phrase for phrase in dict.fromkeys(phrases) if (what, phrase) not in self.read]
        if new:
            if len(self.read) > MOST_READ:
                self.read.clear()
                new = list(dict.fromkeys(phrases))
            self.read.update({(what, phrase): said for phrase, said in zip(new, ask(new), strict=True)})
        return [self.read[what, phrase] for phrase in phrases]

    def save(self, path: Path) -> None:
        """Write everything as one safetensors file, directions as bytes."""
        about, tensors = {"words": json.dumps(sorted(self.words))}, {"kinds": self.kinds.float()}
        for name in BANKS:
            bank: Bank = getattr(self, name)
            rows = [[w.phrase, w.singular, w.plural] for w in bank.wordings]
            about[name] = json.dumps({"wordings": rows, "learned": bank.learned})
            scale = bank.directions.abs().amax(1, keepdim=True) / 127
            tensors[f"{name}.directions"] = (bank.directions / scale).round().to(torch.int8)
            tensors[f"{name}.scale"] = scale.float()
            tensors[f"{name}.mean"], tensors[f"{name}.usual"] = bank.mean.float(), bank.usual.float()
            tensors[f"{name}.beginnings"], tensors[f"{name}.prior"] = bank.beginnings, bank.prior.float()
        save_file({k: v.cpu().contiguous() for k, v in tensors.items()}, path, about)

    @classmethod
    def load(cls, path: Path) -> KnownWords:
        """What `save` wrote; ValueError where the file is damaged."""
        try:
            with safe_open(path, framework="pt") as file:
                about = {k: json.loads(v) for k, v in file.metadata().items()}
                tensors = {k: file.get_tensor(k) for k in file.keys()}  # noqa: SIM118
            banks = [
                Bank(
                    tuple(Wording(*row) for row in about[name]["wordings"]),
                    tensors[f"{name}.mean"],
                    tensors[f"{name}.directions"].float() * tensors[f"{name}.scale"],
                    tensors[f"{name}.beginnings"],
                    tensors[f"{name}.usual"],
                    tensors[f"{name}.prior"],
                    about[name]["learned"],
                )
                for name in BANKS
            ]
            nouns, adjectives, phrases = banks
            return cls(frozenset(about["words"]), nouns, adjectives, phrases, tensors["kinds"])
        except (SafetensorError, OSError, KeyError, TypeError, AttributeError, json.JSONDecodeError) as error:
            raise ValueError(
                f"{path} is damaged or of an earlier version ({type(error).__name__}: {error}); copy or "
                "download the checkpoint again, or take the file away and write it anew by "
                "`vlm-occ calibrate CHECKPOINT --out FOLDER`"
            ) from error


@torch.no_grad()
def measure_words(backbone: Backbone, lexicon: Vocabulary, sentences: Sequence[str]) -> KnownWords:
    """States of a training lexicon in a backbone as it is: call it when its LoRA is trained.

    `sentences` of that lexicon tell which phrases are common.
    """
    adjectives, phrases = (
        OFTEN * frequencies(wordings, sentences)
        for wordings in (
            (*lexicon.adjectives, *lexicon.more_adjectives),
            (*lexicon.phrases, *lexicon.more_phrases),
        )
    )
    return KnownWords(
        lexicon.words,
        _bank(backbone, NOUN, lexicon.nouns, (), torch.zeros(len(lexicon.nouns))),
        _bank(backbone, ADJECTIVE, lexicon.adjectives, lexicon.more_adjectives, adjectives),
        _bank(backbone, PHRASE, lexicon.phrases, lexicon.more_phrases, phrases),
        _kind_weights(backbone, lexicon),
    )


def _bank(
    backbone: Backbone,
    template: str,
    learned: tuple[Wording, ...],
    more: tuple[Wording, ...],
    prior: Tensor,
) -> Bank:
    """States of wordings under a template."""
    wordings = (*learned, *more)
    phrases = [wording.phrase for wording in wordings]
    beginnings = first_tokens(backbone, phrases)
    states, likely = meaning_states(backbone, template, phrases, beginnings)
    mean = states.mean(0)
    directions = functional.normalize(states - mean, dim=-1)
    return Bank(wordings, mean, directions, beginnings, likely.mean(0), prior, len(learned))


def _kind_weights(backbone: Backbone, lexicon: Vocabulary) -> Tensor:
    """By which a word's state tells a noun, an adjective and others apart: ridge regression."""
    parts = (lexicon.nouns, lexicon.adjectives)
    single = [[w.phrase for w in part if " " not in w.phrase] for part in parts]
    within = {word.lower() for part in parts for w in part for word in w.phrase.split()}
    single.append(sorted(lexicon.words - within))
    states = kind_states(backbone, [word for part in single for word in part])
    middle = states.mean(0)
    rows = functional.normalize(states - middle, dim=-1)
    of = torch.tensor([kind for kind, part in enumerate(single) for _ in part])
    target = functional.one_hot(of, len(KINDS)).float() - 1 / len(KINDS)
    rarity = of.bincount().float()[of] / len(of) * len(KINDS)  # below 1 where a kind has few words
    dual = torch.linalg.solve(rows @ rows.T + RIDGE * torch.diag(rarity), target)
    return torch.cat([middle[None], dual.T @ rows])


def named_ways(noun: str) -> list[Way]:
    """A noun by itself, and with its other names for each of its senses: `digger, or a power shovel`.

    A compound that has none gets those of its last word: `squad auto, or a squad car`.
    """
    last, known = last_noun(noun), other_names(noun)
    if not known and last != noun:
        first = noun.removesuffix(last)
        known = [tuple(first + name for name in names) for names in other_names(last)]
    told = [
        Way(noun + "".join(f", or {with_article(name)}" for name in names[:MOST_NAMES]), names)
        for names in known[:MOST_SENSES]
    ]
    return [Way(noun), *told]


def last_noun(phrase: str) -> str:
    """The noun that a compound is a kind of, `auto` of `squad auto`; the phrase itself if it is none."""
    return phrase if " of " in phrase else phrase.rpartition(" ")[2]


def mixed(own: Sequence[Meaning], other: Sequence[Meaning], share: float) -> list[Meaning]:
    """Two beliefs about one phrase as one, `share` of it the other; the likeliest meaning first."""
    both = {meaning.wording.singular: replace(meaning, share=0.0) for meaning in (*other, *own)}
    for part, weight in ((own, 1 - share), (other, share)):
        for meaning in part:
            before = both[meaning.wording.singular]
            both[meaning.wording.singular] = replace(before, share=before.share + weight * meaning.share)
    return sorted(both.values(), key=lambda meaning: -meaning.share)


def _plays(wording: Wording, role: Role) -> bool:
    """Whether a noun of the training lexicon has a role: things have a plural, places mean something."""
    return role == "either" or bool(wording.plural) == (role == "thing") or not wording.singular
