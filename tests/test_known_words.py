"""Words that training never saw are read as known ones; sentences of known words stay as they are."""

from __future__ import annotations

import runpy
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from random_facts import random_facts
from test_adapter import tiny
from tiny_models import save_tiny_llava

from vlm_occ.data.simulator.grammar import write_queries
from vlm_occ.data.simulator.lexicon import NOUNS
from vlm_occ.data.simulator.scene import simulate
from vlm_occ.data.simulator.situations import write_situations
from vlm_occ.data.simulator.vocabulary import training_vocabulary, training_words
from vlm_occ.heads.words import QueryStates
from vlm_occ.language import known_words, word_bank
from vlm_occ.language.backbones import Backbone
from vlm_occ.language.colour_names import basic_colours, lab
from vlm_occ.language.function_words import plain_quantities
from vlm_occ.language.known_words import Kind, KnownWords, Role, last_noun, measure_words, mixed, named_ways
from vlm_occ.language.loading import load_backbone
from vlm_occ.language.noun_groups import sentence_words
from vlm_occ.language.phrase_forms import filled, frame, frequencies
from vlm_occ.language.phrase_spans import unknown_phrases
from vlm_occ.language.rewording import asked_plainly, plain, readings
from vlm_occ.language.thesaurus import other_names
from vlm_occ.language.word_bank import SAME, Bank, Meaning, Way
from vlm_occ.models.adapter import VLMOcc
from vlm_occ.types import Vocabulary, Wording

NOTHING = torch.zeros(0)


NOUN_FOR = {"digger": "excavator", "lorry": "truck", "sheriff car": "police car", "clump of scrap": "bin"}
PLACE_FOR = {"footpath": "pavement", "verge": "pavement", "flank": "side", "rear": "back"}
ADJECTIVE_FOR = {
    "distant": "farthest",
    "bulky": "large",
    "crimson": "red",
    "azure": "blue",
    "teal": "blue",
    "purple": "blue",
    "light": "small",
}
PHRASE_FOR = {
    "in our rear-view mirror": "behind us",
    "in the vicinity of {a}": "near {a}",
    "inside a {n} metre radius": "less than {n} metres away",
    "off to our left-hand flank": "on the left",
    "alongside {a}": "next to {a}",
}
SURELY = {"rear": 0.9}


class Dictionary(KnownWords):
    """Known words whose language model is a table."""

    def name(
        self, backbone: Backbone, phrases: Sequence[str], *, most: int = 4, role: Role = "either"
    ) -> list[list[Meaning]]:
        """From the table; then the same guess for all."""
        rows = {w.phrase: w for w in self.nouns.wordings}
        table = NOUN_FOR if role == "thing" else {**NOUN_FOR, **PLACE_FOR}
        found = [rows[table.get(phrase, "object")] for phrase in phrases]
        shares = [SURELY.get(phrase, 0.6) for phrase in phrases]
        return [
            [Meaning(wording, share), Meaning(rows["car"], 0.2)]
            for wording, share in zip(found, shares, strict=True)
        ]

    def describe(
        self, backbone: Backbone, words: Sequence[str], *, most: int = 2, graded: bool = False
    ) -> list[list[Meaning]]:
        """From the table."""
        rows = {w.phrase: w for w in self.adjectives.wordings}
        return [[Meaning(rows[ADJECTIVE_FOR[word]], 1.0)] for word in words]

    def rephrase(
        self, backbone: Backbone, phrases: Sequence[tuple[str, ...]], *, most: int = 2
    ) -> list[list[Meaning]]:
        """From the table; nothing for others."""
        rows = {w.phrase: w for w in self.phrases.wordings}
        found = [next((PHRASE_FOR[told] for told in ways if told in PHRASE_FOR), "") for ways in phrases]
        return [[Meaning(rows[phrase], 0.7)] if phrase else [] for phrase in found]

    def names_nothing(self, backbone: Backbone, noun: str) -> bool:
        """Of an outline."""
        return noun == "outline"

    def kinds_of(self, backbone: Backbone, words: Sequence[str]) -> list[Kind]:
        """From the table; what ends in -side is no part of a noun phrase."""
        return [
            "adjective"
            if word in {"crimson", "azure", "clad", "purple", "light", "distant", "bulky", "adjacent"}
            else "other"
            if word.endswith("side")
            else "noun"
            for word in words
        ]


