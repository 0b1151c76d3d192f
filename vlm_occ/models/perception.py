"""The trunk that every system shares: sensors to occupancy, fine voxel features and candidate objects."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from vlm_occ.config import PerceptionConfig
from vlm_occ.encoders.camera import PIXEL_CHANNELS, CameraVolume, FeaturePyramid, pixel_means, sample_cameras
from vlm_occ.encoders.fusion import AdaptiveFusion, BirdsEyeFeatures, BirdsEyeNetwork
from vlm_occ.encoders.image_network import ImageNetwork
from vlm_occ.encoders.inputs import SceneInputs
from vlm_occ.encoders.lidar import LidarEncoder
from vlm_occ.encoders.refine import CODE_CHANNELS, BoxRefiner, Refinement
from vlm_occ.encoders.sight import Sight
from vlm_occ.encoders.sparse import SparseTensor
from vlm_occ.encoders.voxel_tokens import (
    Candidates,
    TokenInputs,
    VoxelTokenEncoder,
    find_candidates,
    sample_points,
    token_inputs,
)
from vlm_occ.heads.box import AttributeHead, CentreHead
from vlm_occ.heads.occupancy import SceneOccupancyHead, VoxelFeatureHead
from vlm_occ.types import VoxelGrid
from vlm_occ.voxels import ravel, voxels_in_boxes

MAX_VOXELS = 80_000
"""Voxels a scene whose fine features are computed at most; in and around the candidates of a street scene
15,000 to 20,000 may be occupied.
"""
REACH = 1.0
"""Metres around a candidate's box in which voxels of its object may lie."""
LONGEST = 24.0
"""Metres that a box counts at most: an untrained trunk answers any size."""


@dataclass(frozen=True)
class SceneTokens:
    """The candidate objects of one scene."""

    features: Tensor  # [N, W], not yet weighted by the score
    candidates: Candidates
    class_logits: Tensor  # [N, 15]
    colour_logits: Tensor  # [N, 9]
    moving_logits: Tensor  # [N]
    code: Tensor  # [N, CODE_CHANNELS]: what the last look at each box holds
    inputs: TokenInputs | None = None  # None where tokens are made of labels
    looks: tuple[Refinement, ...] = ()  # what the refiner said of the boxes, look by look

    @property
    def attributes(self) -> Tensor:
        """Probabilities of each class, each colour and of motion [N, 25], for the language."""
        parts = (self.class_logits.softmax(-1), self.colour_logits.softmax(-1))
        return torch.cat([*parts, self.moving_logits.sigmoid()[:, None]], dim=-1)


@dataclass(frozen=True)
class PerceptionOutput:
    """What the trunk knows about B scenes before any word is read."""

    coarse_logits: Tensor  # [B, X/4, Y/4, Z]
    occupancy_logits: Tensor  # [B, X, Y, Z]
    voxel_index: Tensor  # long [M, 4] (scene, x, y, z): the voxels that have fine features
    voxel_features: Tensor  # [M, C + 1]: features, then the logit of occupancy
    semantic_logits: Tensor  # [M, 18]
    heatmap_logits: Tensor  # [B, 15, X, Y]
    regression: Tensor  # [B, 10, X, Y]
    tokens: tuple[SceneTokens, ...]  # B
    sights: tuple[Sight | None, ...] = ()  # B where they are kept; else they are made of the logits


