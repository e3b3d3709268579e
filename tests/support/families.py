"""The shapes of the tiny checkpoints: one configuration for each mixture-of-experts architecture.

Small in every direction, but within what vLLM's CPU kernels take: hidden and intermediate sizes are
multiples of 32, head sizes 32 or 64, and DeepSeek's latent attention has its one supported size.
"""

import math
from collections.abc import Callable
from typing import Any

HIDDEN = 128
VOCAB = 512
LAYERS = 4
HEADS = 4
BOS, EOS, PAD = 0, 1, 2
MAX_POSITIONS = 2048

_COMMON: dict[str, Any] = {
    "vocab_size": VOCAB,
    "hidden_size": HIDDEN,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS,
    "max_position_embeddings": MAX_POSITIONS,
    "bos_token_id": BOS,
    "eos_token_id": EOS,
    "pad_token_id": PAD,
    "tie_word_embeddings": False,
}
# The CPU's latent attention has a kernel for one latent size only: kv_lora_rank + rope = 576.
_LATENT_ATTENTION: dict[str, Any] = {
    "num_key_value_heads": HEADS,
    "kv_lora_rank": 512,
    "qk_rope_head_dim": 64,
    "qk_nope_head_dim": 64,
    "v_head_dim": 64,
    "intermediate_size": 256,
    "moe_intermediate_size": 64,
    "num_experts_per_tok": 4,
    "first_k_dense_replace": 1,
}


def _deepseek_v2() -> Any:
    from transformers import DeepseekV2Config

    return DeepseekV2Config(
        **_COMMON,
        **_LATENT_ATTENTION,
        q_lora_rank=None,
        n_routed_experts=16,
        n_shared_experts=2,
        n_group=1,
        topk_group=1,
        routed_scaling_factor=1.0,
    )


def _deepseek_v3() -> Any:
    from transformers import DeepseekV3Config

    return DeepseekV3Config(
        **_COMMON,
        **_LATENT_ATTENTION,
        q_lora_rank=96,
        n_routed_experts=16,
        n_shared_experts=1,
        n_group=4,
        topk_group=2,
        routed_scaling_factor=2.5,
        num_mtp_layers=0,
        # Read by vLLM alone: without them it neither loads nor uses the gate's bias.
        topk_method="noaux_tc",
        scoring_func="sigmoid",
    )


def _qwen3_moe() -> Any:
    from transformers import Qwen3MoeConfig

    return Qwen3MoeConfig(
        **_COMMON,
        num_key_value_heads=2,
        head_dim=32,
        intermediate_size=256,
        moe_intermediate_size=64,
        num_experts=16,
        num_experts_per_tok=4,
        norm_topk_prob=True,
    )


def _mixtral() -> Any:
    from transformers import MixtralConfig

    return MixtralConfig(
        **_COMMON,
        num_key_value_heads=2,
        intermediate_size=128,
        num_local_experts=8,
        num_experts_per_tok=2,
    )


def _gpt_oss() -> Any:
    from transformers import GptOssConfig

    return GptOssConfig(
        **_COMMON,
        num_key_value_heads=2,
        head_dim=64,
        intermediate_size=64,
        num_local_experts=16,
        num_experts_per_tok=4,
        sliding_window=16,
        # vLLM takes YaRN for granted in this family, and wants all its keys.
        rope_parameters={
            "rope_type": "yarn",
            "rope_theta": 10000.0,
            "factor": 2.0,
            "beta_fast": 32.0,
            "beta_slow": 1.0,
            "original_max_position_embeddings": MAX_POSITIONS // 2,
            "truncate": False,
        },
    )


def _qwen2_moe() -> Any:
    from transformers import Qwen2MoeConfig

    return Qwen2MoeConfig(
        **_COMMON,
        num_key_value_heads=2,
        intermediate_size=256,
        moe_intermediate_size=64,
        shared_expert_intermediate_size=128,
        num_experts=12,
        num_experts_per_tok=4,
    )


def _olmoe() -> Any:
    from transformers import OlmoeConfig

    return OlmoeConfig(
        **_COMMON,
        num_key_value_heads=HEADS,
        intermediate_size=64,
        num_experts=16,
        num_experts_per_tok=4,
    )


def _glm4_moe() -> Any:
    from transformers import Glm4MoeConfig

    return Glm4MoeConfig(
        **_COMMON,
        num_key_value_heads=2,
        head_dim=32,
        intermediate_size=256,
        moe_intermediate_size=64,
        n_routed_experts=16,
        n_shared_experts=1,
        num_experts_per_tok=4,
        routed_scaling_factor=1.5,
        num_mtp_layers=0,
        use_qk_norm=True,
        scoring_func="sigmoid",
    )


def _granitemoe() -> Any:
    from transformers import GraniteMoeConfig

    return GraniteMoeConfig(
        **_COMMON,
        num_key_value_heads=2,
        intermediate_size=64,
        num_local_experts=16,
        num_experts_per_tok=4,
        attention_multiplier=1.0 / math.sqrt(HIDDEN // HEADS),
    )


def _llama4() -> Any:
    from transformers import Llama4TextConfig

    return Llama4TextConfig(
        **_COMMON,
        num_key_value_heads=2,
        head_dim=32,
        intermediate_size=64,
        intermediate_size_mlp=256,
        num_local_experts=8,
        num_experts_per_tok=1,
        interleave_moe_layer_step=2,
    )


FAMILIES: dict[str, Callable[[], Any]] = {
    "deepseek_v2": _deepseek_v2,
    "deepseek_v3": _deepseek_v3,
    "qwen3_moe": _qwen3_moe,
    "mixtral": _mixtral,
    "gpt_oss": _gpt_oss,
    "qwen2_moe": _qwen2_moe,
    "olmoe": _olmoe,
    "glm4_moe": _glm4_moe,
    "granitemoe": _granitemoe,
    "llama4": _llama4,
}
