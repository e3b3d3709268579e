"""Engine arguments that an attention replica needs besides the operator's."""

from collections.abc import Mapping
from typing import Any

PROVIDER = "expertmesh"  # of operators that vLLM knows (`norms`)


def cpu_engine_args(config: Mapping[str, Any], dtype: str) -> dict[str, Any]:
    """What vLLM 0.32 needs on a CPU to be right for this checkpoint (its config.json) and dtype.

    Its CPU kernel for rotary embeddings misreads the layout that latent attention (MLA) passes
    when it runs eagerly; torch's own implementation of the same operation is used there. Where the
    CPU has AMX, vLLM takes latent attention's kernels for that whatever the type, and they know
    bfloat16 alone; elsewhere CPU_MLA is what it takes anyway.
    """
    text_config = config.get("text_config")
    has_latent_attention = "kv_lora_rank" in config or (
        isinstance(text_config, Mapping) and "kv_lora_rank" in text_config
    )
    if not has_latent_attention:
        return {}
    arguments: dict[str, Any] = {"compilation_config": {"custom_ops": ["-rotary_embedding"]}}
    if dtype != "bfloat16":
        arguments["attention_backend"] = "CPU_MLA"
    return arguments


def own_operators() -> dict[str, Any]:
    """Has an engine on a CPU use the operators of `norms`."""
    return {"ir_op_priority": {"rms_norm": [PROVIDER], "fused_add_rms_norm": [PROVIDER]}}
