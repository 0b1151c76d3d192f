"""Augmentations that keep sensors, labels and sentences true to each other."""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from torch import Tensor
from torch.nn import functional

from vlm_occ.config import DataConfig
from vlm_occ.data.augment_spatial import (
    crop_depth,
    latest,
    mirror_depth,
    mirror_questions,
    mirror_situations,
    scale_depth,
    turn_questions,
    turn_situations,
)
from vlm_occ.geometry import box_corners, invert_rigid, rigid, rotation_z, wrap_angle
from vlm_occ.types import FREE, CameraRig, Frame, LabelledScene, Scene, SceneLabels, VoxelGrid

_MIRRORED = {"LEFT": "RIGHT", "RIGHT": "LEFT"}

CROP_SHARE, CROP = 0.5, 0.15
"""Half of the pictures are cropped, by up to 15 %: neighbouring cameras overlap by about as much."""


def augment(
    item: LabelledScene,
    bits: torch.Generator,
    data: DataConfig,
    *,
    geometric: bool = True,
    turn: float = 2.0,
    scale: float = 0.03,
) -> LabelledScene:
    """A random variant of a labelled scene: mirror, turn (degrees), scale, missing sensors, crop, colours,
    GridMask, calibration errors.

    Small turns keep sentences true, since the simulator's sides have margins; without sentences `turn` may be
    large. Without `geometric`, only sensors and pictures change.
    """
    draw = torch.rand(9, generator=bits).tolist()
    if geometric:
        if draw[0] < 0.5:
            item = mirror(item)
        yaw = math.radians(turn) * (2 * draw[1] - 1)
        item = turn_and_scale(item, yaw, 1 + scale * (2 * draw[2] - 1))
    item = latest(item, 1 + int(draw[3] * len(item.scene.frames)))  # one to all frames
    if draw[4] < data.drop_sensor:
        item = drop_sensor(item, lidar=draw[5] < 0.5)
    if len(item.scene.reference.images):
        if draw[6] < CROP_SHARE:
            item = crop_cameras(item, 1 + CROP * draw[7], draw[8])
        scene = item.scene
        recoloured = tuple(_recolour(frame, bits) for frame in scene.frames)
        rig = jitter_calibration(scene.rig, bits)
        item = replace(item, scene=replace(scene, frames=recoloured, rig=rig))
    return item


def drop_sensor(item: LabelledScene, *, lidar: bool) -> LabelledScene:
    """The scene without its LiDAR, or without its cameras, and labels of what the other one sees.

    The last sensor stays: a scene without the other one is returned as it is.
    """
    scene, labels = item.scene, item.labels
    if scene.reference.points is None or not len(scene.reference.images):
        return item
    if lidar:
        unseen = replace(
            labels,
            mask_lidar=torch.zeros_like(labels.mask_lidar),
            num_points=torch.zeros_like(labels.num_points),
        )
        return replace(item, scene=without_lidar(scene), labels=unseen)
    unseen = replace(
        labels,
        mask_camera=torch.zeros_like(labels.mask_camera),
        visibility=torch.zeros_like(labels.visibility),
    )
    return replace(item, scene=without_cameras(scene), labels=unseen, depth=None)


def mirror(item: LabelledScene) -> LabelledScene:
    """The scene with left and right exchanged, sentences and camera names included."""
    from vlm_occ.data.simulator.lexicon import flip_text

    scene, labels = item.scene, item.labels
    middle = scene.grid.origin[1] + scene.grid.shape[1] * scene.grid.voxel_size / 2
    if abs(middle) > 1e-4:
        raise ValueError(
            f"the grid's middle is at y = {middle:.3f} m, expected 0: only a grid that is as wide to the "
            "left as to the right can be mirrored; train with data.augment: false"
        )
    flip = torch.diag(torch.tensor([1.0, -1.0, 1.0]))
    frames = _move_frames(scene, flip)
    frames = tuple(replace(frame, images=frame.images.flip(-1)) for frame in frames)
    intrinsics = scene.rig.intrinsics.clone()
    intrinsics[:, 0, 2] = scene.rig.image_size[1] - intrinsics[:, 0, 2]
    mirror_camera = torch.diag(torch.tensor([-1.0, 1.0, 1.0]))
    rotation = flip @ scene.rig.ego_from_camera[:, :3, :3] @ mirror_camera
    rig = replace(
        scene.rig,
        names=tuple(_mirror_name(name) for name in scene.rig.names),
        intrinsics=intrinsics,
        ego_from_camera=rigid(rotation, scene.rig.ego_from_camera[:, :3, 3] @ flip),
    )
    boxes = labels.boxes.clone()
    boxes[:, 1] *= -1
    boxes[:, 6] = wrap_angle(-boxes[:, 6])
    labels = replace(
        labels,
        semantics=labels.semantics.flip(1),
        mask_lidar=labels.mask_lidar.flip(1),
        mask_camera=labels.mask_camera.flip(1),
        boxes=boxes,
        velocities=labels.velocities * torch.tensor([1.0, -1.0]),
    )
    queries = tuple(replace(q, text=flip_text(q.text), answer=flip_text(q.answer)) for q in item.queries)
    situations = mirror_situations(item.situations)
    mirrored = LabelledScene(replace(scene, rig=rig, frames=frames), labels, queries, situations)
    return replace(mirrored, questions=mirror_questions(item.questions), depth=mirror_depth(item.depth))