@pytest.fixture
def known() -> Dictionary:
    lexicon = training_vocabulary()
    parts = (lexicon.nouns, lexicon.adjectives, lexicon.phrases)
    nouns, adjectives, phrases = (Bank(rows, *[NOTHING] * 5, learned=len(rows)) for rows in parts)
    return Dictionary(lexicon.words, nouns, adjectives, phrases, NOTHING)


@pytest.fixture
def backbone(tmp_path: Path) -> Backbone:
    return load_backbone(str(save_tiny_llava(tmp_path / "base")), dtype=torch.float32, lora=None)


def test_sentences_of_the_training_lexicon_stay_as_they_are(known: Dictionary, backbone: Backbone) -> None:
    texts = []
    for seed in range(6):
        world = random_facts(seed)
        texts += [query.text for query in write_queries(world, seed=seed, count=40)]
        texts += [told.text for told in write_situations(world, seed=seed, count=20)]
    assert len(texts) > 200
    assert all([r.text for r in readings(known, backbone, text)] == [text] for text in texts)


@pytest.mark.parametrize(
    ("text", "read"),
    [
        ("the digger on the left", "the excavator on the left"),
        ("a crimson lorry", "a red truck"),
        ("Find an azure digger.", "Find a blue excavator."),
        ("all the lorries behind us", "all the trucks behind us"),
        ("three diggers", "three excavators"),
        ("the sheriff car", "the police car"),
        ("the crimson bus", "the red bus"),
        ("the clump of scrap near the digger", "the bin near the excavator"),
        ("the lorry alongside the bus", "the truck next to the bus"),
        ("the lorry inside a 20 metre radius", "the truck less than 20 metres away"),
        ("the lorry clad in crimson", "the truck clad in red"),
        ("the car clad in black", "the car clad in black"),
        ("the digger adjacent to the lorry", "the excavator adjacent to the truck"),
        ("the bus adjacent to the lorry", "the bus adjacent to the truck"),
        ("the bus adjacent to the verge", "the bus adjacent to the object"),  # a thing, not a place
        ("the bus off to the verge", "the bus off to the pavement"),
        ("the digger distant of us", "the excavator distant of us"),
        ("the bus to the rear of the digger", "the bus to the back of the excavator"),
        ("the bus to the verge of the digger", "the bus to the verge of the excavator"),  # not sure enough
        ("hand us this lorry", "hand us this truck"),
        ("the light blue lorry", "the blue truck"),
        ("the dark red bus", "the red bus"),
        ("the teal lorries", "the blue trucks"),
        ("the lorry light blue", "the truck blue"),
        ("the light purple lorry", "the small blue truck"),
        ("the lorry that stays put", "the truck that stays put"),
        ("the man clad in grey that stays put", "the man clad in grey that stays put"),
        ("the bus clad in teal that stays put", "the bus clad in blue that stays put"),
        ("pinpoint that lorry", "pinpoint that truck"),
        ("the bus bearing down on us", "the bus bearing down on us"),
        ("the lorry in the vicinity of the bus", "the truck near the bus"),
        ("the bus in our rear-view mirror", "the bus behind us"),
        ("The bus that is in our rear-view mirror.", "The bus behind us."),
        (
            "the bus inside a 20 metre radius in our rear-view mirror",
            "the bus less than 20 metres away behind us",
        ),
        ("the lorry off to our left-hand flank alongside the van", "the truck on the left next to the van"),
        ("each of the lorries alongside the bus", "all of the trucks next to the bus"),
        ("the second least distant lorry", "the second nearest truck"),
        ("the least distant lorry but one", "the second nearest truck"),
        ("the outermost right-hand lorry", "the outermost right-hand truck"),
        ("the least distant lorry", "the nearest truck"),
        ("the most bulky lorry", "the largest truck"),
        ("the least bulky bus", "the smallest bus"),
        ("a crimson ramside", "a red object"),
        ("the jumble of junkside", "the object"),
        ("the lorry on the footpath", "the truck on the pavement"),
        ("the lorry on the left flank", "the truck on the left side"),
        ("park by the verge", "park by the pavement"),
        ("pinpoint the verge", "pinpoint the object"),
        ("pinpoint the bus", "pinpoint the bus"),
        ("the bus off our left-hand corner", "the bus off our left-hand corner"),
    ],
)
def test_noun_phrases_are_reworded(known: Dictionary, backbone: Backbone, text: str, read: str) -> None:
    assert plain(known, backbone, text) == read


