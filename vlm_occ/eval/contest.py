"""The contest: all systems train and are scored on the same scenes and sentences, from one trunk.

Each finished system is kept, so a contest that was stopped goes on where it was. A sentence means exactly one
object, in training and in scoring, as in Talk2Occ.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

from vlm_occ.config import DataConfig, ModelConfig, PerceptionConfig, TrainConfig
from vlm_occ.data.dataset import Talk2OccDataset
from vlm_occ.data.store import SimulatedScenes
from vlm_occ.eval.contenders import Scores, score
from vlm_occ.eval.contest_config import CONTENDING, FREE_TO_CHANGE, ContestConfig
from vlm_occ.eval.evaluate import Scenes
from vlm_occ.eval.report import circumstances, write_json
from vlm_occ.models.adapter import VLMOcc
from vlm_occ.models.baselines import Baseline
from vlm_occ.models.checkpoint import find_checkpoint, read_config, read_shards
from vlm_occ.models.groundingocc_config import GroundingOccConfig, baseline, table3, table4
from vlm_occ.models.load import load_model
from vlm_occ.paper_train import PaperTrainConfig, train_paper
from vlm_occ.run_scenes import with_one_target
from vlm_occ.timing import default_device
from vlm_occ.train import train
from vlm_occ.types import LabelledScene


class Contest:
    """The scenes of a contest and what its systems have scored so far."""

    def __init__(self, config: ContestConfig) -> None:
        """ValueError where the folder holds a contest of other settings, or the trunk is none."""
        self.config, self.out = config, Path(config.out)
        self.perception = trunk_config(config.trunk, config.camera_frames)
        self._keep_settings()
        self.validation = OneTarget(self.scenes("val"))
        self.system = GroundingOccConfig(perception=self.perception, text=config.text)
        if config.width:
            self.system = replace(self.system, width=config.width)

    def _keep_settings(self) -> None:
        """Write the contest's settings, or compare them with those that are there."""
        path = self.out / "contest.json"
        ours = {k: v for k, v in asdict(self.config).items() if k not in FREE_TO_CHANGE}
        ours["trunk_sha256"] = trunk_digest(self.config.trunk)
        if not path.exists():
            write_json(ours, path)
        theirs = json.loads(path.read_text())
        for name, value in ours.items():
            if theirs.get(name) != value:
                raise ValueError(
                    f"{self.out} holds a contest with {name} = {theirs.get(name)}, this one asks for "
                    f"{value}; give another --out, or delete the folder"
                )

    def scenes(self, split: Literal["train", "val"]) -> Scenes:
        """The scenes of training or of the evaluation, with all their sentences."""
        config = self.config
        if config.data != "sim":
            return Talk2OccDataset(config.data, split, num_frames=config.num_frames)
        training = split == "train"
        return SimulatedScenes(
            split,
            config.scenes if training else config.eval_scenes,
            num_frames=config.num_frames,
            camera_frames=config.camera_frames,
            num_queries=config.queries if training else config.eval_queries,
            balanced=training,
            lexicon="train" if training else config.lexicon,
            folder=Path(config.pool or self.out / "train") if training else self.out / "val",
            first=config.first_scene if training else 0,
        )

    def scored(self, name: str, *, seed: int = 0, steps: int | None = None) -> Scores:
        """The scores of a system by its name in the tables; trained first where it is not yet.

        A name of `own_systems` or of `paper_systems`.
        """
        folder = self.folder(name, seed=seed, steps=steps)
        path = folder / "scores.json"
        if not path.exists():
            start = time.perf_counter()
            model = self.trained(name, seed=seed, steps=steps)
            seconds = time.perf_counter() - start
            scores = score(model, self.validation, features=self.features())
            made = {"train_seconds": round(seconds, 1), **circumstances()}
            write_json({**made, **scores.as_dict()}, path, indent=None)
        return Scores.from_dict(json.loads(path.read_text()))

    def seeds_of(self, name: str, *, steps: int | None = None) -> list[int]:
        """The seeds of a system that are asked for; when assembling, those of them that are scored."""
        asked = range(self.config.seeds if name in CONTENDING else 1)
        if not self.config.assemble:
            return list(asked)
        return [s for s in asked if (self.folder(name, seed=s, steps=steps) / "scores.json").exists()]

    def made(self, name: str, *, seed: int = 0, steps: int | None = None) -> dict[str, Any]:
        """How a finished system was made: `train_seconds` (of its last part, where it was resumed), commit,
        machine.
        """
        kept = json.loads((self.folder(name, seed=seed, steps=steps) / "scores.json").read_text())
        return {k: kept[k] for k in ("train_seconds", "commit", "hardware", "torch")}

    def folder(self, name: str, *, seed: int = 0, steps: int | None = None) -> Path:
        """Where a system's run is."""
        return self.out / f"steps-{steps or self.config.steps:06d}" / f"{name}-seed{seed}"

    def trained(self, name: str, *, seed: int = 0, steps: int | None = None) -> VLMOcc | Baseline:
        """A trained system, ready to answer."""
        folder, steps = self.folder(name, seed=seed, steps=steps), steps or self.config.steps
        if not (folder / "final").exists():
            own = self.own_systems().get(name)
            if own is not None:
                self._train_vlm(folder, own, seed, steps)
            else:
                self._train_paper(folder, self.paper_systems()[name], seed, steps)
        return load_model(str(folder / "final"), device=default_device())

    def own_systems(self) -> dict[str, ModelConfig]:
        """VLM-Occ, and VLM-Occ without one of its parts each, by name."""
        perception = replace(self.perception, camera_frames=1)
        whole = ModelConfig(base=self.config.base, dtype=self.config.vlm_dtype, perception=perception)
        return {
            "VLM-Occ": whole,
            "no-pose-tokens": replace(whole, pose_source="none"),
            "no-voxel-tokens": replace(whole, voxel_tokens=False),
            "no-lora": replace(whole, lora=None),
            "random-language": replace(whole, language_weights="random"),
            "all-frames": replace(whole, vlm_frames=self.config.num_frames),
        }

    def paper_systems(self) -> dict[str, GroundingOccConfig]:
        """The systems of Table II that learn, and the further rows of Tables III and IV, by name."""
        modules, losses = table3(self.system), table4(self.system)
        return {
            "L-baseline": baseline(self.system, "L"),
            "C-baseline": baseline(self.system, "C"),
            "M-baseline": modules[0],
            "GroundingOcc": losses[3],
            "multi-frame": modules[1],
            "depth": modules[2],
            "2d-head": modules[3],
            "geometric": losses[1],
            "geo-scal": losses[2],
        }

    def _run(self, folder: Path, seed: int, steps: int) -> dict[str, object]:
        """Fields of a run that all systems share: they see the same sentences in the same order."""
        config = self.config
        data = DataConfig(
            scenes=config.scenes,
            num_frames=config.num_frames,
            queries=config.queries,
            one_target=True,
            augment=False,
        )
        return {
            "out": str(folder),
            "trunk": config.trunk,
            "stage": "grounding",
            "data": data,
            "seed": seed,
            "steps": steps,
            "queries_per_scene": config.queries_per_scene,
            "warmup": max(min(50, steps // 10), 1),
            "save_every": config.save_every,
            "keep_checkpoints": 1,
            "tracker": "none",
            "until_time": config.until_time,
        }

    def features(self) -> str | None:
        """Where the frozen trunk's output is kept."""
        return str(self.out / "features") if self.config.keep_features else None

    def _train_paper(self, folder: Path, system: GroundingOccConfig, seed: int, steps: int) -> None:
        train_paper(self.paper_run(folder, system, seed=seed, steps=steps), source=self.scenes("train"))

    def paper_run(
        self, folder: Path, system: GroundingOccConfig, *, seed: int, steps: int
    ) -> PaperTrainConfig:
        """The run of one of the paper's systems."""
        return PaperTrainConfig(
            **self._run(folder, seed, steps),  # type: ignore[arg-type]
            system=system,
            features=self.features(),
            head_rate=self.config.rate,
        )

    def _train_vlm(self, folder: Path, model: ModelConfig, seed: int, steps: int) -> None:
        """VLM-Occ from its pretrained language model and the shared trunk: the pointer first, then all."""
        config = self.config
        first = min(round(config.pointer_share * steps), steps - 1)
        run = TrainConfig(
            **self._run(folder, seed, steps - first),  # type: ignore[arg-type]
            model=model,
            head_rate=config.vlm_head_rate,
            pointer_rate=config.vlm_pointer_rate if first else config.vlm_head_rate,
            input_rate=config.vlm_input_rate,
            lora_rate=config.vlm_lora_rate,
            clip=config.vlm_clip,
        )
        if first:
            done = folder / "pointer" / "final"
            words = replace(
                run,
                out=str(folder / "pointer"),
                stage="pointer",
                steps=first,
                pointer_rate=config.vlm_head_rate,
                perception_rate=config.vlm_token_rate,
                data=replace(run.data, label_tokens=0.3),
            )
            if not done.exists():
                train(words, source=self.scenes("train"))
            skip = first * run.scenes_per_step
            run = replace(run, init=str(done), trunk=None, data=replace(run.data, skip=skip))
        train(run, source=self.scenes("train"))

    def grown(self, tell: Callable[[str], None]) -> Contest:
        """The contest at the first budget at which GroundingOcc-Refine passes `until`, or at the largest."""
        config, steps = self.config, self.config.steps
        if config.assemble:
            return self
        while True:
            found = self.scored("GroundingOcc", steps=steps).refined
            accuracy = sum(r.iou > 0.25 for r in found) / max(len(found), 1)
            tell(f"{steps} steps: GroundingOcc-Refine reaches Acc@0.25 of {100 * accuracy:.2f} %")
            if accuracy >= config.until or 2 * steps > config.most_steps:
                return Contest(replace(config, steps=steps))
            steps *= 2


@dataclass(frozen=True)
class OneTarget:
    """Scenes with only those sentences that mean exactly one object."""

    scenes: Scenes

    def __len__(self) -> int:
        """Number of scenes."""
        return len(self.scenes)

    def __getitem__(self, index: int) -> LabelledScene:
        """Scene `index`."""
        return with_one_target(self.scenes[index])


def trunk_config(name: str, camera_frames: int) -> PerceptionConfig:
    """The trunk's config in a checkpoint, for `camera_frames` frames of voxel queries."""
    folder = find_checkpoint(name)
    if folder is None:
        raise ValueError(f"--trunk {name!r} has no trained weights; give a checkpoint of stage 'perception'")
    return replace(read_config(folder)[0].perception, camera_frames=camera_frames)


def trunk_digest(name: str) -> str:
    """A sum over the trunk's weights in a checkpoint, wherever it lies and whatever else it holds."""
    folder, digest = find_checkpoint(name), hashlib.sha256()
    assert folder is not None  # `trunk_config` has looked
    for key, value in sorted(read_shards(folder).items()):
        if key.startswith("perception."):
            digest.update(key.encode() + value.float().numpy().tobytes())
    return digest.hexdigest()
