"""CUT3R against recorded outputs of the published model, its key lists, and synthetic checkpoints."""

from __future__ import annotations

import json
import os
import sys
import types
from collections import defaultdict
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from vlm_occ.encoders.cut3r import Cut3r, Cut3rConfig, PoseHead, state_positions
from vlm_occ.encoders.cut3r_blocks import rotate_by_position
from vlm_occ.encoders.cut3r_frames import camera_tokens, prepare_frames
from vlm_occ.encoders.cut3r_weights import convert_cut3r, load_cut3r, read_state_dict

DATA = Path(os.environ.get("VLM_OCC_REAL_DATA", Path(__file__).parents[2] / "shared" / "data"))
TINY = Cut3rConfig(32, 1, 2, 24, 2, decoder_heads=3, state_heads=2, state_size=9, memory_size=5)


def _data(folder: str) -> Path:
    path = DATA / folder
    if not path.is_dir():
        pytest.skip(f"{path} is absent (set VLM_OCC_REAL_DATA)")
    return path


def _reference(*, half_rope: bool) -> tuple[Cut3r, dict[str, Tensor]]:
    folder = _data("cut3r_tiny_reference")
    values = json.loads((folder / "config.json").read_text())
    model = Cut3r(
        Cut3rConfig(
            encoder_width=values["enc_embed_dim"],
            encoder_depth=values["enc_depth"],
            encoder_heads=values["enc_num_heads"],
            decoder_width=values["dec_embed_dim"],
            decoder_depth=values["dec_depth"],
            decoder_heads=values["dec_num_heads"],
            state_heads=values["state_dec_num_heads"],
            state_size=values["state_size"],
            memory_size=values["local_mem_size"],
            half_rope=half_rope,
        )
    )
    with np.load(folder / "weights.npz") as weights:
        missing, _ = model.load_state_dict(
            {name: torch.from_numpy(weights[name]) for name in weights.files}, strict=False
        )
    assert not missing
    with np.load(folder / "io.npz") as file:
        return model.eval(), {name: torch.from_numpy(file[name]) for name in file.files}


@torch.no_grad()
def _outputs(model: Cut3r, images: Tensor) -> dict[str, Tensor]:
    clip = images.transpose(0, 1)  # [B, T, 3, H, W]
    out = model(clip)
    assert out.pose is not None
    return {
        "enc0": model.encode_images(clip[:, 0]),
        "cam": out.camera.transpose(0, 1),
        "geo_last": out.geometry[:, -1],
        "state_last": out.state.tokens,
        "mem_last": out.state.memory,
        "pose": out.pose.transpose(0, 1),
    }


@pytest.mark.parametrize(("half_rope", "tolerance"), [(False, 1e-5), (True, 1e-3)])
def test_every_output_matches_the_published_code(half_rope: bool, tolerance: float) -> None:
    prefix = "fp16enc" if half_rope else "fp32"
    model, recorded = _reference(half_rope=half_rope)
    for name, value in _outputs(model, recorded["img"]).items():
        error = (value - recorded[f"{prefix}.{name}"]).abs().max().item()
        assert error < tolerance, f"{name}: {error}"


def test_the_half_precision_detail_matters_and_is_reproduced() -> None:
    exact, recorded = _reference(half_rope=False)
    half, _ = _reference(half_rope=True)
    wanted = recorded["fp16enc.cam"]
    error_exact = (_outputs(exact, recorded["img"])["cam"] - wanted).abs().max()
    error_half = (_outputs(half, recorded["img"])["cam"] - wanted).abs().max()
    assert error_half < 0.1 * error_exact


@pytest.mark.parametrize("name", ["cut3r_512_dpt_4_64", "cut3r_224_linear_4"])
def test_every_key_and_shape_is_in_the_published_model(name: str) -> None:
    published = json.loads((_data("cut3r_keys") / f"{name}.keys.json").read_text())
    with torch.device("meta"):
        ours = Cut3r(Cut3rConfig()).state_dict()
    wrong = [key for key, value in ours.items() if published.get(key) != list(value.shape)]
    assert wrong == []
    on_path = {key: value for key, value in ours.items() if not key.startswith("downstream_head.")}
    assert (len(on_path), sum(value.numel() for value in on_path.values())) == (978, 684_648_192)
    ray_maps = ("patch_embed_ray_map.", "enc_blocks_ray_map.", "enc_norm_ray_map.")
    unneeded = (*ray_maps, "masked_", "downstream_head.")
    assert [key for key in published if key not in ours and not key.startswith(unneeded)] == []