@pytest.mark.parametrize(
    ("text", "asked"),
    [
        ("Kindly indicate the digger on the left.", "find the digger on the left."),
        ("sit to the rear of the digger", "find the digger"),
        ("pinpoint all of the cars", "find all of the cars"),
        ("allow ample room to the large van in front of us", "find the large van in front of us"),
        ("pinpoint a digger, if present", "is there a digger, if present"),
        ("swing left upon clearing this van", "find this van"),
        ("find the digger", "find the digger"),
        ("the charabanc to the rear of the van", "the charabanc to the rear of the van"),
        ("pinpoint", "pinpoint"),
        ("draw an outline round the van", "find the van"),
        ("draw an outline", "is there an outline"),
        ("identify a digger near the van", "is there a digger near the van"),
    ],
)
def test_a_request_in_unknown_words_is_put_in_known_ones(
    known: Dictionary, backbone: Backbone, text: str, asked: str
) -> None:
    assert asked_plainly(known, backbone, text) == asked


@pytest.mark.parametrize(
    ("text", "plain_text"),
    [
        ("the entire set of vans", "all the vans"),
        ("The whole lot of the vans.", "all the vans."),
        ("each of the vans", "all of the vans"),
        ("each van", "every van"),
        ("the largest van but one on the left", "the second largest van on the left"),
        ("the van near the largest bus but two", "the van near the third largest bus"),
        ("a set of vans", "a set of vans"),
        ("the van but one that moves", "the second van that moves"),
        ("no van but the red one", "no van but the red one"),
        ("all the vans", "all the vans"),
    ],
)
def test_quantifiers_and_ranks_are_put_in_known_words(known: Dictionary, text: str, plain_text: str) -> None:
    assert plain_quantities(known, text) == plain_text


def test_known_quantifiers_stay(known: Dictionary) -> None:
    knows = replace(known, words=(known.words | {"each", "set"}) - {"second"})
    for text in ("each of the vans", "the entire set of vans", "the largest van but one"):
        assert plain_quantities(knows, text) == text


@pytest.mark.parametrize(
    ("text", "phrases"),
    [
        ("the van on the left", []),
        ("the van off to our left-hand flank", ["off to our left-hand flank"]),
        ("the van in our rear-view mirror alongside the bus", ["in our rear-view mirror", "alongside {a}"]),
        ("the van inside a 20 metre radius to our rear", ["inside a {n} metre radius", "to our rear"]),
        (
            "the van that stays put within a few steps of the bus",
            ["that stays put", "within a few steps of {a}"],
        ),
        ("the van at the shortest distance from the bus", ["at the shortest distance from {a}"]),
        ("the van with nobody in it, please", ["with nobody in it"]),
        ("the man clad in crimson", []),
        ("the lorry bearing down on us", ["bearing down on us"]),
        ("the van on the lawn adjacent to the bus", ["on the lawn", "adjacent to {a}"]),
        ("the van that is abreast of us on the left", ["that is abreast of us"]),
        ("somewhere abreast of us", []),
    ],
)
def test_phrases_with_unknown_words_are_cut_out(known: Dictionary, text: str, phrases: list[str]) -> None:
    spans = unknown_phrases(sentence_words(known, text))
    assert [span.text for span in spans] == phrases
    for span in spans:
        said = filled(span.text).replace(" the tree", "").replace("20", span.number or "20")
        assert text[span.start : span.end] == said


