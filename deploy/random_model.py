"""Builds the benchmarks' models: DeepSeek-V3's shape, random parameters, 107 million of them.

Latent attention, a dense first layer, then 32 experts a layer of which four and a shared one work
for each token, chosen in groups and with a bias. Its text means nothing, but each expert differs.
`WIDE` has more and larger experts, so that they are most of what it takes.
`deploy.demo_model` is the one that chats.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from deploy.model_folder import build_once, save_weights, write_index, write_json

RECIPE = 1  # raise it when the files below change, so that older builds are made anew
RECIPE_FILE = "random_model.json"
LAYERS, HIDDEN, HEADS, VOCAB, POSITIONS = 8, 512, 8, 2048, 4096
QUERY_RANK, LATENT_RANK, HEAD_ROPE, HEAD_PLAIN, HEAD_VALUE = 256, 512, 64, 64, 64
DENSE, TOP_K = 1536, 4
SPECIAL_TOKENS = ("<bos>", "<eos>", "<pad>")

Shapes = Iterator[tuple[str, tuple[int, ...]]]


@dataclass(frozen=True, slots=True)
class Experts:
    """Routed experts of a layer. dtype: that all parameters are stored in."""

    count: int
    intermediate: int
    dtype: str


USUAL = Experts(32, 256, "float32")  # 430 MB
WIDE = Experts(256, 1280, "bfloat16")  # 7.1 GB


def build_random_model(
    out: Path, *, seed: int = 0, experts: Experts = USUAL, progress: Callable[[str], None]
) -> Path:
    """Write the checkpoint to `out` and return it; at once if it is there.

    The same seed gives the same bytes. Raises ConfigError when `out` holds something else.
    """

    def write(folder: Path) -> None:
        generator = torch.Generator().manual_seed(seed)
        files: dict[str, list[str]] = {}
        for layer in range(LAYERS):
            file = f"model-layer-{layer:02}.safetensors"
            shapes = _layer(layer, experts)
            tensors = {name: _random(name, of, generator) for name, of in shapes}
            files[file] = save_weights(folder, file, tensors, experts.dtype)
        file = "model-outer.safetensors"
        tensors = {name: _random(name, of, generator) for name, of in _outer()}
        files[file] = save_weights(folder, file, tensors, experts.dtype)
        write_index(folder, files)
        write_json(folder / "config.json", _config(experts))
        _tokenizer().save_pretrained(folder)

    recipe = {"recipe": RECIPE, "seed": seed} | ({} if experts == USUAL else asdict(experts))
    is_new = build_once(out, RECIPE_FILE, recipe, write)
    progress(f"random model {'written to' if is_new else 'is ready in'} {out}")
    return out


def _outer() -> Shapes:
    yield "model.embed_tokens.weight", (VOCAB, HIDDEN)
    yield "model.norm.weight", (HIDDEN,)
    yield "lm_head.weight", (VOCAB, HIDDEN)


def _layer(layer: int, experts: Experts) -> Shapes:
    """Names and shapes of one decoder layer's tensors, as DeepSeek's checkpoints have them."""
    prefix = f"model.layers.{layer}"
    yield f"{prefix}.input_layernorm.weight", (HIDDEN,)
    yield f"{prefix}.post_attention_layernorm.weight", (HIDDEN,)
    yield from _attention(f"{prefix}.self_attn")
    if layer == 0:
        yield from _mlp(f"{prefix}.mlp", DENSE)
        return
    yield f"{prefix}.mlp.gate.weight", (experts.count, HIDDEN)
    yield f"{prefix}.mlp.gate.e_score_correction_bias", (experts.count,)
    yield from _mlp(f"{prefix}.mlp.shared_experts", experts.intermediate)
    for expert in range(experts.count):
        yield from _mlp(f"{prefix}.mlp.experts.{expert}", experts.intermediate)


def _attention(prefix: str) -> Shapes:
    yield f"{prefix}.q_a_proj.weight", (QUERY_RANK, HIDDEN)
    yield f"{prefix}.q_a_layernorm.weight", (QUERY_RANK,)
    yield f"{prefix}.q_b_proj.weight", (HEADS * (HEAD_PLAIN + HEAD_ROPE), QUERY_RANK)
    yield f"{prefix}.kv_a_proj_with_mqa.weight", (LATENT_RANK + HEAD_ROPE, HIDDEN)
    yield f"{prefix}.kv_a_layernorm.weight", (LATENT_RANK,)
    yield f"{prefix}.kv_b_proj.weight", (HEADS * (HEAD_PLAIN + HEAD_VALUE), LATENT_RANK)
    yield f"{prefix}.o_proj.weight", (HIDDEN, HEADS * HEAD_VALUE)


def _mlp(prefix: str, intermediate: int) -> Shapes:
    yield f"{prefix}.gate_proj.weight", (intermediate, HIDDEN)
    yield f"{prefix}.up_proj.weight", (intermediate, HIDDEN)
    yield f"{prefix}.down_proj.weight", (HIDDEN, intermediate)


def _random(name: str, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """Normal values whose spread keeps activations near 1. shape: [out, in] of a matrix."""
    values = torch.randn(shape, generator=generator)
    if "norm" in name:
        return 1.0 + 0.1 * values
    if len(shape) == 1:
        return 0.1 * values
    return values if "embed_tokens" in name else values / math.sqrt(shape[1])


def _config(experts: Experts) -> dict[str, Any]:
    return {
        "architectures": ["DeepseekV3ForCausalLM"],
        "model_type": "deepseek_v3",
        "dtype": experts.dtype,
        "hidden_size": HIDDEN,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
        "num_key_value_heads": HEADS,
        "q_lora_rank": QUERY_RANK,
        "kv_lora_rank": LATENT_RANK,
        "qk_rope_head_dim": HEAD_ROPE,
        "qk_nope_head_dim": HEAD_PLAIN,
        "v_head_dim": HEAD_VALUE,
        "intermediate_size": DENSE,
        "moe_intermediate_size": experts.intermediate,
        "first_k_dense_replace": 1,
        "moe_layer_freq": 1,
        "n_routed_experts": experts.count,
        "n_shared_experts": 1,
        "num_experts_per_tok": TOP_K,
        "n_group": 4,
        "topk_group": 2,
        "topk_method": "noaux_tc",  # without it vLLM does not load the gate's bias
        "scoring_func": "sigmoid",
        "norm_topk_prob": True,
        "routed_scaling_factor": 2.5,
        "vocab_size": VOCAB,
        "max_position_embeddings": POSITIONS,
        "rms_norm_eps": 1e-6,
        "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
        "hidden_act": "silu",
        "attention_bias": False,
        "tie_word_embeddings": False,
        "num_nextn_predict_layers": 0,
        "bos_token_id": 0,
        "eos_token_id": 1,
        "pad_token_id": 2,
    }


def _tokenizer() -> Any:
    """Every byte, and made-up words in the rest of the vocabulary, so that every id is text."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    first, middle, last = "bcdfghjklmnprstvwxyz", "aeiou", "bcdfghjklmnprstvwxyz"
    words = [f"Ġ{a}{b}{c}" for a in first for b in middle for c in last]
    tokens = [*SPECIAL_TOKENS, *sorted(pre_tokenizers.ByteLevel.alphabet()), *words][:VOCAB]
    tokenizer = Tokenizer(models.BPE({token: i for i, token in enumerate(tokens)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    bos, eos, pad = SPECIAL_TOKENS
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=bos,
        eos_token=eos,
        pad_token=pad,
        model_max_length=POSITIONS,
    )
