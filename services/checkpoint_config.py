"""How many routed experts a model has, read from its config.json.

Knows the keys that Hugging Face configurations use; `services.checkpoint` offers the result.
"""

from collections.abc import Mapping
from typing import Any

from router.errors import CheckpointError

# Keys by which Hugging Face configurations give the routed experts of one layer.
EXPERT_KEYS = (
    "n_routed_experts",
    "num_local_experts",
    "num_experts",
    "moe_num_experts",
    "num_routed_experts",
    "n_experts",
)
EXPERT_CHOICE_KEYS = (
    "num_experts_per_tok",
    "num_experts_per_token",
    "moe_topk",
    "moe_top_k",
    "moe_k",
    "num_selected_experts",
    "top_k_experts",
    "experts_per_token",
)
# Sections of a multimodal configuration that hold the language model's.
TEXT_SECTIONS = ("text_config", "llm_config", "language_config", "thinker_config", "ffn_config")


def n_experts(config: Mapping[str, Any]) -> int:
    """Routed experts of one layer. Raises CheckpointError if there are none."""
    count = _first_int(config, EXPERT_KEYS)
    if count is None:
        raise CheckpointError(
            f"the model is not a mixture of experts: its config.json (model_type "
            f"{config.get('model_type', 'not given')!r}) has none of {', '.join(EXPERT_KEYS)}. "
            "Serve a dense model with vLLM itself; this platform needs routed experts."
        )
    return count


def n_experts_per_token(config: Mapping[str, Any]) -> int:
    """Routed experts that each token visits in a layer. Raises CheckpointError if not given."""
    count = _first_int(config, EXPERT_CHOICE_KEYS)
    if count is None:
        raise CheckpointError(
            "config.json does not say how many experts a token visits: it has none of "
            f"{', '.join(EXPERT_CHOICE_KEYS)}. Add num_experts_per_tok."
        )
    return count


def _first_int(config: Mapping[str, Any], keys: tuple[str, ...]) -> int | None:
    # The text section first: a multimodal model's vision part may be a mixture of its own.
    for section in TEXT_SECTIONS:
        inner = config.get(section)
        if isinstance(inner, Mapping) and (count := _first_int(inner, keys)) is not None:
            return count
    for key in keys:
        value = config.get(key)
        # Some configurations give one number for each layer; dense layers have 0 or 1.
        counts = value if isinstance(value, list) else [value]
        ints = [n for n in counts if isinstance(n, int) and not isinstance(n, bool)]
        if ints and max(ints) > (0 if keys is EXPERT_CHOICE_KEYS else 1):
            return max(ints)
    return None
