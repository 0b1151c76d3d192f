"""What vision tokens see of the trunk's occupancy: geometry, and its way through the language model."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import cast

import pytest
import torch
from tiny_models import save_tiny_llava, save_tiny_qwen
from tiny_spatial import scene_of_grid, tiny, video, wall_depth

from vlm_occ.config import DataConfig, SpatialConfig, TrainConfig
from vlm_occ.data.simulator.scene import simulate_details
from vlm_occ.data.simulator.views import drive_views
from vlm_occ.encoders.sight import SIGHT_CHANNELS, Sight, by_cell, joined_sight, look, sight_features
from vlm_occ.geometry import project, rigid, rotation_z
from vlm_occ.heads.layout import layout_targets
from vlm_occ.models.adapter import VLMOcc
from vlm_occ.models.batch import Batch, SceneStates
from vlm_occ.models.kept_states import slim
from vlm_occ.models.perception import PerceptionOutput
from vlm_occ.models.sighted import scene_sight, with_sights
from vlm_occ.models.spatial_batch import make_spatial_batch, without_pictures
from vlm_occ.objectives_spatial import spatial_terms
from vlm_occ.training_module import TrainingModule
from vlm_occ.types import FREE, LabelledScene, VoxelGrid

SIGHTED = SpatialConfig(sight=True)


@pytest.fixture(scope="module")
def item() -> LabelledScene:
    return scene_of_grid()


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("bases")
    return {"llava": save_tiny_llava(folder / "llava"), "qwen": save_tiny_qwen(folder / "qwen")}


def sighted(base: Path, *, trained: bool = True) -> VLMOcc:
    """A model whose vision tokens are told what they see; `trained`: it makes a difference."""
    model = tiny(base, spatial=SIGHTED)
    assert model.sight is not None
    if trained:
        assert model.spatial is not None and model.spatial.layout is not None
        bits = torch.Generator().manual_seed(1)
        for layer in (model.sight.out, model.spatial.layout.linear, model.spatial.sighted):
            torch.nn.init.normal_(cast(torch.nn.Linear, layer).weight, generator=bits)
        model.sight.scale = 1.0
    return model


@torch.no_grad()
def told(model: VLMOcc, batch: Batch, seen: PerceptionOutput | None = None) -> SceneStates:
    """What the language model says of the one scene of a batch."""
    (states,) = model.language_states(batch, seen or model.perception(batch.inputs))
    return states


def vision(states: SceneStates) -> torch.Tensor:
    assert states.vision is not None
    return states.vision


def test_true_occupancy_is_seen_where_the_exact_depth_of_a_drive_s_pictures_says() -> None:
    size = (64, 176)
    drive = simulate_details(5, num_frames=1, image_size=size, lidar=False)
    scene, views = drive.labelled.scene, drive_views(drive.world, num_frames=1, image_size=size)
    rig, cells = scene.rig, (6, 6)
    occupancy = drive.labelled.labels.semantics != FREE
    sight = look(occupancy, scene.grid, rig.intrinsics, rig.ego_from_camera, size, cells)
    depth = views.depth
    truth = layout_targets(depth.depth[-1].float(), depth.intrinsics[-1], rig.ego_from_camera, cells)
    near = truth.valid & (truth.position.norm(dim=-1) < 30)
    seen = sight.point.unflatten(0, truth.valid.shape)[..., :2]
    error = (seen - truth.position).norm(dim=-1)[near]
    assert near.float().mean() > 0.5 and error.median() < 0.5 and (error < 1.5).float().mean() > 0.75


def test_a_token_sees_the_wall_in_front_of_it_within_its_own_cell() -> None:
    grid = VoxelGrid()
    occupancy = torch.zeros(grid.shape, dtype=torch.bool)
    occupancy[130, 90:130] = True  # 12.0 to 12.4 m ahead, from 4 m right to 12 m left
    intrinsics = torch.tensor([[100.0, 0, 50], [0, 100, 20], [0, 0, 1]])[None]
    axes = torch.tensor([[0.0, 0, 1], [-1, 0, 0], [0, -1, 0]])  # OpenCV camera that looks along x
    pose = rigid(axes, torch.tensor([0.0, 0.0, 2.0]))[None]
    sight = look(occupancy, grid, intrinsics, pose, (40, 100), (2, 5))
    # A pixel right of the middle looks to negative y; the wall ends at 4 m to the right, pixel 50 + 33.
    row, column = torch.arange(10) // 5, torch.arange(10) % 5
    assert (sight.share > 0.99)[column < 4].all() and (sight.share[column == 4] < 0.5).all()
    pixels, depth = project(sight.point, intrinsics, pose)
    met = sight.share > 0
    torch.testing.assert_close(depth[0, met], torch.full_like(depth[0, met], 12.2), atol=1e-4, rtol=0)
    low = torch.stack([column * 20.0, row * 20.0], dim=-1)
    inside = (pixels[0] >= low) & (pixels[0] <= low + 20)
    assert inside[met].all()
    torch.testing.assert_close(sight.direction.norm(dim=-1), torch.ones(10))
    torch.testing.assert_close(sight.point[~met], sight.origin[~met])
    assert sight_features(sight).shape == (10, SIGHT_CHANNELS)


def test_rays_belong_to_the_cell_that_a_loop_finds() -> None:
    values = torch.arange(2 * 6 * 8.0).reshape(2, 6, 8)
    found = by_cell(values, (3, 2))
    for f in range(2):
        for row in range(3):
            for column in range(2):
                cell = values[f, 2 * row : 2 * row + 2, 4 * column : 4 * column + 4].flatten()
                assert torch.equal(found[f, 2 * row + column], cell)


def test_a_moved_sight_is_that_of_moved_points() -> None:
    bits = torch.Generator().manual_seed(0)
    direction = torch.nn.functional.normalize(torch.randn(4, 3, generator=bits), dim=-1)
    sight = Sight(torch.randn(4, 3, generator=bits), direction, torch.arange(4.0), torch.ones(4))
    transform = rigid(rotation_z(torch.tensor(0.7)), torch.tensor([1.0, -2.0, 0.5]))
    moved = sight.moved(transform)
    expected = sight.point @ transform[:3, :3].T + transform[:3, 3]
    torch.testing.assert_close(moved.point, expected)
    both = joined_sight([sight, moved])
    assert torch.equal(both.point, torch.cat([sight.point, moved.point]))


def test_an_untrained_projector_changes_nothing(bases: dict[str, Path], item: LabelledScene) -> None:
    model = sighted(bases["llava"], trained=False)
    batch = make_spatial_batch([item], model.config)
    with_it = told(model, batch)
    model.sight = None
    without = told(model, batch)
    assert torch.equal(vision(with_it), vision(without))
    assert torch.equal(with_it.tokens, without.tokens)


def test_an_untrained_layout_is_what_is_seen(bases: dict[str, Path], item: LabelledScene) -> None:
    model = sighted(bases["llava"], trained=False)
    batch = make_spatial_batch([item], model.config)
    seen = with_sights(model, batch, model.perception(batch.inputs))
    sight, layout = seen.sights[0], model.encode(item.scene).layout
    assert sight is not None and layout is not None
    met = sight.share > 0
    torch.testing.assert_close(layout.position[met], sight.point[met, :2], atol=1e-3, rtol=1e-4)
    torch.testing.assert_close(
        layout.position_std, torch.full_like(layout.position_std, 2.0), atol=0.15, rtol=0
    )


@pytest.mark.parametrize("family", ["llava", "qwen"])
def test_encoding_sees_what_the_training_forward_sees(
    family: str, bases: dict[str, Path], item: LabelledScene
) -> None:
    model = sighted(bases[family])
    batch = make_spatial_batch([item], model.config)
    trained, layout = told(model, batch), model.encode(item.scene).layout
    assert layout is not None and model.spatial is not None
    expected = model.spatial.see(vision(trained), trained.sight)
    assert expected is not None
    place = torch.cat([expected.mean, torch.tensor([[0.0, 1.0]]).expand(len(expected.mean), -1)], dim=1)
    place = (batch.first_frames[0].float() @ place.T).T[:, :2]
    torch.testing.assert_close(layout.position, place.detach(), atol=1e-3, rtol=1e-4)
    model.sight = None
    assert not torch.allclose(vision(told(model, batch)), vision(trained), atol=1e-3)


def test_each_row_is_added_to_its_own_token(bases: dict[str, Path], item: LabelledScene) -> None:
    # A causal model: what is added to token n changes the states from n on and none before.
    model = sighted(bases["qwen"])
    batch = make_spatial_batch([item, item], model.config)
    seen = with_sights(model, batch, model.perception(batch.inputs))
    sight = seen.sights[1]
    assert sight is not None
    for token in (0, len(sight.share) - 1):
        other = sight.distance.clone()
        other[token] += 5
        changed = replace(seen, sights=(seen.sights[0], replace(sight, distance=other)))
        with torch.no_grad():
            one, two = (model.language_states(batch, output) for output in (seen, changed))
        moved = [(vision(a) - vision(b)).abs().amax(-1) > 1e-6 for a, b in zip(one, two, strict=True)]
        assert not moved[0].any() and not moved[1][:token].any() and moved[1][token:].all()


def test_the_world_s_pose_changes_no_sight(bases: dict[str, Path], item: LabelledScene) -> None:
    model = sighted(bases["llava"])
    angle = torch.tensor(2.1, dtype=torch.float64)
    world = rigid(rotation_z(angle), torch.tensor([830.0, -410.0, 12.0], dtype=torch.float64))
    frames = tuple(replace(f, world_from_ego=world @ f.world_from_ego) for f in item.scene.frames)
    layouts = [model.encode(s).layout for s in (item.scene, replace(item.scene, frames=frames))]
    assert layouts[0] is not None and layouts[1] is not None
    torch.testing.assert_close(layouts[0].position, layouts[1].position, atol=1e-3, rtol=1e-4)


def test_gradients_of_the_layout_reach_the_projector(bases: dict[str, Path], item: LabelledScene) -> None:
    model = sighted(bases["llava"]).train()
    assert model.sight is not None
    item = replace(item, depth=wall_depth(item, 6.0))
    batch = make_spatial_batch([item], model.config)
    spatial_terms(model, model(batch), batch, [item.labels])["layout"].total.backward()
    for parameter in model.sight.parameters():
        assert parameter.grad is not None and parameter.grad.abs().max() > 0


def test_without_pictures_or_calibration_there_is_no_sight(
    bases: dict[str, Path], item: LabelledScene
) -> None:
    model = sighted(bases["llava"])
    batch = without_pictures(make_spatial_batch([item], model.config))
    seen = with_sights(model, batch, model.perception(batch.inputs))
    assert seen.sights == (None,) and len(vision(told(model, batch, seen))) == 0
    assert model.encode(video()).layout is None  # what it has learned is how far things are from what is seen
    assert tiny(bases["llava"], spatial=SpatialConfig()).encode(video()).layout is not None
    rays = sighted(bases["llava"])
    batch = make_spatial_batch([item], rays.config)
    prefix = rays.backbone.build_prefix(batch.frames[0].images, 0)
    empty = scene_sight(rays, batch.frames[0], prefix, torch.zeros(item.scene.grid.shape, dtype=torch.bool))
    assert empty is not None and not empty.share.any() and not empty.distance.any()


def test_a_kept_scene_has_the_states_of_a_fresh_one(bases: dict[str, Path], item: LabelledScene) -> None:
    model = sighted(bases["llava"])
    batch = make_spatial_batch([item], model.config)
    with torch.no_grad():
        fresh = model.perception(batch.inputs)
        kept = slim(with_sights(model, batch, fresh))
    assert not kept.occupancy_logits.numel()
    assert torch.equal(vision(told(model, batch, kept)), vision(told(model, batch, fresh)))


@pytest.mark.parametrize("first", [True, False])  # whether a scene is met with pictures first
def test_a_run_keeps_the_sight_of_scenes_that_it_meets_without_pictures(
    first: bool, bases: dict[str, Path], item: LabelledScene, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = sighted(bases["llava"])
    data = DataConfig(augment=False, drop_vlm_frames=0.5)
    config = TrainConfig(stage="grounding", model=model.config, data=data)
    module, draws = TrainingModule(model, config), iter([0.9, 0.1] if first else [0.1, 0.9])
    monkeypatch.setattr(torch, "rand", lambda *a: torch.tensor(next(draws)))
    with torch.no_grad():
        found = [module._ground([item], [item.labels])[0].spatial for _ in range(2)]
    shown = found[0 if first else 1]
    assert shown is not None and shown.layout[0] is not None and model.spatial is not None
    fresh = told(model, make_spatial_batch([item], model.config))
    expected = model.spatial.see(vision(fresh), fresh.sight)
    assert expected is not None
    torch.testing.assert_close(shown.layout[0].mean, expected.mean, atol=1e-5, rtol=1e-5)


def test_ground_is_seen_at_the_middle_of_its_voxels() -> None:
    grid = VoxelGrid()
    occupancy = torch.zeros(grid.shape, dtype=torch.bool)
    occupancy[:, :, :3] = True  # from -1.0 to 0.2 m: the ground is expected at 0.0 m
    intrinsics = torch.tensor([[100.0, 0, 50], [0, 100, 10], [0, 0, 1]])[None]
    axes = torch.tensor([[0.0, 0, 1], [-1, 0, 0], [0, -1, 0]])
    pose = rigid(axes, torch.tensor([0.0, 0.0, 1.6]))[None]
    sight = look(occupancy, grid, intrinsics, pose, (60, 100), (2, 2))
    torch.testing.assert_close(sight.point[2:, 2], torch.zeros(2), atol=1e-3, rtol=0)
    pixels, _ = project(sight.point[2:], intrinsics, pose)
    assert (pixels[0, :, 1] > 30).all() and (pixels[0, :, 1] < 60).all()
