"""Pose tokens of pictures alone, through model, checkpoint and disk; and a small CUT3R that learns."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from small_scenes import small_scene
from tiny_models import save_tiny_llava
from tiny_spatial import scene_of_grid, tiny, video

from vlm_occ.config import DataConfig
from vlm_occ.cut3r_training import (
    Cut3rTrainConfig,
    clip_of,
    patch_points,
    pose_errors,
    train_cut3r,
    turn_between,
)
from vlm_occ.encoders.cut3r import Cut3r, Cut3rConfig
from vlm_occ.encoders.cut3r_frames import camera_tokens, prepare_frames
from vlm_occ.encoders.cut3r_weights import load_cut3r, read_settings, save_cut3r
from vlm_occ.encoders.pose import PoseEncoder
from vlm_occ.geometry import invert_rigid, project, rotation_to_quaternion
from vlm_occ.losses.camera import point_loss, pose_loss
from vlm_occ.models.adapter import VLMOcc
from vlm_occ.models.batch import video_frames
from vlm_occ.types import LabelledScene, SceneDepth

TINY = Cut3rConfig(32, 1, 2, 24, 2, decoder_heads=3, state_heads=2, state_size=9, memory_size=5)
DRIVES = DataConfig(num_frames=2, queries=0, augment=False)
DATA = Path(os.environ.get("VLM_OCC_REAL_DATA", Path(__file__).parents[2] / "shared" / "data"))


@pytest.fixture
def weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A random tiny CUT3R, and a cache of its own."""
    monkeypatch.setenv("VLM_OCC_CACHE", str(tmp_path / "cache"))
    torch.manual_seed(0)
    return save_cut3r(Cut3r(TINY), tmp_path / "cut3r.safetensors", recipe="cut3r", long_edge=64)


def encode(encoder: PoseEncoder, images: torch.Tensor) -> torch.Tensor:
    count = len(images)
    return encoder(
        torch.eye(4).expand(count, 4, 4),
        torch.eye(3).expand(count, 3, 3),
        image_size=(48, 64),
        age=torch.zeros(count),
        camera=torch.zeros(count, dtype=torch.long),
        images=images,
    )


def test_a_saved_cut3r_comes_back_with_its_settings(weights: Path) -> None:
    settings = read_settings(weights)
    assert (settings.config, settings.recipe, settings.long_edge) == (TINY, "cut3r", 64)
    torch.manual_seed(0)
    again = load_cut3r(weights, config=settings.config)
    for name, value in Cut3r(TINY).state_dict().items():
        assert torch.equal(again.state_dict()[name], value), name


def test_tokens_are_the_projected_camera_tokens_and_are_kept_on_the_disk(
    weights: Path, tmp_path: Path
) -> None:
    encoder = PoseEncoder(20, "cut3r", weights=str(weights))
    images = torch.randint(0, 256, (3, 3, 48, 64), dtype=torch.uint8)
    found = encode(encoder, images)
    direct = camera_tokens(load_cut3r(weights, config=TINY), images, recipe="cut3r", long_edge=64)
    torch.testing.assert_close(found, encoder.source.mlp(direct))  # type: ignore[union-attr]
    assert len(list((tmp_path / "cache").glob("cut3r-tokens-*"))) == 1
    encode(encoder, images)
    encode(encoder, images.flip(0))  # another order is another clip
    assert len(list((tmp_path / "cache").glob("cut3r-tokens-*"))) == 2
    encoder.source.keep = False  # type: ignore[union-attr]
    encode(encoder, 255 - images)
    assert len(list((tmp_path / "cache").glob("cut3r-tokens-*"))) == 2
    names = [name for name, _ in encoder.named_parameters()]
    assert names == ["source.mlp.0.weight", "source.mlp.0.bias", "source.mlp.2.weight", "source.mlp.2.bias"]


