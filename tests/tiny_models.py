"""Tiny random models of the real classes, saved as folders as the Hub would serve them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from vlm_occ.weights import hide_broken_torchvision

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

hide_broken_torchvision()

WIDTH, INNER = 32, 48
WIDE, WIDE_INNER = 64, 128  # for nf4, whose blocks hold 64 weights
SPARE_ROWS = 3
"""Embedding rows beyond the tokenizer's; two fewer than our five tokens, so that the matrix has to grow."""

CONTROL = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|image_pad|>",
    "<|video_pad|>",
)
SMOLVLM_CONTROL = ("<fake_token_around_image>", "<global-img>")


def tiny_tokenizer(*more: str) -> PreTrainedTokenizerFast:
    """A byte-level tokenizer without merges: one token a byte, control tokens of most families and `more`."""
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(
        models.BPE(vocab={letter: index for index, letter in enumerate(alphabet)}, merges=[])
    )
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    control = [AddedToken(token, normalized=False, special=True) for token in (*CONTROL, *more)]
    tokenizer.add_special_tokens(control)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="<|im_end|>", pad_token="<|endoftext|>"
    )
    fast.chat_template = (
        "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] "
        "+ '<|im_end|>\\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
    )
    return fast


def token_id(tokenizer: PreTrainedTokenizerFast, token: str) -> int:
    """The id of one token."""
    return int(tokenizer.get_vocab()[token])


def save_tiny_llava(folder: Path, *, seed: int = 0, wide: bool = False) -> Path:
    """A LLaVA-OneVision with a SigLIP tower of 4 x 4 patches (4 tokens a frame) and a two-layer Qwen2."""
    from transformers import (
        LlavaOnevisionConfig,
        LlavaOnevisionForConditionalGeneration,
        Qwen2Config,
        SiglipVisionConfig,
    )

    tokenizer = tiny_tokenizer()
    text = Qwen2Config(
        vocab_size=len(tokenizer) + SPARE_ROWS,
        hidden_size=WIDE if wide else WIDTH,
        intermediate_size=WIDE_INNER if wide else INNER,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=2048,
        tie_word_embeddings=True,
    )
    vision = SiglipVisionConfig(
        hidden_size=24,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=28,
        patch_size=7,
        vision_use_head=False,
    )
    config = LlavaOnevisionConfig(text_config=text, vision_config=vision, tie_word_embeddings=True)
    config.video_token_id = token_id(tokenizer, "<|video_pad|>")
    config.image_token_id = token_id(tokenizer, "<|image_pad|>")
    torch.manual_seed(seed)
    return _saved(LlavaOnevisionForConditionalGeneration(config), tokenizer, folder)


def save_tiny_qwen(folder: Path, *, seed: int = 0, wide: bool = False) -> Path:
    """A Qwen2.5-VL with a two-layer tower and a two-layer language model with untied embeddings."""
    from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

    tokenizer = tiny_tokenizer()
    axes = [4, 2, 2] if wide else [2, 1, 1]
    text = {
        "vocab_size": len(tokenizer) + SPARE_ROWS,
        "hidden_size": WIDE if wide else WIDTH,
        "intermediate_size": WIDE_INNER if wide else INNER,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 2048,
        "tie_word_embeddings": False,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": axes},
    }
    vision = {
        "depth": 2,
        "hidden_size": 24,
        "intermediate_size": 32,
        "num_heads": 2,
        "patch_size": 14,
        "spatial_merge_size": 2,
        "out_hidden_size": WIDE if wide else WIDTH,
        "fullatt_block_indexes": [1],
        "window_size": 56,
    }
    config = Qwen2_5_VLConfig(
        text_config=text,
        vision_config=vision,
        image_token_id=token_id(tokenizer, "<|image_pad|>"),
        video_token_id=token_id(tokenizer, "<|video_pad|>"),
        vision_start_token_id=token_id(tokenizer, "<|vision_start|>"),
        vision_end_token_id=token_id(tokenizer, "<|vision_end|>"),
        tie_word_embeddings=False,
    )
    torch.manual_seed(seed)
    return _saved(Qwen2_5_VLForConditionalGeneration(config), tokenizer, folder)


