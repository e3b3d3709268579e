"""Ray Serve LLM's vLLM engine with the model in the engine's own process.

On a CPU vLLM would put the model into a further process, which gets every step over shared memory
that both ends poll. One process less is less memory, and no polling.
"""

from typing import Any

import ray
import vllm
from ray.llm._internal.serve.engines.vllm.vllm_engine import VLLMEngine
from ray.serve.llm.deployment import LLMServer

from router.errors import EngineError
from services.attention.generation import follow

HOOKS = (
    (VLLMEngine, "_prepare_engine_config"),
    (VLLMEngine, "_start_async_llm_engine"),
    (LLMServer, "_start_engine"),
    (LLMServer, "__serve_build_asgi_app__"),
)
"""Where Ray 2.60 makes the configuration, the client and the routes, and starts; not public."""


class OneProcessEngine(VLLMEngine):
    """Threads are set by the environment (`services.app`), for which vLLM wants the process."""

    async def start(self) -> None:
        """As the base class, but without a Ray task that looks for a model to download."""
        self.llm_config.get_or_create_callback().ctx.run_init_node = False
        await super().start()

    def _prepare_engine_config(self, *context: Any) -> tuple[Any, Any, Any]:
        arguments, frontend, config = super()._prepare_engine_config(*context)
        if config.device_config.device_type == "cpu" and config.parallel_config.world_size == 1:
            config.parallel_config.distributed_executor_backend = "uni"
        return arguments, frontend, config

    def _start_async_llm_engine(self, *arguments: Any) -> Any:
        client = super()._start_async_llm_engine(*arguments)
        follow(client)
        return client


def engine_is_dead(engine: Any) -> bool:
    """Whether vLLM's engine process has ended, or its client has given it up."""
    return bool(engine._engine_client.errored)


def check_engine() -> None:
    """Raise EngineError naming the versions if Ray's engine is not the one we know."""
    for kind, hook in HOOKS:
        if not callable(getattr(kind, hook, None)):
            raise EngineError(
                f"Ray {ray.__version__} differs from 2.60 (vLLM {vllm.__version__}): "
                f"{kind.__name__} has no {hook}. Install the pinned packages (make setup)."
            )
