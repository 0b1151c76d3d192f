"""Augmentations of what belongs to situations and layout: questions and the depth of pictures."""

from __future__ import annotations

import math
from dataclasses import replace

from vlm_occ.data.simulator.lexicon import flip_text
from vlm_occ.situated import SituationParts, SituationQuery, SpatialQuestion
from vlm_occ.types import LabelledScene, SceneDepth


def mirror_questions(questions: tuple[SpatialQuestion, ...]) -> tuple[SpatialQuestion, ...]:
    """The questions of the mirrored scene: left and right exchanged, situations moved."""
    return tuple(
        replace(
            q,
            question=flip_text(q.question),
            answers=tuple(flip_text(answer) for answer in q.answers),
            situation=flip_text(q.situation),
            position=None if q.position is None else (q.position[0], -q.position[1], q.position[2]),
            yaw=None if q.yaw is None else -q.yaw,
        )
        for q in questions
    )


def mirror_situations(situations: tuple[SituationQuery, ...]) -> tuple[SituationQuery, ...]:
    """The situations of the mirrored scene, and what they are made of."""
    return tuple(
        replace(
            s,
            text=flip_text(s.text),
            position=(s.position[0], -s.position[1]),
            yaw=-s.yaw,
            parts=s.parts and _mirrored(s.text, s.parts),
        )
        for s in situations
    )


def _mirrored(text: str, parts: SituationParts) -> SituationParts:
    """The parts of a mirrored situation, of which `text` was the original."""
    mentions = tuple(
        replace(
            m,
            start=len(flip_text(text[: m.start])),
            end=len(flip_text(text[: m.end])),
            seen=None if m.seen is None else -m.seen % 4,
        )
        for m in parts.mentions
    )
    metres = None if parts.metres is None else (parts.metres[0], -parts.metres[1])
    share = (parts.share[0], -parts.share[1])
    return replace(parts, mentions=mentions, metres=metres, share=share, turn=-parts.turn % 4)


def turn_situations(
    situations: tuple[SituationQuery, ...], yaw: float, scale: float
) -> tuple[SituationQuery, ...]:
    """The situations of a scene turned by `yaw` radians about the car and scaled.

    What is told from the car alone stays: the car and its axes are where they were, only the world has moved.
    """
    return tuple(
        s
        if s.parts and s.parts.frame == "car" and s.parts.facing in ("car heading", "to car")
        else replace(
            s, position=_turned(s.position, yaw, scale), yaw=math.remainder(s.yaw + yaw, 2 * math.pi)
        )
        for s in situations
    )


def _turned(position: tuple[float, float], yaw: float, scale: float) -> tuple[float, float]:
    (x, y), cos, sin = position, scale * math.cos(yaw), scale * math.sin(yaw)
    return cos * x - sin * y, sin * x + cos * y


def turn_questions(
    questions: tuple[SpatialQuestion, ...], yaw: float, scale: float
) -> tuple[SpatialQuestion, ...]:
    """The questions of a scene turned by `yaw` radians and scaled; metres in answers are left as they are."""
    moved = []
    for q in questions:
        position, facing = q.position, q.yaw
        if position is not None:
            position = (*_turned(position[:2], yaw, scale), scale * position[2])
        if facing is not None:
            facing = math.remainder(facing + yaw, 2 * math.pi)
        moved.append(replace(q, position=position, yaw=facing))
    return tuple(moved)


def latest(item: LabelledScene, count: int) -> LabelledScene:
    """The scene's latest frames; what came into view when can't be asked of fewer."""
    frames = item.scene.frames[-count:]
    questions = item.questions
    if len(frames) < len(item.scene.frames):
        questions = tuple(q for q in questions if q.category != "appearance order")
    return replace(item, scene=replace(item.scene, frames=frames), questions=questions)


def mirror_depth(depth: SceneDepth | None) -> SceneDepth | None:
    """Depth images of mirrored pictures."""
    if depth is None:
        return None
    intrinsics = depth.intrinsics.clone()
    intrinsics[..., 0, 2] = depth.depth.shape[-1] - intrinsics[..., 0, 2]
    return replace(depth, depth=depth.depth.flip(-1), intrinsics=intrinsics)


def scale_depth(depth: SceneDepth | None, scale: float) -> SceneDepth | None:
    """Depth images of a scaled scene."""
    return depth if depth is None else replace(depth, depth=depth.depth * scale)


def crop_depth(depth: SceneDepth | None, factor: float, place: float) -> SceneDepth | None:
    """Depth images of pictures cropped as by `augment.crop`, to the nearest of their own pixels.

    No pixel is enlarged: the images get smaller and their intrinsics say which part they show.
    """
    if depth is None:
        return None
    height, width = depth.depth.shape[-2:]
    high, wide = round(height / factor), round(width / factor)
    top, left = (height - high) // 2, round((width - wide) * place)
    intrinsics = depth.intrinsics.clone()
    intrinsics[..., 0, 2] -= left
    intrinsics[..., 1, 2] -= top
    return replace(depth, depth=depth.depth[..., top : top + high, left : left + wide], intrinsics=intrinsics)