def save_tiny_qwen3(folder: Path, *, seed: int = 0, wide: bool = False) -> Path:
    """A Qwen3-VL: three layers in tower and language model, DeepStack from two of the tower's into two."""
    from transformers import Qwen3VLConfig, Qwen3VLForConditionalGeneration

    tokenizer = tiny_tokenizer()
    text = {
        "vocab_size": len(tokenizer) + SPARE_ROWS,
        "hidden_size": WIDE if wide else WIDTH,
        "intermediate_size": WIDE_INNER if wide else INNER,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 16 if wide else 12,  # 12: not the width's share of a head, as in some published ones
        "max_position_embeddings": 2048,
        "rope_parameters": {
            "rope_type": "default",
            "rope_theta": 1e4,
            "mrope_section": [4, 2, 2] if wide else [2, 2, 2],
            "mrope_interleaved": True,
        },
    }
    vision = {
        "depth": 3,
        "hidden_size": 24,
        "intermediate_size": 32,
        "num_heads": 2,
        "patch_size": 14,
        "spatial_merge_size": 2,
        "out_hidden_size": WIDE if wide else WIDTH,
        "num_position_embeddings": 16,
        "deepstack_visual_indexes": [0, 2],
    }
    config = Qwen3VLConfig(
        text_config=text,
        vision_config=vision,
        image_token_id=token_id(tokenizer, "<|image_pad|>"),
        video_token_id=token_id(tokenizer, "<|video_pad|>"),
        vision_start_token_id=token_id(tokenizer, "<|vision_start|>"),
        vision_end_token_id=token_id(tokenizer, "<|vision_end|>"),
        tie_word_embeddings=True,
    )
    torch.manual_seed(seed)
    return _saved(Qwen3VLForConditionalGeneration(config), tokenizer, folder)


def save_tiny_smolvlm(folder: Path, *, seed: int = 0, wide: bool = False) -> Path:
    """A SmolVLM2 whose frames of 6 x 6 patches are shuffled to 3 x 3 tokens, and a two-layer Llama."""
    from transformers import LlamaConfig, SmolVLMConfig, SmolVLMForConditionalGeneration
    from transformers.models.smolvlm.configuration_smolvlm import SmolVLMVisionConfig

    tokenizer = tiny_tokenizer(*SMOLVLM_CONTROL)
    text = LlamaConfig(
        vocab_size=len(tokenizer) + SPARE_ROWS,
        hidden_size=WIDE if wide else WIDTH,
        intermediate_size=WIDE_INNER if wide else INNER,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=2048,
    )
    vision = SmolVLMVisionConfig(
        hidden_size=24,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=42,
        patch_size=7,
    )
    config = SmolVLMConfig(
        text_config=text,
        vision_config=vision,
        image_token_id=token_id(tokenizer, "<|image_pad|>"),
        scale_factor=2,
        tie_word_embeddings=False,
    )
    torch.manual_seed(seed)
    return _saved(SmolVLMForConditionalGeneration(config), tokenizer, folder)


def _saved(model: torch.nn.Module, tokenizer: PreTrainedTokenizerFast, folder: Path) -> Path:
    """Write a model whose every part matters, its tokenizer and its processor's file."""
    for parameter in model.parameters():
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=0.15)
    model.save_pretrained(folder)  # type: ignore[operator]
    tokenizer.save_pretrained(folder)
    values = {"image_mean": [0.5, 0.4, 0.3], "image_std": [0.3, 0.2, 0.25]}
    (folder / "preprocessor_config.json").write_text(json.dumps(values))
    return folder


SAVERS = {
    "llava_onevision": save_tiny_llava,
    "qwen2_5_vl": save_tiny_qwen,
    "qwen3_vl": save_tiny_qwen3,
    "smolvlm": save_tiny_smolvlm,
}
"""A tiny model of each family."""