def turn_and_scale(item: LabelledScene, yaw: float, scale: float) -> LabelledScene:
    """The scene turned by `yaw` radians about z and scaled; pixels stay, cameras and labels move."""
    scene, labels = item.scene, item.labels
    rotation = rotation_z(torch.tensor(yaw))
    linear = scale * rotation
    pose = scene.rig.ego_from_camera
    rig = replace(scene.rig, ego_from_camera=rigid(rotation @ pose[:, :3, :3], pose[:, :3, 3] @ linear.T))
    boxes = labels.boxes.clone()
    boxes[:, :3] = boxes[:, :3] @ linear.T
    boxes[:, 3:6] *= scale
    boxes[:, 6] = wrap_angle(boxes[:, 6] + yaw)
    labels = replace(
        resample(labels, scene.grid, linear),
        boxes=boxes,
        velocities=labels.velocities @ linear[:2, :2].T,
    )
    moved = replace(scene, rig=rig, frames=_move_frames(scene, linear))
    situations = turn_situations(item.situations, yaw, scale)
    turned = replace(item, scene=moved, labels=labels, situations=situations)
    questions = turn_questions(item.questions, yaw, scale)
    return replace(turned, questions=questions, depth=scale_depth(item.depth, scale))


def resample(labels: SceneLabels, grid: VoxelGrid, linear: Tensor) -> SceneLabels:
    """Voxel labels under a linear map [3, 3] of the ego frame, nearest neighbour; free and unseen outside.

    The map keeps upright what is upright, so a column's voxels come from one column.
    """
    centers, back = grid.centers(), torch.linalg.inv(linear)
    base = torch.cat([centers[:, :, 0, :2] @ back[:2, :2].T, centers[:, :, 0, 2:]], dim=-1)  # [X, Y, 3]
    rise = torch.cat([centers[0, 0, :, :2], centers[0, 0, :, 2:] * back[2, 2]], dim=-1)  # [Z, 3]
    (columns, flat), (levels, high) = grid.index_of(base), grid.index_of(rise)
    x, y, z = columns[..., 0].flatten(), columns[..., 1].flatten(), levels[:, 2]
    inside = flat[..., None] & high  # the heights of `base` and the places of `rise` are the grid's own

    def moved(values: Tensor) -> Tensor:
        return values[x, y][:, z].reshape(grid.shape)

    free = torch.full_like(labels.semantics, FREE)
    return replace(
        labels,
        semantics=torch.where(inside, moved(labels.semantics), free),
        mask_lidar=inside & moved(labels.mask_lidar),
        mask_camera=inside & moved(labels.mask_camera),
    )


def without_lidar(scene: Scene) -> Scene:
    """The scene without its LiDAR."""
    return replace(scene, frames=tuple(replace(frame, points=None) for frame in scene.frames))


def without_cameras(scene: Scene) -> Scene:
    """The scene without its cameras."""
    rig = replace(scene.rig, names=(), intrinsics=torch.zeros(0, 3, 3), ego_from_camera=torch.zeros(0, 4, 4))
    return replace(
        scene, rig=rig, frames=tuple(replace(frame, images=frame.images[:0]) for frame in scene.frames)
    )


def jitter_calibration(
    rig: CameraRig, bits: torch.Generator, *, degrees: float = 0.15, metres: float = 0.01
) -> CameraRig:
    """Cameras turned about random axes and moved a little: the calibration errors of a real vehicle."""
    x, y, z = (torch.randn(len(rig.names), 3, generator=bits) * math.radians(degrees)).unbind(-1)  # [V]
    shift = torch.randn(len(rig.names), 3, generator=bits) * metres
    zero = torch.zeros_like(x)
    rows = ((zero, -z, y), (z, zero, -x), (-y, x, zero))
    turn = torch.matrix_exp(torch.stack([torch.stack(row, -1) for row in rows], dim=-2))  # [V, 3, 3]
    rotation = turn @ rig.ego_from_camera[:, :3, :3]
    return replace(rig, ego_from_camera=rigid(rotation, rig.ego_from_camera[:, :3, 3] + shift))


