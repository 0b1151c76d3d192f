"""Where every vision token lies in the bird's-eye view: head, targets and frames (Loc3R-VLM 3.2).

The first view's frame: origin at its camera, z against gravity, x along its optical axis on the ground, y
left.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from vlm_occ.geometry import invert_rigid, rigid

_MAX_LOG_VARIANCE = 10.0


@dataclass(frozen=True)
class BirdsEyeEstimate:
    """A Gaussian with independent axes over a bird's-eye position."""

    mean: Tensor  # [..., 2] metres
    log_variance: Tensor  # [..., 2] of metres squared

    @property
    def std(self) -> Tensor:
        """Standard deviations [..., 2] in metres."""
        return (self.log_variance / 2).exp()


def split_estimate(raw: Tensor, *, scale: float) -> BirdsEyeEstimate:
    """The Gaussian of a head's `raw` [..., 4] (mean x, y; log variance x, y), in units of `scale` metres.

    The log variance is bounded smoothly to +-10 (ours): an overflow would end a training run, and a hard
    limit would cut its gradient.
    """
    raw = raw.float()
    log_variance = _MAX_LOG_VARIANCE * torch.tanh(raw[..., 2:] / _MAX_LOG_VARIANCE)
    unit = torch.tensor(scale, device=raw.device)
    return BirdsEyeEstimate(mean=raw[..., :2] * unit, log_variance=log_variance + 2 * unit.log())


class LayoutHead(nn.Module):
    """One linear layer from a vision token's last state to its bird's-eye position and uncertainty."""

    def __init__(self, width: int, *, scale: float = 1.0) -> None:
        super().__init__()
        self.linear = nn.Linear(width, 4)
        self.scale = scale  # metres; about the spread of positions, 1 indoors as in the paper

    def forward(self, states: Tensor) -> BirdsEyeEstimate:
        """States [..., D] to estimates [..., 2] in the frame that the targets are in."""
        return split_estimate(self.linear(states), scale=self.scale)


@dataclass(frozen=True)
class LayoutTargets:
    """True bird's-eye positions of the tokens of F views with h x w tokens each, row by row."""

    position: Tensor  # [F, h*w, 2] metres; 0 where not valid
    valid: Tensor  # bool [F, h*w]


def first_view_frame(world_from_camera: Tensor, *, up: Sequence[float] = (0.0, 0.0, 1.0)) -> Tensor:
    """first_from_world [4, 4]: the level frame of a first view `world_from_camera` [4, 4] (OpenCV axes).

    `up` is the direction against gravity in world axes. A camera that looks straight up or down has no
    heading on the ground; then the picture's upward direction is x.
    """
    pose = world_from_camera
    z = functional.normalize(torch.tensor(up, dtype=pose.dtype, device=pose.device), dim=0)
    axis, upward = pose[:3, 2], -pose[:3, 1]
    on_ground = axis - (axis @ z) * z
    if on_ground.norm() < 1e-3:
        on_ground = upward - (upward @ z) * z
    x = functional.normalize(on_ground, dim=0)
    y = torch.linalg.cross(z, x)
    return invert_rigid(rigid(torch.stack([x, y, z], dim=1), pose[:3, 3]))


def layout_targets(
    depth: Tensor,
    intrinsics: Tensor,
    frame_from_camera: Tensor,
    grid: tuple[int, int],
    *,
    min_valid: float = 0.1,
) -> LayoutTargets:
    """Bird's-eye position of the surface that each token sees.

    `depth` [F, H, W] metres along the optical axis (0, negative, NaN or infinite: none),
    `intrinsics` [F, 3, 3] of the depth image (pixel i covers [i, i + 1)), `frame_from_camera` [F, 4, 4],
    `grid` the tokens' (rows, columns), which cover the whole image. A token's surface is the pixel of median
    depth among its valid ones, so it never lies between fore- and background; a token with a smaller share
    of valid pixels than `min_valid` is not valid.
    """
    height, width = depth.shape[1:]
    rows, columns = grid
    if min(rows, columns) < 1 or rows > height or columns > width:
        raise ValueError(
            f"{rows}x{columns} tokens on a depth image of {height}x{width}; expected fewer than pixels"
        )
    pixel, share = _median_pixels(depth, grid)  # [F, h*w] each
    valid = share >= max(min_valid, 1e-9)
    value = depth.flatten(1).gather(1, pixel)  # [F, h*w]
    value = torch.where(valid, value, torch.ones_like(value)).float()
    u, v = pixel % width + 0.5, torch.div(pixel, width, rounding_mode="floor") + 0.5  # a pixel's middle
    rays = (
        torch.stack([u, v, torch.ones_like(u)], dim=-1) @ torch.linalg.inv(intrinsics.float()).mT
    )  # [F, h*w, 3]
    frame_from_camera = frame_from_camera.float()
    points = (rays * value[..., None]) @ frame_from_camera[:, :3, :3].mT + frame_from_camera[:, None, :3, 3]
    return LayoutTargets(position=torch.where(valid[..., None], points[..., :2], 0.0), valid=valid)


def _median_pixels(depth: Tensor, grid: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Flat pixel of each token's (lower) median valid depth, and its share of valid pixels: [F, h*w]."""
    frames, height, width = depth.shape
    rows, columns = grid
    row = torch.arange(height, device=depth.device) * rows // height
    column = torch.arange(width, device=depth.device) * columns // width
    cell = (row[:, None] * columns + column).flatten()  # [H*W]: the token of each pixel
    values = depth.flatten(1)
    usable = torch.isfinite(values) & (values > 0)
    by_depth = torch.where(usable, values, torch.full_like(values, torch.inf)).argsort(dim=1)  # [F, H*W]
    order = by_depth.gather(1, cell[by_depth].argsort(dim=1, stable=True))  # by token, then by depth
    size = torch.bincount(cell, minlength=rows * columns)
    start = size.cumsum(0) - size  # first entry of each token in `order`
    number = torch.zeros(frames, rows * columns, device=depth.device, dtype=torch.long)
    number.scatter_add_(1, cell.expand(frames, -1), usable.long())
    middle = start + torch.div((number - 1).clamp(min=0), 2, rounding_mode="floor")
    return order.gather(1, middle), number / size


def to_reference_frame(estimate: BirdsEyeEstimate, reference_from_first: Tensor) -> BirdsEyeEstimate:
    """Estimates [..., 2] of the first view's frame in the reference ego frame, by its transform [4, 4].

    Both frames stand upright; what tilt is left in the transform is dropped. The axes' correlation that a
    rotation brings is dropped too, their variances are exact.
    """
    turn, shift = planar_part(reference_from_first)
    turn, shift = turn.to(estimate.mean), shift.to(estimate.mean)
    variance = estimate.log_variance.exp() @ turn.square().T
    return BirdsEyeEstimate(mean=estimate.mean @ turn.T + shift, log_variance=variance.log())


def planar_part(transform: Tensor) -> tuple[Tensor, Tensor]:
    """Rotation [2, 2] and translation [2] of a transform [4, 4] between two upright frames."""
    cos, sin = functional.normalize(transform[:2, 0], dim=0)
    return torch.stack([torch.stack([cos, -sin]), torch.stack([sin, cos])]), transform[:2, 3]