def test_missing_weights_are_answered_with_what_to_give(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"model\.cut3r"):
        PoseEncoder(8, "cut3r")
    with pytest.raises(ValueError, match="does not exist"):
        PoseEncoder(8, "cut3r", weights=str(tmp_path / "none.pth"))


def test_a_model_with_cut3r_poses_answers_about_drives_and_plain_videos_and_saves_no_cut3r(
    weights: Path, tmp_path: Path
) -> None:
    model = tiny(save_tiny_llava(tmp_path / "base"), pose_source="cut3r", cut3r=str(weights))
    item = scene_of_grid()
    state = model.encode(item.scene)
    place = model.locate(state, "near the car")
    assert model.token_scores(state, ["the car"]).shape[0] == 1
    assert torch.isfinite(model.locate(model.encode(video()), "near the car").position).all()
    model.save_pretrained(tmp_path / "model")
    names = json.loads((tmp_path / "model" / "weights.json").read_text())
    assert [n for n in names if n.startswith("pose.")] == [
        f"pose.source.mlp.{n}" for n in ("0.weight", "0.bias", "2.weight", "2.bias")
    ]
    again = VLMOcc.from_pretrained(str(tmp_path / "model"))
    torch.testing.assert_close(
        again.locate(again.encode(item.scene), "near the car").position, place.position
    )


def test_the_real_keyframe_s_six_images_run_through_a_file_with_the_published_keys(tmp_path: Path) -> None:
    keyframe, keys = DATA / "nuscenes_keyframe", DATA / "cut3r_keys" / "cut3r_224_linear_4.keys.json"
    if not keyframe.is_dir() or not keys.is_file():
        pytest.skip(f"{DATA} is absent (set VLM_OCC_REAL_DATA)")
    from vlm_occ.data.keyframe import load_keyframe

    # Every published key, each with a shape of the same number of dimensions, small where ours is tiny.
    torch.manual_seed(0)
    ours = Cut3r(TINY).state_dict()
    published = json.loads(keys.read_text())
    blocks = {"enc_blocks": TINY.encoder_depth, "dec_blocks": TINY.decoder_depth, "dec_blocks_state": 2}
    tensors = {}
    for name in published:
        part, _, rest = name.partition(".")
        deep = part in blocks and int(rest.split(".")[0]) >= blocks[part]
        tensors[name] = ours[name].clone() if name in ours else torch.zeros(2 if deep else 1)
    assert not set(ours) - set(tensors)
    torch.save({"args": {"model": "ARCroco3DStereo(...)"}, "model": tensors, "epoch": 9}, tmp_path / "c.pth")
    model = load_cut3r(tmp_path / "c.pth", config=TINY)
    images = load_keyframe(keyframe).reference.images
    tokens = camera_tokens(model, images)
    assert tokens.shape == (6, 24) and tokens.isfinite().all()
    assert torch.pdist(tokens).min() > 1e-4  # six views, six tokens
    assert prepare_frames(images).shape == (6, 3, 432, 432)


def posed_item() -> LabelledScene:
    """The small scene with a depth image for each of its pictures."""
    item = small_scene()
    depth = 4 + 3 * torch.rand(2, 2, 30, 50, generator=torch.Generator().manual_seed(1))
    intrinsics = item.scene.rig.intrinsics.clone()
    intrinsics[:, :2] /= 2
    return replace(item, depth=SceneDepth(depth, intrinsics.expand(2, -1, -1, -1)))


def test_points_of_patches_project_into_the_middles_of_their_patches() -> None:
    item = posed_item()
    frames = video_frames(item.scene, 2)
    assert item.depth is not None
    points, valid = patch_points(item.depth.depth, item.depth.intrinsics, frames, (5, 10))
    assert valid.all()
    for n in range(4):
        pixels, depth = project(points[n], frames.intrinsics[n][None], torch.eye(4)[None])
        row, column = torch.arange(50) // 10, torch.arange(50) % 10
        middle = torch.stack([(column + 0.5) * 10, (row + 0.5) * 12], dim=-1)
        assert (pixels[0] - middle).abs().max() <= 1.01  # a depth image's pixel is two of the picture's
        assert ((depth[0] >= 4) & (depth[0] <= 7)).all()


