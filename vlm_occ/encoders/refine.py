"""Boxes refined by what lies in them: LiDAR points and pixels on their faces, a detector's second stage.

The bird's-eye view finds objects; where their ends are, which end is the front and whether they move is seen
in the points and pixels themselves, as in the second stages of PointRCNN (Shi et al. 2019) and CenterPoint
(Yin et al. 2021). The same small network looks several times: at the found box, then at what it made of it.
Points are painted (`encoders.painted`), and how bright the road around a box is tells the light.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from vlm_occ.config import RefinerConfig
from vlm_occ.encoders.painted import PAINT, ROAD, PaintReader, paint, painted_bands, road_places
from vlm_occ.encoders.voxel_tokens import Candidates
from vlm_occ.geometry import adjusted, from_box_axes, rotation_z, wrap_angle
from vlm_occ.types import COLOURS, TALK2OCC_CLASSES

MARGIN = 1.5
"""Metres around a box's circumscribed square in which points count as its own."""
GROUND = 0.12
"""Metres above the road below which a return is taken for the ground."""
WAVES = (2.0, 1.0, 0.5)
"""Metres of the waves that tell a point's place in the box finely."""
CHANNELS = 12
"""Outputs: offset (3, metres along, left, up), log sizes (3), sin and cos of twice the turn of the axis,
logit of being the wrong way round, velocity along and left (units of 2 m/s), logit of motion."""
CODE_CHANNELS = 192
"""Length of what a look knows of a box, from which its outputs and the heads read."""
_SEEN, _KNOWN = 96, 128
_GEOMETRY = 11


@dataclass(frozen=True)
class BoxContents:
    """What N boxes hold, in ego coordinates: independent of the boxes' headings but for the pixels."""

    boxes: Tensor  # [N, 7]
    points: Tensor  # [N, P, 5] x, y, z (ego), intensity, age; [N, P, 9] if painted: as `pixels` besides
    real: Tensor  # bool [N, P]: rows that are points
    pixels: Tensor  # [N, Q, 4] of Q places: colours in 0..1 - 0.5 and whether a camera sees the place
    known: Tensor  # [N, C + 2]: bird's-eye features, velocity x, y (m/s)


@dataclass(frozen=True)
class Refinement:
    """What one look says of N boxes."""

    boxes: Tensor  # [N, 7] as they were
    raw: Tensor  # [N, CHANNELS]
    code: Tensor  # [N, CODE_CHANNELS]: what the points and pixels in each box show
    label_logits: Tensor  # [N, 15]
    colour_logits: Tensor  # [N, 9]

    @property
    def moving_logits(self) -> Tensor:
        """Whether each moves [N]."""
        return self.raw[:, 11]

    def refined(self) -> Tensor:
        """The boxes [N, 7] as they should be."""
        turn = torch.atan2(self.raw[:, 6], self.raw[:, 7] + 1e-9) / 2 + math.pi * (self.raw[:, 8] > 0)
        yaw = wrap_angle(self.boxes[:, 6] + turn)
        return torch.cat([*adjusted(self.boxes, self.raw), yaw[:, None]], dim=1)

    def velocity(self) -> Tensor:
        """Velocities [N, 2] in m/s, ego axes."""
        return from_box_axes(2 * self.raw[:, 9:11], self.boxes[:, 6])


