"""Reads the files that hold `nano`'s weights: a GGUF language model and an ONNX vision tower."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional

GGUF_NAMES = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}


def convert_language(gguf_file: Path, folder: Path, *, spare: Mapping[int, str]) -> None:
    """Write a GGUF Llama as a transformers folder (bf16); `spare` gives unused vocabulary ids a new token.

    ValueError where the file is not a Llama with tied embeddings and a byte-level BPE.
    """
    import gguf
    from gguf.quants import dequantize
    from safetensors.torch import save_file

    reader = gguf.GGUFReader(gguf_file)
    values = {name: field.contents() for name, field in reader.fields.items()}
    if values["general.architecture"] != "llama" or values["tokenizer.ggml.model"] != "gpt2":
        raise ValueError(f"{gguf_file.name}: expected a llama with BPE, got {values['general.architecture']}")
    config = _llama_config(values)
    tensors = {}
    for tensor in reader.tensors:
        weight = torch.tensor(dequantize(tensor.data, tensor.tensor_type))
        name = _llama_name(tensor.name)
        if name.endswith(("q_proj.weight", "k_proj.weight")):
            heads = config["num_attention_heads" if ".q_" in name else "num_key_value_heads"]
            weight = _halves(weight, heads)
        tensors[name] = weight.bfloat16().contiguous()
    folder.mkdir(parents=True)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps(config, indent=1))
    _save_tokenizer(values, folder, spare)


def _llama_config(values: Mapping) -> dict:
    """The transformers config of a GGUF Llama."""
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": values["llama.embedding_length"],
        "intermediate_size": values["llama.feed_forward_length"],
        "num_hidden_layers": values["llama.block_count"],
        "num_attention_heads": values["llama.attention.head_count"],
        "num_key_value_heads": values["llama.attention.head_count_kv"],
        "max_position_embeddings": values["llama.context_length"],
        "rms_norm_eps": round(float(values["llama.attention.layer_norm_rms_epsilon"]), 8),
        "rope_theta": float(values["llama.rope.freq_base"]),
        "rope_parameters": {"rope_type": "default", "rope_theta": float(values["llama.rope.freq_base"])},
        "vocab_size": values["llama.vocab_size"],
        "bos_token_id": values["tokenizer.ggml.bos_token_id"],
        "eos_token_id": values["tokenizer.ggml.eos_token_id"],
        "pad_token_id": values["tokenizer.ggml.padding_token_id"],
        "tie_word_embeddings": True,
        "dtype": "bfloat16",
    }


def _llama_name(name: str) -> str:
    """The transformers name of a GGUF tensor."""
    if match := re.fullmatch(r"blk\.(\d+)\.(\w+)\.weight", name):
        return f"model.layers.{match[1]}.{GGUF_NAMES[match[2]]}.weight"
    return {"token_embd.weight": "model.embed_tokens.weight", "output_norm.weight": "model.norm.weight"}[name]


def _halves(weight: Tensor, heads: int) -> Tensor:
    """Rotary pairs from GGUF's neighbours (0, 1), (2, 3) ... to halves (0, d/2), (1, d/2 + 1) ..."""
    rows, width = weight.shape
    pairs = weight.reshape(heads, rows // heads // 2, 2, width)  # [heads, pair, member, width]
    return pairs.transpose(1, 2).reshape(rows, width)


def _save_tokenizer(values: Mapping, folder: Path, spare: Mapping[int, str]) -> None:
    """Write SmolLM2's byte-level BPE (digits one by one) with its chat template and special tokens."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    tokens = list(values["tokenizer.ggml.tokens"])
    for index, token in spare.items():
        tokens[index] = token
    merges = [tuple(merge.split(" ")) for merge in values["tokenizer.ggml.merges"]]
    tokenizer = Tokenizer(models.BPE(vocab={t: i for i, t in enumerate(tokens)}, merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    control = [t for t, kind in zip(tokens, values["tokenizer.ggml.token_type"], strict=True) if kind == 3]
    tokenizer.add_special_tokens([AddedToken(t, normalized=False, special=True) for t in control])
    names = {
        "bos": "bos_token_id",
        "eos": "eos_token_id",
        "unk": "unknown_token_id",
        "pad": "padding_token_id",
    }
    roles = {f"{role}_token": tokens[values[f"tokenizer.ggml.{key}"]] for role, key in names.items()}
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, clean_up_tokenization_spaces=False, **roles)
    fast.chat_template = values["tokenizer.chat_template"]
    fast.save_pretrained(folder)


def convert_vision(onnx_file: Path, folder: Path, *, image_size: int, layers: int) -> None:
    """Write the first `layers` of an exported DINOv2 backbone as a transformers folder (bf16).

    Its learned positions are resampled (bicubic, as Dinov2Model does) to frames of `image_size` pixels.
    """
    import onnx
    from onnx import numpy_helper
    from safetensors.torch import save_file

    graph = onnx.load(str(onnx_file)).graph
    arrays = {item.name: torch.from_numpy(numpy_helper.to_array(item).copy()) for item in graph.initializer}
    prefix = "backbone."
    tensors = {name.removeprefix(prefix): a for name, a in arrays.items() if name.startswith(prefix)}
    positions = {}
    for node in graph.node:
        source = next((name for name in node.input if name.startswith("onnx::") and name in arrays), None)
        if source is None or not node.name.startswith(f"/{prefix}".rstrip(".")):
            continue
        if node.op_type == "MatMul":  # an exported nn.Linear: y = x W, transposed
            name = node.name.strip("/").replace("/", ".").removeprefix(prefix).removesuffix("MatMul")
            tensors[f"{name}weight"] = arrays[source].T
        elif node.name.endswith(("embeddings/Concat_6", "embeddings/Reshape_1")):
            positions[node.op_type] = arrays[
                source
            ]  # [1, 1, D] of the class token, [1, 37 * 37, D] of the patches
    patch = tensors["embeddings.patch_embeddings.projection.weight"].shape[-1]
    patches = _resampled(positions["Reshape"], image_size // patch)
    tensors["embeddings.position_embeddings"] = torch.cat((positions["Concat"], patches), dim=1)
    kept = {}
    for name, tensor in tensors.items():
        layer = re.match(r"encoder\.layer\.(\d+)\.", name)
        if layer is None or int(layer[1]) < layers:
            kept[name] = tensor.bfloat16().contiguous()
    folder.mkdir(parents=True)
    save_file(kept, folder / "model.safetensors", metadata={"format": "pt"})
    width = positions["Concat"].shape[-1]
    (folder / "config.json").write_text(
        json.dumps(_dinov2_config(width, layers, image_size, patch), indent=1)
    )


def _resampled(positions: Tensor, side: int) -> Tensor:
    """Positions [1, n * n, D] resampled to [1, side * side, D]."""
    width = positions.shape[-1]
    square = round(positions.shape[1] ** 0.5)
    grid = positions.float().reshape(1, square, square, width).permute(0, 3, 1, 2)  # [1, D, n, n]
    grid = functional.interpolate(grid, size=(side, side), mode="bicubic", align_corners=False)
    return grid.permute(0, 2, 3, 1).reshape(1, side * side, width)


def _dinov2_config(width: int, layers: int, image_size: int, patch: int) -> dict:
    """The transformers config of a DINOv2-S with fewer layers."""
    return {
        "architectures": ["Dinov2Model"],
        "model_type": "dinov2",
        "hidden_size": width,
        "num_hidden_layers": layers,
        "num_attention_heads": width // 64,
        "image_size": image_size,
        "patch_size": patch,
        "use_mask_token": False,
        "dtype": "bfloat16",
    }
