"""One real request over HTTP, which tells "deployed" from "serves".

Also the addresses and the example that an operator copies.
"""

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx

from router.errors import ConfigError, EngineError
from services.config import DeploymentConfig
from services.paths import RAY_LOGS

REQUEST_TIMEOUT_S = 60.0  # the first request of a fresh engine is slow
PAUSE_S = 0.5
EVERY_ADDRESS = {"0.0.0.0": "127.0.0.1", "::": "::1"}


def base_url(config: DeploymentConfig) -> str:
    """Where a client on this machine reaches the API; it is on the head of a cluster's hosts."""
    host = EVERY_ADDRESS.get(config.gateway.host, config.gateway.host)
    head, _, port = (config.ray.address or "").rpartition(":")
    if config.gateway.host in EVERY_ADDRESS and port.isdigit():
        host = head.strip("[]")
    return (
        f"http://[{host}]:{config.gateway.port}"
        if ":" in host
        else (f"http://{host}:{config.gateway.port}")
    )


def example_curl(config: DeploymentConfig) -> str:
    """A command to copy: a chat if the model has a chat template, else a completion."""
    body: dict[str, Any] = {"model": config.model.served_name, "max_tokens": 40}
    if has_chat_template(config.model.folder):
        path = "chat/completions"
        body["messages"] = [{"role": "user", "content": "What is the capital of France?"}]
    else:
        path = "completions"
        body["prompt"] = "The capital of France is"
    quoted = json.dumps(body).replace("'", "'\\''")
    key = "" if config.gateway.keys_file is None else ' -H "Authorization: Bearer $API_KEY"'
    url = f"{base_url(config)}/v1/{path}"
    return f"curl {url}{key} -H 'Content-Type: application/json' -d '{quoted}'"


def has_chat_template(folder: Path) -> bool:
    """Whether the checkpoint says how a conversation is written."""
    if any(folder.glob("chat_template.*")):
        return True
    try:
        described = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(described, dict) and bool(described.get("chat_template"))


def ask_first_token(
    config: DeploymentConfig,
    *,
    transport: httpx.BaseTransport | None = None,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> None:
    """Ask for one token until it comes; where keys are asked for, only whether it would.

    A refused connection and a 404, 429 or 5xx are asked again for controller.startup_grace_s.
    Raises ConfigError for another 4xx, EngineError when the time is over.
    """
    url = f"{base_url(config)}/v1/completions"
    body = {"model": config.model.served_name, "prompt": "Hello", "max_tokens": 1}
    if config.gateway.keys_file is not None:  # nobody's key is known here
        url = f"{base_url(config)}/ready"
    grace_s = config.controller.startup_grace_s
    end_s = clock() + grace_s
    with httpx.Client(transport=transport, timeout=REQUEST_TIMEOUT_S, trust_env=False) as client:
        while True:
            try:
                is_open = config.gateway.keys_file is None
                answer = client.post(url, json=body) if is_open else client.get(url)
            except httpx.TransportError as error:
                seen = f"{type(error).__name__}: {error}"
            else:
                if answer.status_code == httpx.codes.OK:
                    return
                seen = f"status {answer.status_code}: {answer.text[:500]}"
                if answer.status_code < 500 and answer.status_code not in (404, 408, 429):
                    raise ConfigError(
                        f"the API refuses its first request at {url}: {seen}. Correct the "
                        "configuration as it says."
                    )
            if clock() >= end_s:
                raise EngineError(
                    f"no token from {url} within {grace_s:g} s (controller.startup_grace_s); last: "
                    f"{seen}. Look at the Serve logs under {RAY_LOGS}/serve."
                )
            sleep(PAUSE_S)
