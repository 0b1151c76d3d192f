"""Videos and picture folders: which frames come, in which order, and what unreadable files are answered."""

from __future__ import annotations

import importlib.metadata
import io
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from vlm_occ.cli import main
from vlm_occ.data.scenes import load_scene
from vlm_occ.data.video import is_calibrated, read_video, sample_indices, video_scene
from vlm_occ.types import CameraRig


def _grey(value: int, size: tuple[int, int] = (64, 48)) -> Image.Image:
    return Image.new("RGB", size, (value, value, value))


def _write_video(path: Path, number: int, *, rate: int = 10) -> Path:
    """A video whose frame i is a uniform grey of 8 i."""
    av = pytest.importorskip("av", reason="PyAV is not installed")
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=rate)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for index in range(number):
            container.mux(stream.encode(av.VideoFrame.from_image(_grey(8 * index))))
        container.mux(stream.encode())
    return path


@pytest.mark.parametrize(
    ("total", "number"), [(1, 1), (5, 5), (5, 9), (100, 32), (33, 32), (1000, 2), (7, 1)]
)
def test_samples_are_distinct_sorted_and_span_the_clip(total: int, number: int) -> None:
    chosen = sample_indices(total, number)
    assert len(chosen) == min(total, number) == len(set(chosen))
    assert chosen == sorted(chosen) and chosen[0] == 0
    assert number == 1 or chosen[-1] == total - 1
    steps = np.diff(chosen)
    assert len(steps) == 0 or steps.max() - steps.min() <= 1


def test_a_folder_is_read_in_natural_order(tmp_path: Path) -> None:
    for index in range(12):
        _grey(20 * index).save(tmp_path / f"frame_{index}.png")
    (tmp_path / "notes.txt").write_text("no picture")
    _grey(255).save(tmp_path / ".hidden.png")
    video = read_video(tmp_path, num_frames=4, rate=2.0)
    assert video.images.shape == (4, 3, 48, 64) and video.images.dtype == torch.uint8
    assert video.images[:, 0, 0, 0].tolist() == [0, 60, 140, 220]
    assert video.timestamps.tolist() == [0.0, 1.5, 3.5, 5.5]


def test_channels_rows_and_columns_stay_where_they_are(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    assert torch.equal(read_video(tmp_path).images[0], torch.from_numpy(pixels).permute(2, 0, 1))


def test_frames_of_a_video_file_come_evenly_with_their_times(tmp_path: Path) -> None:
    video = read_video(_write_video(tmp_path / "clip.mp4", 21), num_frames=5)
    means = video.images.float().mean((1, 2, 3))
    torch.testing.assert_close(means, torch.tensor([0.0, 40, 80, 120, 160]), atol=4.0, rtol=0)
    torch.testing.assert_close(
        video.timestamps, torch.tensor([0.0, 0.5, 1, 1.5, 2]).double(), atol=1e-3, rtol=0
    )


def test_a_video_of_a_turned_telephone_comes_upright(tmp_path: Path) -> None:
    av = pytest.importorskip("av", reason="PyAV is not installed")
    pixels = np.zeros((48, 64, 3), dtype=np.uint8)
    pixels[:, :32] = 255  # the left half is white
    path = tmp_path / "clip.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=10)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels)))
        container.mux(stream.encode())
    content = bytearray(path.read_bytes())
    matrix = content.index(b"tkhd") + 44
    quarter_clockwise = (0, 1 << 16, 0, -(1 << 16), 0, 0, 0, 0, 1 << 30)
    content[matrix : matrix + 36] = b"".join(
        value.to_bytes(4, "big", signed=True) for value in quarter_clockwise
    )
    path.write_bytes(content)
    image = read_video(path).images[0].float().mean(0)  # [64, 48]
    assert image.shape == (64, 48)
    assert image[:28].mean() > 230 and image[36:].mean() < 25  # left became top


def test_a_short_video_gives_each_frame_once(tmp_path: Path) -> None:
    video = read_video(_write_video(tmp_path / "clip.mp4", 3), num_frames=32)
    assert video.images.shape[0] == 3


def test_large_frames_are_shrunk_and_small_ones_are_not_enlarged(tmp_path: Path) -> None:
    _grey(9, (320, 200)).save(tmp_path / "a.jpg")
    assert read_video(tmp_path, long_edge=160).images.shape == (1, 3, 100, 160)
    assert read_video(tmp_path, long_edge=999).images.shape == (1, 3, 200, 320)


def test_unreadable_clips_are_answered_with_a_reason(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="does not exist"):
        read_video(tmp_path / "absent.mp4")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="holds no pictures"):
        read_video(tmp_path / "empty")
    (tmp_path / "empty" / "broken.png").write_bytes(b"no picture")
    with pytest.raises(ValueError, match=r"broken\.png"):
        read_video(tmp_path / "empty")
    (tmp_path / "mixed").mkdir()
    _grey(1).save(tmp_path / "mixed" / "a.png")
    _grey(1, (32, 32)).save(tmp_path / "mixed" / "b.png")
    with pytest.raises(ValueError, match="differ in size"):
        read_video(tmp_path / "mixed")


