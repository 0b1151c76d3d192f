"""The paper's systems under VLM-Occ's own training loop: `vlm-occ train configs/groundingocc_nano.yaml`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, cast

from torch import Tensor, nn

from vlm_occ.config import TrainConfig
from vlm_occ.encoders.inputs import collate_inputs, prepare_scene
from vlm_occ.losses.geometric import PAPER_WEIGHTS
from vlm_occ.models.baselines import Baseline
from vlm_occ.models.groundingocc import build_system
from vlm_occ.models.groundingocc_config import GroundingOccConfig
from vlm_occ.models.kept_features import KeptDepth, KeptFeatures
from vlm_occ.models.paper_batch import PaperOutput, QueryBatch
from vlm_occ.models.paper_checkpoint import (
    load_paper_state,
    load_paper_trunk,
    load_system,
    paper_state,
    save_system,
    take_over,
)
from vlm_occ.models.paper_terms import paper_terms, true_depth
from vlm_occ.models.sensors import PaperSensors
from vlm_occ.objectives import weighted_sum
from vlm_occ.run_config import check_config
from vlm_occ.run_scenes import Scenes, open_source
from vlm_occ.run_state import TrainingState, Weight
from vlm_occ.train import run_training
from vlm_occ.trainee import Trainee, occupied, to_device
from vlm_occ.types import LabelledScene, SceneLabels


@dataclass(frozen=True)
class PaperTrainConfig(TrainConfig):
    """One run of one of the paper's systems; what only VLM-Occ has (`model`, `lora_rate`) does nothing."""

    system: GroundingOccConfig = field(default_factory=GroundingOccConfig)
    features: str | None = None  # folder that keeps the frozen trunk's output; None computes it each time


class PaperTraining(Trainee[Baseline]):
    """One of the paper's systems in training."""

    def __init__(self, model: Baseline, config: PaperTrainConfig) -> None:
        super().__init__()
        self.model, self.config = model, config
        keeps = config.features is not None and not config.data.augment
        self.kept = KeptFeatures(cast(str, config.features), model) if keeps else None
        self.depth = KeptDepth(cast(str, config.features), model.config) if keeps else None

    def forward(self, scenes: Sequence[LabelledScene]) -> tuple[Tensor, dict[str, float]]:
        """The mean loss over the scenes' sentences and its terms."""
        model, device = self.model, self.model.device
        labels = [to_device(item.labels, device) for item in scenes]
        inputs = [prepare_scene(item.scene, model.config.inputs()).to(device) for item in scenes]
        seen = None if self.kept is None else self.kept(inputs, [item.scene.name for item in scenes])
        batch = QueryBatch(
            collate_inputs(inputs), tuple(item.queries for item in scenes), occupied(labels), seen
        )
        output = model(batch)
        depths = self._depths(output, labels, [item.scene.name for item in scenes])
        terms = paper_terms(output, batch, labels, model.config, grid=model.grid, depths=depths)
        if not terms:
            raise ValueError(f"scenes {[item.scene.name for item in scenes]} have no sentence to learn from")
        total, log = weighted_sum(terms, PAPER_WEIGHTS)
        return total + self.touch(), log

    def _depths(
        self, output: PaperOutput, labels: Sequence[SceneLabels], names: Sequence[str]
    ) -> list[Tensor] | None:
        """The true depths of the scenes, where they are kept and needed."""
        if self.depth is None or any(view.depth_logits is None for view in output.views):
            return None
        depths = []
        for view, truth, name in zip(output.views, labels, names, strict=True):
            make = partial(true_depth, view, truth, self.model.config, self.model.grid)
            depths.append(self.depth(name, make, truth.boxes.device))
        return depths

    def weight_names(self) -> dict[str, Weight]:
        """Checkpoints of the paper's systems have the model's own names."""
        return {name: Weight(name, value.shape) for name, value in paper_state(self.model).items()}

    def load(self, state: TrainingState, *, where: str) -> None:
        """Put the weights of a state into the system."""
        load_paper_state(self.model, state.weights, where=where)

    def groups(self) -> list[dict[str, Any]]:
        """One group at `head_rate`, and the trunk at `perception_rate` where it is trained."""
        rates = {"head": self.config.head_rate, "trunk": self.config.perception_rate}
        members: dict[str, list[nn.Parameter]] = {"head": [], "trunk": []}
        for name, parameter in self.model.named_parameters():
            if parameter.requires_grad:
                members["trunk" if name.startswith("sensors.trunk.") else "head"].append(parameter)
        return [{"params": p, "lr": rates[n], "base": rates[n]} for n, p in members.items() if p]

    def recompute(self) -> None:
        """Of the image network's blocks and the voxel encoder's layers, whose activations are large."""
        if not isinstance(self.model.sensors, PaperSensors):
            raise ValueError("checkpointing is for encoders 'paper'; a frozen trunk keeps no activations")
        self.model.sensors.recomputes = True
        if self.model.config.cameras:
            self.model.voxels.recomputes = True

    def finish(self, weights: dict[str, Tensor] | None, folder: Path | None) -> Baseline:
        """The finished system."""
        model = self.model
        if weights is not None:
            model = build_system(model.config, grid=model.grid)
            load_paper_state(model, weights, where="the trained system")
        model.config = replace(model.config, trained=True)
        if folder is not None:
            save_system(model, folder)
        return model


def initial_system(config: PaperTrainConfig) -> Baseline:
    """The system that a run starts from: fresh or with what fits of `init`, on the trunk of `trunk`."""
    system = build_system(config.system, seed=config.seed)
    if config.init:
        take_over(system, load_system(config.init))
    if config.trunk:
        load_paper_trunk(system, config.trunk)
    return system


def train_paper(
    config: PaperTrainConfig, *, source: Scenes | None = None, system: Baseline | None = None
) -> Baseline:
    """Run or resume training of a system; the finished one is saved in `config.out`/final and returned."""
    config = replace(config, model=replace(config.model, perception=config.system.perception))
    check_config(config)
    if config.stage not in ("grounding", "joint"):
        raise ValueError(f"stage {config.stage!r} is VLM-Occ's; the paper's systems train at stage 'joint'")
    source = source if source is not None else open_source(config)
    system = system if system is not None else initial_system(config)
    return run_training(PaperTraining(system, config), config, source)
