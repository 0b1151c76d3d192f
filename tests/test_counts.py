"""How many objects a sentence says that it means, and how many the answer then has."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from random_facts import LEXICONS, random_facts
from test_adapter import tiny
from tiny_models import save_tiny_llava

from vlm_occ.data.simulator.grammar import write_queries
from vlm_occ.data.simulator.lexicon import Lexicon
from vlm_occ.language.counts import presupposes, stated_count
from vlm_occ.models.decoding import chosen_rows


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("the three vans", 3),
        ("Both red cars.", 2),
        ("Do you see the five saloons?", 5),
        ("find all of the four people near the two trucks", 4),
        ("watch out for 3 cyclists", 3),
        ("these ten cones", 10),
        ("the car behind the two vans", None),
        ("the bus 20 metres away", None),
        ("all cars within 30 metres", None),
        ("a truck", None),
        ("that one car", None),
        ("", None),
    ],
)
def test_the_number_of_the_first_noun_group_counts(text: str, count: int | None) -> None:
    assert stated_count(text) == count


@pytest.mark.parametrize(
    ("text", "granted"),
    [
        ("the van", True),
        ("Is there a red car near the bus?", False),
        ("find me an excavator", False),
        ("Do you see any cyclists?", False),
        ("the car beside a truck", True),
        ("three vans", True),
        ("wait next to the bus at a junction", True),
        ("vans", True),
    ],
)
def test_definite_descriptions_presuppose(text: str, granted: bool) -> None:
    assert presupposes(text) == granted


def test_the_threshold_goes_by_whether_a_sentence_presupposes(tmp_path: Path) -> None:
    model = tiny(save_tiny_llava(tmp_path / "base"), score_threshold=0.2, existence_threshold=0.6)
    scores = torch.tensor([0.1, 0.5])
    assert model.chosen_tokens(scores, "the van").tolist() == [1]
    assert model.chosen_tokens(scores, "is there a van?").tolist() == []
    model.config = replace(model.config, existence_threshold=None)
    assert model.chosen_tokens(scores, "is there a van?").tolist() == [1]


@pytest.mark.parametrize("lexicon", LEXICONS)
def test_no_number_of_the_simulators_sentences_is_misread(lexicon: Lexicon) -> None:
    queries = [
        query
        for seed in range(12)
        for query in write_queries(random_facts(seed), seed=seed, count=40, lexicon=lexicon)
    ]
    stated = [(stated_count(query.text), len(query.targets)) for query in queries]
    assert all(count == true for count, true in stated if count is not None)
    assert sum(count is not None for count, _ in stated) > 5


def test_a_sentence_gets_as_many_objects_as_it_says() -> None:
    scores = torch.tensor([0.3, 0.9, 0.01, 0.5, 0.2])
    assert chosen_rows(scores, 0.4, 0.8).tolist() == [1]
    assert chosen_rows(scores, 0.4, 0.0).tolist() == [1, 3]
    assert chosen_rows(scores, 0.4, 0.8, count=3).tolist() == [1, 3, 0]
    assert chosen_rows(scores, 0.4, 0.8, count=9).tolist() == [1, 3, 0, 4]  # the last is surely not meant
    assert chosen_rows(scores, 0.95, 0.0, count=2).tolist() == []
    assert chosen_rows(scores[:0], 0.4, 0.8, count=2).tolist() == []
