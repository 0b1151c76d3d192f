"""A seed to a labelled scene: world, sensors, labels and sentences."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from vlm_occ.data.simulator.assemblies import tight_boxes
from vlm_occ.data.simulator.egocentric import ground_plane, move_solids
from vlm_occ.data.simulator.filling import VoxelTruth, voxelise
from vlm_occ.data.simulator.grammar import write_queries
from vlm_occ.data.simulator.labels import camera_mask, lidar_mask
from vlm_occ.data.simulator.lidar import LidarSweep, scan
from vlm_occ.data.simulator.objects import ObjectFacts, Solids
from vlm_occ.data.simulator.rendering import CameraRender, render_cameras
from vlm_occ.data.simulator.rig import nuscenes_rig
from vlm_occ.data.simulator.situations import write_situations
from vlm_occ.data.simulator.world import World, build_world
from vlm_occ.geometry import invert_rigid, points_in_boxes
from vlm_occ.situated import Lexicon
from vlm_occ.types import CameraRig, Frame, LabelledScene, Scene, SceneLabels, VoxelGrid

Split = Literal["demo", "train", "calibration", "val", "test"]

_FIRST_SEED: dict[Split, int] = {
    "demo": 0,
    "train": 1_000_000,
    "calibration": 40_000_000,
    "val": 50_000_000,
    "test": 60_000_000,
}

MIN_VISIBILITY, MIN_PIXELS, MIN_POINTS = 0.25, 30, 5
"""An object is referable if it fills a voxel and is seen: at least this fraction of it and this many pixels
(of a 256 x 704 image), or this many LiDAR points on it."""


@dataclass(frozen=True)
class Simulation:
    """A labelled scene and what it was made from; rows of objects are those of `labelled.labels`."""

    labelled: LabelledScene
    world: World
    objects: Tensor  # long [M]: each row's object in `world`
    facts: tuple[ObjectFacts, ...]
    voxels: VoxelTruth  # instance: row, -1 elsewhere
    render: CameraRender | None  # of the reference; instance: row
    sweep: LidarSweep | None  # of the reference; instance: row


def split_seed(split: Split, index: int) -> int:
    """The seed of a scene of a split; splits never share one (those below 1,000,000 are demos)."""
    first = _FIRST_SEED[split]
    size = min((other for other in _FIRST_SEED.values() if other > first), default=first + 10_000_000) - first
    if not 0 <= index < size:
        raise ValueError(f"index {index} of split {split!r}, expected 0 <= index < {size}")
    return first + index


def simulate(
    seed: int,
    *,
    num_frames: int = 1,
    image_size: tuple[int, int] = (256, 704),
    num_queries: int = 10,
    num_situations: int = 0,
    balanced: bool = False,
    lexicon: Lexicon = "train",
    cameras: bool = True,
    lidar: bool = True,
    camera_frames: int | None = None,
    device: torch.device | str = "cpu",
) -> LabelledScene:
    """The scene of a seed with its labels and sentences, on `device`; same arguments, same scene.

    Frames are 0.5 s apart. `camera_frames` renders images of the latest frames only (the others have none).
    """
    simulation = simulate_details(
        seed,
        num_frames=num_frames,
        image_size=image_size,
        balanced=balanced,
        cameras=cameras,
        lidar=lidar,
        camera_frames=camera_frames,
        device=device,
    )
    return with_sentences(
        simulation, seed=seed, num_queries=num_queries, num_situations=num_situations, lexicon=lexicon
    )


def with_sentences(
    simulation: Simulation,
    *,
    seed: int,
    num_queries: int = 10,
    num_situations: int = 0,
    lexicon: Lexicon = "train",
) -> LabelledScene:
    """The labelled scene of a simulation with sentences of one lexicon."""
    queries, situations = (), ()
    if num_queries:
        queries = write_queries(simulation.facts, seed=seed, count=num_queries, lexicon=lexicon)
    if num_situations:
        situations = write_situations(simulation.facts, seed=seed, count=num_situations, lexicon=lexicon)
    return replace(simulation.labelled, queries=queries, situations=situations)


def simulate_details(
    seed: int,
    *,
    num_frames: int = 1,
    image_size: tuple[int, int] = (256, 704),
    balanced: bool = False,
    cameras: bool = True,
    lidar: bool = True,
    camera_frames: int | None = None,
    device: torch.device | str = "cpu",
) -> Simulation:
    """As `simulate`, without sentences, with everything that the labels were made from."""
    if camera_frames is not None and camera_frames < 1:
        raise ValueError(f"camera_frames = {camera_frames}, expected at least 1; use cameras=False for none")
    world = build_world(seed, balanced=balanced, num_frames=num_frames)
    rig = _rig(world, image_size, cameras=cameras, device=device)
    grid = VoxelGrid()
    first_image = 0 if camera_frames is None else num_frames - camera_frames
    seen: list[_Observation] = []
    objects, boxes = torch.arange(len(world.labels)), torch.zeros(0, 7)
    for frame in range(num_frames):
        solids = move_solids(
            invert_rigid(world.ego_poses[frame]), world.solids_at(frame), device=torch.device(device)
        )
        if frame == num_frames - 1:
            objects, boxes, solids = _keep_objects(world, solids, grid)
        seen.append(
            _observe(
                world, frame, solids, rig, seed=seed, cameras=cameras and frame >= first_image, lidar=lidar
            )
        )
    last = seen[-1]
    truth = voxelise(last.solids, world.ground, world.ego_poses[-1], grid)
    labels = _labels(world, objects, boxes, truth, last, rig, grid)
    scene = Scene(rig, tuple(item.frame for item in seen), grid, name=f"sim:{seed}")
    facts = _facts(world, objects, labels, truth, last)
    return Simulation(LabelledScene(scene, labels), world, objects, facts, truth, last.render, last.sweep)


@dataclass(frozen=True)
class _Observation:
    """A frame and what it was made from."""

    frame: Frame
    solids: Solids  # ego frame
    render: CameraRender | None
    sweep: LidarSweep | None


def _rig(
    world: World, image_size: tuple[int, int], *, cameras: bool, device: torch.device | str
) -> CameraRig:
    """The calibrated cameras of a world, or none."""
    rig = nuscenes_rig(image_size, calibration_seed=world.calibration_seed, lift=world.ego_height_jitter)
    names = rig.names if cameras else ()
    intrinsics, poses = (value[: len(names)].to(device) for value in (rig.intrinsics, rig.ego_from_camera))
    return CameraRig(names, intrinsics, poses, image_size)


def _observe(
    world: World, frame: int, solids: Solids, rig: CameraRig, *, seed: int, cameras: bool, lidar: bool
) -> _Observation:
    """What the sensors see of `solids` (ego frame) at a frame."""
    pose, noise = world.ego_poses[frame], seed * 64 + frame
    render, sweep = None, None
    images = torch.zeros(0, 3, *rig.image_size, dtype=torch.uint8, device=solids.centre.device)
    if cameras:
        render = render_cameras(
            solids, world.ground, pose, rig, world, num_objects=len(world.labels), seed=noise
        )
        images = render.images
    if lidar:
        sweep = scan(solids, world.ground, pose, seed=noise, lift=world.ego_height_jitter)
    points = None if sweep is None else sweep.points
    seen = Frame(float(world.timestamps[frame]), images, pose.to(images.device), points)
    return _Observation(seen, solids, render, sweep)


def _keep_objects(world: World, solids: Solids, grid: VoxelGrid) -> tuple[Tensor, Tensor, Solids]:
    """Objects [M] centred in the grid's range, their boxes [M, 7], and the solids with rows."""
    owned = solids.instance >= 0
    names = ("centre", "rotation", "half_size", "shape", "colour", "semantic", "instance", "reflectance")
    parts = Solids(*(getattr(solids, name)[owned].cpu() for name in names))
    heading = world.poses_at(-1)[:, :2, 0] @ world.ego_poses[-1][:2, :2]  # [M, 2] in the ego frame
    boxes = tight_boxes(parts, torch.atan2(heading[:, 1], heading[:, 0]).float())
    low = torch.tensor(grid.origin)
    high = low + grid.voxel_size * torch.tensor(grid.shape)
    kept = ((boxes[:, :3] >= low) & (boxes[:, :3] <= high)).all(-1).nonzero()[:, 0]
    row = torch.full((len(boxes) + 1,), -1, dtype=torch.long)  # the last one stands for instance -1
    row[kept] = torch.arange(len(kept))
    return kept, boxes[kept], replace(solids, instance=row.to(solids.instance.device)[solids.instance])


