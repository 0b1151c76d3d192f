"""A conversation about one scene: encoded once, asked many times, every turn remembered."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal, Protocol, cast, runtime_checkable

from vlm_occ.situated import Situation
from vlm_occ.types import GroundingResult, SceneState

REMEMBERED = 3  # turns that a question is read with; more would push the scene out of a small model's mind

TurnKind = Literal["ground", "ask", "locate"]


class Answerer(Protocol):
    """What a conversation needs of a model; `VLMOcc` has it."""

    def ground(self, state: SceneState, query: str, *, refine: bool = False) -> GroundingResult:
        """The objects that a sentence means."""
        ...

    def ask(self, state: SceneState, question: str) -> str:
        """Words about the scene."""
        ...


class SituatedAnswerer(Protocol):
    """A model that answers from where somebody stands."""

    def ask(self, state: SceneState, question: str, *, situation: str | Situation | None = None) -> str:
        """Words about the scene, from a situation."""
        ...


@runtime_checkable
class Locator(Protocol):
    """A model with a situation head."""

    def locate(self, state: SceneState, description: str) -> Situation:
        """Where a described agent stands."""
        ...


@dataclass(frozen=True)
class Turn:
    """One question and its answer in words."""

    kind: TurnKind
    text: str
    answer: str


@dataclass
class Chat:
    """Questions about an encoded scene; `turns` is the memory, and `ask` is told of the latest."""

    model: Answerer
    state: SceneState
    turns: list[Turn] = field(default_factory=list)
    situation: Situation | None = None  # the one that was located last

    @property
    def history(self) -> tuple[tuple[str, str], ...]:
        """Earlier questions with their answers, oldest first."""
        return tuple((turn.text, turn.answer) for turn in self.turns)

    def ground(self, query: str, *, refine: bool = False) -> GroundingResult:
        """The objects that `query` means: voxels, boxes and a sentence."""
        result = self.model.ground(self.state, query, refine=refine)
        self.turns.append(Turn("ground", query, result.text))
        return result

    def ask(self, question: str, *, situation: str | Situation | None = None) -> str:
        """The model's words about the scene, with the conversation so far in mind.

        Asked from `situation`, a description or what `locate` found; else from where `locate` found somebody
        last; else from no particular place.
        """
        place = self.situation if situation is None else situation
        if place is None:
            answer = self.model.ask(self.state, self.in_context(question))
        elif isinstance(self.model, Locator):
            model = cast(SituatedAnswerer, self.model)
            answer = model.ask(self.state, self.in_context(question), situation=place)
        else:
            raise ValueError("this model has no situation head, so it can't answer from a situation")
        self.turns.append(Turn("ask", question, answer))
        return answer

    def in_context(self, question: str) -> str:
        """The question with the latest turns before it, as the model reads it."""
        turns = self.turns[-REMEMBERED:]
        return "\n".join([*(f"{turn.text} {turn.answer}" for turn in turns), question])

    def locate(self, description: str) -> Situation:
        """Where the described agent stands (reference ego frame); ValueError without a situation head."""
        if not isinstance(self.model, Locator):
            raise ValueError("this model has no situation head, so it can't locate; use ground or ask")
        situation = self.model.locate(self.state, description)
        self.situation = situation
        x, y = situation.position.tolist()
        self.turns.append(Turn("locate", description, f"at x {x:.1f} m, y {y:.1f} m"))
        return situation

    def forget(self) -> None:
        """Start afresh on the same scene."""
        self.turns.clear()
        self.situation = None
