"""Rigid transforms, pinhole projection, oriented boxes and their overlap.

Names follow `a_from_b`: `a_from_b @ b_from_c` is `a_from_c`. Everything is float32 or float64 tensors.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor


def wrap_angle(angle: Tensor) -> Tensor:
    """Angles in [-pi, pi)."""
    return torch.remainder(angle + math.pi, 2 * math.pi) - math.pi


def rotation_z(yaw: Tensor) -> Tensor:
    """Rotations [..., 3, 3] about z by `yaw` [...] radians, counter-clockwise."""
    cos, sin, zero, one = torch.cos(yaw), torch.sin(yaw), torch.zeros_like(yaw), torch.ones_like(yaw)
    rows = [torch.stack(row, -1) for row in ((cos, -sin, zero), (sin, cos, zero), (zero, zero, one))]
    return torch.stack(rows, dim=-2)


def quaternion_to_rotation(quaternion: Tensor) -> Tensor:
    """Rotations [..., 3, 3] of unit quaternions [..., 4] in the order w, x, y, z (nuScenes)."""
    w, x, y, z = (quaternion / quaternion.norm(dim=-1, keepdim=True)).unbind(-1)
    rows = (
        (1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)),
        (2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)),
        (2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)),
    )
    return torch.stack([torch.stack(row, -1) for row in rows], dim=-2)


def rotation_to_quaternion(rotation: Tensor) -> Tensor:
    """Unit quaternion [4] (w, x, y, z; w >= 0) of one rotation [3, 3]."""
    r = rotation.double()
    # The largest eigenvector of this symmetric matrix is the quaternion (Bar-Itzhack 2000); no case
    # distinction.
    k = torch.stack(
        [
            torch.stack(
                [r[0, 0] - r[1, 1] - r[2, 2], r[1, 0] + r[0, 1], r[2, 0] + r[0, 2], r[2, 1] - r[1, 2]]
            ),
            torch.stack(
                [r[1, 0] + r[0, 1], r[1, 1] - r[0, 0] - r[2, 2], r[2, 1] + r[1, 2], r[0, 2] - r[2, 0]]
            ),
            torch.stack(
                [r[2, 0] + r[0, 2], r[2, 1] + r[1, 2], r[2, 2] - r[0, 0] - r[1, 1], r[1, 0] - r[0, 1]]
            ),
            torch.stack(
                [r[2, 1] - r[1, 2], r[0, 2] - r[2, 0], r[1, 0] - r[0, 1], r[0, 0] + r[1, 1] + r[2, 2]]
            ),
        ]
    )
    x, y, z, w = torch.linalg.eigh(k / 3).eigenvectors[:, -1]
    quaternion = torch.stack([w, x, y, z])
    return (quaternion if w >= 0 else -quaternion).to(rotation.dtype)


def rigid(rotation: Tensor, translation: Tensor) -> Tensor:
    """Transforms [..., 4, 4] of rotations [..., 3, 3] and translations [..., 3]."""
    top = torch.cat([rotation, translation[..., None]], dim=-1)  # [..., 3, 4]
    bottom = torch.zeros_like(top[..., :1, :])
    bottom[..., 3] = 1
    return torch.cat([top, bottom], dim=-2)


def invert_rigid(transform: Tensor) -> Tensor:
    """Inverse of rigid transforms [..., 4, 4]."""
    rotation = transform[..., :3, :3].transpose(-1, -2)
    return rigid(rotation, -(rotation @ transform[..., :3, 3:])[..., 0])


def transform_points(a_from_b: Tensor, points: Tensor) -> Tensor:
    """Points [N, 3] of frame b in frame a, by one transform [4, 4]."""
    a_from_b = a_from_b.to(points)
    return points @ a_from_b[:3, :3].T + a_from_b[:3, 3]


def check_rigid(transform: Tensor, name: str, *, tolerance: float = 1e-3) -> None:
    """Raise ValueError unless `transform` [4, 4] is finite, rigid and right-handed."""
    if tuple(transform.shape) != (4, 4):
        raise ValueError(
            f"{name} has shape {list(transform.shape)}, expected [4, 4]; give a homogeneous transform"
        )
    if not torch.isfinite(transform).all():
        raise ValueError(f"{name} holds NaN or infinite values; check the calibration file")
    rotation = transform[:3, :3].double()
    error = (rotation @ rotation.T - torch.eye(3, dtype=torch.float64)).abs().max().item()
    last_row = (transform[3].double() - torch.tensor([0.0, 0, 0, 1], dtype=torch.float64)).abs().max().item()
    if error > tolerance or last_row > tolerance or torch.linalg.det(rotation) < 0:
        raise ValueError(
            f"{name} is not a rigid transform (R R^T differs from 1 by {error:.3g}, determinant "
            f"{torch.linalg.det(rotation).item():.3g}); expected a rotation and a translation in metres"
        )


def project(points: Tensor, intrinsics: Tensor, ego_from_camera: Tensor) -> tuple[Tensor, Tensor]:
    """Pixels [V, N, 2] (u right, v down) and depths [V, N] in metres of ego points [N, 3].

    `intrinsics` [V, 3, 3], `ego_from_camera` [V, 4, 4]. Points behind a camera have depth <= 0 and no valid
    pixel.
    """
    camera_from_ego = invert_rigid(ego_from_camera)  # [V, 4, 4]
    local = (
        points @ camera_from_ego[:, :3, :3].transpose(-1, -2) + camera_from_ego[:, None, :3, 3]
    )  # [V, N, 3]
    depth = local[..., 2]
    homogeneous = local @ intrinsics.transpose(-1, -2)  # [V, N, 3]
    return homogeneous[..., :2] / depth.clamp(min=1e-5)[..., None], depth


def unproject(pixels: Tensor, depth: Tensor, intrinsics: Tensor, ego_from_camera: Tensor) -> Tensor:
    """Ego points [N, 3] of pixels [N, 2] at depths [N] along the optical axis of one camera ([3, 3], [4,
    4]).
    """
    ones = torch.ones_like(depth)
    rays = torch.cat([pixels, ones[:, None]], dim=-1) @ torch.linalg.inv(intrinsics).T  # [N, 3]
    return transform_points(ego_from_camera, rays * depth[:, None])


_CORNER_SIGNS = (
    (1, 1, 1),
    (1, -1, 1),
    (-1, -1, 1),
    (-1, 1, 1),
    (1, 1, -1),
    (1, -1, -1),
    (-1, -1, -1),
    (-1, 1, -1),
)


def box_corners(boxes: Tensor) -> Tensor:
    """Corners [M, 8, 3] of boxes [M, 7]; the first four are the top face."""
    signs = torch.tensor(_CORNER_SIGNS, device=boxes.device, dtype=boxes.dtype)
    local = 0.5 * signs * boxes[:, None, 3:6]  # [M, 8, 3]
    return local @ rotation_z(boxes[:, 6]).transpose(-1, -2) + boxes[:, None, :3]


def to_box_frame(points: Tensor, boxes: Tensor) -> Tensor:
    """Points [N, 3] in the axes of each box [M, 7], centred on it: [M, N, 3]."""
    return (points - boxes[:, None, :3]) @ rotation_z(boxes[:, 6])


def points_in_boxes(points: Tensor, boxes: Tensor) -> Tensor:
    """Whether points [N, 3] lie in boxes [M, 7], borders included: bool [M, N]."""
    return (to_box_frame(points, boxes).abs() <= boxes[:, None, 3:6] / 2).all(-1)


def transform_boxes(a_from_b: Tensor, boxes: Tensor) -> Tensor:
    """Boxes [M, 7] of frame b in frame a; the transform's tilt is dropped from the yaw, as boxes stay
    upright.
    """
    a_from_b = a_from_b.to(boxes)
    centre = transform_points(a_from_b, boxes[:, :3])
    heading = torch.stack([torch.cos(boxes[:, 6]), torch.sin(boxes[:, 6])], dim=-1) @ a_from_b[:2, :2].T
    yaw = torch.atan2(heading[:, 1], heading[:, 0])
    return torch.cat([centre, boxes[:, 3:6], yaw[:, None]], dim=-1)


def _rectangle_intersection_area(a: Tensor, b: Tensor) -> Tensor:
    """Areas [P] of the intersections of convex quadrilaterals a, b [P, 4, 2] (counter-clockwise).

    The intersection's corners are a's corners in b, b's corners in a and the crossings of edges: 24
    candidates,
    sorted by angle about their mean; the shoelace formula gives the area.
    """

    def corners_inside(p: Tensor, q: Tensor) -> Tensor:  # [P, 4] bool: corners of p in q
        edge = q.roll(-1, dims=1) - q  # [P, 4, 2]
        offset = p[:, :, None] - q[:, None]  # [P, 4, 4, 2]
        cross = edge[:, None, :, 0] * offset[..., 1] - edge[:, None, :, 1] * offset[..., 0]
        return (cross >= -1e-9).all(-1)

    edge_a, edge_b = a.roll(-1, dims=1) - a, b.roll(-1, dims=1) - b
    between = b[:, None] - a[:, :, None]  # [P, 4, 4, 2]
    denominator = (
        edge_a[:, :, None, 0] * edge_b[:, None, :, 1] - edge_a[:, :, None, 1] * edge_b[:, None, :, 0]
    )
    parallel = denominator.abs() < 1e-12
    safe = torch.where(parallel, torch.ones_like(denominator), denominator)
    s = (between[..., 0] * edge_b[:, None, :, 1] - between[..., 1] * edge_b[:, None, :, 0]) / safe
    t = (between[..., 0] * edge_a[:, :, None, 1] - between[..., 1] * edge_a[:, :, None, 0]) / safe
    crosses = ~parallel & (s >= 0) & (s <= 1) & (t >= 0) & (t <= 1)  # [P, 4, 4]
    crossings = a[:, :, None] + s[..., None] * edge_a[:, :, None]  # [P, 4, 4, 2]

    points = torch.cat([a, b, crossings.flatten(1, 2)], dim=1)  # [P, 24, 2]
    valid = torch.cat([corners_inside(a, b), corners_inside(b, a), crosses.flatten(1)], dim=1)  # [P, 24]
    count = valid.sum(1).clamp(min=1)
    mean = (points * valid[..., None]).sum(1) / count[:, None]
    local = torch.where(valid[..., None], points - mean[:, None], torch.zeros_like(points))
    angle = torch.where(
        valid, torch.atan2(local[..., 1], local[..., 0]), torch.full_like(local[..., 0], 10.0)
    )
    order = angle.argsort(dim=1)
    ring = local.gather(1, order[..., None].expand_as(local))
    ring_valid = valid.gather(1, order)
    ring = torch.where(
        ring_valid[..., None], ring, ring[:, :1].expand_as(ring)
    )  # close the ring with its start
    after = ring.roll(-1, dims=1)
    area = 0.5 * (ring[..., 0] * after[..., 1] - ring[..., 1] * after[..., 0]).sum(1)
    return torch.where(valid.sum(1) >= 3, area.clamp(min=0), torch.zeros_like(area))


def box_iou_3d(a: Tensor, b: Tensor) -> Tensor:
    """IoU [P] of pairs of upright boxes a, b [P, 7], rotated about z; exact, computed in float64."""
    a64, b64 = a.double(), b.double()
    area = _rectangle_intersection_area(
        box_corners(a64)[:, [0, 3, 2, 1], :2], box_corners(b64)[:, [0, 3, 2, 1], :2]
    )
    top = torch.minimum(a64[:, 2] + a64[:, 5] / 2, b64[:, 2] + b64[:, 5] / 2)
    bottom = torch.maximum(a64[:, 2] - a64[:, 5] / 2, b64[:, 2] - b64[:, 5] / 2)
    intersection = area * (top - bottom).clamp(min=0)
    union = a64[:, 3:6].prod(-1) + b64[:, 3:6].prod(-1) - intersection
    return (intersection / union.clamp(min=1e-12)).to(a.dtype)


def from_box_axes(vectors: Tensor, yaw: Tensor) -> Tensor:
    """Vectors [N, ..., 2] along and left of boxes with headings [N], in ego axes."""
    cos, sin = (f(yaw).reshape(-1, *[1] * (vectors.ndim - 2)) for f in (torch.cos, torch.sin))
    x, y = vectors.unbind(-1)
    return torch.stack([cos * x - sin * y, sin * x + cos * y], dim=-1)


def adjusted(boxes: Tensor, change: Tensor) -> tuple[Tensor, Tensor]:
    """Centres and sizes, both [N, 3], of boxes [N, 7] moved and resized by `change` [N, 6 or more]: metres
    along, to the left and up, then the logarithms of the factors of the sizes, at most 2.
    """
    flat = boxes[:, :2] + from_box_axes(change[:, :2], boxes[:, 6])
    centres = torch.cat([flat, boxes[:, 2:3] + change[:, 2:3]], dim=1)
    return centres, boxes[:, 3:6] * change[:, 3:6].clamp(-2, 2).exp()