def face_places(config: RefinerConfig) -> Tensor:
    """Places [2 E + 3 S, 3] on the front, rear, left, right and top face, in units of the size, for ends of E
    and sides of S pixels.

    They may reach beyond the edges, so that a box that is too short shows what lies behind its end.
    """
    reach = (0.66, 0.72, 0.62, 0.56, 0.45) if config.beyond else (0.47, 0.47, 0.42, 0.4, 0.4)
    along, across, up, over, roof = reach
    (wide, high), (long, flat) = config.end_pixels, config.side_pixels
    end = torch.cartesian_prod(torch.linspace(-across, across, wide), torch.linspace(-0.42, up, high))
    side = torch.cartesian_prod(torch.linspace(-along, along, long), torch.linspace(-0.4, over, flat))
    top = torch.cartesian_prod(torch.linspace(-along, along, long), torch.linspace(-roof, roof, flat))
    ends = [torch.cat([torch.full((len(end), 1), x), end], dim=1) for x in (0.49, -0.49)]
    y = torch.full((len(side),), 0.49)
    sides = [torch.stack([side[:, 0], sign * y, side[:, 1]], dim=1) for sign in (1, -1)]
    return torch.cat([*ends, *sides, torch.cat([top, torch.full((len(top), 1), 0.5)], dim=1)])


def points_of(points: Tensor, boxes: Tensor, most: int) -> tuple[Tensor, Tensor]:
    """Points in and around each box: [N, most, C] of points [M, C], and which rows are some (bool)."""
    own = points.new_zeros(len(boxes), most, points.shape[1])
    real = torch.zeros(len(boxes), most, dtype=torch.bool, device=points.device)
    points = points[points[:, 2] > GROUND]
    if not len(points) or not len(boxes):
        return own, real
    reach = boxes[:, 3:5].norm(dim=1) / 2 + MARGIN
    top = boxes[:, 2] + boxes[:, 5] / 2 + 1.0
    inside = (points[:, 0] - boxes[:, :1]).abs() < reach[:, None]  # [N, M]
    inside &= (points[:, 1] - boxes[:, 1:2]).abs() < reach[:, None]
    inside &= points[:, 2] < top[:, None]
    row, place = inside.nonzero(as_tuple=True)
    count = inside.sum(1)
    rank = torch.arange(len(row), device=row.device) - (count.cumsum(0) - count)[row]
    total = count[row].clamp(min=most)  # of more points than there is room for, evenly chosen ones
    slot, before = rank * most // total, (rank - 1) * most // total
    kept = slot != before
    own[row[kept], slot[kept]], real[row[kept], slot[kept]] = points[place[kept]], True
    return own, real


