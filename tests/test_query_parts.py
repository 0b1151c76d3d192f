"""The factors of simulated sentences: together they mean the targets, each says what its word says."""

from __future__ import annotations

import json
import random
from dataclasses import replace
from pathlib import Path

import pytest
from random_facts import random_facts, sample
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from small_scenes import small_scene

from vlm_occ.data.simulator.grammar import compose, write_queries
from vlm_occ.data.simulator.meaning import Attribute, Meaning, Order, Relation, SceneView
from vlm_occ.data.simulator.objects import ObjectFacts
from vlm_occ.data.simulator.parts import query_parts
from vlm_occ.data.store import load_scene_file, save_scene
from vlm_occ.objectives_pointer import LEARNED
from vlm_occ.types import COLOURS, TALK2OCC_CLASSES, UNARY, GroundingQuery, QueryPart

OF_TARGET = (*UNARY, "relation", "order")


def bits(*places: int) -> int:
    """The mask of some objects."""
    return sum(1 << place for place in places)


def common(query: GroundingQuery, *, sure: bool) -> int:
    """The objects that surely, or possibly, have every factor of what is meant."""
    masks = [part.sure if sure else part.possible for part in query.parts if part.kind in OF_TARGET]
    found = masks[0]
    for mask in masks[1:]:
        found &= mask
    return found


def an_object(name: str, x: float, y: float, colour: int, **more: object) -> ObjectFacts:
    """An object that stands on the road and looks ahead."""
    size = (4.0, 2.0, 1.5) if name == "car" else (0.6, 0.6, 1.7)
    item = ObjectFacts(
        label=TALK2OCC_CLASSES.index(name),
        variant="adult" if name == "pedestrian" else "sedan",
        colour=colour,
        size="medium",
        box=(x, y, 0.8, *size, 0.0),
        velocity=(0.0, 0.0),
        motion="parked",
        place="road",
        referable=True,
    )
    return replace(item, **more)  # type: ignore[arg-type]


STREET = (
    an_object("car", 20, 6, 0),
    an_object("car", 12, -6, 0),
    an_object("car", 10, 8, 1),
    an_object("pedestrian", 20, 8.5, 1),
    an_object("car", 30, 6, -1),  # of no clear colour
    an_object("car", 25, 1.5, 0, referable=False),  # hidden, neither left nor not left
)
WHITE, BLACK = COLOURS[:2]


def test_a_hand_made_street_has_the_factors_that_one_reads_off_it() -> None:
    left, white = Attribute("side", "left"), Attribute("colour", WHITE)
    near = Relation("next_to", Meaning("pedestrian", (Attribute("colour", BLACK),)))
    found = query_parts(SceneView(STREET), Meaning("car", (white, left), near, Order("nearest", 1)))
    assert {part.kind: (part.sure, part.possible) for part in found} == {
        "noun": (bits(0, 1, 2, 4), bits(0, 1, 2, 4, 5)),
        "colour": (bits(0, 1, 5), bits(0, 1, 4, 5)),
        "side": (bits(0, 2, 3, 4), bits(0, 2, 3, 4, 5)),
        "relation": (bits(0), bits(0)),
        "filter": (bits(0), bits(0)),
        "order": (bits(0), bits(0)),
        "anchor": (bits(3), bits(3)),
        "anchor noun": (bits(3), bits(3)),
        "anchor colour": (bits(2, 3), bits(2, 3, 4)),
    }


@pytest.mark.parametrize("kind", ["expression", "command", "many"])
def test_the_objects_with_every_factor_are_the_targets(kind: str) -> None:
    queries = [query for _, _, query in sample() if query.kind == kind]
    assert len(queries) > 50
    for query in queries:
        assert common(query, sure=True) == common(query, sure=False) == bits(*query.targets), query.text


def test_no_object_has_even_possibly_every_factor_of_a_sentence_about_none() -> None:
    queries = [query for _, _, query in sample() if query.kind == "none"]
    assert len(queries) > 50 and not any(common(query, sure=False) for query in queries)


def test_every_kind_of_factor_occurs_and_what_is_sure_is_possible() -> None:
    kinds = set()
    for facts, meaning, query in sample():
        kinds |= {part.kind for part in query.parts}
        assert all(
            part.sure & ~part.possible == 0 <= part.possible >> len(facts) == 0 for part in query.parts
        )
        stated = {part.kind for part in query.parts if part.kind in UNARY}
        assert stated == {"noun"} | {attribute.kind for attribute in meaning.attributes}
    assert kinds == set(LEARNED)


def test_an_order_chooses_among_those_that_have_the_other_factors() -> None:
    found = 0
    for _, meaning, query in sample():
        parts = {part.kind: part for part in query.parts}
        assert ("order" in parts) == ("filter" in parts) == (meaning.order is not None)
        if "order" in parts and query.targets:
            others = [part.sure for kind, part in parts.items() if kind in (*UNARY, "relation")]
            for mask in others:
                assert parts["filter"].sure & ~mask == 0
            assert parts["order"].sure & ~parts["filter"].sure == 0
            found += parts["filter"].sure.bit_count() > 1
    assert found > 10  # with something to choose from


def test_what_a_sentence_relates_to_is_not_what_it_means() -> None:
    found = 0
    for _, _, query in sample():
        for part in query.parts:
            if part.kind == "anchor" and query.targets:
                assert part.sure and not part.possible & bits(*query.targets), query.text
                found += 1
    assert found > 30


def test_the_factors_of_a_colour_and_a_side_are_those_of_the_facts() -> None:
    found = {"colour": 0, "side": 0}
    for facts, meaning, query in sample():
        for part in query.parts:
            attribute = meaning.attribute(part.kind) if part.kind in ("colour", "side") else None
            if attribute is None:
                continue
            found[part.kind] += 1
            for i, item in enumerate(facts):
                sure, possible = bool(part.sure >> i & 1), bool(part.possible >> i & 1)
                if part.kind == "colour":
                    assert sure == (item.colour >= 0 and COLOURS[item.colour] == attribute.value)
                    assert possible == (sure or item.colour < 0)
                else:
                    outwards = item.box[1] if attribute.value == "left" else -item.box[1]
                    assert outwards > 2 if sure else outwards < max(2.0, 0.081 * abs(item.box[0]))
                    assert possible == (outwards > 1)
    assert min(found.values()) > 20


def test_factors_are_kept_with_the_scene_for_any_number_of_objects(tmp_path: Path) -> None:
    facts = random_facts(1, count=90)  # more than a machine word has bits
    queries = write_queries(facts, seed=2, count=6)
    assert any(part.possible >= 1 << 64 for query in queries for part in query.parts)
    item = replace(small_scene(), queries=queries)
    save_scene(item, tmp_path / "a.safetensors")
    assert load_scene_file(tmp_path / "a.safetensors")[0].queries == queries


def test_a_scene_of_an_older_version_has_no_factors(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    composed = compose(SceneView(STREET), random.Random(0), "expression", "train")
    assert composed is not None and composed[1].parts
    save_scene(replace(small_scene(), queries=(composed[1],)), path)
    with safe_open(path, framework="pt") as file:
        about = json.loads(file.metadata()["scene"])
    assert [QueryPart(**part) for part in about["queries"][0].pop("parts")] == list(composed[1].parts)
    save_file(load_file(path), tmp_path / "old.safetensors", {"scene": json.dumps(about)})
    read = load_scene_file(tmp_path / "old.safetensors")[0]
    assert read.queries == (replace(composed[1], parts=()),)