def test_a_clip_is_told_in_the_axes_of_its_first_camera() -> None:
    item = posed_item()
    run = Cut3rTrainConfig(long_edge=64, network=TINY, data=DRIVES)
    clip = clip_of(item, run)
    frames = video_frames(item.scene, 2)
    torch.testing.assert_close(clip.first_from_camera[0], torch.eye(4), atol=1e-5, rtol=0)
    back = frames.ego_from_camera[0] @ clip.first_from_camera[3]
    torch.testing.assert_close(back, frames.ego_from_camera[3], atol=1e-4, rtol=0)
    own = invert_rigid(clip.first_from_camera[3])
    local = clip.points[3] @ own[:3, :3].T + own[:3, 3]
    assert ((local[:, 2] >= 3.99) & (local[:, 2] <= 7.01)).all()


def test_true_poses_cost_nothing_and_a_turn_costs_its_angle() -> None:
    truth = torch.eye(4).repeat(2, 1, 1)
    truth[1, :3, 3] = torch.tensor([3.0, 0.0, 4.0])
    angle = torch.tensor(0.1)
    turned = torch.tensor([[angle.cos(), -angle.sin(), 0], [angle.sin(), angle.cos(), 0], [0, 0, 1]])
    quaternion = rotation_to_quaternion(turned)
    exact = torch.cat([truth[:, :3, 3], torch.tensor([[1.0, 0, 0, 0]]).expand(2, 4)], dim=1)
    terms = pose_loss(exact, truth)
    assert terms["translation"].total.item() == 0 and terms["rotation"].total.item() < 2e-3
    off = torch.cat([truth[:, :3, 3] + torch.tensor([0.0, 6.0, 0.0]), quaternion.expand(2, 4).float()], dim=1)
    terms = pose_loss(off, truth, rotation_weight=1.0)
    assert terms["translation"].total.item() == pytest.approx(6.0 + 6.0 / 6.0)
    assert terms["rotation"].total.item() == pytest.approx(
        2 * 2**0.5 * torch.sin(angle / 2).item() * 2**0.5, rel=1e-3
    )
    assert turn_between(turned, torch.eye(3)).item() == pytest.approx(torch.rad2deg(angle).item(), rel=1e-3)


def test_the_best_spread_of_points_is_their_error() -> None:
    points = torch.tensor([[3.0, 0.0, 4.0], [1.0, 1.0, 1.0]])
    valid = torch.tensor([True, False])
    losses = [
        point_loss(points, torch.full((2,), s), torch.full((2, 3), 0.0), valid).total.item()
        for s in torch.linspace(0, 3, 301).tolist()
    ]
    best = torch.linspace(0, 3, 301)[torch.tensor(losses).argmin()].exp().item()
    assert best == pytest.approx(5.0, rel=0.02)


def test_a_small_cut3r_learns_the_poses_of_one_drive(tmp_path: Path) -> None:
    item = posed_item()
    run = Cut3rTrainConfig(
        out=str(tmp_path / "run"),
        network=TINY,
        long_edge=64,
        data=DRIVES,
        steps=40,
        head_rate=3e-3,
        warmup=5,
        clip=1.0,
        save_every=30,
        tracker="none",
    )
    path = train_cut3r(run, source=[item])
    lines = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == list(range(40))
    assert lines[-1]["total"] < 0.5 * lines[0]["total"]
    errors = pose_errors(load_cut3r(path, config=read_settings(path).config), [item], run)
    assert errors["translation_m"] < 0.7 * errors["at_rest_translation_m"]
    assert errors["rotation_deg"] < 0.7 * errors["at_rest_rotation_deg"]