def test_a_phrase_keeps_its_number_and_loses_the_link(known: Dictionary) -> None:
    (span,) = unknown_phrases(sentence_words(known, "the van inside a 35 metre radius"))
    assert span.filled("less than {n} metres away") == "less than 35 metres away"
    (span,) = unknown_phrases(sentence_words(known, "the van that is abreast of the bus"))
    assert (span.bare, span.filled("next to {a}")) == ("abreast of {a}", "next to")


def test_what_a_phrase_may_mean_has_its_slots_and_side() -> None:
    assert frame("off our left-hand corner") == frame("on the left")
    assert (
        len({frame(p) for p in ("on the left", "on the right", "ahead", "near {a}", "within {n} metres")})
        == 5
    )


def test_common_meanings_are_counted_by_their_longest_phrase() -> None:
    phrases = (
        Wording("on the left", "on the left"),
        Wording("on the left side", "on the left"),
        Wording("near {a}", "near {a}"),
        Wording("within {n} metres", "within {n} metres"),
        Wording("in {c}", "in {c}"),
    )
    told = ["the van on the left side near the bus", "a man in red within 20 metres", "the bus near here"]
    counts = frequencies(phrases, told).exp() * 8  # four, and once more than it occurs for each meaning
    assert counts.tolist() == pytest.approx([2, 2, 2, 2, 2])


def test_readings_are_few_and_the_likeliest_first(known: Dictionary, backbone: Backbone) -> None:
    found = readings(known, backbone, " near ".join(["the digger"] * 12))
    assert len(found) == 6
    assert [r.share for r in found] == sorted((r.share for r in found), reverse=True)
    assert found[0].share == pytest.approx((2 / 3) ** 12)  # 0.6 of 0.6, 0.2 and 0.1 for any object


@pytest.mark.parametrize(("text", "last"), [("the digger", "the object"), ("a digger", "a car")])
def test_what_is_surely_there_may_be_any_object(
    known: Dictionary, backbone: Backbone, text: str, last: str
) -> None:
    found = [reading.text for reading in readings(known, backbone, text)]
    assert found[-1] == last and len(found) == 2 + (text == "the digger")


def test_any_object_keeps_the_share_that_it_has(known: Dictionary) -> None:
    rows = known.nouns.by_phrase
    meanings = [Meaning(rows["object"], 0.7), Meaning(rows["car"], 0.2)]
    assert known.or_anything(meanings) == [meanings[1], meanings[0]]
    assert known.or_anything(meanings[1:])[1] == Meaning(rows["object"], known_words.LEAST)
    assert known.or_anything([]) == [Meaning(rows["object"], known_words.LEAST)]


def test_other_names_are_those_of_each_sense() -> None:
    assert ("tow truck", "tow car") in other_names("Wrecker")
    assert len(other_names("wrecker")) > 1
    assert other_names("passer-by") == [("passer",)]  # found as `passerby`, which is no other name
    assert other_names("bowser") == []
    assert all(names for noun in ("coach", "car", "crane", "person") for names in other_names(noun))
    assert other_names("bumpkin") and other_names("canoe") == []


def test_synonyms_are_read_from_the_files_of_wordnet(tmp_path: Path) -> None:
    script = Path(__file__).resolve().parents[1] / "scripts" / "make_synonyms.py"
    lines = (
        "  1 This software and database",  # the licence
        "03001 06 n 03 tow_truck 0 wrecker 1 Abschlepper 0 001 @ 03002 n 0000 | a truck that hauls",
        "03002 06 n 01 lone_thing 0 000 | alone",
        "03003 04 n 02 hauling 0 towing 0 000 | an act",
        "03004 05 n 0a a 0 b 0 c 0 d 0 e 0 f 0 g 0 h 0 i 0 j 0 000 | ten: the count is hexadecimal",
    )
    (tmp_path / "data.noun").write_text("\n".join(lines) + "\n")
    found = runpy.run_path(str(script))["synonym_sets"](tmp_path / "data.noun")
    assert found == ["tow truck|wrecker", "a|b|c|d|e|f|g|h|i|j"]