def test_frame_by_frame_equals_the_whole_clip() -> None:
    torch.manual_seed(0)
    model = Cut3r(TINY).eval()
    clip = torch.rand(2, 4, 3, 32, 48) * 2 - 1
    with torch.no_grad():
        whole = model(clip, chunk=3)
        state, cameras = None, []
        for frame in clip.unbind(1):
            out = model(frame[:, None], state)
            state = out.state
            cameras.append(out.camera)
    torch.testing.assert_close(torch.cat(cameras, dim=1), whole.camera, atol=2e-6, rtol=0)
    assert state is not None and state.frames == whole.state.frames == 4
    torch.testing.assert_close(state.tokens, whole.state.tokens, atol=2e-6, rtol=0)
    torch.testing.assert_close(state.memory, whole.state.memory, atol=2e-6, rtol=0)


def test_clips_of_a_batch_do_not_mix_and_order_matters() -> None:
    torch.manual_seed(1)
    model = Cut3r(TINY).eval()
    clip = torch.rand(2, 3, 3, 32, 32) * 2 - 1
    with torch.no_grad():
        both = model(clip).camera
        alone = torch.cat([model(clip[:1]).camera, model(clip[1:]).camera])
        reversed_last = model(clip.flip(1)).camera[:, -1]
    torch.testing.assert_close(both, alone, atol=2e-6, rtol=0)
    assert (reversed_last - both[:, 0]).abs().max() > 1e-4  # the same image, another past


def test_rope_is_a_complex_rotation_at_any_position() -> None:
    torch.manual_seed(0)
    x = torch.randn(1, 2, 3, 16, dtype=torch.float64)
    positions = torch.tensor([[-1, -1], [0, 0], [5, -2]])
    out = rotate_by_position(x, positions)
    for token in range(3):
        for half in range(2):  # rows, then columns
            for j in range(4):
                u, v = x[0, :, token, 8 * half + j], x[0, :, token, 8 * half + 4 + j]
                turned = torch.complex(u, v) * np.exp(1j * positions[token, half].item() * 100 ** (-j / 4))
                torch.testing.assert_close(out[0, :, token, 8 * half + j], turned.real, atol=1e-6, rtol=0)
                torch.testing.assert_close(out[0, :, token, 8 * half + 4 + j], turned.imag, atol=1e-6, rtol=0)


def test_rope_makes_scores_depend_on_relative_positions_only() -> None:
    torch.manual_seed(0)
    q, k = torch.randn(1, 1, 1, 32), torch.randn(1, 1, 1, 32)
    at, to = torch.tensor([[2.0, 7.0]]), torch.tensor([[-1.0, -1.0]])
    score = (rotate_by_position(q, at) * rotate_by_position(k, to)).sum()
    moved = (rotate_by_position(q, at + 11) * rotate_by_position(k, to + 11)).sum()
    torch.testing.assert_close(score, moved, atol=1e-4, rtol=0)


def test_state_tokens_of_the_published_size_lie_in_rows_of_28() -> None:
    positions = state_positions(768)
    assert positions[27].tolist() == [0, 27] and positions[28].tolist() == [1, 0]
    assert positions[767].tolist() == [27, 11]


def test_pose_head_grows_exponentially_and_normalises() -> None:
    head = PoseHead(4)
    raw = torch.tensor([0.0, 3.0, 4.0, -2.0, 0.0, 0.0, 2.0])
    torch.nn.init.zeros_(head.mlp.fc2.weight)
    with torch.no_grad():
        head.mlp.fc2.bias.copy_(raw)
        pose = head(torch.randn(4))
    scale = (np.exp(5.0) - 1) / 5
    expected = torch.tensor([0, 3 * scale, 4 * scale, 0.5**0.5, 0, 0, -(0.5**0.5)], dtype=torch.float32)
    torch.testing.assert_close(pose, expected)


def test_every_parameter_gets_a_gradient_from_two_frames() -> None:
    torch.manual_seed(0)
    model = Cut3r(TINY)
    out = model(torch.rand(1, 2, 3, 32, 32))
    assert out.pose is not None
    state = out.state.tokens.square().sum() + out.state.memory.sum()
    (out.pose.sum() + out.geometry.square().sum() + state).backward()
    assert [name for name, p in model.named_parameters() if p.grad is None] == []


def test_images_that_are_no_multiple_of_16_are_refused() -> None:
    with pytest.raises(ValueError, match="30x32"):
        Cut3r(TINY)(torch.zeros(1, 1, 3, 30, 32))


def _fake_omegaconf(monkeypatch: pytest.MonkeyPatch) -> type:
    """A class that pickles as omegaconf.dictconfig.DictConfig and is gone again when the file is read."""
    module = types.ModuleType("omegaconf.dictconfig")
    kind = type("DictConfig", (), {"__module__": "omegaconf.dictconfig"})
    setattr(module, "DictConfig", kind)  # noqa: B010 (a module has no such attribute)
    monkeypatch.setitem(sys.modules, "omegaconf", types.ModuleType("omegaconf"))
    monkeypatch.setitem(sys.modules, "omegaconf.dictconfig", module)
    return kind


class _Malicious:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, ("executed",)


