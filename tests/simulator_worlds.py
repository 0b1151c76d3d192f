"""Hand-made worlds for the tests of the simulator."""

from __future__ import annotations

import math

import torch

from vlm_occ.data.simulator.objects import BOX, Ground, Solids
from vlm_occ.data.simulator.world import Appearance
from vlm_occ.geometry import quaternion_to_rotation
from vlm_occ.types import OCC3D_CLASSES

CAR, MANMADE = OCC3D_CLASSES.index("car"), OCC3D_CLASSES.index("manmade")


def random_solids(seed: int, count: int = 40, *, near: float = 3.0) -> Solids:
    """Tilted solids of all shapes around the ego."""
    g = torch.Generator().manual_seed(seed)
    distance, angle = near + 25 * torch.rand(count, generator=g), 2 * math.pi * torch.rand(count, generator=g)
    z = 3 * torch.rand(count, generator=g)
    return Solids(
        centre=torch.stack([distance * angle.cos(), distance * angle.sin(), z], dim=-1),
        rotation=quaternion_to_rotation(torch.randn(count, 4, generator=g)),
        half_size=0.05 + 2 * torch.rand(count, 3, generator=g),
        shape=torch.randint(0, 3, (count,), generator=g),
        colour=torch.rand(count, 3, generator=g),
        semantic=torch.full((count,), CAR),
        instance=torch.arange(count) // 2,
        reflectance=torch.full((count,), 0.5),
    )


def flat_ground(height: float = 0.0) -> Ground:
    """A level road."""
    semantic = torch.full((500, 500), OCC3D_CLASSES.index("driveable_surface"), dtype=torch.uint8)
    return Ground(height, (0.0, 0.0), (-100.0, -100.0), 0.4, semantic, torch.full((500, 500, 3), 0.3))


def daylight() -> Appearance:
    """A clear noon."""
    return Appearance(
        torch.tensor([0.0, 0.6, 0.8]), 0.7, 0.4, 1.0, 0.002, torch.tensor([0.5, 0.7, 0.9]), torch.ones(3)
    )


def wall(x: float) -> Solids:
    """A broad upright wall whose near side is at `x` ahead."""
    return Solids(
        centre=torch.tensor([[x + 0.5, 0.0, 3.0]]),
        rotation=torch.eye(3)[None],
        half_size=torch.tensor([[0.5, 30.0, 3.0]]),
        shape=torch.tensor([BOX]),
        colour=torch.full((1, 3), 0.5),
        semantic=torch.tensor([MANMADE]),
        instance=torch.tensor([-1]),
        reflectance=torch.tensor([0.5]),
    )