def _labels(
    world: World,
    objects: Tensor,
    boxes: Tensor,
    truth: VoxelTruth,
    seen: _Observation,
    rig: CameraRig,
    grid: VoxelGrid,
) -> SceneLabels:
    """The labels of the reference frame."""
    device, count = truth.semantics.device, len(objects)
    unseen = torch.zeros(grid.shape, dtype=torch.bool, device=device)
    boxes = boxes.to(device)
    masks, visibility = [unseen, unseen], torch.zeros(count, device=device)
    num_points = torch.zeros(count, dtype=torch.long, device=device)
    if seen.sweep is not None:
        masks[0] = lidar_mask(seen.sweep, grid)
        num_points = points_in_boxes(seen.sweep.points[:, :3], boxes).sum(-1)
    if seen.render is not None:
        plane = ground_plane(world.ground, world.ego_poses[-1], device=device)
        masks[1] = camera_mask(truth, seen.render, rig, plane, grid)
        visibility = (seen.render.visible[:count] / seen.render.covered[:count].clamp(min=1)).clamp(max=1)
    velocity = world.velocities.double() @ world.ego_poses[-1][:2, :2]
    return SceneLabels(
        semantics=truth.semantics,
        mask_lidar=masks[0],
        mask_camera=masks[1],
        boxes=boxes,
        classes=world.labels[objects].to(device),
        colours=world.colours[objects].to(device),
        velocities=velocity.float()[objects].to(device),
        visibility=visibility,
        num_points=num_points,
    )