class Perception(nn.Module):
    """LiDAR and cameras to voxels, fused, decoded into occupancy and candidates; any may be missing."""

    def __init__(self, config: PerceptionConfig, *, grid: VoxelGrid | None = None) -> None:
        super().__init__()
        self.config, self.grid = config, grid or VoxelGrid()
        self.compute_dtype = torch.bfloat16
        volume, image, bev, fine = (
            config.volume_width,
            config.image_width,
            config.bev_width,
            config.fine_bev_width,
        )
        self.image_network = ImageNetwork(config.image_backbone)
        self.image_network.requires_grad_(False)
        self.pyramid = FeaturePyramid(self.image_network.channels, image)
        x, y, z = (size // 2 for size in self.grid.shape)
        half = VoxelGrid(self.grid.origin, 2 * self.grid.voxel_size, (x, y, z))
        self.camera_volume = CameraVolume(image, volume, grid=half)
        self.lidar = LidarEncoder(config.lidar_width, volume, self.grid)
        self.fusion = AdaptiveFusion(volume)
        self.bev = BirdsEyeNetwork(
            volume_channels=volume * self.grid.shape[2] // 2,
            lidar_channels=config.lidar_width + self.grid.shape[2],
            width=bev,
            fine_width=fine,
        )
        self.occupancy = SceneOccupancyHead(
            coarse_channels=2 * bev, fine_channels=fine, height=self.grid.shape[2]
        )
        self.centres = CentreHead(fine)
        self.voxel = VoxelFeatureHead(
            bev_channels=fine,
            lidar_channels=config.lidar_width,
            image_channels=image + PIXEL_CHANNELS,
            width=config.fine_width,
            height=self.grid.shape[2],
        )
        self.tokens = VoxelTokenEncoder(
            bev_channels=(fine, bev, 2 * bev),
            image_width=image + PIXEL_CHANNELS,
            width=config.token_width,
        )
        self.attributes = AttributeHead(config.token_width)
        self.refiner = BoxRefiner(fine + bev + 2 * bev, config.refiner)
        nn.init.constant_(self.occupancy.coarse.bias, -3.0)  # type: ignore[arg-type]

    def forward(self, inputs: SceneInputs, *, extra_voxels: Tensor | None = None) -> PerceptionOutput:
        """See `PerceptionOutput`; `extra_voxels` bool [B, X, Y, Z] get fine features too (training's
        labels).
        """
        device = inputs.intrinsics.device
        with self._mixed(device):
            pyramid = self.pyramid(self.image_maps(inputs.images)).float()  # [F, C, h/8, w/8]
        camera = self.camera_volume(pyramid, inputs)
        lidar = self.lidar(list(inputs.points))
        has_lidar = torch.tensor([len(p) > 0 for p in inputs.points], device=device)
        has_camera = torch.bincount(inputs.scene, minlength=inputs.batch_size) > 0
        with self._mixed(device):
            fused = self.fusion(lidar.volume, camera, has_lidar, has_camera)
            bev = self.bev(fused, lidar.bev)
            coarse_logits, occupancy_logits = self.occupancy(bev.coarse, bev.fine)
            heatmap, regression = self.centres(bev.fine)
        bev = BirdsEyeFeatures(bev.fine.float(), bev.middle.float(), bev.coarse.float())
        seen = torch.cat([pyramid, pixel_means(inputs.images)], dim=1)  # colours as they are, too
        candidates = find_candidates(
            heatmap,
            regression,
            self.grid,
            max_tokens=self.config.max_tokens,
            threshold=self.config.token_threshold,
        )
        tokens = tuple(self.scene_tokens(b, item, bev, seen, inputs) for b, item in enumerate(candidates))
        index = self._chosen_voxels(occupancy_logits, tokens, extra_voxels)
        features, semantic = self._voxel_features(index, bev, lidar.fine, seen, inputs)
        logit = occupancy_logits[tuple(index.unbind(-1))]
        features = torch.cat([features.float(), logit[:, None]], dim=-1)
        return PerceptionOutput(
            coarse_logits, occupancy_logits, index, features, semantic, heatmap, regression, tokens
        )

    @torch.no_grad()
    def image_maps(self, images: Tensor) -> list[Tensor]:
        """The frozen image network's maps of images [F, 3, h, w]."""
        with self._mixed(images.device):
            return list(self.image_network(images))

    def _mixed(self, device: torch.device) -> torch.autocast:
        enabled = self.compute_dtype != torch.float32
        return torch.autocast(
            device.type, dtype=self.compute_dtype if enabled else torch.bfloat16, enabled=enabled
        )

    def _chosen_voxels(self, logits: Tensor, tokens: Sequence[SceneTokens], extra: Tensor | None) -> Tensor:
        """Indices [M, 4] of the voxels that may be an object's: those in and around candidates that may be
        occupied, at most MAX_VOXELS a scene, plus `extra`.
        """
        logits = logits.detach()
        near = torch.zeros_like(logits, dtype=torch.bool)
        for b, scene in enumerate(tokens):
            boxes = scene.candidates.box.detach().float().clone()
            boxes[:, 3:6] = boxes[:, 3:6].clamp(max=LONGEST) + 2 * REACH
            _, place = voxels_in_boxes(boxes, self.grid)
            near[b, place[:, 0], place[:, 1], place[:, 2]] = True
        chosen = near & (logits.sigmoid() > self.config.voxel_threshold)
        for b in (chosen.flatten(1).sum(1) > MAX_VOXELS).nonzero()[:, 0].tolist():
            likely = torch.where(chosen[b], logits[b], -torch.inf)
            chosen[b] = likely > likely.flatten().topk(MAX_VOXELS).values[-1]
        return (chosen if extra is None else chosen | extra).nonzero()

    def _voxel_features(
        self,
        index: Tensor,
        bev: BirdsEyeFeatures,
        fine: SparseTensor,
        pyramid: Tensor,
        inputs: SceneInputs,
    ) -> tuple[Tensor, Tensor]:
        """Fine features and semantic logits of voxels [M, 4]."""
        image = pyramid.new_zeros(len(index), pyramid.shape[1])
        seen = pyramid.new_zeros(len(index))
        centers = self.grid.center_of(index[:, 1:])
        for b in range(inputs.batch_size):
            rows = (index[:, 0] == b).nonzero()[:, 0]
            values, count = self._look(b, centers[rows], pyramid, inputs)
            image, seen = image.index_copy(0, rows, values), seen.index_copy(0, rows, count)
        return self.voxel(
            bev.fine[index[:, 0], :, index[:, 1], index[:, 2]],
            index[:, 3],
            gather_sparse(fine, index),
            image,
            seen,
        )

    def _look(self, b: int, points: Tensor, pyramid: Tensor, inputs: SceneInputs) -> tuple[Tensor, Tensor]:
        """Camera features [P, C] of scene b's reference frame at ego points [P, 3], and how many cameras
        see each.
        """
        cameras = ((inputs.scene == b) & (inputs.age.abs() < 1e-3)).nonzero()[:, 0]
        if not len(cameras):
            return pyramid.new_zeros(len(points), pyramid.shape[1]), pyramid.new_zeros(len(points))
        return sample_cameras(
            pyramid[cameras],
            points,
            inputs.intrinsics[cameras],
            inputs.ego_from_camera[cameras],
            inputs.image_size,
        )

    def scene_tokens(
        self, b: int, candidates: Candidates, bev: BirdsEyeFeatures, pyramid: Tensor, inputs: SceneInputs
    ) -> SceneTokens:
        """The tokens of scene b's candidates, their boxes refined by what lies in them.

        `pyramid` [F, C, h, w]: the finest image features, then the colours of the pixels.
        """
        points = sample_points(candidates.box.detach())  # [N, 9, 3]
        image, _ = self._look(b, points.flatten(0, 1), pyramid, inputs)
        read = token_inputs(candidates, bev, b, image.unflatten(0, points.shape[:2]))

        def look(places: Tensor) -> tuple[Tensor, Tensor]:
            return self._look(b, places, inputs.images, inputs)

        refined, looks = self.refiner.refine(candidates, read.birds_eye, inputs.points[b], look)
        none = candidates.score.new_zeros(0)
        moving = looks[-1].moving_logits if looks else none
        code = looks[-1].code if looks else none.reshape(0, CODE_CHANNELS)
        return self.describe(refined, read, moving, code, looks=looks)

    def describe(
        self,
        candidates: Candidates,
        inputs: TokenInputs,
        moving: Tensor,
        code: Tensor,
        *,
        looks: tuple[Refinement, ...] = (),
        drop: float = 0.0,
    ) -> SceneTokens:
        """The tokens of one scene's candidates: features and attributes from what was read of them.

        Of its colour the token's feature and what the refiner saw, `code` [N, CODE_CHANNELS], say as much.
        """
        features = self.tokens(candidates, inputs, drop=drop)
        label, colour = self.attributes(features)
        colour = colour.log_softmax(-1) + self.refiner.colour(code).log_softmax(-1)
        return SceneTokens(features, candidates, label, colour, moving, code, inputs, looks)


def gather_sparse(tensor: SparseTensor, index: Tensor) -> Tensor:
    """Features [M, C] of a sparse tensor at indices [M, 4] (batch, x, y, z); zeros where it has no voxel."""
    if not len(tensor.index):
        return tensor.features.new_zeros(len(index), tensor.features.shape[1])
    size = tensor.shape[0] * tensor.shape[1] * tensor.shape[2]
    own = tensor.index[:, 0] * size + ravel(tensor.index[:, 1:], tensor.shape)
    wanted = index[:, 0] * size + ravel(index[:, 1:], tensor.shape)
    order = own.argsort()
    position = torch.searchsorted(own[order], wanted).clamp(max=len(own) - 1)
    row = order[position]
    found = own[row] == wanted
    return tensor.features[row] * found[:, None]
