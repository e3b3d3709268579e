"""Tiny checkpoints whose experts are stored in fewer bits, in the formats of well-known models.

Each is made with a twin that holds the very values which the few bits stand for, in bfloat16, so
that what a kernel computes can be compared with plain arithmetic. The quantising is the simplest
there is: the largest value of each group decides the scale.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from tests.support.checkpoints import make_checkpoint

E4M3_MAX, E2M1_MAX, UINT4_MAX, INT8_MAX = 448.0, 6.0, 15, 127
E2M1 = torch.tensor([0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0])
AWQ_ORDER = [0, 2, 4, 6, 1, 3, 5, 7]
_BYTES = {"type": "int", "num_bits": 8, "symmetric": True}


def fp8_blocks(name: str, weight: Tensor, block: int = 128) -> tuple[dict[str, Tensor], Tensor]:
    """E4M3 with a float32 scale for each block of 128 x 128, as DeepSeek-V3 has it."""
    (rows, columns), padded = weight.shape, torch.nn.functional.pad
    whole = padded(weight, (0, -columns % block, 0, -rows % block))
    blocks = whole.view(whole.shape[0] // block, block, whole.shape[1] // block, block)
    scale = (blocks.abs().amax((1, 3)) / E4M3_MAX).clamp(min=1e-12)
    stored = (blocks / scale[:, None, :, None]).to(torch.float8_e4m3fn)
    values = (stored.float() * scale[:, None, :, None]).reshape(whole.shape)[:rows, :columns]
    stored = stored.reshape(whole.shape)[:rows, :columns].contiguous()
    return {name: stored, name.replace(".weight", ".weight_scale_inv"): scale}, values


def mxfp4_fused(name: str, weight: Tensor, group: int = 32) -> tuple[dict[str, Tensor], Tensor]:
    """E2M1 with a power of two for each 32, as gpt-oss has it; weight: [E, in, out]."""
    groups = weight.transpose(1, 2).reshape(*weight.shape[::2], -1, group)  # [E, out, in / 32, 32]
    largest = groups.abs().amax(-1, keepdim=True).clamp(min=1e-12)
    exponent = torch.ceil(torch.log2(largest / E2M1_MAX))
    scaled = groups * torch.exp2(-exponent)
    code = (scaled.abs()[..., None] - E2M1).abs().argmin(-1)
    values = torch.copysign(E2M1[code], scaled) * torch.exp2(exponent)
    nibbles = (code + 8 * (scaled < 0)).to(torch.uint8)
    blocks = nibbles[..., 0::2] | (nibbles[..., 1::2] << 4)
    scales = (exponent.squeeze(-1) + 127).to(torch.uint8)
    stored = {f"{name}_blocks": blocks.contiguous(), f"{name}_scales": scales.contiguous()}
    return stored, values.flatten(2).transpose(1, 2).contiguous()


def awq_groups(name: str, weight: Tensor, group: int = 128) -> tuple[dict[str, Tensor], Tensor]:
    """Eight to an int32 with zero point and scale for each 128 inputs, as AWQ packs them."""
    groups = weight.t().reshape(-1, group, weight.shape[0])  # [in / 128, 128, out]
    least, most = groups.amin(1).clamp(max=0), groups.amax(1).clamp(min=0)
    scale = ((most - least) / UINT4_MAX).clamp(min=1e-12).bfloat16().float()
    zero = (-least / scale).round().clamp(0, UINT4_MAX)
    numbers = (groups / scale[:, None] + zero[:, None]).round().clamp(0, UINT4_MAX)
    values = ((numbers - zero[:, None]) * scale[:, None]).flatten(0, 1).t().contiguous()
    stem = name.removesuffix(".weight")
    return {
        f"{stem}.qweight": _eight_to_one(numbers.flatten(0, 1)),
        f"{stem}.qzeros": _eight_to_one(zero),
        f"{stem}.scales": scale.bfloat16(),
    }, values


def _eight_to_one(numbers: Tensor) -> Tensor:
    """[..., n] from 0 to 15 → [..., n / 8] int32, in AWQ's order."""
    eights = numbers.view(numbers.shape[0], -1, 8)[..., AWQ_ORDER].long()
    packed = (eights << (4 * torch.arange(8))).sum(-1)
    return torch.where(packed >= 2**31, packed - 2**32, packed).int()


def int8_channels(name: str, weight: Tensor) -> tuple[dict[str, Tensor], Tensor]:
    """Bytes with a float32 scale for each row, as compressed-tensors stores W8A8."""
    scale = (weight.abs().amax(1, keepdim=True) / INT8_MAX).clamp(min=1e-12)
    numbers = (weight / scale).round()
    return {name: numbers.to(torch.int8), f"{name}_scale": scale}, numbers * scale


@dataclass(frozen=True)
class Format:
    """How one format is made. is_stored: of which tensors, by name."""

    family: str
    sizes: dict[str, int]
    quantise: Callable[[str, Tensor], tuple[dict[str, Tensor], Tensor]]
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
    for made in (stored, twin):
        make_checkpoint(form.family, made, dtype="bfloat16", seed=seed, sizes=form.sizes)
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
