"""What a frozen trunk says of scenes, kept in a folder: every system and epoch after the first reads it."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn import functional

from vlm_occ.encoders.inputs import SceneInputs
from vlm_occ.models.baselines import Baseline
from vlm_occ.models.groundingocc_config import GroundingOccConfig
from vlm_occ.models.sensors import TrunkFeatures, TrunkSensors

PLAIN = ("fused", "coarse", "fine", "occupancy", "boxes", "known")
"""Features that are one tensor."""


class KeptFeatures:
    """Trunk features of scenes by name, one file each of about 9 MB, at half precision.

    Files are shared by all systems of the same trunk, sensors and frames. What is read is what a first look
    gives, to the bit, so a resumed run does not differ.
    """

    def __init__(self, folder: str | Path, system: Baseline) -> None:
        """ValueError where the system's trunk is not frozen."""
        config = system.config
        if not isinstance(system.sensors, TrunkSensors) or config.train_trunk:
            raise ValueError("features of a trunk that is trained can't be kept; leave the folder out")
        digest = hashlib.sha256(
            repr((config.inputs(), config.query_shape, config.grounding_queries)).encode()
        )
        for name, value in system.sensors.trunk.state_dict().items():
            digest.update(name.encode() + value.detach().cpu().float().numpy().tobytes())
        self.folder, self.sensors = Path(folder) / digest.hexdigest()[:16], system.sensors
        self.folder.mkdir(parents=True, exist_ok=True)

    def __call__(self, inputs: Sequence[SceneInputs], names: Sequence[str]) -> TrunkFeatures:
        """The features of scenes, each with inputs of its own, joined in their order."""
        parts = [self._scene(item, name) for item, name in zip(inputs, names, strict=True)]
        levels = zip(*(part.levels for part in parts), strict=True)
        return TrunkFeatures(
            levels=tuple(torch.cat(level).float() for level in levels),
            fused=torch.cat([part.fused for part in parts]).float(),
            coarse=torch.cat([part.coarse for part in parts]).float(),
            fine=torch.cat([part.fine for part in parts]).float(),
            occupancy=torch.cat([part.occupancy for part in parts]).float(),
            boxes=torch.cat([part.boxes for part in parts]),
            known=torch.cat([part.known for part in parts]),
        )

    def _scene(self, inputs: SceneInputs, name: str) -> TrunkFeatures:
        path, device = scene_file(self.folder, name), inputs.intrinsics.device
        try:
            return from_tensors({key: value.to(device) for key, value in load_file(path).items()})
        except (OSError, SafetensorError, KeyError):  # none yet, or damaged: look again
            pass
        with torch.no_grad():
            seen = halved(self.sensors.observe(inputs), self.sensors.config.query_shape)
        write_tensors(to_tensors(seen), path)
        return seen


class KeptDepth:
    """The true depth of scenes' cells by name: rendering it takes a GPU a thousand small launches.

    In a folder, one file a scene, and in memory.
    """

    def __init__(self, folder: str | Path, config: GroundingOccConfig) -> None:
        digest = hashlib.sha256(repr((config.inputs().image_size, config.depth_rays)).encode())
        self.folder, self.seen = Path(folder) / f"depth-{digest.hexdigest()[:16]}", dict[str, Tensor]()
        self.folder.mkdir(parents=True, exist_ok=True)

    def __call__(self, name: str, make: Callable[[], Tensor], device: torch.device) -> Tensor:
        """The depth [V, h, w] of the scene `name`, as `make` gives it where it is not kept."""
        found = self.seen.get(name)
        if found is None:
            path = scene_file(self.folder, name)
            try:
                found = load_file(path)["depth"]
            except (OSError, SafetensorError, KeyError):
                found = make()
                write_tensors({"depth": found}, path)
            self.seen[name] = found = found.to(device)
        return found


def scene_file(folder: Path, name: str) -> Path:
    """Where a folder keeps what is known of the scene `name`."""
    return folder / f"{hashlib.sha256(name.encode()).hexdigest()[:24]}.safetensors"


def write_tensors(tensors: Mapping[str, Tensor], path: Path) -> None:
    """Write tensors under a name of this process's own, then rename."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    save_file({key: value.cpu().contiguous() for key, value in tensors.items()}, temporary)
    os.replace(temporary, path)


def halved(seen: TrunkFeatures, shape: tuple[int, int, int]) -> TrunkFeatures:
    """The features at half precision, the fused volume at the voxel queries' `shape`; candidates whole."""
    return replace(
        seen,
        levels=tuple(level.bfloat16() for level in seen.levels),
        fused=functional.adaptive_avg_pool3d(seen.fused, shape).bfloat16(),
        coarse=seen.coarse.bfloat16(),
        fine=seen.fine.bfloat16(),
        occupancy=seen.occupancy.bfloat16(),
    )


def to_tensors(seen: TrunkFeatures) -> dict[str, torch.Tensor]:
    """The features by name, for a file."""
    levels = {f"level{number}": level for number, level in enumerate(seen.levels)}
    return {**levels, **{name: getattr(seen, name) for name in PLAIN}}


def from_tensors(tensors: dict[str, torch.Tensor]) -> TrunkFeatures:
    """What `to_tensors` made."""
    levels = tuple(tensors[f"level{n}"] for n in range(sum(name.startswith("level") for name in tensors)))
    return TrunkFeatures(levels=levels, **{name: tensors[name] for name in PLAIN})
