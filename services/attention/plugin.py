"""vLLM's entry point: every vLLM process calls `register`, which adds one load format.

A process that is not told to use the format is left exactly as vLLM made it.
"""

LOAD_FORMAT = "expertmesh"


def register() -> None:
    """Make `load_format="expertmesh"` known; called by vLLM's general plugin group."""
    from vllm.model_executor.model_loader import register_model_loader

    from services.attention.loader import AttentionLoader

    register_model_loader(LOAD_FORMAT)(AttentionLoader)
