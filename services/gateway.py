"""The HTTP side: Ray Serve LLM's OpenAI ingress, bound to the rest of the application."""

from typing import Any

from ray.serve.handle import DeploymentHandle
from ray.serve.llm.ingress import OpenAiIngress


class Gateway(OpenAiIngress):
    """OpenAI-compatible routes. Binding the pool and the controller makes them part of the app."""

    def __init__(
        self, *arguments: Any, controller: DeploymentHandle, pool: DeploymentHandle, **options: Any
    ) -> None:
        super().__init__(*arguments, **options)
        self._controller = controller
        self._pool = pool