class BoxRefiner(nn.Module):
    """Looks at boxes' contents and says how to move, turn and resize them, and what they are."""

    def __init__(self, birds_eye: int, config: RefinerConfig | None = None) -> None:
        super().__init__()
        self.config = config or RefinerConfig()
        hidden, encoded = self.config.point_widths
        painted = self.config.painted
        channels = 11 + (3 + 6 * len(WAVES)) * self.config.fine + PAINT * painted
        self.points = nn.Sequential(nn.Linear(channels, hidden), nn.GELU(), nn.Linear(hidden, encoded))
        self.own = nn.Linear(encoded, encoded, bias=False)
        self.shared = nn.Linear(2 * encoded, encoded)
        self.mixed = nn.Linear(encoded, encoded)
        end, side = (pixels[0] * pixels[1] for pixels in (self.config.end_pixels, self.config.side_pixels))
        self.faces = (end, end, side, side, side)
        self.ends = nn.Linear(4 * end, 64)
        self.sides, self.top = nn.Linear(4 * side, 48), nn.Linear(4 * side, 48)
        self.pixels = nn.Linear(2 * 64 + 3 * 48, _SEEN)
        self.norm = nn.LayerNorm(birds_eye)
        self.known = nn.Linear(birds_eye + _GEOMETRY, _KNOWN)
        joint = 2 * encoded + _SEEN + _KNOWN
        self.joint = nn.Sequential(nn.LayerNorm(joint), nn.Linear(joint, CODE_CHANNELS))
        self.paint = PaintReader(CODE_CHANNELS) if painted else None
        self.middle = nn.Sequential(nn.Linear(CODE_CHANNELS, CODE_CHANNELS), nn.GELU())
        self.out = nn.Linear(CODE_CHANNELS, CHANNELS)
        self.label = nn.Linear(CODE_CHANNELS, len(TALK2OCC_CLASSES))
        self.colour = nn.Linear(CODE_CHANNELS, len(COLOURS))
        for said in (self.out, self.label, self.colour):
            nn.init.zeros_(said.weight)
            nn.init.zeros_(said.bias)
        faces, (feet, beyond) = face_places(self.config), road_places()
        places = torch.cat([faces, feet]) if painted else faces
        metres = torch.cat([torch.zeros_like(faces), beyond]) if painted else torch.zeros_like(faces)
        self.register_buffer("places", places, persistent=False)
        self.register_buffer("beyond", metres, persistent=False)
        self.shakes = False  # in training boxes are shaken before a look; not where heads read what comes out

    def forward(self, contents: BoxContents) -> Refinement:
        """One look."""
        boxes = contents.boxes
        local, present = self._local_points(contents)
        faces, road = contents.pixels.split([sum(self.faces), 4 * ROAD * self.config.painted], dim=1)
        parts = [self._pooled(local, present), self._faces(faces), self._known(contents)]
        code = self.joint(torch.cat(parts, dim=-1))
        if self.paint is not None:
            now = contents.real & (contents.points[..., 4].abs() < 1e-3)
            bands = painted_bands(2 * local[..., :3], local[..., -PAINT:], now, boxes[:, 3:6])
            code = code + self.paint(bands, road, boxes)
        code = self.middle(functional.gelu(code))
        outputs = (self.out(code), code, self.label(code), self.colour(code))
        return Refinement(boxes, *(output.float() for output in outputs))

    def _local_points(self, contents: BoxContents) -> tuple[Tensor, Tensor]:
        """Points as boxes see them [N, P, C], and which are there [N, P, 1]."""
        boxes, points = contents.boxes, contents.points.float()
        flat = from_box_axes(points[..., :2] - boxes[:, None, :2], -boxes[:, 6])
        local = torch.cat([flat, points[..., 2:3] - boxes[:, None, 2:3]], dim=-1)
        age, half = points[..., 4:5], boxes[:, None, 3:6].clamp(min=0.1) / 2
        own = [local / 2, local / half]
        if self.config.fine:
            angles = local[..., None] * (2 * math.pi / local.new_tensor(WAVES))  # [N, P, 3, W]
            waves = torch.cat([angles.sin(), angles.cos()], dim=-1).flatten(2)
            own += [(local.abs() - half).clamp(-2, 2), waves]
        own += [points[..., 3:4], age * 2, points[..., 2:3] / 2, flat * age, points[..., 5:]]
        present = contents.real[..., None].float()
        return torch.cat(own, dim=-1) * present, present

    def _pooled(self, local: Tensor, present: Tensor) -> Tensor:
        """Two rounds of a network on each point and what all points say [N, 2 encoded]."""
        hidden = self.points(local)
        shared = self.shared(torch.cat(_pool(hidden, present), dim=-1))
        hidden = self.mixed(functional.gelu(self.own(hidden) + shared[:, None]))
        return torch.cat(_pool(hidden, present), dim=-1)

    def _faces(self, pixels: Tensor) -> Tensor:
        """What the pixels on the faces show [N, _SEEN]."""
        front, rear, left, right, top = pixels.split(self.faces, dim=1)
        looks = [self.ends(front.flatten(1)), self.ends(rear.flatten(1))]
        looks += [self.sides(left.flatten(1)), self.sides(right.flatten(1)), self.top(top.flatten(1))]
        return functional.gelu(self.pixels(functional.gelu(torch.cat(looks, dim=-1))))

    def _known(self, contents: BoxContents) -> Tensor:
        """What was known before [N, _KNOWN]."""
        boxes, known = contents.boxes, contents.known.float()
        yaw, distance = boxes[:, 6], boxes[:, :2].norm(dim=1)
        bearing = torch.atan2(boxes[:, 1], boxes[:, 0] + 1e-6) - yaw
        drift = (from_box_axes(known[:, -2:], -yaw) / 4).tanh()
        count = contents.real.sum(1).float().log1p() / 5
        columns = [distance / 20, bearing.cos(), bearing.sin(), yaw.cos(), yaw.sin(), count]
        plain = torch.cat([boxes[:, 3:6].clamp(min=0.05).log(), drift, torch.stack(columns, dim=-1)], dim=-1)
        return functional.gelu(self.known(torch.cat([self.norm(known[:, :-2]), plain], dim=-1)))

    def refine(
        self,
        candidates: Candidates,
        birds_eye: Tensor,
        points: Tensor,
        look: Callable[[Tensor], tuple[Tensor, Tensor]],
    ) -> tuple[Candidates, tuple[Refinement, ...]]:
        """Candidates of one scene with refined boxes and velocities, and what each look said.

        `birds_eye` [N, C] features, `points` [M, 5] of the scene, `look` from places [P, 3] to colours [P, 3]
        in 0..1 and how many cameras see each [P]. Without a candidate there is nothing to say.
        """
        known = torch.cat([birds_eye.detach().float(), candidates.velocity.detach().float()], dim=-1)
        points = self.painted(points, look)
        boxes, said = candidates.box.detach().float(), []
        for look_number in range(self.config.passes if len(boxes) else 0):
            if self.shakes and self.training:
                boxes = shaken(boxes, look_number)
            said.append(self(self.contents(boxes, known, points, look)))
            boxes = said[-1].refined().detach()
        if not said:
            return candidates, ()
        last = said[-1]
        return replace(candidates, box=last.refined(), velocity=last.velocity()), tuple(said)

    def painted(self, points: Tensor, look: Callable[[Tensor], tuple[Tensor, Tensor]]) -> Tensor:
        """Points [M, 5] above the road with what cameras see there [M', 9]; as they are if it reads none."""
        if not self.config.painted:
            return points
        points = points[points[:, 2] > GROUND]
        return torch.cat([points, paint(*look(points[:, :3])).to(points)], dim=1)

    def contents(
        self,
        boxes: Tensor,
        known: Tensor,
        points: Tensor,
        look: Callable[[Tensor], tuple[Tensor, Tensor]],
    ) -> BoxContents:
        """What boxes [N, 7] hold, of points that are `painted`."""
        places, beyond = cast(Tensor, self.places), cast(Tensor, self.beyond)
        local = places * boxes[:, None, 3:6] + beyond
        spots = local @ rotation_z(boxes[:, 6]).transpose(-1, -2) + boxes[:, None, :3]
        pixels = paint(*look(spots.flatten(0, 1))).unflatten(0, spots.shape[:2])
        return BoxContents(boxes, *points_of(points, boxes, self.config.points), pixels, known)


