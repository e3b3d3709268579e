"""The HTTP side: Ray Serve LLM's OpenAI ingress, bound to the rest of the application.

Adds a check in front of the routes: a body that is not declared as JSON is refused, where Ray
2.60's error handler would fail on it and answer 500.
"""

from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any, cast

import ray
from ray import serve
from ray.serve.deployment import Application
from ray.serve.handle import DeploymentHandle
from ray.serve.llm import LLMConfig, build_llm_deployment
from ray.serve.llm.ingress import OpenAiIngress, make_fastapi_ingress
from starlette.responses import JSONResponse
from starlette.types import ASGIApp

from router.errors import EngineError

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]

READABLE = (b"application/json", b"multipart/form-data")  # the latter for audio


class Gateway(OpenAiIngress):
    """OpenAI-compatible routes. Binding the pool and the controller makes them part of the app."""

    def __init__(
        self, *arguments: Any, controller: DeploymentHandle, pool: DeploymentHandle, **options: Any
    ) -> None:
        super().__init__(*arguments, **options)
        self._controller = controller
        self._pool = pool


class JsonBodies:
    """ASGI middleware: every HTTP request comes by here before it is routed."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if not (problem := unreadable(scope)):
            await self._app(scope, receive, send)
            return
        error = {"message": problem, "type": "invalid_request_error", "param": None, "code": 415}
        await JSONResponse({"error": error}, status_code=415)(scope, receive, send)


def build_gateway(
    llm_config: LLMConfig, *, controller: Application, pool: Application, options: dict[str, Any]
) -> Application:
    """The ingress in front of one attention deployment; what `build_openai_app` builds, and ours.

    Raises EngineError if Ray Serve LLM's parts are not where this was written for them.
    """
    try:  # neither has a public name in Ray 2.60, though the public docstrings show the second
        from ray.llm._internal.serve.core.configs.openai_api_models import to_model_metadata
        from ray.llm._internal.serve.core.ingress.ingress import init
    except ImportError as error:
        raise EngineError(
            f"Ray {ray.__version__} differs from 2.60, for which ExpertMesh was written: {error}. "
            "Install the pinned packages (make setup)."
        ) from error
    app = init()
    app.add_middleware(JsonBodies)
    name = llm_config.model_id
    return serve.deployment(make_fastapi_ingress(Gateway, app=app), name="Gateway", **options).bind(
        llm_deployments={name: build_llm_deployment(llm_config)},
        model_cards={name: to_model_metadata(name, llm_config)},
        controller=controller,
        pool=pool,
    )


def unreadable(scope: Scope) -> str:
    """Why the body of this request will not be read; empty if it may be."""
    if scope["type"] != "http" or scope["method"] != "POST":
        return ""
    headers = cast(list[tuple[bytes, bytes]], scope["headers"])
    declared = next((v for k, v in headers if k.lower() == b"content-type"), b"")
    if declared.split(b";")[0].strip().lower() in READABLE:
        return ""
    return (
        f"Content-Type is {declared.decode('latin-1')!r}; send the body as JSON with "
        "Content-Type: application/json."
    )
