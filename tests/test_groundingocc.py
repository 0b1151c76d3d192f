"""The paper's systems as wholes: which parts a switch takes away, what each sensor and word can change."""

from __future__ import annotations

import itertools
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tiny_paper import GRID, save_tiny_text, tiny_config, tiny_scene
from torch import Tensor

from vlm_occ.config import DataConfig
from vlm_occ.losses.geometric import PAPER_WEIGHTS
from vlm_occ.models.baselines import Baseline
from vlm_occ.models.groundingocc import build_system
from vlm_occ.models.groundingocc_config import GroundingOccConfig, baseline, table3, table4
from vlm_occ.models.paper_batch import make_query_batch
from vlm_occ.models.paper_terms import paper_terms
from vlm_occ.objectives import weighted_sum
from vlm_occ.paper_train import PaperTrainConfig, PaperTraining
from vlm_occ.types import LabelledScene
from vlm_occ.voxels import voxels_in_box


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny text encoder."""
    return save_tiny_text(tmp_path_factory.mktemp("text"))


@pytest.fixture(scope="module")
def full(text: Path) -> Baseline:
    """GroundingOcc with all modules and both kinds of supervision."""
    return build_system(tiny_config(text), grid=GRID).eval()


def system(text: Path, kind: str) -> Baseline:
    """A baseline by its letter, or GroundingOcc."""
    config = tiny_config(text, semantic_supervision=False)
    if kind in ("L", "C", "M"):
        config = baseline(config, kind)  # type: ignore[arg-type]
    return build_system(config, grid=GRID).eval()


def parts(model: Baseline) -> set[str]:
    """Names of the modules that hold weights, two levels deep."""
    return {".".join(name.split(".")[:2]) for name, _ in model.named_parameters()}


@pytest.mark.parametrize(
    ("field", "owned"),
    [
        ("language_pan", ("pan.",)),
        ("multi_frame", ("frames.",)),
        ("depth", ("depth.",)),
        ("grounding2d", ("image_head.", "query_fusion.")),
        ("semantic_supervision", ("occupancy.semantic",)),
        ("geometric_supervision", ("occupancy.geometric",)),
        ("geo_affinity", ()),
        ("sem_affinity", ()),
    ],
)
def test_one_field_switches_one_module_off(
    text: Path, full: Baseline, field: str, owned: tuple[str, ...]
) -> None:
    less = build_system(replace(full.config, **{field: False}), grid=GRID)  # type: ignore[arg-type]
    gone = parts(full) - parts(less)
    assert all(name.startswith(owned) for name in gone) and bool(gone) == bool(owned)
    assert not parts(less) - parts(full)


def test_the_rows_of_the_tables_add_one_thing_each() -> None:
    def differences(a: GroundingOccConfig, b: GroundingOccConfig) -> set[str]:
        return {name for name in a.__dataclass_fields__ if getattr(a, name) != getattr(b, name)}

    rows = table3(GroundingOccConfig())
    steps = [differences(a, b) for a, b in itertools.pairwise(rows)]
    assert steps == [{"system", "language_pan", "multi_frame"}, {"depth"}, {"grounding2d"}]
    rows = table4(GroundingOccConfig())
    steps = [differences(a, b) for a, b in itertools.pairwise(rows)]
    assert steps == [{"semantic_supervision", "geometric_supervision"}, {"geo_affinity"}, {"sem_affinity"}]
    assert table3(GroundingOccConfig())[-1] == rows[0]


def terms_of(model: Baseline, items: list[LabelledScene]) -> dict[str, Tensor]:
    """The mean of every loss term."""
    batch = make_query_batch(items, model.config)
    terms = paper_terms(model(batch), batch, [item.labels for item in items], model.config, grid=GRID)
    return {name: term.total / term.count for name, term in terms.items()}


@pytest.mark.parametrize("kind", ["M", "GroundingOcc"])
def test_terms_are_those_of_equations_4_and_13(text: Path, kind: str) -> None:
    names = set(terms_of(system(text, kind), [tiny_scene()]))
    if kind == "M":
        assert names == {"semantic_ce", "semantic_lovasz", "mask", "label", "box"}
    else:
        ours = {f"geometric_{name}" for name in ("ce", "lovasz", "geo", "sem")}
        pictures = {"image_box", "image_centre", "image_giou", "image_centerness"}
        assert names == ours | pictures | {"mask", "label", "box", "depth"}
    assert names <= set(PAPER_WEIGHTS)


def test_every_weight_learns(text: Path) -> None:
    model = build_system(tiny_config(text), grid=GRID).train()
    with (
        torch.no_grad()
    ):  # a fresh depth of 20 m lies outside the tiny grid, and places there are not looked at
        model.depth.layers[-1].bias[:20] = 8.0  # type: ignore[union-attr,index]
    batch = make_query_batch([tiny_scene()], model.config)
    output = model(batch)
    terms = paper_terms(output, batch, [tiny_scene().labels], model.config, grid=GRID)
    weighted_sum(terms, PAPER_WEIGHTS)[0].backward()
    idle = [
        n for n, p in model.named_parameters() if p.requires_grad and (p.grad is None or not p.grad.any())
    ]
    # Behind a layer that starts at zero; or of the coarsest level, whose two cells are not among the best.
    hidden = ("boxes.box.", "image_head.convolution", "pan.down.2", "pan.norm.2")
    assert not [n for n in idle if not any(word in n for word in hidden)], idle
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize("recompute", [False, True])
def test_recomputed_activations_change_no_gradient(text: Path, recompute: bool) -> None:
    model = system(text, "GroundingOcc").train()
    trainee = PaperTraining(model, PaperTrainConfig(system=model.config, data=DataConfig(augment=False)))
    if recompute:
        trainee.recompute()
    trainee([tiny_scene()])[0].backward()
    found = [p.grad.norm() for p in model.parameters() if p.grad is not None]
    gradients.setdefault("norms", torch.stack(found))
    torch.testing.assert_close(torch.stack(found), gradients["norms"], rtol=1e-3, atol=1e-5)


gradients: dict[str, Tensor] = {}
"""Norms of the first run of the test above."""


def changed(item: LabelledScene, what: str) -> LabelledScene:
    """The scene with other pictures of the reference frame or the one before, or with moved points."""
    frames = list(item.scene.frames)
    number = 0 if what == "older" else -1
    frame = frames[number]
    if what == "points":
        assert frame.points is not None
        moved = frame.points + torch.tensor([1.7, 0.9, 0.8, 0.0])
        frames = [replace(f, points=moved) for f in frames]
    else:
        frames[number] = replace(frame, images=255 - frame.images)
    return replace(item, scene=replace(item.scene, frames=tuple(frames)))


@torch.no_grad()
def logits(model: Baseline, item: LabelledScene, sentence: str = "the car") -> Tensor:
    """Mask logits and boxes of a sentence."""
    state = model.encode(item.scene)
    said = model.read(state.view, [sentence])
    return torch.cat([said.mask_logits.flatten(), said.proposals.boxes[-1].flatten()])


@pytest.mark.parametrize(
    ("kind", "eyes"),
    [
        ("L", {"points"}),
        ("C", {"pictures"}),
        ("M", {"points", "pictures"}),
        ("GroundingOcc", {"points", "pictures", "older"}),
    ],
)
def test_a_system_sees_its_own_sensors_and_frames(text: Path, kind: str, eyes: set[str]) -> None:
    model, item = system(text, kind), tiny_scene()
    before = logits(model, item)
    for what in ("points", "pictures", "older"):
        differs = not torch.allclose(before, logits(model, changed(item, what)), atol=1e-5)
        assert differs == (what in eyes), what
    assert not torch.allclose(before, logits(model, item, "a person on the right"), atol=1e-5)


def test_scenes_and_sentences_of_a_batch_do_not_mix(full: Baseline) -> None:
    items = [tiny_scene(seed=0), tiny_scene(seed=1)]
    with torch.no_grad():
        together = full(make_query_batch(items, full.config))
        for b, item in enumerate(items):
            alone = full(make_query_batch([item], full.config)).sentences[0]
            one = full.read(full.encode(item.scene).view, [item.queries[1].text])
            said = together.sentences[b]
            assert said is not None and alone is not None
            torch.testing.assert_close(said.mask_logits, alone.mask_logits, atol=1e-4, rtol=1e-4)
            torch.testing.assert_close(said.mask_logits[1:], one.mask_logits, atol=1e-4, rtol=1e-4)
            torch.testing.assert_close(
                said.proposals.boxes[-1][1:], one.proposals.boxes[-1], atol=1e-4, rtol=1e-4
            )


def test_answers_are_referred_voxels_or_the_occupied_ones_in_the_box(text: Path) -> None:
    model = system(text, "GroundingOcc")
    assert model.occupancy.geometric is not None
    state = model.encode(tiny_scene().scene)
    with torch.no_grad():  # so that all three labels occur
        model.occupancy.mask.bias.fill_(2.0)
        logits = model.read(state.view, ["the car"]).geometric_logits
        assert logits is not None
        model.occupancy.geometric.bias.sub_(logits.mean((0, 1)))
    said = model.read(state.view, ["the car"])
    assert said.geometric_logits is not None
    label = said.geometric_logits[0].argmax(-1).view(GRID.shape)
    mask = (said.mask_logits[0].sigmoid() > 0.5).view(GRID.shape)
    assert set(label.unique().tolist()) == {0, 1, 2}
    plain, refined = (model.ground(state, "the car", refine=r) for r in (False, True))
    assert torch.equal(plain.occupancy == 2, mask & (label == 2))
    box = said.proposals.best()[0][0]
    assert torch.equal(refined.occupancy == 2, mask & (label > 0) & voxels_in_box(box, GRID))
    assert torch.equal(plain.objects[0].box, box) and plain.scene_occupancy.equal(mask & (label > 0))


def test_a_baselines_answer_is_two_stage_with_or_without_refinement(text: Path) -> None:
    model = system(text, "M")
    state = model.encode(tiny_scene().scene)
    one, two = (
        model.ground(state, ["the car", "a man"]),
        model.ground(state, ["the car", "a man"], refine=True),
    )
    for a, b in zip(one, two, strict=True):
        assert torch.equal(a.occupancy, b.occupancy) and torch.equal(a.objects[0].box, b.objects[0].box)
        inside = voxels_in_box(a.objects[0].box, GRID)
        assert torch.equal(a.objects[0].occupancy, a.scene_occupancy & inside)


def test_what_does_not_fit_is_refused(text: Path) -> None:
    with pytest.raises(ValueError, match="M-baseline has no depth"):
        replace(baseline(tiny_config(text), "M"), depth=True)
    with pytest.raises(ValueError, match="no occupancy supervision"):
        tiny_config(text, semantic_supervision=False, geometric_supervision=False)
    with pytest.raises(ValueError, match="likely_voxels needs a trunk"):
        tiny_config(text, likely_voxels=0.1)
