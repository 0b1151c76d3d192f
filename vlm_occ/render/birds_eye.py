"""The answer from above."""

from __future__ import annotations

import textwrap
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from vlm_occ.geometry import box_corners
from vlm_occ.render.files import REFERRED, shorten, whole_file
from vlm_occ.types import GroundingResult, Scene, VoxelGrid

if TYPE_CHECKING:
    from matplotlib.axes import Axes

EGO_SIZE = (4.08, 1.73, 0.97)
"""Length and width of the recording vehicle, and from its back to its rear axle (the ego origin), metres."""

DARK = "#7a0042"  # outlines and tags of what the query means
SMALL = 3.5  # metres; a first object shorter than this is also shown enlarged


def draw_birds_eye(result: GroundingResult, target: str | Path | Axes, *, scene: Scene | None = None) -> None:
    """Draw the answer from above into a PNG file or axes: x (ahead) is up, y (left) is left, metres.

    Height shades the occupancy, the referred voxels are pink, each box has an arrow along its heading. With
    `scene`, its LiDAR points are faint dots.
    """
    if isinstance(target, str | Path):
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure

        figure = Figure(figsize=(8, 8.7), dpi=125, facecolor="white")
        FigureCanvasAgg(figure)
        axes = figure.add_axes((0.075, 0.06, 0.905, 0.84))
        draw_birds_eye(result, axes, scene=scene)
        with whole_file(target) as path:
            figure.savefig(path, format="png")
        return
    grid = result.grid
    low, high = grid.origin, [grid.origin[i] + grid.shape[i] * grid.voxel_size for i in range(3)]
    _draw_map(target, result, scene)
    _draw_rings(target, grid)
    _draw_ego(target)
    target.set(xlim=(high[1], low[1]), ylim=(low[0], high[0]), xlabel="left  ←  y [m]  →  right")
    target.set_ylabel("x ahead [m]")
    target.set_aspect("equal")
    if result.objects and result.objects[0].box[3:5].max() < SMALL:
        _draw_inset(target, result, scene)
    title = textwrap.fill(f"“{result.query}”", 66, max_lines=2, placeholder=" …”")
    target.set_title(title, fontsize=12.5, weight="bold", pad=24, parse_math=False)
    words = target.text(0.5, 1.012, shorten(result.text, 110), transform=target.transAxes, parse_math=False)
    words.set(ha="center", va="bottom", fontsize=10, color="#555")


def _draw_map(axes: Axes, result: GroundingResult, scene: Scene | None) -> None:
    """The occupancy, the LiDAR points and the boxes with their tags."""
    grid = result.grid
    low, high = grid.origin, [grid.origin[i] + grid.shape[i] * grid.voxel_size for i in range(2)]
    extent = (low[1], high[1], low[0], high[0])
    axes.imshow(top_view(result), extent=extent, origin="lower", interpolation="nearest")
    if scene is not None and scene.reference.points is not None:
        points = scene.reference.points.cpu().numpy()
        axes.scatter(points[:, 1], points[:, 0], s=0.25, c="#4a6fa5", alpha=0.25, linewidths=0)
    boxes = [item.box.detach().cpu().float() for item in result.objects]
    for number, (box, item) in enumerate(zip(boxes, result.objects, strict=True), start=1):
        crowd = sum((box[:2] - other[:2]).norm().item() < 5 for other in boxes[: number - 1])
        _draw_footprint(axes, box, f"{number}  {item.score:.2f}", lower=17 * crowd)


def _draw_inset(axes: Axes, result: GroundingResult, scene: Scene | None) -> None:
    """The first object's surroundings enlarged, in a corner on its side of the vehicle."""
    x, y = result.objects[0].box[:2].tolist()
    corner = (0.015 if y > 0 else 0.715, 0.015 if x > 0 else 0.715, 0.27, 0.27)
    inset = axes.inset_axes(corner, xlim=(y + 5, y - 5), ylim=(x - 5, x + 5), xticks=[], yticks=[], zorder=10)
    _draw_map(inset, result, scene)
    inset.set(xlim=(y + 5, y - 5), ylim=(x - 5, x + 5))
    for spine in inset.spines.values():
        spine.set(color=DARK, linewidth=1.5)
    axes.indicate_inset((y - 5, x - 5, 10, 10), edgecolor=DARK, alpha=0.8)


