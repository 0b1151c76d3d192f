"""From sensors to what the paper's systems share between all sentences about a scene, at both scales."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional

from vlm_occ.encoders.camera import pixel_means
from vlm_occ.encoders.fusion import BirdsEyeFeatures
from vlm_occ.encoders.inputs import SceneInputs
from vlm_occ.encoders.language_pan import TopDownPyramid, pyramid_levels
from vlm_occ.encoders.lidar_volume import LidarVolume
from vlm_occ.encoders.resnet import ImageResNet
from vlm_occ.encoders.voxel_tokens import described, find_candidates
from vlm_occ.heads.grounding3d import QueryStarts
from vlm_occ.models.groundingocc_config import GroundingOccConfig
from vlm_occ.models.perception import Perception
from vlm_occ.types import VoxelGrid


@dataclass(frozen=True)
class SceneFeatures:
    """B scenes before any word is read."""

    levels: tuple[Tensor, ...]  # [F, D, h, w] of strides 8, 16, 32, 64; () without cameras
    volume: Tensor | None  # [B, D, x, y, z]: F^L, or the trunk's features; None where there are neither
    fine: Tensor | None  # [B, D', X, Y, Z]: the trunk's fine features, None at the paper's scale
    prior: Tensor | None  # [B, X, Y, Z]: the trunk's occupancy logits
    starts: tuple[QueryStarts, ...] | None  # B: the trunk's candidates, None at the paper's scale


@dataclass(frozen=True)
class TrunkFeatures:
    """What the frozen trunk says of B scenes; it may be kept."""

    levels: tuple[Tensor, ...]  # [F, C, h, w] of strides 8, 16, 32
    fused: Tensor  # [B, C, X/2, Y/2, Z/2]
    coarse: Tensor  # [B, 2D, X/4, Y/4]
    fine: Tensor  # [B, F, X, Y]
    occupancy: Tensor  # [B, X, Y, Z] logits
    boxes: Tensor  # [B, G, 7] of the likeliest candidate objects; zeros behind the last one
    known: Tensor  # [B, G, DESCRIBED_CHANNELS + 1]: what the trunk says of each, its score last; 0: none


def images_of(inputs: SceneInputs, rows: Tensor) -> SceneInputs:
    """The inputs with only the images `rows` (long [G]); the pictures and maps themselves are left out."""
    return replace(
        inputs,
        images=inputs.images[:0],
        intrinsics=inputs.intrinsics[rows],
        ego_from_camera=inputs.ego_from_camera[rows],
        age=inputs.age[rows],
        camera=inputs.camera[rows],
        scene=inputs.scene[rows],
    )


class PaperSensors(nn.Module):
    """The paper's encoders: ResNet-101-DCN with a feature pyramid, and sparse convolutions on the LiDAR."""

    def __init__(self, config: GroundingOccConfig, *, grid: VoxelGrid | None = None) -> None:
        super().__init__()
        if config.cameras:
            self.image_network = ImageResNet(
                config.image_weights,
                deformable=config.deformable_convolution,
                depths=config.resnet_depths,
                widths=config.resnet_widths,
            )
            self.pyramid = TopDownPyramid(self.image_network.channels, config.width)
        if config.lidar:
            self.lidar = LidarVolume(
                config.perception.lidar_width, config.width, config.query_shape, grid=grid
            )
        self.config, self.recomputes = config, False

    def forward(self, inputs: SceneInputs, seen: TrunkFeatures | None = None) -> SceneFeatures:
        """See `SceneFeatures`; these encoders are trained, so nothing of them is kept."""
        del seen
        levels: tuple[Tensor, ...] = ()
        if self.config.cameras:
            maps = self.image_network(inputs.images, recompute=self.recomputes and self.training)
            levels = tuple(self.pyramid(maps))
        volume = self.lidar(list(inputs.points)) if self.config.lidar else None
        return SceneFeatures(levels, volume, None, None, None)


class KeepsFeatures(Protocol):
    """What the frozen trunk says of scenes by name; `vlm_occ.models.kept_features` has one."""

    def __call__(self, inputs: Sequence[SceneInputs], names: Sequence[str], /) -> TrunkFeatures: ...


