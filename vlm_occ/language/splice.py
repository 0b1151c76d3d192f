"""Features over placeholder tokens: a hook on a model's embedding layer, so that no VLM needs a fork."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

from torch import Tensor, nn


@dataclass(frozen=True)
class Placeholder:
    """A vocabulary id whose embeddings are replaced, and what stands there."""

    token: str  # as it is written, "<|voxel|>"
    feature: str  # what is written over it, "voxel token"


class Splice:
    """Writes features over placeholder tokens where they leave the embedding layer `embeddings`.

    Register it after peft has wrapped the model, on `get_input_embeddings()`: a hook of the layer inside the
    wrapper would never be called.
    """

    def __init__(self, embeddings: nn.Module, placeholders: Mapping[int, Placeholder]) -> None:
        self._placeholders = dict(placeholders)
        self._features: dict[int, Tensor] | None = None
        self._called = False
        self._handle = embeddings.register_forward_hook(self._hook)

    @contextmanager
    def features(self, values: Mapping[int, Tensor]) -> Iterator[None]:
        """Within it, one forward replaces every placeholder by the next row of `values[id]` [N, D].

        Rows are in the order of the batch, then of the sequence. ValueError where the counts differ; an id
        that `values` lacks must not occur.
        """
        if self._features is not None:
            raise RuntimeError("features are being spliced already; one forward at a time")
        self._features, self._called = dict(values), False
        try:
            yield
            if not self._called:
                raise RuntimeError(
                    "the embedding layer was not called, so no feature was spliced; register Splice after "
                    "peft, on get_input_embeddings(), and pass input_ids"
                )
        finally:
            self._features = None

    def remove(self) -> None:
        """Take the hook off."""
        self._handle.remove()

    def _hook(self, module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor | None:
        if self._features is None:
            return None
        self._called = True
        ids = inputs[0]  # [B, L]
        for index, placeholder in self._placeholders.items():
            places = ids == index  # [B, L]
            rows = self._features.get(index)  # [N, D]
            found, given = int(places.sum()), 0 if rows is None else rows.shape[0]
            if found != given:
                raise ValueError(
                    f"{found} {placeholder.token} placeholders but {given} {placeholder.feature}s; "
                    "was the prompt truncated, or were these features made for another prefix?"
                )
            if rows is None or given == 0:
                continue
            if rows.shape[-1] != output.shape[-1]:
                raise ValueError(
                    f"{placeholder.feature}s have {rows.shape[-1]} channels, the language model has "
                    f"{output.shape[-1]}; project them to its hidden_size first"
                )
            output = output.masked_scatter(places[..., None], rows.to(output.dtype))  # [B, L, D]
        return output
