"""Engine arguments that an attention replica needs besides the operator's."""

from collections.abc import Mapping
from typing import Any


def cpu_engine_args(config: Mapping[str, Any]) -> dict[str, Any]:
    """What vLLM 0.32 needs on a CPU to be right for this checkpoint (its config.json).

    Its CPU kernel for rotary embeddings misreads the layout that latent attention (MLA) passes
    when it runs eagerly; torch's own implementation of the same operation is used there.
    """
    text_config = config.get("text_config")
    has_latent_attention = "kv_lora_rank" in config or (
        isinstance(text_config, Mapping) and "kv_lora_rank" in text_config
    )
    if not has_latent_attention:
        return {}
    return {"compilation_config": {"custom_ops": ["-rotary_embedding"]}}