def test_a_damaged_video_file_is_answered_with_a_reason(tmp_path: Path) -> None:
    pytest.importorskip("av", reason="PyAV is not installed")
    (tmp_path / "clip.mp4").write_bytes(b"no video at all")
    with pytest.raises(ValueError, match="no readable video"):
        read_video(tmp_path / "clip.mp4")


def test_without_pyav_a_video_file_says_what_to_install_and_folders_still_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def absent(name: str) -> str:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "version", absent)
    (tmp_path / "clip.mp4").write_bytes(b"any")
    with pytest.raises(ValueError, match=r"pip install 'vlm-occ\[video\]'"):
        read_video(tmp_path / "clip.mp4")
    (tmp_path / "pictures").mkdir()
    _grey(5).save(tmp_path / "pictures" / "a.png")
    assert read_video(tmp_path / "pictures").images.shape[0] == 1


def test_a_video_scene_has_one_camera_a_clock_and_no_calibration(tmp_path: Path) -> None:
    for index in range(3):
        _grey(index).save(tmp_path / f"{index}.png")
    scene = video_scene(read_video(tmp_path, rate=4.0), name="hall")
    assert [frame.timestamp for frame in scene.frames] == [0.0, 0.25, 0.5]
    assert all(frame.points is None and frame.images.shape == (1, 3, 48, 64) for frame in scene.frames)
    assert (scene.rig.image_size, scene.name) == ((48, 64), "hall")
    assert not is_calibrated(scene.rig)
    known = CameraRig(("A",), torch.eye(3)[None], torch.eye(4)[None], (48, 64))
    assert is_calibrated(known)


def test_a_folder_of_pictures_is_a_scene_of_all_its_frames_and_a_keyframe_folder_is_none(
    tmp_path: Path, keyframe_folder: Path
) -> None:
    folder = tmp_path / "clip"
    folder.mkdir()
    for index in range(4):
        _grey(index).save(folder / f"{index}.png")
    scene = load_scene(folder)
    assert len(scene.frames) == 4 and not is_calibrated(scene.rig) and scene.name == "clip"
    assert len(load_scene(folder, num_frames=2).frames) == 2
    assert is_calibrated(load_scene(keyframe_folder).rig)
    with pytest.raises(ValueError, match="leave --cameras out"):
        load_scene(folder, cameras=["CAM_FRONT"])


def test_the_command_line_locates_and_asks_about_a_video_and_says_why_it_grounds_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from tiny_models import save_tiny_llava
    from tiny_spatial import tiny

    from vlm_occ.models.adapter import VLMOcc

    (tmp_path / "clip").mkdir()
    for index in range(3):
        _grey(60 * index).save(tmp_path / "clip" / f"{index}.png")
    model = tiny(save_tiny_llava(tmp_path / "base"))
    monkeypatch.setattr(VLMOcc, "from_pretrained", lambda name, device=None: model)
    lines = "locate I am standing in the hall\nask what is there?\nground the chair\nhistory\n"
    monkeypatch.setattr("sys.stdin", io.StringIO(lines))
    assert main(["chat", str(tmp_path / "clip")]) == 0
    streams = capsys.readouterr()
    assert re.search(r"at x -?\d+\.\d m \(\+- \d+\.\d\), y .* facing -?\d\.\d\d rad", streams.out)
    assert "grounding needs a pose source" in streams.err
    assert "locate: I am standing in the hall -> " in streams.out
