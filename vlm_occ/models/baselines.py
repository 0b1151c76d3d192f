"""The L-, C- and M-baseline of Talk2Occ (section IV-B), and what GroundingOcc shares with them.

A sentence means at most one object: its box, and the occupied voxels inside. Unlike VLM-Occ's, the occupancy
depends on the sentence, since the words enter before the voxels are decoded.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import overload

import torch
from torch import Tensor, nn

from vlm_occ.data.scenes import check_query
from vlm_occ.encoders.fusion import AdaptiveFusion
from vlm_occ.encoders.inputs import SceneInputs, prepare_scene
from vlm_occ.encoders.text import TextEncoder
from vlm_occ.encoders.voxel_queries import DeformableAttention, VoxelEncoder, camera_hits, query_points
from vlm_occ.encoders.voxel_tokens import DESCRIBED_CHANNELS
from vlm_occ.heads.grounding3d import BoxDecoder, birds_eye
from vlm_occ.heads.paper_occupancy import PaperOccupancyHead, VoxelDecoder, deconvolution_rows, upsampling
from vlm_occ.language.bars import without_bars
from vlm_occ.models.groundingocc_config import GroundingOccConfig
from vlm_occ.models.paper_answers import answers
from vlm_occ.models.paper_batch import (
    Moment,
    PaperOutput,
    PaperState,
    PictureGrounding,
    QueryBatch,
    SceneView,
    SentenceOutput,
)
from vlm_occ.models.sensors import KeepsFeatures, PaperSensors, SceneFeatures, TrunkFeatures, TrunkSensors
from vlm_occ.types import GroundingResult, Scene, VoxelGrid

SENTENCES_AT_ONCE = 4
"""Sentences that `ground` decodes together: each needs about 0.1 GB at the nano scale."""


class Baseline(nn.Module):
    """Voxel features of the sensors, words in the voxel decoder, occupancy head, box head."""

    def __init__(self, config: GroundingOccConfig, *, grid: VoxelGrid | None = None) -> None:
        super().__init__()
        self.config, self.grid = config, grid or VoxelGrid()
        width, heads, hidden = config.width, config.heads, config.feed_forward
        with without_bars():
            self.text = TextEncoder(config.text, weights=config.text_weights, train_weights=config.train_text)
        self.words = nn.Sequential(nn.Linear(self.text.width, width), nn.LayerNorm(width))
        sensors = PaperSensors if config.encoders == "paper" else TrunkSensors
        self.sensors = sensors(config, grid=self.grid)
        if config.cameras:
            self.voxels = VoxelEncoder(
                width,
                config.query_shape,
                layers=config.encoder_layers,
                heads=heads,
                levels=len(config.query_levels),
                points=config.sampling_points,
                hidden=hidden,
            )
        if config.cameras and config.lidar:
            self.fusion = AdaptiveFusion(width)
        self.stride = upsampling(config.query_shape, self.grid.shape)
        self.decoder = VoxelDecoder(width, heads=heads)
        self.occupancy = PaperOccupancyHead(
            width,
            config.fine_width,
            self.stride,
            hidden=config.hidden,
            semantic=config.semantic_supervision,
            geometric=config.geometric_supervision,
            has_prior=config.encoders == "trunk",
        )
        self.boxes = BoxDecoder(
            width,
            (config.fine_width, width),
            [
                DeformableAttention(width, heads=heads, levels=2, points=config.sampling_points)
                for _ in range(config.decoder_layers)
            ],
            queries=config.grounding_queries,
            heads=heads,
            hidden=hidden,
            known=DESCRIBED_CHANNELS + 1 if config.encoders == "trunk" else 0,
            grid=self.grid,
        )

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.boxes.content.device

    # ------------------------------------------------------------------ training and inference alike

    def forward(self, batch: QueryBatch) -> PaperOutput:
        """Everything that a system says to all sentences of a batch."""
        views = self.observe(batch.inputs, occupied=batch.occupied, seen=batch.seen)
        said = [
            self.read(view, [q.text for q in queries]) if queries else None
            for view, queries in zip(views, batch.queries, strict=True)
        ]
        return PaperOutput(views, tuple(said))

    def observe(
        self, inputs: SceneInputs, *, occupied: Tensor | None = None, seen: TrunkFeatures | None = None
    ) -> tuple[SceneView, ...]:
        """The scenes before any word is read; `occupied` voxels (bool [B, X, Y, Z]) are always decoded.

        `seen`: what the frozen trunk said of them, where it was kept.
        """
        with self._mixed():
            features = self.sensors(inputs, seen)
            return tuple(
                self._view(features, inputs, b, None if occupied is None else occupied[b])
                for b in range(inputs.batch_size)
            )

    def read(self, view: SceneView, texts: Sequence[str]) -> SentenceOutput:
        """What the system says to sentences about one scene."""
        encoded = self.text(texts)
        with self._mixed():
            words, mask = self.words(encoded.states), encoded.mask
            levels = self.image_levels(view, words, mask)
            voxels = self.decoder(self._fused(view, levels, words, mask), words, mask)
            rows = deconvolution_rows(view.voxels, self.grid.shape, self.stride)
            features = self.occupancy.features(voxels, rows, view.fine)
            semantic, geometric, occupied = self.occupancy(features, view.prior)
            content, position = self.boxes.start(words, mask, view.starts)
            content, pictures = self.fuse_queries(content, position, view, levels, words, mask)
            maps = (birds_eye(features, view.voxels, self.grid.shape), voxels.mean(-1))
            proposals = self.boxes(content, position, maps, words, mask, view.starts)
        return SentenceOutput(semantic, geometric, occupied, proposals, pictures)

    def image_levels(self, view: SceneView, words: Tensor, mask: Tensor) -> tuple[Tensor, ...]:
        """Image features for N sentences: [F, D, h, w] shared by all, or [N * F, D, h, w]."""
        del words, mask  # the baselines' image features know no words
        return view.levels

    def join_moments(self, moments: Sequence[Tensor], view: SceneView) -> Tensor:
        """Camera voxels [N, P, D] of one or more moments of a scene, the reference first, as one."""
        del view
        return moments[0]

    def fuse_queries(
        self,
        content: Tensor,
        position: Tensor,
        view: SceneView,
        levels: Sequence[Tensor],
        words: Tensor,
        mask: Tensor,
    ) -> tuple[Tensor, PictureGrounding | None]:
        """Grounding queries [N, G, D] after a look at the images; the baselines take none."""
        del position, view, levels, words, mask
        return content, None

    def predict_depth(self, levels: Sequence[Tensor], rows: Tensor) -> Tensor | None:
        """Depth logits of the images `rows`; the baselines have none."""
        del levels, rows

    def _view(
        self, features: SceneFeatures, inputs: SceneInputs, b: int, occupied: Tensor | None
    ) -> SceneView:
        """Scene b's part of a batch."""
        images = (inputs.scene == b).nonzero()[:, 0]
        levels = tuple(level[images] for level in features.levels)
        moments = self._moments(inputs, images) if levels else []
        prior = None if features.prior is None else features.prior[b].flatten()
        voxels = self._voxels(prior, occupied)
        trunk = self.config.encoders == "trunk"
        return SceneView(
            levels=levels,
            volume=None if features.volume is None else features.volume[b],
            has_volume=trunk or (self.config.lidar and len(inputs.points[b]) > 0),
            voxels=voxels,
            fine=None if features.fine is None else features.fine[b].flatten(1)[:, voxels].T,
            prior=None if prior is None else prior[voxels],
            starts=None if features.starts is None else features.starts[b],
            moments=tuple(moments),
            intrinsics=inputs.intrinsics[images],
            ego_from_camera=inputs.ego_from_camera[images],
            image_size=inputs.image_size,
            depth_logits=self.predict_depth(levels, moments[0].rows) if moments else None,
        )

    def _moments(self, inputs: SceneInputs, images: Tensor) -> list[Moment]:
        """The frames among the images (long [F]) of a scene, youngest first."""
        points = query_points(self.grid, self.config.query_shape, device=self.device)
        age, moments = inputs.age[images], []
        for when in age.unique().tolist():
            rows = (age == when).nonzero()[:, 0]
            cameras = images[rows]
            hits = camera_hits(
                points, inputs.intrinsics[cameras], inputs.ego_from_camera[cameras], inputs.image_size
            )
            moments.append(Moment(when, rows, hits))
        return moments

    def _voxels(self, prior: Tensor | None, occupied: Tensor | None) -> Tensor:
        """The voxels to decode, long [M]: all, or the likely and (in training) the occupied ones."""
        share = self.config.likely_voxels
        if prior is None or share is None:
            return torch.arange(math.prod(self.grid.shape), device=self.device)
        likely = prior.detach() > math.log(share / (1 - share))
        if occupied is not None:
            likely = likely | occupied.flatten()
        return likely.nonzero()[:, 0]

    def _fused(self, view: SceneView, levels: Sequence[Tensor], words: Tensor, mask: Tensor) -> Tensor:
        """F^F [N, D, x, y, z] (or F^L, F^C): voxel features of the system's sensors."""
        volume = view.volume
        if not self.config.cameras:
            assert volume is not None
            return volume.expand(len(words), *volume.shape)
        start = None
        if volume is not None and self.config.encoders == "trunk":
            start = volume.flatten(1).T  # [P, D]
        camera = self._camera(view, levels, words, mask, start)
        if not self.config.lidar:
            return camera
        assert volume is not None
        yes = torch.ones(len(words), dtype=torch.bool, device=volume.device)
        return self.fusion(volume.expand_as(camera), camera, yes & view.has_volume, yes & bool(view.moments))

    def _camera(
        self,
        view: SceneView,
        levels: Sequence[Tensor],
        words: Tensor,
        mask: Tensor,
        start: Tensor | None,
    ) -> Tensor:
        """F^C [N, D, x, y, z]."""
        count = len(words)
        if not view.moments:
            return words.new_zeros(count, self.config.width, *self.config.query_shape)
        shared = len(levels[-1]) == len(view.intrinsics)
        levels = [levels[number] for number in self.config.query_levels]
        looks = []
        for moment in view.moments:
            if shared:
                mine = [level[moment.rows] for level in levels]
            else:
                mine = [level.unflatten(0, (count, -1))[:, moment.rows].flatten(0, 1) for level in levels]
            looks.append(self.voxels(mine, moment.hits, words, mask, start))
        joined = self.join_moments(looks, view)  # [N, P, D]
        return joined.transpose(1, 2).unflatten(2, self.config.query_shape)

    def _mixed(self) -> torch.autocast:
        low = self.config.precision == "bfloat16"
        return torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=low)

    # ------------------------------------------------------------------ encode once, ask often

    @torch.no_grad()
    def encode(self, scene: Scene, *, keep: KeepsFeatures | None = None) -> PaperState:
        """What of a scene does not depend on a sentence; `keep` remembers what the trunk says of it."""
        inputs = prepare_scene(scene, self.config.inputs()).to(self.device)
        seen = None if keep is None else keep([inputs], [scene.name])
        return PaperState(scene.name, scene.grid, self.observe(inputs, seen=seen)[0])

    @overload
    def ground(self, state: PaperState, query: str, *, refine: bool = ...) -> GroundingResult: ...
    @overload
    def ground(
        self, state: PaperState, query: list[str] | tuple[str, ...], *, refine: bool = ...
    ) -> list[GroundingResult]: ...

    @torch.no_grad()
    def ground(
        self, state: PaperState, query: str | list[str] | tuple[str, ...], *, refine: bool = False
    ) -> GroundingResult | list[GroundingResult]:
        """Ground one sentence or a list; `refine` answers with the box's voxels, as baselines always do."""
        queries = [check_query(text) for text in ([query] if isinstance(query, str) else query)]
        results: list[GroundingResult] = []
        for begin in range(0, len(queries), SENTENCES_AT_ONCE):
            texts = queries[begin : begin + SENTENCES_AT_ONCE]
            results += answers(state, texts, self.read(state.view, texts), self.config, refine=refine)
        return results[0] if isinstance(query, str) else results

    @classmethod
    def from_pretrained(cls, name: str, *, device: str | torch.device | None = None) -> Baseline:
        """The system of a checkpoint folder or a Hub id, or of "groundingocc-nano" and its like; whichever
        of the four it is, whatever class it is asked of.
        """
        from vlm_occ.models.paper_checkpoint import load_system

        system = load_system(name)
        return system.to(device).eval() if device is not None else system.eval()

    def save_pretrained(self, folder: str | Path) -> None:
        """Write config and weights (never what a package ships) into `folder`, at once or not at all."""
        from vlm_occ.models.paper_checkpoint import save_system

        save_system(self, Path(folder))