def _pool(values: Tensor, present: Tensor) -> tuple[Tensor, Tensor]:
    """Largest and mean values [N, C] of the points [N, P, C] that are there; 0 without any."""
    some = present.amax(1)
    return (values - 1e4 * (1 - present)).amax(1) * some, (values * present).sum(1) / present.sum(1).clamp(
        min=1
    )


def shaken(boxes: Tensor, seed: int) -> Tensor:
    """Boxes [N, 7], half of them a little off, half of them turned round: what the refiner learns from.

    The same for the same seed and number of boxes: two processes train as one, a resumed run as a whole one.
    """
    bits = torch.Generator().manual_seed(seed)
    noise, chance = torch.randn(len(boxes), 7, generator=bits), torch.rand(len(boxes), 2, generator=bits)
    noise = (noise * (chance[:, :1] < 0.5)).to(boxes.device)
    turned = (math.pi * (chance[:, 1] < 0.5)).to(boxes.device)
    centre = boxes[:, :3] + noise[:, :3] * boxes.new_tensor([0.25, 0.25, 0.1])
    sizes = boxes[:, 3:6] * (0.08 * noise[:, 3:6]).exp()
    yaw = boxes[:, 6] + math.radians(6) * noise[:, 6] + turned
    return torch.cat([centre, sizes, yaw[:, None]], dim=1)
