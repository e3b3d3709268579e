"""The vLLM configuration that a shard builds its kernel with."""

from typing import cast

from vllm.config import VllmConfig
from vllm.engine.arg_utils import EngineArgs


def shard_vllm_config(
    model: str, *, dtype: str = "auto", trust_remote_code: bool = False
) -> VllmConfig:
    """vLLM's view of the checkpoint; nothing is loaded. The pool is a "world" of one process."""
    arguments = EngineArgs(
        model=model,
        dtype=dtype,
        trust_remote_code=trust_remote_code,
        enforce_eager=True,
        disable_log_stats=True,
    )
    return cast(VllmConfig, arguments.create_engine_config())