def _recolour(frame: Frame, bits: torch.Generator) -> Frame:
    """Brightness, contrast and a little tint, GridMask at times (Talk2Occ V-A; Chen et al. 2020)."""
    draw = torch.rand(8, generator=bits)
    images = frame.images.float()
    contrast, brightness, tint = 0.85 + 0.3 * draw[0], 0.8 + 0.4 * draw[1], 0.95 + 0.1 * draw[2:5, None, None]
    mean = images.mean(dim=(-2, -1), keepdim=True)
    images = images.mul_(contrast * tint).add_(mean * ((brightness - contrast) * tint))
    if draw[5] < 0.2:
        images *= grid_mask(images.shape[-2], images.shape[-1], bits)
    return replace(frame, images=images.clamp_(0, 255).round_().to(torch.uint8))


def grid_mask(height: int, width: int, bits: torch.Generator) -> Tensor:
    """A mask [H, W] of kept pixels: a grid of removed squares, a quarter of the image (GridMask)."""
    period = int(torch.randint(24, 72, (1,), generator=bits))
    start = torch.randint(0, period, (2,), generator=bits).tolist()
    rows = (torch.arange(height) + start[0]) % period < period // 2
    columns = (torch.arange(width) + start[1]) % period < period // 2
    return 1.0 - (rows[:, None] & columns[None]).float()


def crop_cameras(item: LabelledScene, factor: float, place: float) -> LabelledScene:
    """The scene with all its pictures cropped alike (see `crop`), and labels of what they still show."""
    scene = item.scene
    rig, frames = scene.rig, []
    for frame in scene.frames:
        images, intrinsics = crop(frame.images, scene.rig.intrinsics, factor, place)
        rig = replace(rig, intrinsics=intrinsics)
        frames.append(replace(frame, images=images))
    labels = shown(item.labels, scene.grid, rig)
    cropped = replace(item, scene=replace(scene, rig=rig, frames=tuple(frames)), labels=labels)
    return replace(cropped, depth=crop_depth(item.depth, factor, place))


def shown(labels: SceneLabels, grid: VoxelGrid, rig: CameraRig) -> SceneLabels:
    """Labels whose voxels and boxes count as seen by a camera only where one of `rig` has them in its image.

    A box is in an image if its centre or a corner is.
    """

    def in_image(points: Tensor) -> Tensor:  # [N, 3] to [N]
        matrix = rig.intrinsics @ invert_rigid(rig.ego_from_camera)[:, :3]  # [V, 3, 4]
        scaled = matrix[:, :, :3] @ points.T + matrix[:, :, 3:]  # [V, 3, N]
        u, v, depth = scaled.unbind(1)  # [V, N], u and v times depth
        height, width = rig.image_size
        return ((u >= 0) & (u < width * depth) & (v >= 0) & (v < height * depth) & (depth > 0)).any(0)

    index = labels.mask_camera.nonzero()
    index = index[in_image(grid.center_of(index))]
    mask = torch.zeros_like(labels.mask_camera)
    mask[index[:, 0], index[:, 1], index[:, 2]] = True
    points = torch.cat([box_corners(labels.boxes), labels.boxes[:, None, :3]], dim=1)  # [M, 9, 3]
    seen = in_image(points.flatten(0, 1)).reshape(-1, 9).any(-1)
    return replace(labels, mask_camera=mask, visibility=labels.visibility * seen)


def crop(images: Tensor, intrinsics: Tensor, factor: float, place: float) -> tuple[Tensor, Tensor]:
    """A crop of the middle rows [F, 3, H, W] enlarged by `factor` >= 1 to the same size, and its intrinsics.

    `place` in 0..1 says where the window lies between left and right. F may be 0.
    """
    height, width = images.shape[-2:]
    high, wide = round(height / factor), round(width / factor)
    top, left = (height - high) // 2, round((width - wide) * place)
    window = images[..., top : top + high, left : left + wide].float()
    enlarged = window.new_zeros(0, images.shape[1], height, width)
    if len(window):
        enlarged = functional.interpolate(window, size=(height, width), mode="bilinear", align_corners=False)
    moved = intrinsics.clone()
    moved[:, 0, 2] -= left
    moved[:, 1, 2] -= top
    moved[:, 0] *= width / wide
    moved[:, 1] *= height / high
    return enlarged.round().to(images.dtype), moved


def _mirror_name(name: str) -> str:
    return "_".join(_MIRRORED.get(part, part) for part in name.split("_"))


def _move_frames(scene: Scene, linear: Tensor) -> tuple[Frame, ...]:
    """Frames whose ego axes are mapped by `linear` [3, 3] (a turn, mirror and scale); the reference is the
    world.
    """
    ego_from_world = invert_rigid(scene.reference.world_from_ego.double())
    scale = linear.double().det().abs() ** (1 / 3)
    turn = linear.double() / scale
    frames = []
    for frame in scene.frames:
        relative = ego_from_world @ frame.world_from_ego.double()
        pose = rigid(turn @ relative[:3, :3] @ turn.T, linear.double() @ relative[:3, 3])
        points = frame.points
        if points is not None:
            points = torch.cat([points[:, :3] @ linear.T, points[:, 3:]], dim=-1)
        frames.append(replace(frame, world_from_ego=pose, points=points))
    return tuple(frames)
