"""CUT3R's camera tokens: an image encoder and a recurrent state decoder, in pure PyTorch.

Wang et al., "Continuous 3D Perception Model with Persistent State" (2025). Attribute names are the
published state-dict keys, so that a published checkpoint loads as it is. Only the path to the camera token
is here: no ray maps, no dense heads.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from vlm_occ.encoders.cut3r_blocks import NORM_EPS, DecoderBlock, EncoderBlock, Mlp

PATCH = 16
"""Pixels along the side of a patch."""


@dataclass(frozen=True)
class Cut3rConfig:
    """Sizes of a CUT3R; the defaults are those of both published models."""

    encoder_width: int = 1024
    encoder_depth: int = 24
    encoder_heads: int = 16
    decoder_width: int = 768
    decoder_depth: int = 12
    decoder_heads: int = 12  # of the image decoder and of the pose memory
    state_heads: int = 16  # of the state decoder
    state_size: int = 768  # state tokens
    memory_size: int = 256  # entries of the pose memory
    pose_head: bool = True
    half_rope: bool = False  # round the image encoder's queries and keys to float16 around RoPE, as published

    def __post_init__(self) -> None:
        """Check that RoPE can split every head in four."""
        for name, width, heads in (
            ("encoder_heads", self.encoder_width, self.encoder_heads),
            ("decoder_heads", self.decoder_width, self.decoder_heads),
            ("state_heads", self.decoder_width, self.state_heads),
        ):
            if width % (4 * heads):
                raise ValueError(f"{name}={heads} with width {width}: the width of a head must divide by 4")


@dataclass(frozen=True)
class Cut3rState:
    """What CUT3R carries from frame to frame."""

    tokens: Tensor  # [B, S, D]
    memory: Tensor  # [B, M, 2D]
    frames: int  # how many frames it has seen


@dataclass(frozen=True)
class CameraTokens:
    """What CUT3R says of T frames, and the state after the last."""

    camera: Tensor  # [B, T, D] the camera tokens (Loc3R-VLM 3.1)
    geometry: Tensor  # [B, T, N, D] one token a patch, row by row
    pose: Tensor | None  # [B, T, 7] first frame from camera, OpenCV axes: metres, w, x, y, z
    state: Cut3rState


class PoseRetriever(nn.Module):
    """A memory of pairs (what a frame looked like, where its camera was)."""

    def __init__(self, config: Cut3rConfig) -> None:
        super().__init__()
        width = config.decoder_width
        self.proj_q = nn.Linear(config.encoder_width, width)
        self.masked_token = nn.Parameter(torch.zeros(1, 1, width))
        self.mem = nn.Parameter(torch.randn(1, config.memory_size, 2 * width) * 0.02)
        self.write_blocks = nn.ModuleList(DecoderBlock(2 * width, config.decoder_heads) for _ in range(2))
        self.read_blocks = nn.ModuleList(DecoderBlock(2 * width, config.decoder_heads) for _ in range(2))

    def read(self, memory: Tensor, look: Tensor) -> Tensor:
        """Camera query [B, 1, D] for a frame's mean feature `look` [B, 1, C], from `memory` [B, M, 2D]."""
        x = torch.cat([self.proj_q(look), self.masked_token.expand(len(look), -1, -1)], dim=-1)  # [B, 1, 2D]
        for block in self.read_blocks:
            x = block(x, memory)
        return x[..., x.shape[-1] // 2 :]

    def write(self, memory: Tensor, look: Tensor, camera: Tensor) -> Tensor:
        """`memory` [B, M, 2D] after a frame of mean feature `look` [B, 1, C] and `camera` token [B, 1, D]."""
        y = torch.cat([self.proj_q(look), camera], dim=-1)  # [B, 1, 2D]
        for block in self.write_blocks:
            memory = block(memory, y)
        return memory


class PatchEmbedding(nn.Module):
    """One linear map a patch of 16 x 16 pixels."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, width, PATCH, stride=PATCH)


class PoseHead(nn.Module):
    """Camera token to translation and rotation; `mlp` is the published name."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.mlp = Mlp(width, 4 * width, 7)

    def forward(self, camera: Tensor) -> Tensor:
        """Camera tokens [..., D] to poses [..., 7]: metres, then a quaternion w, x, y, z with w >= 0."""
        raw = self.mlp(camera).float()
        length = raw[..., :3].norm(dim=-1, keepdim=True).clamp(min=1e-8)
        translation = raw[..., :3] * (torch.expm1(length) / length)
        quaternion = functional.normalize(raw[..., 3:], dim=-1)
        quaternion = torch.where(quaternion[..., :1] < 0, -quaternion, quaternion)
        return torch.cat([translation, quaternion], dim=-1)


class Cut3r(nn.Module):
    """CUT3R up to its camera and geometry tokens."""

    def __init__(self, config: Cut3rConfig) -> None:
        super().__init__()
        self.config = config
        wide, width = config.encoder_width, config.decoder_width
        self.patch_embed = PatchEmbedding(wide)
        self.enc_blocks = nn.ModuleList(
            EncoderBlock(wide, config.encoder_heads, half_rope=config.half_rope)
            for _ in range(config.encoder_depth)
        )
        self.enc_norm = nn.LayerNorm(wide, eps=NORM_EPS)
        self.decoder_embed = nn.Linear(wide, width)
        self.dec_blocks = nn.ModuleList(
            DecoderBlock(width, config.decoder_heads) for _ in range(config.decoder_depth)
        )
        self.dec_norm = nn.LayerNorm(width, eps=NORM_EPS)
        self.register_tokens = nn.Embedding(config.state_size, wide)
        self.decoder_embed_state = nn.Linear(wide, width)
        self.dec_blocks_state = nn.ModuleList(
            DecoderBlock(width, config.state_heads) for _ in range(config.decoder_depth)
        )
        self.dec_norm_state = nn.LayerNorm(width, eps=NORM_EPS)
        self.pose_token = nn.Parameter(torch.randn(1, 1, width) * 0.02)
        self.pose_retriever = PoseRetriever(config)
        self.downstream_head = nn.ModuleDict({"pose_head": PoseHead(width)} if config.pose_head else {})

    def encode_images(self, images: Tensor) -> Tensor:
        """Features [B, N, C] of images [B, 3, H, W] in [-1, 1], H and W multiples of 16; stateless."""
        height, width = _patch_grid(images)
        x = self.patch_embed.proj(images).flatten(2).transpose(1, 2)  # [B, N, C]
        positions = grid_positions(height, width, device=images.device)
        for block in self.enc_blocks:
            x = block(x, positions)
        return self.enc_norm(x)

    def initial_state(self, batch: int) -> Cut3rState:
        """The state before the first frame."""
        tokens = self.decoder_embed_state(self.register_tokens.weight).expand(batch, -1, -1)  # [B, S, D]
        return Cut3rState(tokens=tokens, memory=self.pose_retriever.mem.expand(batch, -1, -1), frames=0)

    def step(self, features: Tensor, state: Cut3rState, *, grid: tuple[int, int]) -> CameraTokens:
        """One frame's tokens (T = 1) and the state after it; features [B, N, C] of `grid` (rows, columns)."""
        look = features.mean(dim=1, keepdim=True)  # [B, 1, C]
        if state.frames == 0:
            camera = self.pose_token.expand(len(features), -1, -1)
        else:
            camera = self.pose_retriever.read(state.memory, look)
        x = torch.cat([camera, self.decoder_embed(features)], dim=1)  # [B, 1 + N, D]
        x_positions = functional.pad(grid_positions(*grid, device=x.device), (0, 0, 1, 0), value=-1)
        s, s_positions = state.tokens, state_positions(state.tokens.shape[1], device=x.device)
        for block, block_state in zip(self.dec_blocks, self.dec_blocks_state, strict=True):
            # Both read the pair of the layer before.
            x, s = block(x, s, (x_positions, s_positions)), block_state(s, x, (s_positions, x_positions))
        x, s = self.dec_norm(x), self.dec_norm_state(s)
        memory = self.pose_retriever.write(state.memory, look, x[:, :1])
        pose = self.downstream_head["pose_head"](x[:, :1]) if self.config.pose_head else None
        after = Cut3rState(tokens=s, memory=memory, frames=state.frames + 1)
        return CameraTokens(camera=x[:, :1], geometry=x[:, None, 1:], pose=pose, state=after)

    def forward(self, clip: Tensor, state: Cut3rState | None = None, *, chunk: int = 16) -> CameraTokens:
        """Tokens of `clip` [B, T, 3, H, W] in [-1, 1], after `state`; `chunk` images are encoded at once."""
        batch, frames = clip.shape[:2]
        images = clip.transpose(0, 1).flatten(0, 1)  # [T*B, 3, H, W]
        grid = _patch_grid(images)
        features = torch.cat([self.encode_images(part) for part in images.split(max(chunk, 1))])
        state = state or self.initial_state(batch)
        steps: list[CameraTokens] = []
        for frame in features.unflatten(0, (frames, batch)):
            steps.append(self.step(frame, state, grid=grid))
            state = steps[-1].state
        poses = [step.pose for step in steps if step.pose is not None]
        return CameraTokens(
            camera=torch.cat([step.camera for step in steps], dim=1),  # [B, T, D]
            geometry=torch.cat([step.geometry for step in steps], dim=1),  # [B, T, N, D]
            pose=torch.cat(poses, dim=1) if poses else None,  # [B, T, 7]
            state=state,
        )


def _patch_grid(images: Tensor) -> tuple[int, int]:
    """Rows and columns of patches of images [..., H, W]."""
    height, width = images.shape[-2:]
    if height % PATCH or width % PATCH or not height or not width:
        raise ValueError(
            f"images of {height}x{width} pixels, expected multiples of {PATCH}; use prepare_frames"
        )
    return height // PATCH, width // PATCH


def grid_positions(height: int, width: int, *, device: torch.device | str = "cpu") -> Tensor:
    """(row, column) [height * width, 2] of a grid, row by row."""
    rows, columns = torch.arange(height, device=device), torch.arange(width, device=device)
    return torch.stack(torch.meshgrid(rows, columns, indexing="ij"), dim=-1).flatten(0, 1)


def state_positions(size: int, *, device: torch.device | str = "cpu") -> Tensor:
    """(row, column) [size, 2] of the state tokens: rows of floor(sqrt(size)), one more where that is odd."""
    width = math.isqrt(size) + math.isqrt(size) % 2
    index = torch.arange(size, device=device)
    return torch.stack([index // width, index % width], dim=-1)
