"""Metrics of answers: hand-computed cases, and published implementations where installed."""

from __future__ import annotations

import importlib
import math
import random

import pytest

from vlm_occ.eval.qa_metrics import (
    answer_metrics,
    exact_match,
    mean_relative_accuracy,
    normalise_answer,
    scores_by_category,
    sqa3d_category,
    vsi_score,
    vsi_scores,
)
from vlm_occ.eval.stemming import stem
from vlm_occ.eval.text_overlap import bleu, cider, meteor_exact_stem, rouge_l, tokenize

WORDS = ("the", "a", "red", "chair", "chairs", "table", "tables", "standing", "stands", "left", "of")


def _corpus(seed: int, number: int = 30) -> tuple[list[list[str]], list[list[list[str]]]]:
    """Random predictions and one to three references each, some equal, some of one word."""
    generator = random.Random(seed)

    def sentence() -> list[str]:
        return [generator.choice(WORDS) for _ in range(generator.randint(1, 9))]

    references = [[sentence() for _ in range(generator.randint(1, 3))] for _ in range(number)]
    predictions = [list(r[0]) if generator.random() < 0.3 else sentence() for r in references]
    return predictions, references


def _coco(predictions: list[list[str]], references: list[list[list[str]]]) -> tuple[dict, dict]:
    truth = {i: [" ".join(option) for option in options] for i, options in enumerate(references)}
    return truth, {i: [" ".join(prediction)] for i, prediction in enumerate(predictions)}


def _scorer(module: str, name: str) -> type:
    pytest.importorskip("pycocoevalcap", reason="pycocoevalcap is not installed")
    return getattr(importlib.import_module(f"pycocoevalcap.{module}"), name)


@pytest.mark.parametrize("seed", [0, 1])
def test_bleu_equals_the_coco_caption_evaluation(seed: int) -> None:
    scorer = _scorer("bleu.bleu", "Bleu")(4)
    predictions, references = _corpus(seed)
    expected, _ = scorer.compute_score(*_coco(predictions, references), verbose=0)
    assert bleu(predictions, references) == pytest.approx(expected, rel=1e-6)
    short = [["red"], ["two", "chairs"]], [[["red"]], [["two", "tables"]]]
    expected, _ = scorer.compute_score(*_coco(*short), verbose=0)
    assert bleu(*short) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("seed", [0, 1])
def test_rouge_and_cider_equal_the_coco_caption_evaluation(seed: int) -> None:
    predictions, references = _corpus(seed)
    expected, _ = _scorer("rouge.rouge", "Rouge")().compute_score(*_coco(predictions, references))
    assert rouge_l(predictions, references) == pytest.approx(expected, rel=1e-6)
    expected, _ = _scorer("cider.cider", "Cider")().compute_score(*_coco(predictions, references))
    assert cider(predictions, references) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("seed", [0, 1])
def test_meteor_equals_nltk_without_synonyms(seed: int) -> None:
    nltk = pytest.importorskip("nltk.translate.meteor_score", reason="nltk is not installed")

    class NoSynonyms:
        def synsets(self, word: str) -> list[str]:
            return []

    class Stemmer:
        def stem(self, word: str) -> str:
            return stem(word)

    predictions, references = _corpus(seed)
    expected = [
        nltk.meteor_score(options, prediction, stemmer=Stemmer(), wordnet=NoSynonyms())
        for prediction, options in zip(predictions, references, strict=True)
    ]
    assert meteor_exact_stem(predictions, references) == pytest.approx(sum(expected) / len(expected))


def test_stems_equal_nltks_porter_stemmer() -> None:
    porter = pytest.importorskip("nltk.stem.porter", reason="nltk is not installed").PorterStemmer
    stemmer = porter(mode="ORIGINAL_ALGORITHM")
    generator = random.Random(0)
    parts = [
        "ation",
        "al",
        "iz",
        "er",
        "ful",
        "ness",
        "ing",
        "ed",
        "s",
        "ies",
        "y",
        "e",
        "tt",
        "ll",
        "ous",
        "ion",
    ]
    words = ["".join(generator.choices([*parts, "b", "st", "a", "o", "tr", "k"], k=4)) for _ in range(3000)]
    assert [w for w in words if stem(w) != stemmer.stem(w)] == []


@pytest.mark.parametrize(
    ("word", "expected"),
    [
        ("caresses", "caress"),
        ("ponies", "poni"),
        ("agreed", "agre"),
        ("plastered", "plaster"),
        ("motoring", "motor"),
        ("hopping", "hop"),
        ("falling", "fall"),
        ("filing", "file"),
        ("happy", "happi"),
        ("relational", "relat"),
        ("rational", "ration"),
        ("triplicate", "triplic"),
        ("hopefulness", "hope"),
        ("adoption", "adopt"),
        ("controll", "control"),
        ("is", "is"),
    ],
)
def test_stems_are_those_of_porters_paper(word: str, expected: str) -> None:
    assert stem(word) == expected


def test_bleu_by_hand_clips_counts_and_punishes_short_answers() -> None:
    scores = bleu([["the", "the", "the", "cat"]], [[["the", "cat", "sat"], ["a", "the"]]])
    assert scores[0] == pytest.approx(2 / 4, rel=1e-6)  # one "the" and "cat"
    assert scores[1] == pytest.approx(math.sqrt(2 / 4 * 1 / 3), rel=1e-6)
    assert bleu([["red"]], [[["red", "chair"]]])[0] == pytest.approx(math.exp(-1), rel=1e-6)


