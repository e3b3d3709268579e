"""Tiny checkpoints whose experts are stored in fewer bits, in the formats of well-known models.

Each is made with a twin that holds the very values which the few bits stand for, in bfloat16, so
that what a kernel computes can be compared with plain arithmetic.
"""

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import Tensor

from tests.support.checkpoints import make_checkpoint
from tests.support.few_bits import to_awq, to_e2m1, to_e4m3, to_int8

Stored = tuple[dict[str, Tensor], Tensor]  # by name, and the values meant


def fp8_blocks(name: str, weight: Tensor) -> Stored:
    """As DeepSeek-V3 has it."""
    stored, scale, values = to_e4m3(weight)
    return {name: stored, f"{name}_scale_inv": scale}, values


def mxfp4_fused(name: str, weight: Tensor) -> Stored:
    """As gpt-oss has it; weight: [E, in, out]."""
    packed, scales, values = to_e2m1(weight.transpose(1, 2))
    blocks = packed.view(*scales.shape, -1)
    stored = {f"{name}_blocks": blocks, f"{name}_scales": scales}
    return stored, values.transpose(1, 2).contiguous()


def awq_groups(name: str, weight: Tensor) -> Stored:
    """As AWQ names them."""
    numbers, zeros, scales, values = to_awq(weight)
    stem = name.removesuffix(".weight")
    return {f"{stem}.qweight": numbers, f"{stem}.qzeros": zeros, f"{stem}.scales": scales}, values


def int8_channels(name: str, weight: Tensor) -> Stored:
    """As compressed-tensors stores W8A8."""
    numbers, scale, values = to_int8(weight)
    return {name: numbers, f"{name}_scale": scale}, values


_BYTES = {"type": "int", "num_bits": 8, "symmetric": True}


@dataclass(frozen=True)
class Format:
    """How one format is made. is_stored: of which tensors, by name."""

    family: str
    sizes: dict[str, int]
    quantise: Callable[[str, Tensor], Stored]
    is_stored: Callable[[str], bool]
    config: dict[str, Any]


FORMATS = {
    "fp8": Format(
        "deepseek_v3",
        {"hidden_size": 256, "moe_intermediate_size": 128, "q_lora_rank": 128},
        fp8_blocks,
        lambda name: "_proj" in name,
        {
            "quant_method": "fp8",
            "activation_scheme": "dynamic",
            "fmt": "e4m3",
            "weight_block_size": [128, 128],
        },
    ),
    "mxfp4": Format(
        "gpt_oss",
        {},
        mxfp4_fused,
        lambda name: name.endswith(("experts.gate_up_proj", "experts.down_proj")),
        {
            "quant_method": "mxfp4",
            "modules_to_not_convert": [
                "model.layers.*.self_attn",
                "model.layers.*.mlp.router",
                "model.embed_tokens",
                "lm_head",
            ],
        },
    ),
    "awq": Format(
        "qwen3_moe",
        {"moe_intermediate_size": 128},
        awq_groups,
        lambda name: ".experts." in name,
        {
            "quant_method": "awq",
            "version": "gemm",
            "bits": 4,
            "group_size": 128,
            "zero_point": True,
            "modules_to_not_convert": ["self_attn", "mlp.gate", "lm_head"],
        },
    ),
    "int8": Format(
        "qwen3_moe",
        {},
        int8_channels,
        lambda name: ".experts." in name,
        {
            "quant_method": "compressed-tensors",
            "format": "int-quantized",
            "quantization_status": "compressed",
            "config_groups": {
                "group_0": {
                    "targets": ["Linear"],
                    "weights": {**_BYTES, "strategy": "channel", "dynamic": False},
                    "input_activations": {**_BYTES, "strategy": "token", "dynamic": True},
                }
            },
            "ignore": ["lm_head", r"re:.*self_attn.*", r"re:.*mlp\.gate$"],
        },
    ),
}


def make_quantised(name: str, folder: Path, *, seed: int = 0) -> tuple[Path, Path]:
    """Write a checkpoint in one of `FORMATS` and its twin below `folder`; returns both."""
    form = FORMATS[name]
    stored, twin = folder / name, folder / f"{name}-twin"
    make_checkpoint(form.family, stored, dtype="bfloat16", seed=seed, sizes=form.sizes)
    shutil.copytree(stored, twin)
    tensors: dict[str, Tensor] = {}
    values: dict[str, Tensor] = {}
    for tensor_name, tensor in load_file(stored / "model.safetensors").items():
        if form.is_stored(tensor_name):
            few_bits, meant = form.quantise(tensor_name, tensor.float())
            tensors |= few_bits
            values[tensor_name] = meant.bfloat16()
        else:
            tensors[tensor_name] = values[tensor_name] = tensor
    save_file(tensors, stored / "model.safetensors", metadata={"format": "pt"})
    save_file(values, twin / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((stored / "config.json").read_text())
    (stored / "config.json").write_text(json.dumps({**config, "quantization_config": form.config}))
    return stored, twin
