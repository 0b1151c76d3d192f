"""GroundingOcc (section IV-C): the M-baseline with language in the images, frames, depth and a 2D head."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from vlm_occ.encoders.language_pan import VisionLanguagePAN
from vlm_occ.encoders.voxel_queries import FrameFusion
from vlm_occ.heads.depth import DepthPredictor, expected_depth
from vlm_occ.heads.grounding2d import ImageGroundingHead, QueryFusion, lift_places, sample_best
from vlm_occ.models.baselines import Baseline
from vlm_occ.models.groundingocc_config import GroundingOccConfig
from vlm_occ.models.paper_batch import PictureGrounding, SceneView, picture_rows
from vlm_occ.types import VoxelGrid

STRIDES = (8, 16, 32, 64)
"""Of the pyramid's levels, in pixels."""


class GroundingOcc(Baseline):
    """Each module is there only if its field of the config says so; without any it is the M-baseline."""

    def __init__(self, config: GroundingOccConfig, *, grid: VoxelGrid | None = None) -> None:
        super().__init__(config, grid=grid)
        width = config.width
        if config.language_pan:
            self.pan = VisionLanguagePAN(width, levels=len(STRIDES) - self._finest())
        if config.multi_frame:
            self.frames = FrameFusion(width)
        if config.depth:
            self.depth = DepthPredictor(width, hidden=max(32, width // 2))
        if config.grounding2d:
            strides = [STRIDES[level] for level in config.grounding2d_levels]
            self.image_head = ImageGroundingHead(
                width, heads=config.heads, hidden=config.feed_forward, strides=strides
            )
            self.query_fusion = QueryFusion(width, heads=config.heads, hidden=config.feed_forward)

    def image_levels(self, view: SceneView, words: Tensor, mask: Tensor) -> tuple[Tensor, ...]:
        """Image features that the words have gated (eq. 5): [N * F, D, h, w], sentence by sentence."""
        if not self.config.language_pan or not view.moments:
            return view.levels
        count, images, finest = len(words), len(view.intrinsics), self._finest()
        levels = [level.expand(count, *level.shape).flatten(0, 1) for level in view.levels[finest:]]
        gated = self.pan(levels, words.repeat_interleave(images, 0), mask.repeat_interleave(images, 0))
        return (*view.levels[:finest], *gated)  # what nobody looks at stays as it is

    def _finest(self) -> int:
        """The finest level that anything looks at after the words have gated it."""
        config = self.config
        return min((*config.query_levels, *(config.grounding2d_levels if config.grounding2d else ())))

    def join_moments(self, moments: Sequence[Tensor], view: SceneView) -> Tensor:
        """Voxel fusion of the frames [N, P, D]."""
        if not self.config.multi_frame:
            return moments[0]
        age = moments[0].new_tensor([moment.age for moment in view.moments])
        return self.frames(torch.stack(list(moments), dim=1), age)

    def predict_depth(self, levels: Sequence[Tensor], rows: Tensor) -> Tensor | None:
        """Depth logits [V, D, h, w] of the images `rows` from the finest level, before any word."""
        return self.depth(levels[0][rows]) if self.config.depth else None

    def fuse_queries(
        self,
        content: Tensor,
        position: Tensor,
        view: SceneView,
        levels: Sequence[Tensor],
        words: Tensor,
        mask: Tensor,
    ) -> tuple[Tensor, PictureGrounding | None]:
        """Grounding queries [N, G, D] that have seen the best places of each image (eq. 6 to 8)."""
        if not self.config.grounding2d or not view.moments:
            return content, None
        count, rows = len(words), view.moments[0].rows
        images = len(rows)
        picked = picture_rows(view, count)  # [N V]
        if len(levels[-1]) == len(view.intrinsics):  # shared by the sentences
            picked = rows.repeat(count)
        chosen = [levels[level][picked] for level in self.config.grounding2d_levels]
        grounding = self.image_head(
            chosen, words.repeat_interleave(images, 0), mask.repeat_interleave(images, 0)
        )
        best = sample_best(grounding, self.config.sampled_features)  # of N V pictures
        cameras = rows.repeat(count)
        with torch.autocast(content.device.type, enabled=False):
            points = lift_places(
                best.places,
                self._depth_at(best.places, view, count),
                view.intrinsics[cameras],
                view.ego_from_camera[cameras],
                view.image_size,
            )  # [N V, k, 3]
            low = points.new_tensor(self.grid.origin)
            extent = points.new_tensor(self.grid.shape) * self.grid.voxel_size
            points = ((points - low) / extent).unflatten(0, (count, images)).flatten(1, 2)  # [N, V k, 3]
        inside = ((points >= 0) & (points < 1)).all(-1)
        features = best.features.unflatten(0, (count, images)).flatten(1, 2)
        fused = self.query_fusion(content, position, features, points.clamp(0, 1), inside)
        return fused, PictureGrounding(grounding, rows)

    def _depth_at(self, places: Tensor, view: SceneView, count: int) -> Tensor:
        """Depth [N V, k] in metres at places [N V, k, 2]; of the road where there is no depth predictor."""
        rows = view.moments[0].rows
        if view.depth_logits is not None:
            depth = expected_depth(view.depth_logits, self.depth.bins).detach()  # [V, h, w]
            depth = depth.repeat(count, 1, 1)[:, None]
            sampled = functional.grid_sample(
                depth, places[:, None].float() * 2 - 1, align_corners=False, padding_mode="border"
            )
            return sampled[:, 0, 0]
        cameras = rows.repeat(count)
        unit = torch.ones_like(places[..., 0])
        pose = view.ego_from_camera[cameras]
        points = lift_places(places, unit, view.intrinsics[cameras], pose, view.image_size)
        drop = points[..., 2] - pose[:, None, 2, 3]  # metres down for each metre of depth
        road = (0.0 - pose[:, None, 2, 3]) / torch.where(drop < -1e-3, drop, -1e-3)
        return road.clamp(1.0, 58.0)


def build_system(config: GroundingOccConfig, *, grid: VoxelGrid | None = None, seed: int = 0) -> Baseline:
    """The system that a config describes, with fresh heads; the same for the same seed."""
    kind: type[nn.Module] = GroundingOcc if config.system == "GroundingOcc" else Baseline
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        system = kind(config, grid=grid)
    assert isinstance(system, Baseline)
    return system
