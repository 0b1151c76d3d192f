"""Sentences as token ids: the chat template's pieces around a scene, queries, answers and situations."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from vlm_occ.language.tokens import GROUND, ORIENTATION, POSITION, SPECIAL_TOKENS, TokenIds

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

MAX_QUERY_TOKENS = 1024
CHATML = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
"""The template of models whose tokenizer has none; both families' language models speak it."""


def add_special_tokens(tokenizer: PreTrainedTokenizerBase) -> TokenIds:
    """Give the tokenizer our five tokens where it lacks them, and say which ids they have."""
    from transformers import AddedToken

    missing = [token for token in SPECIAL_TOKENS if token not in tokenizer.get_vocab()]
    tokenizer.add_tokens(
        [AddedToken(token, normalized=False, special=True) for token in missing], special_tokens=True
    )
    return TokenIds(*(int(tokenizer.get_vocab()[token]) for token in SPECIAL_TOKENS))


class Processor:
    """Token ids of the turns of a conversation about a scene, after the model's own chat template."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self.tokenizer = tokenizer
        opening, between = self._pieces(generation=False)
        self._opening = self._ids(opening)  # system text, start of the user's turn
        self._answering = self._ids(self._pieces(generation=True)[1])  # end of it, start of the assistant's
        end = tokenizer.eos_token
        cut = between.index(end) + len(end) if isinstance(end, str) and end in between else len(between)
        self._ending = self._ids(between[:cut])  # end of the assistant's turn
        self._reopening = self._ids(between[cut:])  # start of the user's next turn
        self._newline = self._ids("\n")
        self._ground = self._ids(GROUND)

    @property
    def opening(self) -> list[int]:
        """Ids before the scene: the template's system text, if any, and the start of the user's turn."""
        return list(self._opening)

    @property
    def newline(self) -> list[int]:
        """Ids of the line break between the scene and a query."""
        return list(self._newline)

    @property
    def end_ids(self) -> set[int]:
        """Ids that end an answer."""
        end = self.tokenizer.eos_token_id
        return {self._ending[0], end} if isinstance(end, int) else {self._ending[0]}

    def query_ids(
        self, text: str, answer: str | None = None, *, history: Sequence[tuple[str, str]] = ()
    ) -> tuple[Tensor, int]:
        """Ids [L] of a query turn with its `answer`, if one is given, and the index of its `<|ground|>`.

        `history` holds earlier (query, answer) turns about the same scene. ValueError for an empty or an
        endless query. Special tokens written in a text are read as plain text.
        """
        ids: list[int] = []
        for earlier, reply in history:
            ids += self._turn(self._words(earlier), reply) + self._reopening
        turn = self._turn(self._words(text), answer)
        index = len(ids) + turn.index(self._ground[0])
        return self._checked(ids + turn), index

    def situation_ids(
        self, situation: str, question: str, answer: str | None = None
    ) -> tuple[Tensor, int, int]:
        """Ids [L] of a situation and a question, and the indices of `<|pos|>` and `<|ori|>` between them.

        Loc3R-VLM, section 3.3.
        """
        words = self._words(situation)
        tokens = self._ids(POSITION) + self._ids(ORIENTATION)
        ids = self._turn(words + tokens + self._words(question), answer)
        return self._checked(ids), len(words), len(words) + 1

    def phrase_ids(self, words: Tensor) -> Tensor:
        """Ids of some of a user's words as a query of their own, up to `<|ground|>`."""
        return torch.cat([words, torch.tensor(self._answering + self._ground)])

    def word_spans(self, text: str) -> list[tuple[int, int]]:
        """First character and last + 1 of what each id of a user's words stands for."""
        made = self.tokenizer(
            text.strip(), add_special_tokens=False, split_special_tokens=True, return_offsets_mapping=True
        )
        return [(start, end) for start, end in made["offset_mapping"]]

    def _turn(self, words: list[int], answer: str | None) -> list[int]:
        """A user's words, the start of the answer, and the answer with its end where it is known."""
        ids = words + self._answering + self._ground
        return ids if answer is None else ids + self._plain(f" {answer.strip()}") + self._ending

    def _words(self, text: str) -> list[int]:
        """Ids of what a user wrote."""
        if not text.strip():
            raise ValueError("the query is empty; write a sentence such as 'the truck on the left'")
        return self._plain(text.strip())

    def _checked(self, ids: list[int]) -> Tensor:
        """Ids as a tensor, if they are not too many."""
        if len(ids) > MAX_QUERY_TOKENS:
            raise ValueError(
                f"the query has {len(ids)} tokens, at most {MAX_QUERY_TOKENS} are read; shorten it"
            )
        return torch.tensor(ids)

    def _plain(self, text: str) -> list[int]:
        """Ids of text in which no special token counts as one."""
        return self.tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]

    def _ids(self, text: str) -> list[int]:
        """Ids of a piece of the template."""
        return self.tokenizer(text, add_special_tokens=False)["input_ids"]

    def _pieces(self, *, generation: bool) -> tuple[str, str]:
        """The template's text before a user's words, and that after them (or after the answer to them)."""
        marks = ("first words", "the answer", "last words")
        roles = ("user",) if generation else ("user", "assistant", "user")
        template = self.tokenizer.chat_template
        template = template if isinstance(template, str) and template else CHATML
        for listed in (False, True):  # processors' templates read a list of parts, tokenizers' a string
            contents = [[{"type": "text", "text": mark}] if listed else mark for mark in marks]
            messages = [
                {"role": role, "content": content} for role, content in zip(roles, contents, strict=False)
            ]
            text = self.tokenizer.apply_chat_template(
                messages, chat_template=template, tokenize=False, add_generation_prompt=generation
            )
            if isinstance(text, str) and all(mark in text for mark in marks[: len(roles)]):
                before, rest = text.split(marks[0])
                return before, rest if generation else rest.split(marks[1])[1].split(marks[2])[0]
        raise ValueError("the model's chat template drops the user's words; expected one for text messages")
