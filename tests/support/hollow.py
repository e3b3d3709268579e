"""Folders like real models': true shapes and sizes, with holes for the weights.

Tools that read only headers cannot tell them from the real ones; they take 2 MB on disk.
"""

import json
import math
from pathlib import Path
from typing import Any

# As far as anything here reads their config.json.
QWEN3_30B: dict[str, Any] = {
    "architectures": ["Qwen3MoeForCausalLM"],
    "model_type": "qwen3_moe",
    "hidden_size": 2048,
    "num_hidden_layers": 48,
    "num_attention_heads": 32,
    "num_key_value_heads": 4,
    "head_dim": 128,
    "moe_intermediate_size": 768,
    "num_experts": 128,
    "num_experts_per_tok": 8,
    "vocab_size": 151936,
    "max_position_embeddings": 40960,
}
DEMO: dict[str, Any] = {
    "architectures": ["MixtralForCausalLM"],
    "model_type": "mixtral",
    "hidden_size": 576,
    "num_hidden_layers": 30,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "head_dim": 64,
    "moe_intermediate_size": 1536,
    "num_experts": 8,
    "num_experts_per_tok": 2,
    "vocab_size": 49152,
    "max_position_embeddings": 8192,
}


def shapes(config: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    """Every tensor of such a model, name → shape."""
    hidden, inner, head = (config[k] for k in ("hidden_size", "moe_intermediate_size", "head_dim"))
    heads, kv = config["num_attention_heads"] * head, config["num_key_value_heads"] * head
    found: dict[str, tuple[int, ...]] = {
        "model.embed_tokens.weight": (config["vocab_size"], hidden),
        "lm_head.weight": (config["vocab_size"], hidden),
        "model.norm.weight": (hidden,),
    }
    for layer in range(config["num_hidden_layers"]):
        prefix = f"model.layers.{layer}"
        found |= {
            f"{prefix}.self_attn.q_proj.weight": (heads, hidden),
            f"{prefix}.self_attn.k_proj.weight": (kv, hidden),
            f"{prefix}.self_attn.v_proj.weight": (kv, hidden),
            f"{prefix}.self_attn.o_proj.weight": (hidden, heads),
            f"{prefix}.input_layernorm.weight": (hidden,),
            f"{prefix}.post_attention_layernorm.weight": (hidden,),
            f"{prefix}.mlp.gate.weight": (config["num_experts"], hidden),
        }
        for expert in range(config["num_experts"]):
            found |= {
                f"{prefix}.mlp.experts.{expert}.gate_proj.weight": (inner, hidden),
                f"{prefix}.mlp.experts.{expert}.up_proj.weight": (inner, hidden),
                f"{prefix}.mlp.experts.{expert}.down_proj.weight": (hidden, inner),
            }
    return found


def make_hollow(folder: Path, config: dict[str, Any]) -> Path:
    """Write config.json, a tokenizer's name, and a file of bfloat16 holes; returns the folder."""
    folder.mkdir(parents=True)
    header, end = {}, 0
    for name, shape in shapes(config).items():
        begin, end = end, end + 2 * math.prod(shape)
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    with (folder / "model.safetensors").open("wb") as stream:
        stream.write(len(text).to_bytes(8, "little") + text)
        stream.truncate(8 + len(text) + end)
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "tokenizer.json").write_text("{}")
    return folder
