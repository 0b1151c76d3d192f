"""One name for every kind of scene: folder, `sim:SEED` or `nuscenes:ROOT:TOKEN`; and the check of a query."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from vlm_occ.data.keyframe import choose_cameras, load_keyframe
from vlm_occ.data.video import DEFAULT_FRAMES, PICTURE_ENDINGS, VIDEO_ENDINGS, read_video, video_scene
from vlm_occ.types import CameraRig, Scene

DEMO_SEED = 6
"""Seed of the bundled scene that `vlm-occ demo` asks about."""

MAX_WORDS, MAX_CHARACTERS = 200, 2000
"""A query is one sentence or two; longer text is a mistake, not a query."""


def load_scene(
    spec: str | Path,
    *,
    cameras: Sequence[str] | None = None,
    lidar: bool = True,
    num_frames: int | None = None,
) -> Scene:
    """The scene that `spec` names, with at most `num_frames` frames (a keyframe folder has one).

    By default that is 1 frame, and 32 of a plain video.

    `spec`: a keyframe folder, `sim:SEED`, `nuscenes:ROOT:SAMPLE_TOKEN`, or a plain video (a file or a folder
    of pictures), whose frames are spread over its whole length. `cameras` keeps only these, `lidar=False`
    leaves the LiDAR out. Raises ValueError for an unknown scene or camera, damaged data, or no sensor at all.
    """
    text = str(spec)
    if num_frames is None:
        num_frames = DEFAULT_FRAMES if is_video(text) else 1
    if num_frames < 1:
        raise ValueError(f"num_frames = {num_frames}, expected at least 1")
    if text.startswith("sim:"):
        return select_sensors(_simulated(text, num_frames), cameras=cameras, lidar=lidar)
    if is_video(text):
        return _video(text, cameras=cameras, num_frames=num_frames)
    if text.startswith("nuscenes:"):
        return _nuscenes(text, cameras=cameras, lidar=lidar, num_frames=num_frames)
    if not Path(text).is_dir():
        raise ValueError(
            f"scene {text!r} is no folder; give a keyframe folder, sim:SEED (such as sim:{DEMO_SEED}), "
            "nuscenes:ROOT:SAMPLE_TOKEN, a video file or a folder of pictures"
        )
    return load_keyframe(text, cameras=cameras, lidar=lidar)


def is_video(spec: str) -> bool:
    """Whether a scene is a plain video file, or a folder of pictures and nothing else."""
    path = Path(spec)
    if path.suffix.lower() in VIDEO_ENDINGS:
        return True
    if not path.is_dir():
        return False
    endings = {entry.suffix.lower() for entry in path.iterdir() if not entry.name.startswith(".")}
    return bool(endings) and endings <= set(PICTURE_ENDINGS)


def _video(spec: str, *, cameras: Sequence[str] | None, num_frames: int) -> Scene:
    """The scene of a plain video, without calibration."""
    if cameras is not None:
        raise ValueError(f"{spec} is a plain video of one camera without a name; leave --cameras out")
    return video_scene(read_video(spec, num_frames=num_frames), name=Path(spec).name)


def select_sensors(scene: Scene, *, cameras: Sequence[str] | None = None, lidar: bool = True) -> Scene:
    """The scene with only these cameras (all where None), and without points where `lidar` is False."""
    names = choose_cameras(scene.rig.names, cameras)
    if not names and (not lidar or scene.reference.points is None):
        raise ValueError(
            f"no sensor is left in scene {scene.name!r}; keep a camera (--cameras NAMES) or the LiDAR"
        )
    rows = [scene.rig.names.index(name) for name in names]
    rig = CameraRig(names, scene.rig.intrinsics[rows], scene.rig.ego_from_camera[rows], scene.rig.image_size)
    frames = tuple(
        dataclasses.replace(frame, images=frame.images[rows], points=frame.points if lidar else None)
        for frame in scene.frames
    )
    return dataclasses.replace(scene, rig=rig, frames=frames)


def check_query(text: str) -> str:
    """The query without surrounding blanks, or ValueError where it is empty, too long or not text."""
    query = " ".join(text.split())
    try:
        query.encode("utf-8")
    except UnicodeEncodeError as error:
        raise ValueError("the query holds bytes that are not UTF-8 text; type it again") from error
    words = len(query.split())
    if not any(character.isalnum() for character in query):
        raise ValueError(
            f"the query {query!r} has no words; say which object is meant, such as 'the red car on the left'"
        )
    if words > MAX_WORDS or len(query) > MAX_CHARACTERS:
        raise ValueError(
            f"the query has {words} words ({len(query)} characters), expected at most {MAX_WORDS} words "
            f"({MAX_CHARACTERS} characters); ask in one or two sentences"
        )
    return query


def seed_of(spec: str) -> int:
    """The seed of `sim:SEED`."""
    digits = spec.removeprefix("sim:")
    if not (digits.isascii() and digits.isdigit()) or int(digits) >= 2**63:
        raise ValueError(
            f"scene {spec!r} has no seed; expected sim:SEED with a whole number from 0, such as sim:7"
        )
    return int(digits)


def _simulated(spec: str, num_frames: int) -> Scene:
    """The scene of `sim:SEED`."""
    seed = seed_of(spec)
    from vlm_occ.data.simulator.scene import simulate

    return simulate(seed, num_frames=num_frames).scene


def _nuscenes(spec: str, *, cameras: Sequence[str] | None, lidar: bool, num_frames: int) -> Scene:
    """The scene of `nuscenes:ROOT:SAMPLE_TOKEN`; the root may hold colons."""
    root, _, token = spec.removeprefix("nuscenes:").rpartition(":")
    if not root or not token:
        raise ValueError(f"scene {spec!r} is incomplete; expected nuscenes:ROOT:SAMPLE_TOKEN")
    from vlm_occ.data import nuscenes

    return nuscenes.load_scene(root, token, cameras=cameras, lidar=lidar, num_frames=num_frames)
