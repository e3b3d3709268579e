"""vLLM's entry point: every vLLM process calls `register`, which adds a load format and operators.

A process that is not told to use them is left exactly as vLLM made it.
"""

LOAD_FORMAT = "expertmesh"


def register() -> None:
    """Make `load_format="expertmesh"` and `norms` known; called by vLLM's general plugin group."""
    from vllm.model_executor.model_loader import register_model_loader

    from services.attention import norms
    from services.attention.loader import AttentionLoader

    register_model_loader(LOAD_FORMAT)(AttentionLoader)
    norms.register()
