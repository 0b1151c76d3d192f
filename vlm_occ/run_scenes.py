"""Which scenes and sentences a run sees at each of its steps: a function of the seed and the step alone."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

import torch
from torch.utils.data import DataLoader

from vlm_occ.config import TRUNK_STAGES, TrainConfig
from vlm_occ.data.augment import augment
from vlm_occ.data.store import SimulatedScenes, permutation, random_bits
from vlm_occ.types import GroundingQuery, LabelledScene


class Scenes(Protocol):
    """Any indexed collection of labelled scenes."""

    def __len__(self) -> int: ...
    def __getitem__(self, index: int, /) -> LabelledScene: ...


def draw_queries(
    item: LabelledScene, count: int, language_share: float, bits: torch.Generator
) -> LabelledScene:
    """The scene with `count` of its sentences; only a share of them keeps the answer's words."""
    order = torch.randperm(len(item.queries), generator=bits)[:count].tolist()
    spoken = (torch.rand(len(order), generator=bits) < language_share).tolist()
    queries: list[GroundingQuery] = []
    for index, keep in zip(order, spoken, strict=True):
        query = item.queries[index]
        queries.append(query if keep else replace(query, answer=""))
    return replace(item, queries=tuple(queries))


def draw_turns(item: LabelledScene, count: int, bits: torch.Generator) -> LabelledScene:
    """The scene with `count` of its situations and questions, as likely one as the other."""
    number = len(item.situations)
    order = torch.randperm(number + len(item.questions), generator=bits)[:count].tolist()
    return replace(
        item,
        situations=tuple(item.situations[index] for index in order if index < number),
        questions=tuple(item.questions[index - number] for index in order if index >= number),
    )


def with_one_target(item: LabelledScene) -> LabelledScene:
    """The scene with only those sentences that mean exactly one object."""
    return replace(item, queries=tuple(query for query in item.queries if len(query.targets) == 1))


@dataclass(frozen=True)
class StepScenes:
    """The scenes of one process by the number of its forward: a function of the seed and that alone."""

    source: Scenes
    config: TrainConfig
    process: int = 0
    processes: int = 1

    def __len__(self) -> int:
        """Forwards of the whole run."""
        return self.config.steps * self.config.accumulation

    def __getitem__(self, forward: int) -> list[LabelledScene]:
        """The `scenes_per_step` scenes of a forward, augmented, each with its share of sentences."""
        count = self.config.scenes_per_step
        first = (forward * self.processes + self.process) * count + self.config.data.skip
        return [self._scene(number) for number in range(first, first + count)]

    def _scene(self, number: int) -> LabelledScene:
        config, source = self.config, self.source
        bits = random_bits(config.seed + 17, number)
        if config.data.replays:
            new, again = divmod(number, config.data.replays + 1)
            number = int(torch.randint(new + 1, (), generator=bits)) if again else new
        epoch, place = divmod(number, len(source))
        index = int(permutation(len(source), config.seed, epoch)[place])
        # Whether an epoch has sentences of its own.
        renews = config.data.renew and isinstance(source, SimulatedScenes | MixedScenes)
        fresh = epoch * len(source) if renews else 0
        item = source[fresh + index]
        if config.data.one_target:
            item = with_one_target(item)
        item = draw_queries(item, config.queries_per_scene, config.language_share, bits)
        if config.turns_per_scene:
            item = draw_turns(item, config.turns_per_scene, bits)
        if not config.data.augment:
            return item
        turn = 20.0 if config.stage in TRUNK_STAGES else 2.0  # large turns would make sentences untrue
        return augment(item, bits, config.data, geometric=config.stage != "grounding", turn=turn)


def step_loader(scenes: StepScenes, start: int) -> Iterator[list[LabelledScene]]:
    """The scenes of each forward from step `start` on, made ahead by `data.workers` processes."""
    order = range(start * scenes.config.accumulation, len(scenes))
    loader = DataLoader(
        scenes,  # type: ignore[arg-type]
        batch_size=None,
        sampler=order,
        num_workers=scenes.config.data.workers,
        multiprocessing_context="spawn" if scenes.config.data.workers else None,
    )
    return iter(loader)


@dataclass(frozen=True)
class MixedScenes:
    """Simulated and recorded scenes by turns; the shorter of the two comes round again."""

    simulated: Scenes
    recorded: Scenes

    def __len__(self) -> int:
        """Twice the longer one's."""
        return 2 * max(len(self.simulated), len(self.recorded))

    def __getitem__(self, index: int) -> LabelledScene:
        """Scene `index`: even ones simulated, odd ones recorded."""
        half, odd = divmod(index, 2)
        if odd:
            return self.recorded[half % len(self.recorded)]
        return self.simulated[
            half if isinstance(self.simulated, SimulatedScenes) else half % len(self.simulated)
        ]


def open_source(config: TrainConfig) -> Scenes:
    """The scenes that a run trains on: simulated, from the folder of `vlm-occ data talk2occ`, or both."""
    if config.data.source == "simulator":
        return open_simulated(config)
    if config.data.source == "talk2occ":
        return open_recorded(config)
    return MixedScenes(open_simulated(config), open_recorded(config))


def pool_size(config: TrainConfig) -> int:
    """Scenes of a run's pool; `data.scenes` 0 is a new scene for every forward of every process."""
    processes = int(os.environ.get("WORLD_SIZE", "1"))
    total = config.steps * config.scenes_per_step * config.accumulation * processes
    return config.data.scenes or total


def open_simulated(config: TrainConfig) -> SimulatedScenes:
    """The pool of simulated scenes, with the sentences of a run."""
    data = config.data
    return SimulatedScenes(
        "train",
        pool_size(config),
        num_frames=data.num_frames,
        camera_frames=min(
            max(config.model.perception.camera_frames, config.model.vlm_frames), data.num_frames
        ),
        num_queries=0 if config.stage in TRUNK_STAGES else data.queries,
        num_situations=data.situations,
        num_questions=data.questions,
        views=config.model.spatial is not None and config.stage in ("grounding", "joint"),
        balanced=data.balanced,
        lexicon=data.lexicon,
        folder=Path(data.keep) if data.keep else None,
        first=data.first_scene,
    )


def open_recorded(config: TrainConfig) -> Scenes:
    """The training part of a Talk2Occ folder."""
    if config.data.folder is None:
        raise ValueError(
            f"data.source is {config.data.source!r} but data.folder is not given; give the folder that "
            "`vlm-occ data talk2occ --out` wrote"
        )
    from vlm_occ.data.dataset import Talk2OccDataset

    return Talk2OccDataset(config.data.folder, "train", num_frames=config.data.num_frames)
