"""The state of a run on disk: written atomically, found again after a kill."""

from __future__ import annotations

import json
import os
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path

import torch
from accelerate import DistributedType
from torch import Tensor
from torch.distributed.tensor import DTensor, distribute_tensor

from vlm_occ.models.adapter import VLMOcc
from vlm_occ.models.checkpoint import load_model_state, model_state, read_shards, write_folder, write_shards
from vlm_occ.weights import sha256_of


@dataclass(frozen=True)
class TrainingState:
    """What a run needs to go on after `step` steps; names of weights are those of a checkpoint."""

    step: int
    weights: dict[str, Tensor]
    optimizer: dict[str, Tensor]  # "INDEX.FIELD", INDEX of the parameter in the optimiser
    average: dict[str, Tensor]  # by the parameter's name in the model


@dataclass(frozen=True)
class RunParts:
    """What of a run changes with its steps."""

    model: torch.nn.Module
    names: dict[str, Weight]  # see `weight_names`
    optimizer: torch.optim.Optimizer
    averaged: dict[str, Tensor]  # by the parameter's name in the model; empty without averages
    kind: DistributedType

    @property
    def keeps_optimizer(self) -> bool:
        """Whether the optimiser's state is ours to save; DeepSpeed's is in pieces of its own."""
        return self.kind != DistributedType.DEEPSPEED


@dataclass(frozen=True)
class Weight:
    """A weight of a checkpoint: its name and shape there."""

    saved: str
    shape: torch.Size


def weight_names(model: VLMOcc) -> dict[str, Weight]:
    """What each of our weights is in a checkpoint, by its name in the model.

    Ask before FSDP shards the model: afterwards the backbone no longer finds its own parameters.
    """
    own = {id(parameter): name for name, parameter in model.backbone._trainable.items()}
    state = model_state(model)
    names = {name: Weight(name, value.shape) for name, value in state.items() if not _of_backbone(name)}
    for name, parameter in model.named_parameters():
        if id(parameter) in own:
            names[name] = Weight(f"backbone.{own[id(parameter)]}", parameter.shape)
    return names


def make_shardable(model: torch.nn.Module) -> None:
    """Give scalar parameters one dimension and all a contiguous layout: FSDP2 shards no others.

    ValueError for a quantised base, whose scales would stay behind.
    """
    if isinstance(model, VLMOcc) and model.config.quantization != "none":
        raise ValueError(
            f"quantization = {model.config.quantization!r} under FSDP, which cannot shard quantised layers; "
            "use configs/accelerate/multi_gpu.yaml, or quantization: none"
        )
    for module in model.modules():
        for name, parameter in list(module.named_parameters(recurse=False)):
            if parameter.ndim == 0:
                setattr(module, name, torch.nn.Parameter(parameter.detach().reshape(1)))
            else:
                parameter.data = parameter.data.contiguous()


def whole(tensor: Tensor) -> Tensor:
    """A tensor of any device, or the joined shards of a distributed one (then all processes must ask), on
    the CPU.
    """
    joined = tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
    return joined.detach().cpu()


def run_weights(run: RunParts) -> dict[str, Tensor]:
    """Our weights by the names of a checkpoint; all processes must ask for them."""
    tensors = {**dict(run.model.named_buffers()), **dict(run.model.named_parameters())}
    return {item.saved: whole(tensors[name]).reshape(item.shape) for name, item in run.names.items()}


def save_training_state(out: Path, run: RunParts, step: int, *, keep: int, writes: bool = True) -> None:
    """Write weights, optimiser state and averages of a step into `out`/step-N, at once or not at all.

    All processes must ask for it; the one that `writes` writes, and deletes all but the newest `keep`.
    """
    state = {f"model.{name}": tensor for name, tensor in run_weights(run).items()}
    if run.keeps_optimizer:
        for index, values in run.optimizer.state_dict()["state"].items():
            for name, value in values.items():
                state[f"optimizer.{index}.{name}"] = whole(torch.as_tensor(value))
    state.update({f"average.{name}": whole(value) for name, value in run.averaged.items()})
    if not writes:
        return

    def write(path: Path) -> None:
        write_shards(dict(sorted(state.items())), path)
        sums = {file.name: sha256_of(file) for file in sorted(path.iterdir())}
        (path / "step.json").write_text(json.dumps({"step": step, "sha256": sums}) + "\n")

    write_folder(out / f"step-{step:07d}", write)
    for old in sorted(out.glob("step-*"))[:-keep]:
        shutil.rmtree(old)


