"""Points with the colours that cameras see there (PointPainting, Vora et al. 2020), and what these tell.

A pixel of a box's face may show what stands before the box; a point of the LiDAR lies on the object itself.
"""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional

PAINT = 4
"""Colour in 0..1 less 0.5, and whether a camera sees the place."""
AROUND, ROAD = 0.6, 4
"""Metres beyond a box's sides at which the road is looked at, and at how many places a side."""
EDGES = (-1.2, -0.5, 0.0, 0.5, 1.2)
"""Heights between which points are read together, in halves of a box's: legs, coat, bonnet, roof."""
NEAR = 0.1
"""Metres beyond a box's sides within which points are the object's."""
VIVID = 8
"""Points of the strongest colour that are read by themselves: paint among glass and tyres."""
READ = 7 * (len(EDGES) - 1) + 3
"""Length of `painted_bands`."""


def paint(colours: Tensor, seen: Tensor) -> Tensor:
    """Colours [P, 3] in 0..1 of places that `seen` [P] cameras see, as what is read of them: [P, PAINT]."""
    visible = (seen[:, None] > 0).float()
    return torch.cat([(colours.float() - 0.5) * visible, visible], dim=-1)


def road_places() -> tuple[Tensor, Tensor]:
    """Places around a box at its foot: [4 ROAD, 3] in units of the size, and as far beyond in metres."""
    run = torch.linspace(-1, 1, ROAD + 1)[:-1]
    one = torch.ones(ROAD)
    sides = [(run, one), (one, -run), (-run, -one), (-one, run)]
    flat = torch.cat([torch.stack(side, dim=1) for side in sides])
    foot = torch.full((len(flat), 1), -0.5)
    return torch.cat([flat / 2, foot], dim=1), torch.cat([AROUND * flat, 0 * foot], dim=1)


def painted_bands(local: Tensor, painted: Tensor, now: Tensor, sizes: Tensor) -> Tensor:
    """Means and spreads of the colours of a box's own points by height, and its strongest colour: [N, READ].

    Points at `local` [N, P, 3] metres along, left and up of boxes of `sizes` [N, 3], `painted` [N, P, PAINT];
    `now` bool [N, P]: those of the latest sweep, whose places are where the cameras look.
    """
    half = sizes[:, None].clamp(min=0.1) / 2
    beside = (local[..., :2].abs() < half[..., :2] + NEAR).all(-1)
    own = now & beside & (painted[..., 3] > 0)
    height, colours = local[..., 2] / half[..., 2], painted[..., :3]
    read = []
    for low, high in pairwise(EDGES):
        band = (own & (height >= low) & (height < high)).to(colours.dtype)[..., None]
        count = band.sum(1)
        mean = (colours * band).sum(1) / count.clamp(min=1)
        square = ((colours - mean[:, None]).square() * band).sum(1) / count.clamp(min=1)
        read += [mean, square.clamp(min=1e-8).sqrt(), (count / 8).clamp(max=1)]
    strength = torch.where(own, colours.amax(-1) - colours.amin(-1), -1.0)
    strongest, place = strength.topk(min(VIVID, strength.shape[1]), dim=1)
    there = (strongest >= 0).to(colours.dtype)[..., None]
    vivid = colours.gather(1, place[..., None].expand(-1, -1, 3)) * there
    return torch.cat([*read, vivid.sum(1) / there.sum(1).clamp(min=1)], dim=-1)


class PaintReader(nn.Module):
    """What the colours of a box's points tell in the light that the road around it shows.

    Untrained it says nothing.
    """

    def __init__(self, out: int, *, width: int = 128) -> None:
        super().__init__()
        self.inner = nn.Linear(READ + 4 * ROAD * PAINT + 4, width)
        self.out = nn.Linear(width, out, bias=False)
        nn.init.zeros_(self.out.weight)

    def forward(self, bands: Tensor, road: Tensor, boxes: Tensor) -> Tensor:
        """`painted_bands` [N, READ] of `boxes` [N, 7], paint of the road [N, 4 ROAD, PAINT]: [N, out]."""
        shape = boxes[:, 3:6].clamp(min=0.05).log()
        far = boxes[:, :2].norm(dim=1, keepdim=True) / 20
        read = torch.cat([2 * bands, 2 * road.flatten(1), shape, far], dim=-1)
        return self.out(functional.gelu(self.inner(read)))
