"""A tiny random checkpoint of DeepSeek-V4's shape, with the names and formats of the original.

Its two layers have both kinds of compressed attention and of routing (by token, by gate). Linear
layers are E4M3 with a power of two for each 128 x 128, experts E2M1 with one for each 32. Written
by hand, because `transformers` has other names.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from tests.support.checkpoints import save_tokenizer
from tests.support.families import BOS, EOS, MAX_POSITIONS, PAD, VOCAB
from tests.support.few_bits import to_e2m1, to_e4m3

HIDDEN, INTERMEDIATE, EXPERTS, TOP_K = 256, 128, 256, 6
HEADS, HEAD, ROPE, Q_RANK, O_RANK, O_GROUPS = 8, 512, 64, 128, 128, 2
INDEX_HEADS, INDEX_HEAD = 8, 128
HC = 4  # streams of the residual
COMPRESS = [4, 128]  # of each layer
CONFIG: dict[str, Any] = {
    "architectures": ["DeepseekV4ForCausalLM"],
    "model_type": "deepseek_v4",
    "torch_dtype": "bfloat16",
    "vocab_size": VOCAB,
    "hidden_size": HIDDEN,
    "moe_intermediate_size": INTERMEDIATE,
    "num_hidden_layers": len(COMPRESS),
    "num_attention_heads": HEADS,
    "num_key_value_heads": 1,
    "head_dim": HEAD,
    "qk_rope_head_dim": ROPE,
    "q_lora_rank": Q_RANK,
    "o_lora_rank": O_RANK,
    "o_groups": O_GROUPS,
    "sliding_window": 128,
    "compress_ratios": COMPRESS,
    "index_n_heads": INDEX_HEADS,
    "index_head_dim": INDEX_HEAD,
    "index_topk": 512,
    "hc_mult": HC,
    "hc_sinkhorn_iters": 20,
    "hc_eps": 1e-6,
    "num_hash_layers": 1,
    "n_routed_experts": EXPERTS,
    "n_shared_experts": 1,
    "num_experts_per_tok": TOP_K,
    "scoring_func": "sqrtsoftplus",
    "norm_topk_prob": True,
    "topk_method": "noaux_tc",
    "routed_scaling_factor": 1.5,
    "swiglu_limit": 10.0,
    "expert_dtype": "fp4",
    "rope_theta": 10000.0,
    "compress_rope_theta": 160000.0,
    "rope_scaling": {
        "type": "yarn",
        "factor": 4,
        "original_max_position_embeddings": MAX_POSITIONS // 4,
        "beta_fast": 32,
        "beta_slow": 1,
    },
    "max_position_embeddings": MAX_POSITIONS,
    "rms_norm_eps": 1e-6,
    "hidden_act": "silu",
    "attention_bias": False,
    "tie_word_embeddings": False,
    "num_nextn_predict_layers": 0,
    "bos_token_id": BOS,
    "eos_token_id": EOS,
    "pad_token_id": PAD,
    "quantization_config": {
        "quant_method": "fp8",
        "activation_scheme": "dynamic",
        "fmt": "e4m3",
        "scale_fmt": "ue8m0",
        "weight_block_size": [128, 128],
    },
}


def make_deepseek_v4(folder: Path, *, seed: int = 0) -> tuple[Path, Path]:
    """Write it with its tokenizer below `folder`, and a twin; a seed gives the same bytes.

    The twin's experts are the values that the few bits stand for, in bfloat16.
    """
    stored, twin = folder / "deepseek_v4", folder / "deepseek_v4-twin"
    tensors = dict(_model(torch.Generator().manual_seed(seed)))
    experts = [name for name in tensors if ".experts." in name and name.endswith(".weight")]
    meant = {name: tensors.pop(f"{name}.meant") for name in experts}
    plain = {"ignored_layers": [f"model.layers.{n}.ffn.experts" for n in range(len(COMPRESS))]}
    quantised: dict[str, str] = CONFIG["quantization_config"]
    others = {name: tensor for name, tensor in tensors.items() if ".experts." not in name}
    for made, weights, config in (
        (stored, tensors, CONFIG),
        (twin, others | meant, {**CONFIG, "quantization_config": {**quantised, **plain}}),
    ):
        made.mkdir(parents=True)
        save_file(weights, made / "model.safetensors", metadata={"format": "pt"})
        (made / "config.json").write_text(json.dumps(config))
        save_tokenizer(made)
    return stored, twin


def _model(generator: torch.Generator) -> Iterator[tuple[str, Tensor]]:
    def normal(*shape: int, gain: float = 1.0) -> Tensor:
        return gain * torch.randn(shape, generator=generator)

    def matrix(out: int, into: int, gain: float = 1.0) -> Tensor:
        return normal(out, into, gain=gain / into**0.5)

    def norm(size: int) -> Tensor:
        return (1.0 + normal(size, gain=0.1)).bfloat16()

    def linear(name: str, out: int, into: int, gain: float = 1.0) -> Iterator[tuple[str, Tensor]]:
        weight, scale, _ = to_e4m3(matrix(out, into, gain), is_power_of_two=True)
        yield f"{name}.weight", weight
        yield f"{name}.scale", scale.to(torch.float8_e8m0fnu)

    def streams(name: str, rows: int, scales: int) -> Iterator[tuple[str, Tensor]]:
        yield f"{name}_fn", matrix(rows, HC * HIDDEN)
        yield f"{name}_base", normal(rows, gain=0.1)
        yield f"{name}_scale", 0.5 + normal(scales, gain=0.1)

    def compressor(name: str, ratio: int, head: int) -> Iterator[tuple[str, Tensor]]:
        width = head * (2 if ratio == 4 else 1)  # two overlapping windows
        yield f"{name}.ape", normal(ratio, width, gain=0.1)
        yield f"{name}.wkv.weight", matrix(width, HIDDEN).bfloat16()
        yield f"{name}.wgate.weight", matrix(width, HIDDEN).bfloat16()
        yield f"{name}.norm.weight", norm(head)

    yield "embed.weight", normal(VOCAB, HIDDEN).bfloat16()
    yield "head.weight", matrix(VOCAB, HIDDEN, 4.0).bfloat16()  # as in `checkpoints`
    yield "norm.weight", norm(HIDDEN)
    yield from streams("hc_head", HC, 1)
    for layer, ratio in enumerate(COMPRESS):
        at, attn, ffn = (f"layers.{layer}{part}" for part in ("", ".attn", ".ffn"))
        for part in ("attn", "ffn"):
            yield from streams(f"{at}.hc_{part}", (2 + HC) * HC, 3)
            yield f"{at}.{part}_norm.weight", norm(HIDDEN)
        yield f"{attn}.attn_sink", normal(HEADS)
        yield from linear(f"{attn}.wq_a", Q_RANK, HIDDEN)
        yield from linear(f"{attn}.wq_b", HEADS * HEAD, Q_RANK)
        yield from linear(f"{attn}.wkv", HEAD, HIDDEN)
        yield from linear(f"{attn}.wo_a", O_GROUPS * O_RANK, HEADS * HEAD // O_GROUPS, 2.0)
        yield from linear(f"{attn}.wo_b", HIDDEN, O_GROUPS * O_RANK)
        yield f"{attn}.q_norm.weight", norm(Q_RANK)
        yield f"{attn}.kv_norm.weight", norm(HEAD)
        if ratio > 1:
            yield from compressor(f"{attn}.compressor", ratio, HEAD)
        if ratio == 4:
            indexer = f"{attn}.indexer"
            yield from linear(f"{indexer}.wq_b", INDEX_HEADS * INDEX_HEAD, Q_RANK)
            yield f"{indexer}.weights_proj.weight", matrix(INDEX_HEADS, HIDDEN).bfloat16()
            yield from compressor(f"{indexer}.compressor", ratio, INDEX_HEAD)
        yield f"{ffn}.gate.weight", matrix(EXPERTS, HIDDEN, 2.0).bfloat16()
        if layer < CONFIG["num_hash_layers"]:
            drawn = torch.rand(VOCAB, EXPERTS, generator=generator).argsort(1)
            yield f"{ffn}.gate.tid2eid", drawn[:, :TOP_K].int()
        else:
            yield f"{ffn}.gate.bias", normal(EXPERTS, gain=0.1)
        for name in ("shared_experts", *(f"experts.{e}" for e in range(EXPERTS))):
            for part, out, into in (
                ("w1", INTERMEDIATE, HIDDEN),
                ("w2", HIDDEN, INTERMEDIATE),
                ("w3", INTERMEDIATE, HIDDEN),
            ):
                gain = 2.0 if part == "w2" else 1.0
                if name == "shared_experts":
                    yield from linear(f"{ffn}.{name}.{part}", out, into, gain)
                else:
                    weight, scale, meant = to_e2m1(matrix(out, into, gain))
                    yield f"{ffn}.{name}.{part}.weight", weight.view(torch.int8)
                    yield f"{ffn}.{name}.{part}.scale", scale.view(torch.float8_e8m0fnu)
                    yield f"{ffn}.{name}.{part}.weight.meant", meant.bfloat16()
