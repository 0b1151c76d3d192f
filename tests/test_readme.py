"""The README's examples run, and its commands are ones that the program knows."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from vlm_occ.cli import build_parser
from vlm_occ.language.nano import nano_folder

README = Path(__file__).parents[1] / "README.md"


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README.read_text(), flags=re.DOTALL)


def test_the_readmes_python_runs(capsys):
    try:
        nano_folder()
    except ValueError as error:
        pytest.skip(f"the embedded default can't be fetched here: {error}")
    for block in blocks("python"):
        exec(compile(block, "README.md", "exec"), {})
    assert capsys.readouterr().out.strip()


def test_the_readmes_commands_are_known():
    known = build_parser().format_help()
    named = set(re.findall(r"`vlm-occ ([a-z]+)", README.read_text()))
    assert {"demo", "ground", "chat", "data", "train", "eval", "doctor"} <= named
    assert all(name in known for name in named)


def test_the_first_screen_holds_the_two_commands():
    screen = "\n".join(README.read_text().splitlines()[:25])
    assert "vlm-occ demo" in screen and "python -m pytest" in screen