def _facts(
    world: World, objects: Tensor, labels: SceneLabels, truth: VoxelTruth, observed: _Observation
) -> tuple[ObjectFacts, ...]:
    """What can be said about each row of the labels."""
    count = len(objects)
    filled = torch.bincount(truth.instance[truth.instance >= 0], minlength=count).tolist()
    pixels, points, scale = [0] * count, [0] * count, 1.0
    if observed.render is not None:
        pixels = observed.render.visible[:count].tolist()
        scale = observed.render.depth[0].numel() / (256 * 704)
    if observed.sweep is not None:  # a box also holds points of the ground
        hit = observed.sweep.instance
        points = torch.bincount(hit[hit >= 0], minlength=count).tolist()
    visibility = labels.visibility.tolist()
    boxes, velocities = labels.boxes.tolist(), labels.velocities.tolist()
    facts = []
    for row, index in enumerate(objects.tolist()):
        seen = visibility[row] >= MIN_VISIBILITY and pixels[row] >= MIN_PIXELS * scale
        x, y, z, dx, dy, dz, yaw = boxes[row]
        facts.append(
            ObjectFacts(
                label=int(world.labels[index]),
                variant=world.variants[index],
                colour=int(world.colours[index]),
                size=world.sizes[index],
                box=(x, y, z, dx, dy, dz, yaw),
                velocity=(velocities[row][0], velocities[row][1]),
                motion=world.motions[index],
                place=world.places[index],
                referable=filled[row] > 0 and (seen or points[row] >= MIN_POINTS),
            )
        )
    return tuple(facts)