def test_rouge_by_hand() -> None:
    score = rouge_l([["a", "x", "b"]], [[["a", "b", "c", "d"]]])  # common: a b
    precision, recall = 2 / 3, 2 / 4
    assert score == pytest.approx((1 + 1.44) * precision * recall / (recall + 1.44 * precision))
    assert rouge_l([[]], [[["a"]]]) == 0.0


def test_cider_is_ten_for_equal_answers_whose_every_word_is_rare() -> None:
    texts = [["red", "chair", "near", "door"], ["two", "blue", "old", "tables"]]
    assert cider(texts, [[t] for t in texts]) == pytest.approx(10.0)
    assert cider(texts[::-1], [[t] for t in texts]) == 0.0


def test_meteor_by_hand_takes_stems_and_counts_chunks() -> None:
    same = meteor_exact_stem([["red", "chairs"]], [[["red", "chair"]]])
    assert same == pytest.approx(1 - 0.5 * (1 / 2) ** 3)
    swapped = meteor_exact_stem([["chair", "red"]], [[["red", "chair"]]])
    assert swapped == pytest.approx(0.5)
    assert meteor_exact_stem([["blue"]], [[["red"]]]) == 0.0


def test_tokens_are_lower_case_words_without_punctuation() -> None:
    assert tokenize("It's 2.5 m, on the LEFT-hand side.") == [
        "it's",
        "2.5",
        "m",
        "on",
        "the",
        "left",
        "hand",
        "side",
    ]


@pytest.mark.parametrize(
    ("prediction", "answers", "expected"),
    [
        ("The chair.", ["chair"], (True, True)),
        ("2", ["two"], (True, True)),
        ("mat2", ["mat"], (True, True)),
        ("brown chair", ["chair"], (False, True)),
        ("left", ["to the left side"], (False, True)),
        ("right", ["left", "backwards"], (False, False)),
        ("backward", ["left", "backwards"], (True, True)),
        ("", ["chair"], (False, False)),
        ("21", ["2"], (False, False)),
    ],
)
def test_exact_match_and_its_refinement(
    prediction: str, answers: list[str], expected: tuple[bool, bool]
) -> None:
    assert exact_match(prediction, answers) == expected


def test_answers_are_normalised() -> None:
    assert normalise_answer("  An 18-inch  TV, on a   table! ") == "eighteen-inch tv, on table"


@pytest.mark.parametrize(
    ("prediction", "truth", "expected"),
    [
        (4.0, 4.0, 1.0),
        (1.05, 1.0, 1.0),
        (0.95, 1.0, 1.0),
        (1.06, 1.0, 0.9),
        (5.0, 4.0, 0.6),
        (2.0, 4.0, 0.1),
        (1.9, 4.0, 0.0),
        (None, 4.0, 0.0),
        (math.nan, 4.0, 0.0),
    ],
)
def test_mean_relative_accuracy_counts_the_bounds_met(
    prediction: float | None, truth: float, expected: float
) -> None:
    assert mean_relative_accuracy(prediction, truth) == pytest.approx(expected)


def test_vsi_answers_are_read_by_their_first_word() -> None:
    assert vsi_score("route_planning", "B. Turn left", "B") == 1.0
    assert vsi_score("object_rel_direction_hard", "The answer is C", "C") == 0.0
    assert vsi_score("object_counting", "4 chairs", "4") == 1.0
    assert vsi_score("room_size_estimation", "about 20", "20") == 0.0
    with pytest.raises(ValueError, match="colour"):
        vsi_score("colour", "red", "red")


def test_vsi_mean_takes_each_of_the_eight_categories_once() -> None:
    types = ["object_counting", "object_counting", "object_rel_direction_easy", "object_rel_direction_easy"]
    types += ["object_rel_direction_medium", "object_rel_direction_hard", "route_planning"]
    result = vsi_scores(types, [1.0, 0.5, 1.0, 1.0, 0.5, 0.0, 0.0])
    assert result.by_category == {"object_counting": 0.75, "object_rel_direction": 0.5, "route_planning": 0.0}
    assert result.mean == pytest.approx((0.75 + 0.5 + 0.0) / 3)
    assert result.counts == {"object_counting": 2, "object_rel_direction": 4, "route_planning": 1}


def test_scores_by_category_weigh_every_answer_alike() -> None:
    result = scores_by_category(["a", "b", "b"], [1.0, 0.0, 0.0])
    assert result.mean == pytest.approx(1 / 3)
    assert result.by_category == {"a": 1.0, "b": 0.0}
    with pytest.raises(ValueError, match="2 categories and 1 scores"):
        scores_by_category(["a", "b"], [1.0])


def test_sqa3d_questions_are_sorted_by_their_first_word() -> None:
    questions = ["What is it?", "IS it red?", "  How many?", "Can I?", "Which one?", "Are there?", ""]
    assert [sqa3d_category(q) for q in questions] == ["what", "is", "how", "can", "which", "others", "others"]


def test_all_text_metrics_are_at_their_best_for_right_answers() -> None:
    answers = ["on the left of a bed", "two old wooden chairs", "the window behind me now"]
    result = answer_metrics(answers, [[answer] for answer in answers])
    assert result["em"] == result["em_refined"] == 1.0
    assert result["bleu_4"] == pytest.approx(1.0, abs=1e-6)
    assert result["rouge_l"] == pytest.approx(1.0)
    assert answer_metrics(["no", "no", "no"], [[answer] for answer in answers])["rouge_l"] == 0.0