def top_view(result: GroundingResult) -> np.ndarray:
    """The occupancy from above as float RGB [X, Y, 3]: darker is higher, pink is referred."""
    occupancy = result.occupancy.cpu()  # [X, Y, Z]
    depth = occupancy.shape[2]
    level = torch.arange(1, depth + 1)
    top = ((occupancy > 0) * level).amax(2).float()  # [X, Y], 0 where the column is empty
    referred = ((occupancy == 2) * level).amax(2).float()
    ground = -result.grid.origin[2] / result.grid.voxel_size + 1  # the level that holds z = 0
    height = ((top - ground) / (0.6 * depth)).clamp(0, 1)[..., None].numpy()
    # Occupied columns go from pale to slate blue with height; a light from the front left gives relief.
    pale, slate = np.array([0.85, 0.87, 0.90]), np.array([0.16, 0.22, 0.32])
    picture = pale + (slate - pale) * height**0.7
    picture = np.where(top[..., None].numpy() > 0, picture, np.array([0.975, 0.978, 0.982]))
    base = np.array(REFERRED) / 255
    lit = 0.65 + 0.35 * (referred / referred.max().clamp(min=1))[..., None].numpy()
    picture = np.where(referred[..., None].numpy() > 0, base * lit, picture)
    slope = torch.zeros_like(top)
    slope[1:-1, 1:-1] = (top[2:, 1:-1] - top[:-2, 1:-1]) + (top[1:-1, 2:] - top[1:-1, :-2])
    return np.clip(picture - (slope / depth * 0.18)[..., None].numpy(), 0, 1)


def _draw_rings(axes: Axes, grid: VoxelGrid) -> None:
    """Range rings every 10 m with their distance."""
    reach = int(min(grid.shape[0], grid.shape[1]) * grid.voxel_size / 2)
    angle = np.linspace(0, 2 * np.pi, 181)
    for radius in range(10, reach + 1, 10):
        axes.plot(radius * np.sin(angle), radius * np.cos(angle), color="#8892a0", lw=0.7, ls=(0, (4, 4)))
        if radius == reach:
            continue
        words = axes.text(0, radius, f"{radius} m", fontsize=8, color="#5c6675", ha="center", va="center")
        words.set_bbox({"boxstyle": "round,pad=0.15", "fc": "white", "ec": "none", "alpha": 0.75})
        words.set_clip_on(True)


def _draw_ego(axes: Axes) -> None:
    """The recording vehicle with a windscreen-like wedge that points ahead."""
    from matplotlib.patches import FancyBboxPatch, Polygon

    length, width, back = EGO_SIZE
    axes.add_patch(
        FancyBboxPatch(
            (-width / 2 + 0.3, -back + 0.3),
            width - 0.6,
            length - 0.6,
            zorder=5,
            boxstyle="round,pad=0.3",
            fc="#12b5cb",
            ec="white",
            lw=1.2,
        )
    )
    front = length - back
    wedge = [(0.55, front - 1.5), (-0.55, front - 1.5), (0.0, front - 0.4)]
    axes.add_patch(Polygon(wedge, closed=True, fc="white", ec="none", zorder=6))


def _draw_footprint(axes: Axes, box: Tensor, label: str, *, lower: float) -> None:
    """A box [7] from above: outline, an arrow from its front, and a tag (`lower` points down)."""
    corners = box_corners(box[None])[0, :4, :2].numpy()  # [4, 2] x, y
    ring = np.concatenate([corners, corners[:1]])
    for colour, width in (("white", 2.8), (DARK, 1.2)):
        axes.plot(ring[:, 1], ring[:, 0], color=colour, lw=width, zorder=7, solid_joinstyle="round")
    centre, yaw = box[:2].numpy(), box[6].item()
    ahead = np.array([np.cos(yaw), np.sin(yaw)])
    start = centre + ahead * box[3].item() / 2
    end = start + 2.2 * ahead
    arrow = {"arrowstyle": "-|>", "color": DARK, "lw": 1.4, "shrinkA": 0, "shrinkB": 0}
    axes.annotate("", (end[1], end[0]), (start[1], start[0]), arrowprops=arrow, zorder=8)
    outward = centre / max(float(np.linalg.norm(centre)), 1e-6)
    offset = (-26 * outward[1] - 14, 26 * outward[0] - 4 - lower)  # points; left on the page is +y
    bubble = {"boxstyle": "round,pad=0.25", "fc": DARK, "ec": "white", "lw": 0.8}
    words = {"fontsize": 8.5, "color": "white", "weight": "bold", "zorder": 9}
    tag = axes.annotate(
        label, (centre[1], centre[0]), offset, textcoords="offset points", annotation_clip=True
    )
    tag.set(bbox=bubble, **words)
