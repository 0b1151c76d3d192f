"""Several processes over gloo: the same curve as one, and FSDP2 rehearsed on the CPU."""

from __future__ import annotations

import json
import multiprocessing
import os
import socket
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest
import torch
import yaml
from tiny_runs import prepare, tiny_config, tiny_scenes

from vlm_occ.config import TrainConfig
from vlm_occ.models.checkpoint import read_shards
from vlm_occ.run_state import RunParts
from vlm_occ.train import train

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the tiny base model and two scenes."""
    return prepare(tmp_path_factory.getbasetemp() / "tiny")


def pretend_fsdp() -> None:
    """Make accelerate shard with FSDP2 on the CPU, which it offers on accelerators only."""
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState, PartialState
    from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin

    settings = yaml.safe_load((ROOT / "configs" / "accelerate" / "fsdp2.yaml").read_text())["fsdp_config"]
    for name, value in settings.items():
        os.environ[name.upper()] = str(value)
    Accelerator(cpu=True)
    for state in (AcceleratorState._shared_state, PartialState._shared_state):
        state["distributed_type"] = DistributedType.FSDP
    AcceleratorState._shared_state["fsdp_plugin"] = FullyShardedDataParallelPlugin()


def watch_shards() -> None:
    """Let every checkpoint check that the model is sharded, each layer of the language model by itself."""
    from torch.distributed.fsdp import FSDPModule
    from torch.distributed.tensor import DTensor

    from vlm_occ import train as training

    save = training.save_training_state

    def checked(out: Path, run: RunParts, step: int, *, keep: int, writes: bool = True) -> None:
        layers = cast(Any, run.model).backbone.model.model.language_model.layers
        assert len(layers) > 1 and all(isinstance(layer, FSDPModule) for layer in layers)
        assert all(isinstance(parameter, DTensor) for parameter in run.model.parameters())
        save(out, run, step, keep=keep, writes=writes)

    training.save_training_state = checked


def one_of_two(rank: int, port: int, config: TrainConfig, tiny: Path, fsdp: bool) -> None:
    """A process of a run of two."""
    values = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": 2, "LOCAL_WORLD_SIZE": 2, "MASTER_PORT": port}
    os.environ.update({name: str(value) for name, value in values.items()})
    os.environ.update(MASTER_ADDR="127.0.0.1", ACCELERATE_USE_CPU="true", OMP_NUM_THREADS="1")
    with Path(f"{config.out}.{rank}.err").open("w") as errors:
        os.dup2(errors.fileno(), sys.stderr.fileno())
        torch.set_num_threads(1)
        if fsdp:
            pretend_fsdp()
            watch_shards()
        train(config, source=tiny_scenes(tiny))
        torch.distributed.destroy_process_group()


def run_two(config: TrainConfig, tiny: Path, *, fsdp: bool = False) -> None:
    """Train with two processes."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    context = multiprocessing.get_context("spawn")
    both = [context.Process(target=one_of_two, args=(rank, port, config, tiny, fsdp)) for rank in range(2)]
    for process in both:
        process.start()
    for process in both:
        process.join(timeout=1800)
    errors = "\n".join(Path(f"{config.out}.{rank}.err").read_text()[-2000:] for rank in range(2))
    assert [process.exitcode for process in both] == [0, 0], errors


def curve(config: TrainConfig) -> list[dict[str, float]]:
    """The lines of a run's log."""
    return [json.loads(line) for line in (Path(config.out) / "log.jsonl").read_text().splitlines()]


def assert_same_curve(one: TrainConfig, other: TrainConfig) -> None:
    """Losses agree to 1e-5 at every step, relative where they are large."""
    a, b = curve(one), curve(other)
    assert len(a) == len(b) == one.steps
    for first, second in zip(a, b, strict=True):
        for name, value in first.items():
            assert second[name] == pytest.approx(value, rel=1e-5, abs=1e-5), (name, first, second)


@pytest.fixture(scope="module")
def alone(
    request: pytest.FixtureRequest, tiny: Path, tmp_path_factory: pytest.TempPathFactory
) -> TrainConfig:
    """The config of a finished run of one process with two scenes a step, at the seed of `request.param`.

    AdamW divides a gradient by its own size: where the true one is zero (the L1 losses of two boxes that pull
    one bias both ways), the step would have the sign of the rounding. `adam_eps` lets such weights rest.
    """
    config = tiny_config(tiny, tmp_path_factory.mktemp("alone") / "run")
    config = replace(config, seed=request.param, adam_eps=1e-3)
    config = replace(config, scenes_per_step=2, ema=0.5, perception_rate=2e-3)
    train(config, source=tiny_scenes(tiny))
    return config


def close(one: TrainConfig, other: TrainConfig) -> None:
    """The trained weights agree to a two-hundredth of the smallest learning rate."""
    a, b = (read_shards(Path(config.out) / "final") for config in (one, other))
    assert a.keys() == b.keys()
    difference = torch.cat([(b[name].float() - value.float()).abs().flatten() for name, value in a.items()])
    assert difference.max() < 1e-5


@pytest.mark.parametrize("alone", [0, 2], indirect=True)
def test_two_processes_have_the_curve_of_one_with_the_same_global_batch(
    tiny: Path, alone: TrainConfig, tmp_path: Path
) -> None:
    two = replace(alone, scenes_per_step=1, out=str(tmp_path / "two"))
    run_two(two, tiny)
    assert_same_curve(alone, two)
    close(alone, two)


@pytest.mark.parametrize("alone", [0], indirect=True)
def test_a_sharded_run_has_the_curve_of_one_process_and_goes_on_after_a_stop(
    tiny: Path, alone: TrainConfig, tmp_path: Path
) -> None:
    config = replace(alone, scenes_per_step=1, out=str(tmp_path / "sharded"))
    run_two(config, tiny, fsdp=True)
    assert_same_curve(alone, config)
    close(alone, config)
    whole = read_shards(tmp_path / "sharded" / "final")
    for name in ("final", "step-0000004"):
        (tmp_path / "sharded" / name).rename(tmp_path / name)
    run_two(config, tiny, fsdp=True)  # from step 2
    again = read_shards(tmp_path / "sharded" / "final")
    assert all(torch.equal(again[name], whole[name]) for name in whole)
