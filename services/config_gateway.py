"""The sections `gateway`, `limits` and `monitoring`: who may use the API, and what is told."""

import ipaddress
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, field_validator, model_validator

from services.config_base import AtLeastOne, Positive, Resources, Section


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach an address."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


class GatewayConfig(Section):
    # Address that the API listens on. 127.0.0.1: this machine only; 0.0.0.0 opens it to everyone.
    host: Annotated[str, Field(min_length=1)] = "127.0.0.1"
    # TCP port of the API, 1 to 65535.
    port: Annotated[int, Field(ge=1, le=65535)] = 8000
    # Gateways (Serve replicas), >= 1. One carries some hundred streams.
    replicas: AtLeastOne = 1
    # File of API keys (`python -m deploy key` prints an entry), read again when it changes. None:
    # everyone may do everything, which is refused unless host is a loopback address.
    keys_file: Annotated[str, Field(min_length=1)] | None = None
    # Bytes of a request's body, >= 1. 4 MiB: about a million tokens of text.
    max_body_bytes: AtLeastOne = 4 * 2**20
    # Seconds in which a body must have arrived; > 0. 30: 4 MiB over a slow line.
    body_timeout_s: Positive = 30.0
    # Seconds that open requests have to finish when a replica is stopped for a reload or by
    # scaling, and that `deploy down` waits; > 0. 60: most answers.
    stop_grace_s: Positive = 60.0
    # Ray resources that each gateway and the controller reserve, as attention.resources. None set:
    # they run on the head of the cluster, so that no other host takes requests with it.
    resources: Resources = Field(default_factory=dict)

    @field_validator("keys_file")
    @classmethod
    def _absolute(cls, path: str | None) -> str | None:
        return None if path is None else str(Path(path).expanduser().absolute())

    @model_validator(mode="after")
    def _closed_or_keyed(self) -> Self:
        if self.keys_file is None and not is_loopback(self.host):
            raise ValueError(
                f"host is {self.host}, which other machines can reach, and keys_file is not set: "
                "anyone could use the model. Make a file of keys (python -m deploy key) and name "
                "it in keys_file, or set host to 127.0.0.1"
            )
        return self


class LimitsConfig(Section):
    # Requests that one attention replica works on at once, >= 1; others wait in the gateways, in
    # turns by key. 64: as many as its engine decodes together (attention.max_num_seqs).
    max_ongoing_requests: AtLeastOne = 64
    # Requests that wait in one gateway, >= 0; further ones get 503 at once. 64: one more batch.
    max_queued_requests: Annotated[int, Field(ge=0)] = 64
    # Seconds that a request may wait for its turn; > 0. Who would wait longer, by how long requests
    # have taken lately, gets 503 at once, and whoever has, gets it then. 0.25: a step of a busy
    # engine, so that overload does not double the time to the first token.
    max_queue_wait_s: Positive = 0.25
    # Seconds that a request may take in all; > 0. A client may ask for less with the header
    # x-request-timeout. 600: what OpenAI's clients wait.
    request_timeout_s: Positive = 600.0
    # Per API key, each >= 1; None: no limit. Keys of the file may have limits of their own.
    # Requests a minute; a minute's worth may come at once.
    requests_per_minute: AtLeastOne | None = None
    # Prompt and output tokens a minute; counted when they are there, so the last request of a
    # minute may go beyond.
    tokens_per_minute: AtLeastOne | None = None
    # Requests open at once.
    streams_per_key: AtLeastOne | None = None
    # Per request: tokens of the prompt, and tokens asked for; None: what the model's length allows.
    max_prompt_tokens: AtLeastOne | None = None
    max_output_tokens: AtLeastOne | None = None
    # Choices of one request, over all its prompts (n, best_of), >= 1.
    max_n: AtLeastOne = 16


class MonitoringConfig(Section):
    # Series of single experts in GET /metrics. full: all, 2 * layers * experts of them; top: each
    # layer's ten that are asked for most; off: none. top: a large model stays cheap to scrape.
    # Whatever is chosen, there are totals, replicas and imbalance of every layer.
    per_expert: Literal["full", "top", "off"] = "top"
