"""What an engine on a CPU is told besides the operator's words."""

from services.attention.engine_args import cpu_engine_args

LATENT = {"kv_lora_rank": 512}


def test_other_attention_needs_nothing() -> None:
    assert cpu_engine_args({"hidden_size": 128}, "float32") == {}


def test_latent_attention_has_no_kernel_for_rotary_embeddings() -> None:
    for config in (LATENT, {"text_config": LATENT}):
        told = cpu_engine_args(config, "bfloat16")
        assert told == {"compilation_config": {"custom_ops": ["-rotary_embedding"]}}


def test_latent_attention_outside_bfloat16_does_not_use_amx() -> None:
    """vLLM would, and stop at the weights' type."""
    assert cpu_engine_args(LATENT, "float32")["attention_backend"] == "CPU_MLA"
