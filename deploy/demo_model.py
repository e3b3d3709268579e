"""Builds the demo model: a small mixture of experts that chats in English, without a download.

SmolLM2-135M-Instruct is upcycled to Mixtral's shape: each layer's MLP is copied to every expert,
and a random gate picks `top_k` of them with weights that add to 1, so the text is the dense model's
while the routing, its load and its failures are real. It cannot show that a row reached the *right*
expert: all experts of a layer compute the same. Use: `python -m deploy.demo_model --out DIR`.
"""

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from deploy.model_folder import DTYPES, build_once, save_weights, write_index, write_json
from deploy.packaged_model import DenseShape, PackagedModel, find_packaged_model
from router.errors import ConfigError, PlatformError

RECIPE = 1  # raise it when the files below change, so that older builds are made anew
RECIPE_FILE = "demo_model.json"
GATE_SPREAD = 0.02  # standard deviation of the gate's weights; its choices then differ by token
GATE_SEED = 0
_EXPERT_NAMES = {"gate_proj": "w1", "down_proj": "w2", "up_proj": "w3"}

Progress = Callable[[str], None]


def build_demo_model(
    out: Path,
    *,
    n_experts: int = 8,
    top_k: int = 2,
    dtype: str = "bfloat16",
    progress: Progress,
) -> Path:
    """Write the demo checkpoint to `out` and return it; at once when it is there already.

    Needs 160 MB of disk for each expert in bfloat16. The folder appears complete or not at all.
    Raises ConfigError for impossible numbers, or when `out` holds something else.
    """
    recipe = _recipe(n_experts, top_k, dtype)

    def write(folder: Path) -> None:
        source = PackagedModel(find_packaged_model())
        _write_weights(folder, source, recipe, progress)
        _write_description(folder, source, recipe)

    is_new = build_once(out, RECIPE_FILE, recipe, write)
    progress(f"demo model {'written to' if is_new else 'is ready in'} {out}")
    return out


def _recipe(n_experts: int, top_k: int, dtype: str) -> dict[str, Any]:
    """What a build depends on; kept in the folder to tell one build from another."""
    if not 1 <= top_k <= n_experts:
        raise ConfigError(f"top_k={top_k} must be between 1 and n_experts={n_experts}")
    if dtype not in DTYPES:
        raise ConfigError(f"dtype {dtype!r} is not one of {', '.join(DTYPES)}")
    return {"recipe": RECIPE, "n_experts": n_experts, "top_k": top_k, "dtype": dtype}


def _write_weights(
    folder: Path, source: PackagedModel, recipe: dict[str, Any], progress: Progress
) -> None:
    """Write one file a layer, so that only one layer is in memory, and the index of all files."""
    generator = torch.Generator().manual_seed(GATE_SEED)
    layers = source.shape.layers
    files: dict[str, list[str]] = {}
    for layer in range(layers):
        tensors = _sparse_layer(layer, source, recipe["n_experts"], generator)
        file = f"model-layer-{layer:02}.safetensors"
        files[file] = save_weights(folder, file, tensors, recipe["dtype"])
        progress(f"demo model: layer {layer + 1} of {layers}")
    file = "model-outer.safetensors"
    files[file] = save_weights(folder, file, dict(source.outer_weights()), recipe["dtype"])
    write_index(folder, files)


def _sparse_layer(
    layer: int, source: PackagedModel, n_experts: int, generator: torch.Generator
) -> dict[str, Tensor]:
    """One decoder layer under Mixtral's names, its MLP copied to every expert."""
    moe = f"model.layers.{layer}.block_sparse_moe"
    gate = torch.randn(n_experts, source.shape.hidden, generator=generator) * GATE_SPREAD
    tensors = {f"{moe}.gate.weight": gate}
    for name, weight in source.layer_weights(layer):
        if ".mlp." not in name:
            tensors[name] = weight
            continue
        part = _EXPERT_NAMES[name.split(".")[-2]]
        for expert in range(n_experts):
            tensors[f"{moe}.experts.{expert}.{part}.weight"] = weight
    return tensors


def _write_description(folder: Path, source: PackagedModel, recipe: dict[str, Any]) -> None:
    tokenizer = source.tokenizer()
    tokenizer.save_pretrained(folder)
    ids = {
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    write_json(folder / "config.json", _config(source.shape, recipe) | ids)
    # vLLM takes this where a request says nothing: greedy, so that the same question has the same
    # answer before and after a shard dies.
    sampling = {"do_sample": False, "temperature": 0.0}
    write_json(folder / "generation_config.json", sampling | ids)


def _config(shape: DenseShape, recipe: dict[str, Any]) -> dict[str, Any]:
    return {
        "architectures": ["MixtralForCausalLM"],
        "model_type": "mixtral",
        "dtype": recipe["dtype"],
        "num_local_experts": recipe["n_experts"],
        "num_experts_per_tok": recipe["top_k"],
        "num_hidden_layers": shape.layers,
        "hidden_size": shape.hidden,
        "intermediate_size": shape.intermediate,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.kv_heads,
        "head_dim": shape.head_dim,
        "vocab_size": shape.vocab,
        "max_position_embeddings": shape.max_positions,
        "rms_norm_eps": shape.rms_norm_eps,
        "rope_parameters": {"rope_type": "default", "rope_theta": shape.rope_theta},
        "hidden_act": "silu",
        "sliding_window": None,
        "tie_word_embeddings": False,
    }


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m deploy.demo_model", description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="folder of the checkpoint")
    parser.add_argument("--experts", type=int, default=8, help="experts a layer (default 8)")
    parser.add_argument("--top-k", type=int, default=2, help="experts a token visits (default 2)")
    parser.add_argument("--dtype", choices=sorted(DTYPES), default="bfloat16", help="on disk")
    options = parser.parse_args(arguments)
    try:
        build_demo_model(
            options.out,
            n_experts=options.experts,
            top_k=options.top_k,
            dtype=options.dtype,
            progress=lambda line: print(line, file=sys.stderr, flush=True),
        )
    except PlatformError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