def newest_state(out: Path) -> TrainingState | None:
    """The newest good training state in `out`; damaged ones are skipped with a message."""
    for folder in sorted(out.glob("step-*"), reverse=True):
        try:
            state = read_training_state(folder)
        except (ValueError, OSError, KeyError) as error:
            print(f"vlm-occ: skipping {folder}: {error}", file=sys.stderr)
            continue
        print(f"vlm-occ: resuming {out} from step {state.step}", file=sys.stderr)
        return state
    return None


def read_training_state(folder: Path) -> TrainingState:
    """What `save_training_state` wrote; ValueError where a file is missing, cut off or changed."""
    about = json.loads((folder / "step.json").read_text())
    for name, expected in about.get("sha256", {}).items():
        if sha256_of(folder / name) != expected:
            raise ValueError(f"{name} is not what was written ({(folder / name).stat().st_size} bytes)")
    state = read_shards(folder)
    parts = [_part(state, kind) for kind in ("model.", "optimizer.", "average.")]
    return TrainingState(int(about["step"]), *parts)


def load_weights(state: TrainingState, model: VLMOcc, *, where: str) -> None:
    """Put the weights of a state into a model that no process shares yet."""
    load_model_state(model, state.weights, where=where)


def load_optimizer(state: TrainingState, run: RunParts) -> None:
    """Put the optimiser's state and the averages of a state in place, sharded as the parameters are."""
    named = dict(run.model.named_parameters())
    for name, value in state.average.items():
        run.averaged[name].copy_(shared_like(value, named[name]))
    if not run.keeps_optimizer:
        print("vlm-occ: DeepSpeed's optimiser starts anew; only weights are resumed", file=sys.stderr)
        return
    parameters = [parameter for group in run.optimizer.param_groups for parameter in group["params"]]
    saved: dict[int, dict[str, Tensor]] = {}
    for name, value in state.optimizer.items():
        index, field = name.split(".", 1)
        value = value if field == "step" else shared_like(value, parameters[int(index)])
        saved.setdefault(int(index), {})[field] = value
    plain = run.optimizer.state_dict()
    plain["state"] = saved
    run.optimizer.load_state_dict(plain)


def average(averaged: dict[str, Tensor], model: torch.nn.Module, decay: float) -> None:
    """Exponential moving average of the trained weights."""
    if averaged:
        parameters = dict(model.named_parameters())
        for name, value in averaged.items():
            value.lerp_(parameters[name].detach(), 1 - decay)


def restore_average(averaged: dict[str, Tensor], model: torch.nn.Module) -> None:
    """Put the averaged weights into the model."""
    parameters = dict(model.named_parameters())
    with torch.no_grad():
        for name, value in averaged.items():
            parameters[name].copy_(value)


def shared_like(value: Tensor, parameter: Tensor) -> Tensor:
    """This process's part of a whole tensor, where `parameter` is distributed."""
    if not isinstance(parameter, DTensor):
        return value
    value = value.reshape(parameter.shape).to(parameter.device)
    return distribute_tensor(value, parameter.device_mesh, parameter.placements)


def whole_text(path: Path, text: str) -> None:
    """Write a small file at once or not at all."""
    temporary = path.with_name(f".{path.name}.new")
    temporary.write_text(text)
    os.replace(temporary, path)


def remove_leftovers(out: Path) -> None:
    """Delete what a killed run left half written in `out`."""
    for folder in out.glob(".step-*"):
        shutil.rmtree(folder, ignore_errors=True)


def _of_backbone(name: str) -> bool:
    return name.startswith("backbone.")


def _part(state: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}
