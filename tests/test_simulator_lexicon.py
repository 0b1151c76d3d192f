"""The two lexicons have no word in common that could give a held-out one away; plurals."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable

from conftest import real_data
from random_facts import sample

from vlm_occ.data.simulator.lexicon import NOUNS, Lexicon, flip_text, plural
from vlm_occ.data.simulator.predicates import CLASS_OF
from vlm_occ.data.simulator.wordings import ADJECTIVES, FRAMES, NUMBERS, ORDINALS, PHRASES, SITUATIONS
from vlm_occ.types import COLOURS, TALK2OCC_CLASSES


def stem(token: str) -> str:
    """The token without the inflection of a plural or a verb."""
    for ending, rest in (("ies", "y"), ("ing", ""), ("ed", ""), ("es", ""), ("s", "")):
        if token.endswith(ending) and len(token) - len(ending) >= 3:
            return token[: -len(ending)] + rest
    return token


def tokens(texts: Iterable[str]) -> set[str]:
    words = (re.sub(r"\{\w+\}", " ", text.lower()) for text in texts)
    return {token for text in words for token in re.findall(r"[a-z]+", text) if len(token) > 1}


def wordings(lexicon: Lexicon, *tables: dict[Lexicon, dict[str, tuple[str, ...]]]) -> list[str]:
    return [text for table in tables for texts in table[lexicon].values() for text in texts]


FUNCTION_WORDS = set(
    re.findall(
        r"\w+",
        "a an the of to at in on for by from off with up down out we us our me my you your i if it and or so "
        "this that which have do does not no is are am be can here get left right",
    )
)
ALL = (NOUNS, ADJECTIVES, PHRASES, FRAMES, SITUATIONS, ORDINALS)


def test_no_stem_of_a_held_out_noun_occurs_in_the_training_lexicon() -> None:
    glue = {"of", "by"}
    training = tokens([*wordings("wide", *ALL), *map(plural, wordings("wide", NOUNS))])
    nouns = tokens(wordings("heldout", NOUNS)) - glue
    training_stems = {stem(token) for token in training} | training
    assert not {token for token in nouns if stem(token) in training_stems}
    long = {token for token in nouns if len(stem(token)) >= 4}
    assert not {(token, other) for token in long for other in training if stem(token) in other}
    given_away = {stem(token) for token in tokens(wordings("wide", NOUNS)) - glue}
    given_away = {token for token in given_away if len(token) >= 4}  # as "truck" would "truckload"
    assert not {(token, other) for token in nouns for other in given_away if token.startswith(other)}


def test_held_out_sentences_have_frames_and_phrases_of_their_own() -> None:
    shared = set(COLOURS) | {"{the}"}
    for table in ALL:
        same = set(wordings("wide", table)) & set(wordings("heldout", table))
        assert same <= shared, same
    frames = [tokens(wordings(lexicon, FRAMES)) - FUNCTION_WORDS for lexicon in ("wide", "heldout")]
    common = {stem(t) for t in frames[0]} & {stem(t) for t in frames[1]}
    assert not common


def test_the_wide_lexicon_holds_the_training_lexicon_and_more_for_the_same_keys() -> None:
    for table in ALL:
        for key, words in table["train"].items():
            assert table["wide"][key][: len(words)] == words
            added = table["wide"][key][len(words) :]
            assert len({*added} - {*words}) == len(added), key
        assert set(table["wide"]) == set(table["train"])
    assert len(wordings("wide", NOUNS, PHRASES)) > 1.8 * len(wordings("train", NOUNS, PHRASES))


def test_every_noun_has_two_words_at_least_in_training_and_one_held_out_and_classes_have_more() -> None:
    for name in TALK2OCC_CLASSES:
        assert len(set(NOUNS["train"][name])) >= 4 and len(set(NOUNS["heldout"][name])) >= 2, name
    assert set(NOUNS["train"]) == set(NOUNS["heldout"]) >= set(CLASS_OF)


def test_held_out_queries_use_no_training_noun() -> None:
    training = tokens(wordings("wide", NOUNS)) | tokens(map(plural, wordings("wide", NOUNS)))
    allowed = tokens(wordings("heldout", *ALL)) | {*NUMBERS, "both"}
    for _, _, query in sample("heldout"):
        assert not tokens([query.text]) & training - allowed, query.text


def test_plurals_inflect_the_head() -> None:
    pairs = {
        "bus": "buses",
        "lorry": "lorries",
        "passer-by": "passers-by",
        "piece of debris": "pieces of debris",
        "police van": "police vans",
        "person on foot": "people on foot",
        "rack for bikes": "racks for bikes",
        "HGV": "HGVs",
        "runaway": "runaways",
    }
    assert {noun: plural(noun) for noun in pairs} == pairs


def test_no_wording_is_a_sentence_of_the_real_data() -> None:
    commands = json.loads((real_data() / "talk2car" / "val_commands.json").read_text())["commands"]
    real = {item["command"].lower().strip(" .!?") for item in commands}
    own = wordings("wide", FRAMES) + wordings("heldout", FRAMES)
    written = {
        frame.format(the=f"the {noun}", a=f"a {noun}").lower().strip(" .!?")
        for frame in own
        for noun in ("x",)
    }
    assert not written & real
    for text in real:
        assert flip_text(flip_text(text)) == text
