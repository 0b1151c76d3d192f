"""Imports go downwards only (ARCHITECTURE 4), and asking for help loads nothing heavy."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import vlm_occ

LAYERS = {
    0: ("types", "situated", "geometry", "voxels", "config", "weights", "raycast", "timing"),
    1: ("encoders", "heads", "losses", "data", "render", "eval.metrics", "chat"),  # chat knows types only
    2: ("language",),
    3: ("models",),
    4: (
        "objectives",
        "objectives_pointer",
        "objectives_spatial",
        "cut3r_training",
        "train",
        "overfit",
        "latency",
        "throughput",
        "training_speed",
        "backbone_latency",
        "sparse_speed",
        "sparse_tuning",
        "street",
        "run_check",
        "run_config",
        "run_log",
        "run_model",
        "run_scenes",
        "run_state",
        "paper_train",
        "trainee",
        "training_module",
        "eval",
    ),
    5: ("cli", "commands", "benchmarks", "demo", "doctor", "__main__", ""),
}
PACKAGE = Path(vlm_occ.__file__).parent


def place_of(module: str) -> tuple[int, str]:
    """Layer and part of a dotted module below `vlm_occ`; the longest matching name wins."""
    places = [(len(part), layer, part) for layer, parts in LAYERS.items() for part in parts]
    found = [p for p in places if module == p[2] or (p[2] and module.startswith(p[2] + "."))]
    assert found, f"vlm_occ.{module} has no layer; add it to LAYERS and to the README's picture"
    return max(found)[1:]


def imports(path: Path) -> set[str]:
    """Our modules that a file imports anywhere in it, below `vlm_occ`."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} has a relative import; write the full name"
            whole = [f"{node.module}.{a.name}" for a in node.names]
            is_module = [(PACKAGE.parent / n.replace(".", "/")).with_suffix(".py").is_file() for n in whole]
            names.update(n if m else str(node.module) for n, m in zip(whole, is_module, strict=True))
    return {n.removeprefix("vlm_occ").removeprefix(".") for n in names if n.split(".")[0] == "vlm_occ"}


def wrong_imports(module: str, imported: set[str]) -> list[str]:
    """The imports of a module that go up, or to a sibling part of its layer."""
    layer, part = place_of(module)
    targets = {name: place_of(name) for name in imported}
    sideways = layer not in (0, 4, 5)  # the foundation and the top may import their own layer
    return [n for n, (m, p) in targets.items() if m > layer or (sideways and m == layer and p != part)]


def test_imports_go_downwards_and_not_to_siblings() -> None:
    wrong = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        module = ".".join(path.relative_to(PACKAGE).with_suffix("").parts).removesuffix("__init__").strip(".")
        if odd := wrong_imports(module, imports(path)):
            wrong[module] = odd
    assert not wrong, wrong


def test_the_layer_rule_finds_what_it_forbids() -> None:
    assert wrong_imports("heads.box", {"encoders.sparse", "types", "heads.layout"}) == ["encoders.sparse"]
    assert wrong_imports("data.nuscenes", {"models.adapter"}) == ["models.adapter"]
    assert wrong_imports("eval.metrics", {"eval.evaluate"}) == ["eval.evaluate"]
    assert not wrong_imports("eval.evaluate", {"eval.metrics", "models.adapter"})


def test_help_imports_no_torch() -> None:
    code = (
        "import sys; from vlm_occ.cli import main\n"
        "try: main(['--help'])\nexcept SystemExit: pass\n"
        "heavy = {'torch', 'transformers', 'numpy', 'matplotlib'} & set(sys.modules)\n"
        "sys.exit(repr(heavy) if heavy else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert all(f"\n    {name} " in done.stdout for name in ("demo", "ground", "chat", "data", "doctor"))
