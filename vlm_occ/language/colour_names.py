"""What people call colours: `azure` is a blue, `silver` a grey.

A small language model knows that `azure` is a colour, but hardly which. The answers are those of the xkcd
colour survey and the CSS names, which matplotlib carries: 558 of the survey's names end in a basic colour
(`dark navy blue`), and a name without one is what most of its nearest neighbours among them are. What a thing
lends its colour to, `ash-coloured`, is WordNet's: ash is grey.
"""

from __future__ import annotations

import re
from collections import Counter
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

BASIC = ("white", "black", "grey", "red", "blue", "green", "yellow", "orange", "brown", "pink", "purple")
"""The basic colour terms of English (Berlin and Kay 1969)."""
LIKENED = Path(__file__).parent / "synonyms" / "colours.txt"
"""Things and the one basic colour that WordNet 3.1 likens to them, a line each: scripts/make_synonyms.py."""
NEIGHBOURS = 7
PALE, DARK, COLOURLESS, FAINT = 95.0, 20.0, 12.0, 40.0
"""CIELAB: lightness above which a faint colour is white and below which a colourless one is black, chroma
below which a colour is colourless, and faint. Few names of the survey end in white or black."""


@cache
def basic_colours(word: str) -> dict[str, float]:
    """Which of BASIC a colour's name is, with shares that add up to 1; empty for what is no colour's name.

    Compounds of a basic colour (`jet-black`), and names with `-coloured`, `-ish` or `-y` count.
    """
    spelled = word.lower().replace("gray", "grey").replace("-", " ")
    name = re.sub(r" ?(colou?red|ish)$", "", spelled)
    if (last := name.rpartition(" ")[2]) in BASIC:
        return {last: 1.0}
    names, likened = _names(), name.removesuffix("y")
    if name in names:
        return _nearest(names[name])
    if likened in _css():
        return _nearest(names[likened])
    return {_likened()[likened]: 1.0} if name != spelled and likened in _likened() else {}


def is_shade(word: str, colour: str) -> bool:
    """Whether a word before a basic colour makes a shade of it: `light` of `light blue`."""
    return colour.lower() in BASIC and f"{word.lower()} {colour.lower()}" in _names()


def _nearest(place: Tensor) -> dict[str, float]:
    """What a colour [3] in CIELAB is called, most often first."""
    lightness, chroma = float(place[0]), float(place[1:].norm())
    if lightness > PALE and chroma < FAINT:
        return {"white": 1.0}
    if chroma < COLOURLESS:
        return {"black" if lightness < DARK else "grey": 1.0}
    places, colours = _survey()
    near = (places - place).norm(dim=1).argsort()[:NEIGHBOURS].tolist()
    votes = Counter(colours[row] for row in near).most_common()
    return {colour: count / NEIGHBOURS for colour, count in votes}


@cache
def _likened() -> dict[str, str]:
    """The colour of each thing that lends its own to a name."""
    return dict(line.split() for line in LIKENED.read_text(encoding="utf-8").splitlines())


@cache
def _css() -> frozenset[str]:
    from matplotlib.colors import CSS4_COLORS

    return frozenset(CSS4_COLORS)


@cache
def _names() -> dict[str, Tensor]:
    """Every named colour in CIELAB; where the survey and CSS have the same name, the survey's."""
    from matplotlib.colors import CSS4_COLORS, XKCD_COLORS, to_rgb

    given = {**CSS4_COLORS, **{name.removeprefix("xkcd:"): code for name, code in XKCD_COLORS.items()}}
    return {name.replace("gray", "grey"): lab(torch.tensor(to_rgb(code))) for name, code in given.items()}


@cache
def _survey() -> tuple[Tensor, list[str]]:
    """The colours [N, 3] whose names end in a basic one, and those."""
    rows = [(place, name.rpartition(" ")[2]) for name, place in _names().items()]
    rows = [(place, colour) for place, colour in rows if colour in BASIC]
    return torch.stack([place for place, _ in rows]), [colour for _, colour in rows]


def lab(rgb: Tensor) -> Tensor:
    """CIELAB (D65) of sRGB values [..., 3] in 0..1."""
    linear = torch.where(rgb > 0.04045, ((rgb + 0.055) / 1.055) ** 2.4, rgb / 12.92)
    to_xyz = linear.new_tensor([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])
    scaled = linear @ to_xyz.T / linear.new_tensor([0.9505, 1.0, 1.089])
    cubed = torch.where(scaled > 0.008856, scaled.clamp(min=1e-9) ** (1 / 3), 7.787 * scaled + 16 / 116)
    x, y, z = cubed.unbind(-1)
    return torch.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], dim=-1)
