"""The simulator's situations fit their words, and so do their mirror images."""

from __future__ import annotations

import math
import re
from collections import Counter
from dataclasses import replace

import pytest
from random_facts import LEXICONS, Naive, flipped, random_facts
from shapely.geometry import Point

from vlm_occ.data.simulator.lexicon import Lexicon, flip_text
from vlm_occ.data.simulator.objects import ObjectFacts
from vlm_occ.data.simulator.situations import write_situations
from vlm_occ.situated import SituationQuery


@pytest.mark.parametrize("lexicon", LEXICONS)
def test_agents_stand_within_reach_and_outside_every_box(lexicon: Lexicon) -> None:
    kinds: Counter[str] = Counter()
    for seed in range(10):
        facts = random_facts(seed)
        naive = Naive(facts, 0.5, own_reading=False)
        for item in write_situations(facts, seed=seed, count=6, lexicon=lexicon):
            assert math.hypot(*item.position) <= 30.0 and -math.pi <= item.yaw <= math.pi
            assert min(naive.shape(o).distance(Point(item.position)) for o in facts) > 0.2
            kinds[item.kind] += 1
    assert min(kinds["exact"], kinds["vague"]) > 15


QUARTERS = {"behind": math.pi, "in front of": 0.0, "off the left side of": math.pi / 2}
QUARTERS["off the right side of"] = -math.pi / 2
BESIDE = re.compile(rf"([\d.]+) (?:m|metres|meters|metre) ({'|'.join(QUARTERS)}) the .*, ([^,]*?)\.?$")
TURNS = {"facing the same way as it": 0.0, "facing the opposite way to it": math.pi}


def is_beside_some_object(item: SituationQuery, facts: list[ObjectFacts]) -> bool | None:
    """Whether the pose is one that the sentence allows beside some object; None for other sentences."""
    match = BESIDE.search(item.text)
    if match is None or "the car that you drive" in item.text:
        return None
    for other in facts:
        x, y, _, dx, dy, _, yaw = other.box
        angle = yaw + QUARTERS[match[2]]
        reach = float(match[1]) + (dy if "side" in match[2] else dx) / 2
        place = (x + reach * math.cos(angle), y + reach * math.sin(angle))
        headings = {"facing it": angle + math.pi, "with my back to it": angle}
        headings |= {text: yaw + more for text, more in TURNS.items()}
        turn = math.remainder(headings.get(match[3], item.yaw) - item.yaw, 2 * math.pi)
        if math.dist(place, item.position) < 1e-6 and abs(turn) < 1e-6:
            return True
    return False


def test_an_exact_situation_and_its_mirror_image_fit_their_words() -> None:
    found = 0
    for seed in range(40):
        facts = random_facts(seed)
        for item in write_situations(facts, seed=seed, count=15):
            fits = is_beside_some_object(item, facts)
            if fits is None:
                continue
            assert fits, item
            (x, y), text = item.position, flip_text(item.text)
            mirrored = replace(item, text=text, position=(x, -y), yaw=-item.yaw)
            assert is_beside_some_object(mirrored, [flipped(other) for other in facts]), mirrored
            found += item.text.endswith(("it", "it."))
    assert found > 10


def test_situations_do_not_speak_from_the_vehicle() -> None:
    for seed in range(20):
        for item in write_situations(random_facts(seed), seed=seed, count=5):
            assert not re.search(r"\b(us|our)\b", item.text), item.text
