"""Any pretrained VLM as the centre of VLM-Occ: a scene's prefix, encoded once, and queries on it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any, Literal, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from vlm_occ.config import LoraSettings
from vlm_occ.language.adapters import (
    adapter_parameters,
    add_adapter,
    add_rows,
    load_parameters,
    merge_adapter,
    weight_of,
)
from vlm_occ.language.attention import Turns, turns_of, use_shared_prefix_attention
from vlm_occ.language.family import Family, Piece
from vlm_occ.language.packing import PREFIX, block_mask, check_length, packed_queries, padded
from vlm_occ.language.prefixes import JointStates, Prefix, PrefixState, grown
from vlm_occ.language.processor import Processor, add_special_tokens
from vlm_occ.language.quantisation import move_statistics
from vlm_occ.language.splice import Placeholder, Splice
from vlm_occ.language.tokens import POSE, VOXEL, TokenIds
from vlm_occ.language.vision_tokens import added_to_vision

if TYPE_CHECKING:
    from transformers import Cache, PreTrainedModel, PreTrainedTokenizerBase


class Backbone(nn.Module):
    """A frozen VLM with LoRA, our five tokens and features spliced over their placeholders."""

    def __init__(
        self,
        family: Family,
        tokenizer: PreTrainedTokenizerBase,
        *,
        base_hash: str,
        lora: LoraSettings | None,
        train_projector: bool = False,
    ) -> None:
        super().__init__()
        model, text_config = family.model, family.model.config.get_text_config()
        self.tokenizer = tokenizer
        self.token_ids: TokenIds = add_special_tokens(tokenizer)
        self.processor = Processor(tokenizer)
        self.base_hash = base_hash
        self.family: str = model.config.model_type
        self.hidden_size: int = text_config.hidden_size
        self.merged = False  # see `merge`
        self._max_positions: int = text_config.max_position_embeddings
        self._family = family
        ids = list(vars(self.token_ids).values())
        add_rows(model, ids, vocabulary=len(tokenizer))
        add_adapter(model, ids, lora)
        projector = family.trainable_projector() if train_projector else {}
        use_shared_prefix_attention(family.language_model)
        self.model: PreTrainedModel = model
        self._trainable = adapter_parameters(model, projector)
        self._rows = {index: sorted(ids).index(index) for index in ids[2:]}  # places in `token_rows`
        vision = str(tokenizer.convert_ids_to_tokens(family.vision_id))
        placeholders = {
            **{index: Placeholder(str(tokenizer.convert_ids_to_tokens(index)), "row") for index in ids[2:]},
            self.token_ids.pose: Placeholder(POSE, "pose feature"),
            self.token_ids.voxel: Placeholder(VOXEL, "voxel feature"),
            family.vision_id: Placeholder(vision, "vision feature"),
        }
        self._pad = int(cast(int, tokenizer.pad_token_id or tokenizer.eos_token_id or 0))  # fills rows
        self._splice = Splice(model.get_input_embeddings(), placeholders)  # after peft: see Splice

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return self.model.device

    @property
    def language_model(self) -> Any:
        """The decoder, whose layers LoRA adapts."""
        return self._family.language_model

    @property
    def dtype(self) -> torch.dtype:
        """The number format of the base; adapters and nano's projector are in fp32."""
        return weight_of(self.language_model.norm).dtype

    def prepare(self, images: Tensor) -> dict[str, Tensor]:
        """Inputs of the vision tower for images uint8 [F, 3, H, W], on the model's device; {} for F = 0."""
        return self._family.prepare(images.to(self.device)) if len(images) else {}

    def build_prefix(self, images: Tensor, num_voxels: int, *, pose: bool = True) -> Prefix:
        """The user's turn up to a query: frames [F, 3, H, W], each after its pose token, then voxel tokens.

        Loc3R-VLM, section 3.1, places the pose tokens. F and `num_voxels` may be 0.
        """
        frames = self.prepare(images)
        pieces = [Piece(self.processor.opening)]
        for frame in self._family.frame_pieces(frames) if frames else []:
            pieces += [Piece([self.token_ids.pose])] if pose else []
            pieces += frame
        pieces += self._family.closing_pieces(len(images))
        pieces += [Piece([self.token_ids.voxel] * num_voxels), Piece(self.processor.newline)]
        ids = torch.tensor([index for piece in pieces for index in piece.ids])  # [L]
        positions = self._family.positions(pieces)  # [A, L]
        return Prefix(
            input_ids=ids.to(self.device),
            position_ids=positions.to(self.device),
            frames=frames,
            pose_index=(ids == self.token_ids.pose).nonzero()[:, 0].to(self.device),
            voxel_index=(ids == self.token_ids.voxel).nonzero()[:, 0].to(self.device),
            next_position=int(positions.max()) + 1,
        )

    def query_ids(
        self, text: str, answer: str | None = None, *, history: Sequence[tuple[str, str]] = ()
    ) -> tuple[Tensor, int]:
        """Ids [l] of a query turn (and its answer) and the index of `<|ground|>`; see `Processor`."""
        return self.processor.query_ids(text, answer, history=history)

    def situation_ids(
        self, situation: str, question: str, answer: str | None = None
    ) -> tuple[Tensor, int, int]:
        """Ids [l] of a situation and a question, the indices of `<|pos|>` and `<|ori|>`; see `Processor`."""
        return self.processor.situation_ids(situation, question, answer)

    def forward_joint(
        self,
        prefixes: list[Prefix],
        features: list[dict[str, Tensor]],
        queries: list[list[Tensor]],
        *,
        padding: Literal["left", "right"] = "right",
    ) -> list[JointStates]:
        """Final states of scenes and of their queries [l] in one forward, with gradients.

        `features` holds a scene's "pose" [F, D] and "voxel" [N, D], and "vision" [V, D] where something is
        added to its vision tokens. A query sees its scene and itself.
        """
        rows = []
        for prefix, asked in zip(prefixes, queries, strict=True):
            check_length(prefix.next_position, asked, most=self._max_positions)
            row = prefix.input_ids, prefix.position_ids, torch.full_like(prefix.input_ids, PREFIX)
            if asked:
                asked = [query.to(self.device) for query in asked]
                turn = packed_queries(asked, prefix.next_position, self._family.axes)
                row = tuple(torch.cat(pair, dim=-1) for pair in zip(row, turn, strict=True))
            rows.append(row)
        batch = padded(rows, pad=self._pad, side=padding)
        turns, mask = None, None
        if len(rows) == 1 and queries[0]:
            turns = turns_of(len(prefixes[0].input_ids), list(map(len, queries[0])), self.device)
        else:
            mask = block_mask(batch.segments, rows=batch.segments.shape[1], dtype=self.dtype)
        spliced, deep = self._features(prefixes, features)
        hidden = self._run(batch.input_ids, batch.position_ids, mask, spliced, deep=deep, turns=turns)
        states = []
        for row, prefix, asked, segments in zip(hidden, prefixes, queries, batch.segments, strict=True):
            lengths = [len(prefix.input_ids), *map(len, asked)]
            parts = row[segments >= 0].split(lengths)
            states.append(JointStates(parts[0], list(parts[1:])))
        return states

    @torch.no_grad()
    def encode_prefix(self, prefix: Prefix, features: dict[str, Tensor]) -> PrefixState:
        """A scene's prefix through the model, with the cache on which its queries run."""
        from transformers import DynamicCache

        cache = DynamicCache()
        spliced, deep = self._features([prefix], [features])
        ids, positions = prefix.input_ids[None], prefix.position_ids[:, None]
        hidden = self._run(ids, positions, None, spliced, cache, deep=deep)
        return PrefixState(hidden[0], cache, prefix.next_position)

    @torch.no_grad()
    def forward_queries(self, state: PrefixState, queries: list[Tensor]) -> list[Tensor]:
        """Final states [l, D] of queries [l] on an encoded prefix, in one forward; the cache stays."""
        if not queries:
            return []
        check_length(state.next_position, queries, most=self._max_positions)
        asked = [query.to(self.device) for query in queries]
        ids, positions, _ = packed_queries(asked, state.next_position, self._family.axes)
        turns = turns_of(state.length, list(map(len, asked)), self.device)
        hidden = self._run(ids[None], positions[:, None], None, {}, grown(state.cache), turns=turns)
        return list(hidden[0].split([len(query) for query in queries]))

    def word_embeddings(self, ids: Tensor) -> Tensor:
        """The base model's own embeddings [l, D] of ids [l], without gradient: what words mean alone."""
        table: Any = self.model.get_input_embeddings()
        while hasattr(table, "token_adapter"):
            table = table.token_adapter
        weight = weight_of(table.get_base_layer() if hasattr(table, "get_base_layer") else table)
        return functional.embedding(ids.to(weight.device), weight.detach()).float()

    def logits(self, hidden: Tensor) -> Tensor:
        """Scores [..., vocabulary] of the next token after final states [..., D]."""
        head = cast(nn.Module, self.model.get_output_embeddings())
        return head(hidden.to(self.dtype))

    @torch.no_grad()
    def generate(self, state: PrefixState, ids: Tensor, *, max_new_tokens: int = 64) -> str:
        """The likeliest words, one by one, after a query's ids [l] on an encoded prefix."""
        check_length(state.next_position, [ids], most=self._max_positions)
        cache, position, words = grown(state.cache), state.next_position, []
        step = ids.to(self.device)
        for _ in range(max_new_tokens):
            _, positions, segments = packed_queries([step], position, self._family.axes)
            seen = segments.new_zeros(1, cache.get_seq_length() + len(step))
            mask = block_mask(seen, rows=len(step), dtype=self.dtype)
            hidden = self._run(step[None], positions[:, None], mask, {}, cache)
            position += len(step)
            scores = self.logits(hidden[0, -1])
            scores[list(vars(self.token_ids).values())] = -torch.inf  # placeholders are no words
            word = int(scores.argmax())
            if word in self.processor.end_ids:
                break
            words.append(word)
            step = step.new_tensor([word])
        return str(self.tokenizer.decode(words, skip_special_tokens=True)).strip()

    def trainable_state(self) -> dict[str, Tensor]:
        """Copies of our weights in this base, for safetensors: LoRA, token rows, nano's projector."""
        return {name: value.detach().clone().contiguous() for name, value in self._trainable.items()}

    def load_trainable_state(self, state: dict[str, Tensor]) -> None:
        """Take over what `trainable_state` returned; ValueError where it belongs to another model."""
        load_parameters(self._trainable, state)

    def merge(self) -> None:
        """Add LoRA and token rows to the base weights: faster inference, no more training."""
        merge_adapter(self.model)
        self.merged = True

    def train(self, mode: bool = True) -> Backbone:
        """As every module's; refused after `merge`."""
        if mode and self.merged:
            raise ValueError(
                "this backbone was merged for inference; load it by from_pretrained(trainable=True) to train"
            )
        return super().train(mode)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Backbone:
        """As every module's, behind `to`, `cuda` and `half`; 8-bit layers' scales follow."""
        super()._apply(fn, recurse)
        move_statistics(self)
        return self

    def _features(
        self, prefixes: list[Prefix], features: list[dict[str, Tensor]]
    ) -> tuple[dict[int, Tensor], list[Tensor]]:
        """What stands over each placeholder of a batch of prefixes, in order, and DeepStack's features."""
        spliced, deep = {}, list[Tensor]()
        for key, index in (("pose", self.token_ids.pose), ("voxel", self.token_ids.voxel)):
            rows = [scene[key].to(self.device) for scene in features if key in scene]
            if rows:
                spliced[index] = torch.cat(rows)  # [N, D]
        frames = [prefix.frames for prefix in prefixes if prefix.frames]
        if frames:
            seen, *deep = self._family.vision_features(frames)
            added = [scene.get("vision") for scene in features]
            spliced[self._family.vision_id] = added_to_vision(self, prefixes, seen, added)
        return spliced, deep

    def _token_rows(self, ids: Tensor) -> dict[int, Tensor]:
        """The trained rows of tokens without features in `ids` [B, L], one a place: see `add_adapter`."""
        table = cast(Any, self.model.get_input_embeddings())
        table = getattr(table, "token_adapter", table)  # with LoRA; the module's own rows: FSDP swaps them
        (rows,) = table.trainable_tokens_delta.values()  # [5, D]
        counts = {index: int((ids == index).sum()) for index in self._rows}
        return {i: rows[self._rows[i]].expand(count, -1) for i, count in counts.items() if count}

    def _run(
        self,
        ids: Tensor,
        positions: Tensor,
        mask: Tensor | None,
        features: dict[int, Tensor],
        cache: Cache | None = None,
        *,
        deep: list[Tensor] | None = None,
        turns: Turns | None = None,
    ) -> Tensor:
        """Final states [B, L, D] of ids [B, L] at positions [A, B, L].

        The language model alone is called: vision features are spliced, positions and mask are given, and
        `deep` is what the whole model would hand to the layers of a model with DeepStack.
        """
        device, dtype = self.device.type, self.dtype
        features = {**self._token_rows(ids), **features}
        mixed = torch.autocast(device, dtype=dtype) if dtype != torch.float32 else nullcontext()
        with mixed, self._splice.features(features):  # LoRA's fp32 weights compute in the base's dtype
            output = self.language_model(
                input_ids=ids,
                attention_mask=mask,
                position_ids=positions if self._family.axes > 1 else positions[0],
                use_cache=cache is not None,
                turns=turns,
                **self._family.extra_arguments(ids, cache, deep or []),
            )
        return output.last_hidden_state