class TrunkSensors(nn.Module):
    """The perception trunk that every nano system shares, pretrained on dense labels, and adapters on it."""

    def __init__(self, config: GroundingOccConfig, *, grid: VoxelGrid | None = None) -> None:
        super().__init__()
        self.trunk = Perception(config.perception, grid=grid)
        del self.trunk.voxel  # VLM-Occ's own head
        self.trunk.requires_grad_(config.train_trunk)
        self.trunk.image_network.requires_grad_(False)
        self.config, perception = config, config.perception
        height = self.trunk.grid.shape[2]
        self.height = nn.Parameter(torch.randn(config.query_shape[2], config.width) * 0.1)
        self.volume = nn.Linear(perception.volume_width + 2 * perception.bev_width, config.width)
        self.fine = nn.Conv2d(perception.fine_bev_width, config.fine_width * height, 1)
        if config.cameras:
            self.pyramid = TopDownPyramid((perception.image_width,) * 3, config.width)

    def forward(self, inputs: SceneInputs, seen: TrunkFeatures | None = None) -> SceneFeatures:
        """See `SceneFeatures`; `seen` is what the trunk said of these inputs, where it was kept."""
        if seen is not None:
            return self.adapt(seen)
        with torch.set_grad_enabled(torch.is_grad_enabled() and self.config.train_trunk):
            seen = self.observe(inputs)
        return self.adapt(seen)

    def observe(self, inputs: SceneInputs) -> TrunkFeatures:
        """The trunk itself; where it is frozen its output may be kept."""
        trunk, device = self.trunk, inputs.intrinsics.device
        low = trunk.compute_dtype != torch.float32
        with torch.autocast(device.type, dtype=torch.bfloat16, enabled=low):
            maps = pyramid_levels(trunk.pyramid, trunk.image_maps(inputs.images))
        levels = tuple(level.float() for level in maps)
        # The trunk lifts the reference frame's images only, as it was trained; voxel queries see all frames.
        latest = (inputs.age.abs() < 1e-3).nonzero()[:, 0]
        camera = trunk.camera_volume(levels[0][latest], images_of(inputs, latest))
        lidar = trunk.lidar(list(inputs.points))
        has_lidar = torch.tensor([len(p) > 0 for p in inputs.points], device=device)
        has_camera = torch.bincount(inputs.scene, minlength=inputs.batch_size) > 0
        with torch.autocast(device.type, dtype=torch.bfloat16, enabled=low):
            fused = trunk.fusion(lidar.volume, camera, has_lidar, has_camera)
            bev = trunk.bev(fused, lidar.bev)
            _, occupancy = trunk.occupancy(bev.coarse, bev.fine)
            peaks = trunk.centres(bev.fine)
        bev = BirdsEyeFeatures(bev.fine.float(), bev.middle.float(), bev.coarse.float())
        boxes, known = self._candidates(peaks, bev, levels[0], inputs)
        return TrunkFeatures(
            levels=levels,
            fused=fused.float(),
            coarse=bev.coarse,
            fine=bev.fine,
            occupancy=occupancy,
            boxes=boxes,
            known=known,
        )

    def _candidates(
        self, peaks: tuple[Tensor, Tensor], bev: BirdsEyeFeatures, finest: Tensor, inputs: SceneInputs
    ) -> tuple[Tensor, Tensor]:
        """The trunk's candidates as it tells VLM-Occ of them: see `TrunkFeatures`."""
        trunk, most = self.trunk, self.config.grounding_queries
        seen = torch.cat([finest, pixel_means(inputs.images)], dim=1)
        threshold = self.config.perception.token_threshold
        found = find_candidates(*peaks, trunk.grid, max_tokens=most, threshold=threshold)
        boxes, known = [], []
        for b, item in enumerate(found):
            tokens = trunk.scene_tokens(b, item, bev, seen, inputs)
            box = tokens.candidates.box
            about = described(tokens.attributes, box)
            rows = torch.cat([about, tokens.candidates.score[:, None]], dim=1)
            boxes.append(functional.pad(box, (0, 0, 0, most - len(box))))
            known.append(functional.pad(rows, (0, 0, 0, most - len(rows))))
        return torch.stack(boxes), torch.stack(known)

    def adapt(self, seen: TrunkFeatures) -> SceneFeatures:
        """The trunk's output in this system's widths and grid."""
        shape = self.config.query_shape
        pooled = functional.adaptive_avg_pool3d(seen.fused, shape)  # [B, C, x, y, z]
        flat = functional.adaptive_avg_pool2d(seen.coarse, shape[:2])[..., None].expand(
            -1, -1, -1, -1, shape[2]
        )
        volume = self.volume(torch.cat([pooled, flat], dim=1).movedim(1, -1)) + self.height
        height = seen.occupancy.shape[-1]
        fine = self.fine(seen.fine).unflatten(1, (self.config.fine_width, height)).movedim(2, -1)
        levels = tuple(self.pyramid(seen.levels)) if self.config.cameras else ()
        starts = tuple(QueryStarts(*pair) for pair in zip(seen.boxes, seen.known, strict=True))
        return SceneFeatures(levels, volume.movedim(-1, 1), fine, seen.occupancy, starts)