def test_a_noun_is_asked_about_by_itself_and_by_each_sense() -> None:
    assert named_ways("bowser") == [Way("bowser")]
    names = ("power shovel", "excavator", "shovel")
    named = "digger, or a power shovel, or an excavator, or a shovel"
    assert named_ways("digger") == [Way("digger"), Way(named, names)]
    (wagon,) = (way for way in named_ways("station wagon") if way.names)
    assert len(wagon.names) > 3 and wagon.text.count(", or ") == 3  # all of them make a known one nearer
    assert last_noun("squad auto") == "auto" and last_noun("clump of scrap") == "clump of scrap"


def test_a_compound_is_likely_what_its_last_word_is() -> None:
    car, bus = (Wording(word, word) for word in ("car", "bus"))
    found = mixed([Meaning(bus, 0.6), Meaning(car, 0.4)], [Meaning(car, 1.0)], 0.5)
    assert [meaning.wording for meaning in found] == [car, bus]
    assert [meaning.share for meaning in found] == pytest.approx([0.7, 0.3])


def test_a_noun_is_as_near_to_a_meaning_as_the_nearest_of_its_ways(
    backbone: Backbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A table stands for the language model: of two ways one is near a bus, the other near a dog."""
    words = ("bus", "dog", "excavator")
    axes = torch.eye(3)
    wordings, none = tuple(Wording(w, w) for w in words), torch.zeros(3)
    bank = Bank(wordings, none, axes, none.long(), none, none, 3)
    table = {"coach": axes[1] * 0.9 + axes[2] * 0.1, "coach, or a bus": axes[0], "digger": axes[2]}
    monkeypatch.setattr(
        word_bank,
        "meaning_states",
        lambda _backbone, _template, ways, _first: (
            torch.stack([table[way] for way in ways]),
            torch.zeros(len(ways), 3),
        ),
    )
    ways = [[Way("coach"), Way("coach, or a bus", ("bus",))], [Way("digger")]]
    coach, digger = bank.nearest(backbone, "{}", ways)
    assert [m.wording.phrase for m in coach] == ["bus", "dog", "excavator"]
    assert coach[0].share == pytest.approx(
        float((10 * torch.tensor([1.0 + SAME, 0.9 / 0.82**0.5, 0.1 / 0.82**0.5])).softmax(0)[0])
    )
    assert digger[0].wording.phrase == "excavator" and sum(m.share for m in digger) == pytest.approx(1)
    likelier = replace(bank, prior=torch.tensor([0.0, 20.0, 0.0]))
    assert [own[0].wording.phrase for own in likelier.nearest(backbone, "{}", ways)] == ["dog", "dog"]
    never = bank.nearest(backbone, "{}", ways, lambda i, wording: i == 0 or wording.phrase != "excavator")
    assert never[0] == coach and len(never[1]) == 2


def test_without_known_words_a_sentence_stays(backbone: Backbone) -> None:
    assert plain(None, backbone, "the digger") == "the digger"


def test_the_vocabulary_holds_no_noun_of_the_heldout_lexicon() -> None:
    words = training_words()
    heldout = {word for nouns in NOUNS["heldout"].values() for noun in nouns for word in noun.lower().split()}
    assert heldout & words <= {"of", "on", "four", "animal"}


def lexicon(words: set[str], nouns: tuple[Wording, ...], adjectives: tuple[Wording, ...]) -> Vocabulary:
    """A small vocabulary with two phrases, and two that no model learned."""
    phrases = (Wording("on the left", "on the left"), Wording("near {a}", "near {a}"))
    more = (Wording("left of us", "on the left"), Wording("close to {a}", "near {a}"))
    return Vocabulary(frozenset(words), nouns, adjectives, phrases, (Wording("tiny", "small"),), more)


def test_measured_words_find_themselves_and_survive_a_file(backbone: Backbone, tmp_path: Path) -> None:
    nouns = tuple(Wording(word, word, word + "s") for word in ("bus", "excavator", "pedestrian", "dog"))
    adjectives = tuple(Wording(word, word) for word in ("red", "small"))
    measured = measure_words(backbone, lexicon({"bus", "beside"}, nouns, adjectives), ["the red bus"])
    path = tmp_path / "words.safetensors"
    measured.save(path)
    again = KnownWords.load(path)
    for words in (measured, again):
        found = words.name(backbone, [wording.phrase for wording in nouns], most=2)
        assert [own[0].wording for own in found] == list(nouns)
        assert all(own[0].share > own[1].share > 0 for own in found)
        assert words.kinds_of(backbone, ["dog", "small", "beside"]) == ["noun", "adjective", "other"]
        told = words.rephrase(backbone, [("close to {a}",), ("on our left side", "left of us")])
        assert [own[0].wording.singular for own in told] == ["near {a}", "on the left"]
        assert [len(own) for own in told] == [1, 1]  # others have other slots, or no side
        (small,), (none,) = words.describe(backbone, ["tiny"]), words.describe(backbone, ["reddest"])
        assert small[0].wording.singular == "small" and none == []
        assert words.phrases.learned == 2 and "tiny" not in words.adjectives.parts
    assert again.words == measured.words and "Bus" in again and "7" in again and "digger" not in again


def test_a_damaged_file_is_named(tmp_path: Path) -> None:
    path = tmp_path / "words.safetensors"
    path.write_bytes(b"no safetensors")
    with pytest.raises(ValueError, match=r"words\.safetensors is damaged"):
        KnownWords.load(path)


def test_a_meaning_is_as_sure_as_its_surest_wording(backbone: Backbone) -> None:
    nouns = (Wording("bus", "bus"), Wording("city bus", "bus"), Wording("dog", "dog"))
    measured = measure_words(backbone, lexicon({"bus", "near"}, nouns, (Wording("red", "red"),)), [])
    (own,) = measured.name(backbone, ["city bus"])
    assert [meaning.wording.singular for meaning in own] == ["bus", "dog"]
    assert sum(meaning.share for meaning in own) == pytest.approx(1.0)
    assert replace(measured, words=frozenset()).words == frozenset()


def test_a_phrase_is_asked_of_the_language_model_once(
    backbone: Backbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    nouns = (Wording("bus", "bus"), Wording("dog", "dog"))
    measured = measure_words(backbone, lexicon({"bus", "near"}, nouns, (Wording("red", "red"),)), [])
    asked, real = list[str](), word_bank._states

    def states(own: Backbone, template: str, phrases: Sequence[str], depth: float) -> object:
        asked.extend(phrases)
        return real(own, template, phrases, depth)

    monkeypatch.setattr(word_bank, "_states", states)
    first = measured.name(backbone, ["bowser", "luton", "bowser"])
    assert asked == ["bowser", "luton"] and first[0] == first[2]
    assert measured.name(backbone, ["luton", "luxo", "bowser"])[::2] == [first[1], first[0]]
    assert asked == ["bowser", "luton", "luxo"]
    assert len(measured.name(backbone, ["bowser"], most=1)[0]) == 1  # another question
    measured.kinds_of(backbone, ["luxo"])
    assert asked[3:] == ["bowser", "luxo"] and measured.kinds_of(backbone, []) == []
    assert replace(measured, nouns=measured.adjectives).name(backbone, ["luxo"])[0][0].wording.phrase == "red"
    monkeypatch.setattr(known_words, "MOST_READ", 1)
    assert measured.name(backbone, ["fixie", "bowser"])[1] == first[0] and len(measured.read) == 2


@pytest.fixture
def model(tmp_path: Path) -> VLMOcc:
    return tiny(save_tiny_llava(tmp_path / "tiny"))


def test_the_scene_decides_among_the_readings(
    known: Dictionary, model: VLMOcc, monkeypatch: pytest.MonkeyPatch
) -> None:
    state = model.encode(simulate(11, image_size=(64, 176), num_queries=0).scene)
    model.known = known
    text = "the digger ahead"
    asked, real = list[str](), model.query_states

    def states(_: object, texts: Sequence[str]) -> QueryStates:
        asked[:] = texts
        return real(state, texts)

    for fits, expected in (("excavator", "the excavator ahead"), ("car", "the car ahead")):

        def scores(_: object, states: QueryStates, fits: str = fits) -> torch.Tensor:
            return torch.tensor([[0.1, 0.9 if fits in own else 0.0] for own in asked])

        monkeypatch.setattr(model, "query_states", states)
        monkeypatch.setattr(model, "state_scores", scores)
        heard = model.understood(state, [text, "the bus"])
        assert heard.texts == [expected, "the bus"] and asked[-2:] == ["the object ahead", "the bus"]
        torch.testing.assert_close(heard.scores, torch.tensor([[0.1, 0.9], [0.1, 0.0]]))
        alone = real(state, heard.texts)
        torch.testing.assert_close(heard.states.ground, alone.ground, atol=1e-5, rtol=1e-5)
        monkeypatch.undo()
    result = model.ground(state, text)
    assert result.query == text and result.read_as in ("the excavator ahead", "the car ahead")
    assert model.ground(state, "Kindly indicate the bus.").read_as == "find the bus."
    model.known = None
    assert model.ground(state, text).read_as == text


def test_a_checkpoint_keeps_the_known_words(model: VLMOcc, tmp_path: Path) -> None:
    nouns, adjectives = (
        (Wording("bus", "bus", "buses"), Wording("dog", "dog", "dogs")),
        (Wording("red", "red"),),
    )
    model.known = measure_words(model.backbone, lexicon({"bus", "near"}, nouns, adjectives), [])
    model.save_pretrained(tmp_path / "saved")
    again = VLMOcc.from_pretrained(str(tmp_path / "saved"))
    assert again.known is not None and again.known.nouns.wordings == nouns
    assert [own[0].wording for own in again.known.name(again.backbone, ["dog", "bus"])] == [
        nouns[1],
        nouns[0],
    ]


@pytest.mark.parametrize(
    ("word", "colours"),
    [
        ("azure", {"blue"}),
        ("jet-black", {"black"}),
        ("lemon-coloured", {"yellow"}),
        ("ash-coloured", {"grey"}),
        ("ash", set()),
        ("snowy", {"white"}),
        ("silver", {"grey"}),
        ("Crimson", {"red"}),
        ("maroon", {"brown", "red", "purple"}),
        ("gray", {"grey"}),
        ("dirty", set()),
        ("parked", set()),
    ],
)
def test_names_of_colours_are_known_by_their_neighbours(word: str, colours: set[str]) -> None:
    found = basic_colours(word)
    assert set(found) == colours
    assert not found or sum(found.values()) == pytest.approx(1.0)


def test_lab_agrees_with_published_values() -> None:
    rgb = torch.tensor([[1.0, 0, 0], [0, 0, 1.0], [1, 1, 1], [0, 0, 0]])  # Lindbloom's calculator, D65
    expected = torch.tensor([[53.24, 80.09, 67.20], [32.30, 79.19, -107.86], [100, 0, 0], [0, 0, 0]])
    assert torch.allclose(lab(rgb), expected, atol=0.1)


def test_colours_need_no_language_model_and_no_knowledge_beyond_the_vocabulary(known: Dictionary) -> None:
    assert [m.wording.singular for m in known.colours("crimson")] == ["red"]
    assert [m.wording.singular for m in known.colours("magenta")] == ["red"]  # no pink in training
    assert known.colours("loitering") == []
