"""A plain video file or a folder of pictures as frames in time order, or as an uncalibrated scene."""

from __future__ import annotations

import importlib
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from vlm_occ.types import CameraRig, Frame, Scene
from vlm_occ.weights import require

PICTURE_ENDINGS = (".jpg", ".jpeg", ".png", ".bmp", ".webp")
VIDEO_ENDINGS = (".mp4", ".mov", ".mkv", ".avi", ".webm", ".m4v")

DEFAULT_FRAMES = 32
"""Frames of a clip in Loc3R-VLM (4.1)."""


@dataclass(frozen=True)
class Video:
    """Frames of one camera in time order."""

    images: Tensor  # uint8 [F, 3, H, W]
    timestamps: Tensor  # float64 [F] seconds from the start


def sample_indices(total: int, number: int) -> list[int]:
    """At most `number` indices spread evenly over `total` frames, the first and the last among them."""
    if total < 1 or number < 1:
        raise ValueError(f"{number} frames of {total}; expected at least one of both")
    if number >= total:
        return list(range(total))
    return np.linspace(0, total - 1, number).astype(int).tolist()


def read_video(
    path: str | Path, *, num_frames: int = DEFAULT_FRAMES, long_edge: int | None = None, rate: float = 1.0
) -> Video:
    """At most `num_frames` evenly spaced frames of a video file, or of a folder of pictures in natural order.

    `long_edge` shrinks larger frames to that many pixels. A folder has no clock: `rate` is its pictures a
    second. Video files need PyAV. ValueError where there is nothing to read, the file is damaged, or sizes
    differ.
    """
    path = Path(path)
    if rate <= 0 or (long_edge is not None and long_edge < 1):
        raise ValueError(f"rate={rate} and long_edge={long_edge}, expected values above 0")
    if path.is_dir():
        pictures, timestamps = _read_folder(path, num_frames, rate)
    elif path.is_file():
        pictures, timestamps = _read_file(path, num_frames)
    else:
        raise ValueError(f"{path} does not exist; give a video file or a folder of pictures")
    images = [_shrink(picture, long_edge) for picture in pictures]
    if len({image.size for image in images}) > 1:
        sizes = sorted({f"{image.size[0]}x{image.size[1]}" for image in images})
        raise ValueError(f"the pictures of {path} differ in size ({', '.join(sizes[:4])}); give one size")
    pixels = torch.from_numpy(np.stack([np.asarray(image) for image in images]))  # [F, H, W, 3]
    return Video(
        images=pixels.permute(0, 3, 1, 2).contiguous(),
        timestamps=torch.tensor(timestamps, dtype=torch.float64),
    )


def _shrink(picture: Image.Image, long_edge: int | None) -> Image.Image:
    longest = max(picture.size)
    if long_edge is None or longest <= long_edge:
        return picture
    width, height = (max(round(side * long_edge / longest), 1) for side in picture.size)
    return picture.resize((width, height), Image.Resampling.LANCZOS)


def _natural_key(path: Path) -> tuple[list[tuple[int, str]], str]:
    """Sorts frame_2 before frame_10."""
    parts = re.split(r"(\d+)", path.name.lower())
    return [(int(part), "") if part.isdigit() else (-1, part) for part in parts], path.name


def _read_folder(folder: Path, number: int, rate: float) -> tuple[list[Image.Image], list[float]]:
    """The chosen pictures of a folder and their times."""
    names = [
        p for p in folder.iterdir() if p.suffix.lower() in PICTURE_ENDINGS and not p.name.startswith(".")
    ]
    names.sort(key=_natural_key)
    if not names:
        raise ValueError(f"{folder} holds no pictures ({', '.join(PICTURE_ENDINGS)})")
    chosen = sample_indices(len(names), number)
    pictures = []
    for index in chosen:
        try:
            with Image.open(names[index]) as picture:
                pictures.append(picture.convert("RGB"))
        except (UnidentifiedImageError, OSError) as error:
            raise ValueError(
                f"{names[index]} is no readable picture ({error}); remove or replace it"
            ) from error
    return pictures, [index / rate for index in chosen]


def _read_file(path: Path, number: int) -> tuple[list[Image.Image], list[float]]:
    """The chosen frames of a video file and their times; decodes once, keeps only the chosen ones."""
    require("av", "video")
    av = importlib.import_module("av")
    try:
        times = _presentation_times(av, path)
        wanted = [times[index] for index in sample_indices(len(times), number)]
        frames = list(_decode(av, path, wanted))
    except av.FFmpegError as error:
        raise ValueError(f"{path} is no readable video ({error.strerror}); is it complete?") from error
    if not frames:
        raise ValueError(f"no frame of {path} can be decoded; is it complete?")
    return [picture for _, picture in frames], [time - frames[0][0] for time, _ in frames]


def _presentation_times(av: ModuleType, path: Path) -> list[int]:
    """When each frame of the first video stream is shown, in its time base, sorted; decodes nothing."""
    with av.open(str(path)) as container:
        if not container.streams.video:
            raise ValueError(f"{path} holds no video stream")
        packets = container.demux(container.streams.video[0])
        times = sorted(packet.pts for packet in packets if packet.pts is not None)
    if not times:
        raise ValueError(f"{path} holds no frames; is it complete?")
    return times


def _decode(av: ModuleType, path: Path, wanted: Sequence[int]) -> Iterator[tuple[float, Image.Image]]:
    """Time in seconds and picture of the first frame at or after each wanted time.

    The picture is turned as a viewer shows it: telephones store how they were held.
    """
    position = 0
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        stream.thread_type = "AUTO"
        for frame in container.decode(stream):
            if frame.pts is None or frame.pts < wanted[position]:
                continue
            picture = frame.to_image()
            turn = frame.rotation % 360
            yield float(frame.pts * stream.time_base), picture.rotate(turn, expand=True) if turn else picture
            while position < len(wanted) and wanted[position] <= frame.pts:
                position += 1
            if position == len(wanted):
                return


def video_scene(video: Video, *, name: str = "video") -> Scene:
    """A scene of one camera without LiDAR whose calibration and poses are not known.

    The intrinsics are NaN, which no projection can mistake for a camera (`is_calibrated` tells), and every
    pose is the identity: questions and situations work on it, grounding needs a pose source.
    """
    height, width = video.images.shape[-2:]
    rig = CameraRig(
        names=("VIDEO",),
        intrinsics=torch.full((1, 3, 3), torch.nan),
        ego_from_camera=torch.eye(4)[None],
        image_size=(height, width),
    )
    frames = tuple(
        Frame(
            timestamp=time, images=image[None], world_from_ego=torch.eye(4, dtype=torch.float64), points=None
        )
        for time, image in zip(video.timestamps.tolist(), video.images, strict=True)
    )
    return Scene(rig=rig, frames=frames, name=name)


def is_calibrated(rig: CameraRig) -> bool:
    """Whether the cameras' intrinsics are known; those of a plain video are not."""
    return bool(torch.isfinite(rig.intrinsics).all())
