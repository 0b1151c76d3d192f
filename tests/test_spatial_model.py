"""Situations, layout and questions joined to the model: one forward, the cache, frames, and refusals."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import cast

import pytest
import torch
from tiny_models import save_tiny_llava, save_tiny_qwen
from tiny_spatial import QUESTION, scene_of_grid, tiny, video, wall_depth

from vlm_occ.chat import Chat
from vlm_occ.config import SpatialConfig
from vlm_occ.geometry import invert_rigid, project, rigid, rotation_z
from vlm_occ.heads.layout import BirdsEyeEstimate
from vlm_occ.heads.situation import orientation_bins
from vlm_occ.models.adapter import VLMOcc
from vlm_occ.models.batch import GroundingOutput, make_batch, video_frames
from vlm_occ.models.first_view import scene_frame
from vlm_occ.models.spatial import WHERE, SpatialOutput
from vlm_occ.models.spatial_batch import depth_of, lidar_depth, make_spatial_batch, scene_layout_targets
from vlm_occ.models.turns import situation_text
from vlm_occ.objectives import grounding_terms
from vlm_occ.objectives_spatial import SPATIAL_WEIGHTS, situation_truth, spatial_terms
from vlm_occ.situated import Situation
from vlm_occ.types import LabelledScene


@pytest.fixture(scope="module")
def item() -> LabelledScene:
    return scene_of_grid()


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("bases")
    return {"llava": save_tiny_llava(folder / "llava"), "qwen": save_tiny_qwen(folder / "qwen")}


@pytest.fixture(scope="module")
def model(bases: dict[str, Path]) -> VLMOcc:
    return tiny(bases["llava"])


def grounded(model: VLMOcc, item: LabelledScene) -> GroundingOutput:
    with torch.no_grad():
        return model(make_spatial_batch([item], model.config))


def outputs(model: VLMOcc, item: LabelledScene) -> SpatialOutput:
    output = grounded(model, item).spatial
    assert output is not None
    return output


def placed(estimate: BirdsEyeEstimate | None) -> BirdsEyeEstimate:
    assert estimate is not None
    return estimate


@pytest.mark.parametrize("family", ["llava", "qwen"])
def test_locating_on_the_cache_equals_the_training_forward(
    family: str, bases: dict[str, Path], item: LabelledScene
) -> None:
    model = tiny(bases[family])
    trained = outputs(model, item)
    state = model.encode(item.scene)
    told = [s.text for s in item.situations]
    found = model.locate_all(state, told)
    transform = scene_frame(item.scene, video_frames(item.scene, 2))
    homogeneous = torch.cat([trained.position[0].mean, torch.tensor([[0.0, 1.0]]).expand(3, -1)], dim=1)
    places = (transform.float() @ homogeneous.T).T[:, :2]
    turn = math.atan2(float(transform[1, 0]), float(transform[0, 0]))
    for n, situation in enumerate(found):
        torch.testing.assert_close(situation.position, places[n], atol=1e-3, rtol=1e-4)
        assert situation.text == told[n] and situation.yaw_probabilities.sum() == pytest.approx(1, abs=1e-5)
        p = trained.orientation[0][n].softmax(-1).double()
        angles = orientation_bins(36).double() + turn
        expected = math.atan2(float((p * angles.sin()).sum()), float((p * angles.cos()).sum()))
        assert math.cos(situation.yaw - expected) == pytest.approx(1.0, abs=1e-4)
    single = model.locate(state, told[1])
    torch.testing.assert_close(single.position, found[1].position, atol=1e-4, rtol=1e-4)
    layout = state.layout
    assert layout is not None and len(layout.grids) == 4
    assert len(layout.position) == sum(rows * columns for rows, columns in layout.grids)
    seen = torch.cat(
        [placed(trained.layout[0]).mean, torch.tensor([[0.0, 1.0]]).expand(len(layout.position), -1)], 1
    )
    torch.testing.assert_close(layout.position, (transform.float() @ seen.T).T[:, :2], atol=1e-3, rtol=1e-4)


def test_the_vision_tokens_states_are_those_of_their_own_picture(model: VLMOcc, item: LabelledScene) -> None:
    # What the last picture shows can change no token of the pictures before it, and does change its own.
    frames = item.scene.frames
    changed = frames[-1].images.clone()
    changed[-1] = 255 - changed[-1]
    other = replace(item.scene, frames=(frames[0], replace(frames[-1], images=changed)))
    # Voxels come from LiDAR here: only the vision tokens see pictures.
    first, second = (model.encode(scene).layout for scene in (item.scene, other))
    assert first is not None and second is not None
    moved = (first.position - second.position).norm(dim=-1).reshape(4, -1) > 1e-5
    assert not moved[:3].any() and moved[3].all()


def test_a_turn_changes_nothing_for_the_grounding_queries_beside_it(
    model: VLMOcc, item: LabelledScene
) -> None:
    plain = replace(item, situations=(), questions=())
    with torch.no_grad():
        alone = model(make_spatial_batch([plain], model.config))
        beside = model(make_spatial_batch([item], model.config))
    one, other = ([scores.logits for scores in out.scores] for out in (alone, beside))
    torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-5)
    assert [len(s) for s in alone.answer_states] == [len(s) for s in beside.answer_states]


def test_without_spatial_heads_a_model_is_as_it_was(bases: dict[str, Path], item: LabelledScene) -> None:
    with_heads, without = tiny(bases["llava"]), tiny(bases["llava"], spatial=None)
    ours = {n: p for n, p in without.named_parameters() if not n.startswith("backbone.")}  # LoRA is random
    for name, parameter in with_heads.named_parameters():
        if not name.startswith(("spatial.", "backbone.")):
            assert torch.equal(parameter, ours.pop(name)), name
    assert not ours
    with torch.no_grad():
        output = without(make_spatial_batch([item], without.config))
    assert output.spatial is None
    state = without.encode(item.scene)
    with pytest.raises(ValueError, match="no situation head"):
        without.locate(state, "here")
    with pytest.raises(ValueError, match="no situation head"):
        without.ask(state, "what is this?", situation="I stand here")
    ids, _ = without.backbone.query_ids("what is this?")
    expected = without.backbone.generate(state.language, ids, max_new_tokens=40)  # type: ignore[arg-type]
    assert without.ask(state, "what is this?") == expected


def test_a_question_without_a_situation_is_asked_from_the_room(model: VLMOcc, item: LabelledScene) -> None:
    state = model.encode(item.scene)
    question = "how many cars are there?"
    ids, place, facing = model.backbone.situation_ids("I am standing in the room", question)
    tokens = model.backbone.token_ids
    assert ids[place] == tokens.position and ids[facing] == tokens.orientation
    expected = model.backbone.generate(state.language, ids, max_new_tokens=40)  # type: ignore[arg-type]
    assert model.ask(state, question) == expected
    found = model.locate(state, "I stand behind the bus")
    assert model.ask(state, question, situation=found) == model.ask(
        state, question, situation="I stand behind the bus"
    )


def test_a_situation_without_words_is_told_by_its_place() -> None:
    place = Situation(torch.tensor([-3.0, 2.0]), torch.ones(2), math.radians(-90), torch.ones(36) / 36)
    assert situation_text(place) == (
        "I am standing 3.0 metres behind your car and 2.0 metres to its left, turned by 90 degrees to the "
        "right of its heading"
    )


def test_rotation_and_translation_of_the_world_leave_the_answers_unchanged(
    model: VLMOcc, item: LabelledScene
) -> None:
    world = rigid(
        rotation_z(torch.tensor(2.1, dtype=torch.float64)),
        torch.tensor([830.0, -410.0, 12.0], dtype=torch.float64),
    )
    frames = tuple(replace(f, world_from_ego=world @ f.world_from_ego) for f in item.scene.frames)
    first, second = (model.encode(s) for s in (item.scene, replace(item.scene, frames=frames)))
    texts = [query.text for query in item.queries]
    torch.testing.assert_close(
        model.token_scores(first, texts), model.token_scores(second, texts), atol=1e-4, rtol=1e-4
    )
    a, b = model.locate(first, "near the car"), model.locate(second, "near the car")
    torch.testing.assert_close(a.position, b.position, atol=1e-3, rtol=1e-4)
    assert a.yaw == pytest.approx(b.yaw, abs=1e-3)
    assert model.ask(first, "where is the car?") == model.ask(second, "where is the car?")
    assert first.layout is not None and second.layout is not None
    torch.testing.assert_close(first.layout.position, second.layout.position, atol=1e-3, rtol=1e-4)


def test_layout_targets_are_the_seen_points_in_the_first_view_s_frame(
    model: VLMOcc, item: LabelledScene
) -> None:
    frames = video_frames(item.scene, 2)
    first = scene_frame(item.scene, frames)
    item = replace(item, depth=wall_depth(item, 6.0))
    depth = depth_of(item, model.config, frames)
    assert depth is not None
    targets = scene_layout_targets(frames, depth, first, [(2, 2)] * 4)
    assert targets.valid.all() and targets.position.shape == (16, 2)
    # Back through the cameras by another way: each point lies 6 m deep in the picture that shows it.
    for n, position in enumerate(targets.position):
        pose = frames.ego_from_camera[n // 4]
        heights = torch.linspace(-8, 8, 1601)
        column = torch.cat([position.expand(1601, 2), heights[:, None], torch.ones(1601, 1)], dim=1)
        reference = (first.float() @ column.T).T[:, :3]
        pixels, depths = project(reference, frames.intrinsics[n // 4][None], pose[None])
        height, width = item.scene.rig.image_size
        row, place = divmod(n % 4, 2)
        middle = torch.tensor([(place + 0.5) * width / 2, (row + 0.5) * height / 2])
        off = (pixels[0] - middle).abs() / torch.tensor([width / 4, height / 4])
        assert ((off <= 1.05).all(-1) & ((depths[0] - 6.0).abs() < 0.02)).any(), n


def test_the_first_view_looks_along_x_of_its_own_frame(item: LabelledScene) -> None:
    frames = video_frames(item.scene, 2)
    first_from_reference = invert_rigid(scene_frame(item.scene, frames))
    camera = first_from_reference @ frames.ego_from_camera[0]
    torch.testing.assert_close(camera[:3, 3], torch.zeros(3), atol=1e-5, rtol=0)
    assert camera[0, 2] > 0.999 and abs(camera[1, 2]) < 1e-5


def test_depth_of_sweeps_is_the_nearest_point_of_each_pixel(item: LabelledScene) -> None:
    scene = item.scene
    found = lidar_depth(scene)
    assert found is not None
    height, width = found.depth.shape[-2:]
    for t, frame in enumerate(scene.frames):
        assert frame.points is not None
        for v in range(2):
            nearest: dict[tuple[int, int], float] = {}
            local = (frame.points[:, :3] - scene.rig.ego_from_camera[v, :3, 3]) @ scene.rig.ego_from_camera[
                v, :3, :3
            ]
            for x, y, z in local.tolist():
                if z <= 0.5:
                    continue
                fx, fy = scene.rig.intrinsics[v, 0, 0].item(), scene.rig.intrinsics[v, 1, 1].item()
                u = (fx * x / z + scene.rig.intrinsics[v, 0, 2].item()) * width / 100
                w = (fy * y / z + scene.rig.intrinsics[v, 1, 2].item()) * height / 60
                if 0 <= u < width and 0 <= w < height:
                    key = (int(w), int(u))
                    nearest[key] = min(nearest.get(key, math.inf), z)
            assert int((found.depth[t, v] > 0).sum()) == len(nearest) > 10
            for (row, column), value in nearest.items():
                assert found.depth[t, v, row, column].item() == pytest.approx(value, rel=1e-4)


def test_true_situations_are_told_in_the_first_view_s_frame(model: VLMOcc, item: LabelledScene) -> None:
    batch = make_spatial_batch([item], model.config)
    where, facing, known = situation_truth(batch, 0)
    first_from_reference = torch.linalg.inv(batch.first_frames[0])
    truths = [(s.position, s.yaw) for s in item.situations] + [((1.0, -2.0), 3.0)]
    assert known.all() and [turn.question for turn in batch.turns[0]] == [WHERE, WHERE, QUESTION.question]
    for n, (position, yaw) in enumerate(truths):
        point = first_from_reference @ torch.tensor([*position, 0.0, 1.0])
        torch.testing.assert_close(where[n], point[:2], atol=1e-5, rtol=1e-5)
        ahead = first_from_reference @ torch.tensor(
            [position[0] + math.cos(yaw), position[1] + math.sin(yaw), 0.0, 1.0]
        )
        assert math.atan2(*(ahead - point)[[1, 0]].tolist()) == pytest.approx(
            math.remainder(float(facing[n]), 2 * math.pi), abs=1e-4
        )


def test_an_oracle_has_the_losses_of_its_own_certainty(model: VLMOcc, item: LabelledScene) -> None:
    item = replace(item, depth=wall_depth(item, 6.0))
    batch = make_spatial_batch([item], model.config)
    made = grounded(model, item)
    output = made.spatial
    assert output is not None
    where, facing, _ = situation_truth(batch, 0)
    bins = orientation_bins(36)
    sharp = (
        -0.5
        * (torch.remainder(bins - facing[:, None] + math.pi, 2 * math.pi) - math.pi).div(math.radians(10))
        ** 2
    )
    depth = batch.depths[0]
    assert depth is not None
    targets = scene_layout_targets(batch.frames[0], depth, batch.first_frames[0], output.grids[0])
    variance = torch.full_like(where, math.log(0.01))
    oracle = replace(
        output,
        position=(BirdsEyeEstimate(where, variance),),
        orientation=(sharp,),
        layout=(BirdsEyeEstimate(targets.position, torch.full_like(targets.position, math.log(0.01))),),
    )
    terms = spatial_terms(model, replace(made, spatial=oracle), batch, [item.labels])
    assert set(terms) == set(SPATIAL_WEIGHTS)
    assert terms["position"].total.item() == pytest.approx(math.log(0.01), abs=1e-4)
    assert terms["layout"].total.item() == pytest.approx(math.log(0.01), abs=1e-4)
    assert terms["orientation"].total.item() == pytest.approx(0.0, abs=1e-5)


def test_the_answer_s_words_are_counted_as_a_plain_forward_counts_them(
    model: VLMOcc, item: LabelledScene
) -> None:
    batch = make_spatial_batch([item], model.config)
    found = spatial_terms(model, grounded(model, item), batch, [item.labels])["answer"].total.item()
    state = model.encode(item.scene)
    ids, _, _ = model.backbone.situation_ids(QUESTION.situation, QUESTION.question, "2")
    start = len(model.backbone.situation_ids(QUESTION.situation, QUESTION.question)[0])
    (hidden,) = model.backbone.forward_queries(state.language, [ids])  # type: ignore[arg-type]
    scores = model.backbone.logits(hidden).float().log_softmax(-1)
    words = [-scores[n - 1, ids[n]].item() for n in range(start, len(ids))]
    assert len(words) >= 2 and found == pytest.approx(sum(words) / len(words), rel=1e-3)


def test_the_weights_are_those_of_the_paper() -> None:
    paper = {"layout": 0.05, "position": 0.075, "orientation": 0.2625, "answer": 1.0}
    assert {**paper, "told": 1.0, "named": 1.0} == SPATIAL_WEIGHTS  # the last two are ours


def test_one_step_teaches_every_spatial_head(bases: dict[str, Path], item: LabelledScene) -> None:
    model = tiny(bases["llava"]).train()
    item = replace(item, depth=wall_depth(item, 6.0))
    batch = make_spatial_batch([item], model.config)
    output = model(batch)
    assert output.spatial is not None
    terms = spatial_terms(model, output, batch, [item.labels])
    terms |= grounding_terms(model, output, batch, [item.labels])
    torch.stack([t.total for t in terms.values()]).sum().backward()
    for part in ("spatial.layout", "spatial.position", "spatial.orientation", "backbone"):
        grads = [p.grad for n, p in model.named_parameters() if n.startswith(part) and p.grad is not None]
        assert grads and any(g.abs().max() > 0 for g in grads), part


def test_without_a_layout_head_there_is_no_layout(bases: dict[str, Path], item: LabelledScene) -> None:
    model = tiny(bases["llava"], spatial=SpatialConfig(layout=False))
    item = replace(item, depth=wall_depth(item, 6.0))
    terms = spatial_terms(
        model, grounded(model, item), make_spatial_batch([item], model.config), [item.labels]
    )
    assert terms["layout"].total.item() == 0 and terms["position"].total.item() != 0
    state = model.encode(item.scene)
    assert state.layout is None and model.locate(state, "near the car").position.isfinite().all()


def test_a_scene_without_pictures_or_turns_costs_nothing(model: VLMOcc, item: LabelledScene) -> None:
    frames = tuple(replace(f, images=f.images[:0]) for f in item.scene.frames)
    rig = replace(
        item.scene.rig, names=(), intrinsics=torch.zeros(0, 3, 3), ego_from_camera=torch.zeros(0, 4, 4)
    )
    blind = replace(item, scene=replace(item.scene, rig=rig, frames=frames), situations=(), questions=())
    batch = make_spatial_batch([blind], model.config)
    terms = spatial_terms(model, grounded(model, blind), batch, [blind.labels])
    assert all(t.total.item() == 0 for t in terms.values())
    state = model.encode(blind.scene)
    assert state.layout is None
    assert torch.isfinite(model.locate(state, "near the car").position).all()


@pytest.mark.parametrize("source", ["known", "learned", "none"])
def test_a_plain_video_is_located_and_asked_about_but_not_grounded(
    source: str, bases: dict[str, Path]
) -> None:
    model = tiny(bases["llava"], pose_source=source)
    assert model.spatial is not None
    torch.nn.init.normal_(
        cast(torch.nn.Linear, model.spatial.position.layers[-1]).weight
    )  # it starts without effect
    state = model.encode(video())
    place = model.locate(state, "I am standing in the room")
    assert torch.isfinite(place.position).all() and torch.isfinite(place.position_std).all()
    assert model.ask(state, "what is there?") is not None
    assert (
        state.layout is not None and len(state.layout.grids) == 3 and state.layout.position.isfinite().all()
    )
    with pytest.raises(ValueError, match="grounding needs a pose source"):
        model.ground(state, "the chair")
    other = model.locate(model.encode(video(seed=1)), "I am standing in the room")
    assert not torch.allclose(place.position, other.position)


def test_a_conversation_grounds_locates_and_asks_from_there(model: VLMOcc, item: LabelledScene) -> None:
    state = model.encode(item.scene)
    chat = Chat(model, state)
    chat.ground("the red car")
    place = chat.locate("I am standing behind the bus")
    answer = chat.ask("what is on my left?")
    assert [turn.kind for turn in chat.turns] == ["ground", "locate", "ask"]
    expected = model.ask(
        state, Chat(model, state, chat.turns[:2]).in_context("what is on my left?"), situation=place
    )
    assert answer == expected
    chat.forget()
    assert chat.situation is None and chat.ask("what is on my left?") == model.ask(
        state, "what is on my left?"
    )


def test_batches_of_two_scenes_equal_two_batches(model: VLMOcc, item: LabelledScene) -> None:
    other = replace(item, situations=item.situations[:1], questions=())
    with torch.no_grad():
        both = model(make_spatial_batch([item, other], model.config)).spatial
    assert both is not None
    for n, single in enumerate((item, other)):
        alone = outputs(model, single)
        torch.testing.assert_close(both.position[n].mean, alone.position[0].mean, atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(
            placed(both.layout[n]).mean, placed(alone.layout[0]).mean, atol=1e-4, rtol=1e-4
        )
    assert make_batch([item], model.config).turns == ()