def _published_layout(folder: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, Cut3r]:
    torch.manual_seed(0)
    model = Cut3r(TINY)
    args = _fake_omegaconf(monkeypatch)()
    args.model, args.parents = "ARCroco3DStereo(...)", defaultdict(list, {"a": [dict, 1]})
    tensors = {f"module.{name}": tensor for name, tensor in model.state_dict().items()}
    tensors["module.downstream_head.dpt_self.scratch.weight"] = torch.zeros(3)
    tensors["module.masked_img_token"] = torch.zeros(1, 32)
    path = folder / "cut3r_512_dpt_4_64.pth"
    torch.save({"args": args, "model": tensors, "epoch": 3}, path)
    monkeypatch.undo()
    return path, model


def test_a_file_of_the_published_layout_loads_and_converts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, model = _published_layout(tmp_path, monkeypatch)
    assert "omegaconf" not in sys.modules
    converted = convert_cut3r(path, tmp_path / "converted" / "cut3r.safetensors", config=TINY)
    clip = torch.rand(1, 2, 3, 32, 32)
    with torch.no_grad():
        expected = model(clip).camera
        for file in (path, converted):
            loaded = load_cut3r(file, config=TINY)
            assert not loaded.training and not any(p.requires_grad for p in loaded.parameters())
            torch.testing.assert_close(loaded(clip).camera, expected, atol=1e-6, rtol=0)
    assert set(read_state_dict(converted)) == set(model.state_dict())


def test_a_checkpoint_with_code_in_it_is_refused_and_not_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"args": _Malicious(), "model": Cut3r(TINY).state_dict()}, "bad.pth")
    with pytest.raises(ValueError, match="mkdir"):
        load_cut3r("bad.pth", config=TINY)
    assert not Path("executed").exists()


def test_a_wrong_file_is_answered_with_the_first_missing_key(tmp_path: Path) -> None:
    tensors = Cut3r(TINY).state_dict()
    del tensors["dec_blocks.1.norm_y.weight"], tensors["dec_norm_state.bias"]
    torch.save({"model": tensors}, tmp_path / "a.pth")
    with pytest.raises(ValueError, match=r"dec_blocks\.1\.norm_y\.weight"):
        load_cut3r(tmp_path / "a.pth", config=TINY)
    torch.save({"model": Cut3r(TINY).state_dict()}, tmp_path / "b.pth")
    with pytest.raises(ValueError, match=r"pose_token.*\[1, 1, 24\], expected \[1, 1, 768\]"):
        load_cut3r(tmp_path / "b.pth")


@pytest.mark.parametrize("name", ["absent.pth", "junk.pth", "junk.safetensors", "list.pth"])
def test_damaged_and_absent_files_are_answered_with_a_remedy(tmp_path: Path, name: str) -> None:
    (tmp_path / "junk.pth").write_bytes(b"no checkpoint")
    (tmp_path / "junk.safetensors").write_bytes(b"no checkpoint")
    torch.save([1, 2], tmp_path / "list.pth")
    with pytest.raises(ValueError, match=name):
        read_state_dict(tmp_path / name)


def test_nuscenes_pictures_become_512x288_and_vlm3r_frames_27x27_patches() -> None:
    images = torch.randint(0, 256, (1, 3, 900, 1600), dtype=torch.uint8)
    assert prepare_frames(images, recipe="cut3r").shape == (1, 3, 288, 512)
    assert prepare_frames(images, recipe="vlm3r").shape == (1, 3, 432, 432)
    assert prepare_frames(images[..., :900], recipe="cut3r").shape == (1, 3, 384, 512)


def test_frame_preparation_keeps_the_picture_and_maps_bytes_to_minus_one_and_one() -> None:
    ramp = torch.arange(256, dtype=torch.uint8).repeat(64, 1).expand(1, 3, 64, 256)
    out = prepare_frames(ramp, recipe="cut3r", long_edge=256)
    torch.testing.assert_close(out, ramp.float() / 127.5 - 1)
    out = prepare_frames(ramp, recipe="vlm3r")[0, 0, 200]
    expected = ((torch.arange(432) + 0.5) * 256 / 432 - 0.5).clamp(0, 255) / 127.5 - 1
    assert (out - expected).abs().max() < 0.03


def test_camera_tokens_are_computed_once_a_clip(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLM_OCC_CACHE", str(tmp_path))
    torch.manual_seed(0)
    model = Cut3r(TINY).eval()
    images = torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8)
    first = camera_tokens(model, images, weights_name="w")
    torch.testing.assert_close(first, camera_tokens(model, images), atol=1e-6, rtol=0)
    with torch.no_grad():
        model.pose_token.normal_()
    torch.testing.assert_close(camera_tokens(model, images, weights_name="w"), first)  # from the disk
    assert (camera_tokens(model, images, weights_name="other") - first).abs().max() > 1e-3
