"""What an attention worker is told through vLLM's `additional_config`; it holds no secret.

The server process writes it, the worker process of the same replica parses it.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from router.choose import Policy
from router.errors import ConfigError
from services.config_watch import LogsConfig, TracingConfig

KEY = "expertmesh"


@dataclass(frozen=True, slots=True)
class RemoteSettings:
    """How a worker reaches the pool."""

    feed: str  # ipc endpoint of its server process, which hands out tables
    host: str  # Ray node of this replica
    reply_timeout_s: float  # an unanswered shard counts as dead after this
    give_up_s: float  # a step waits so long for an expert that nobody holds, then the engine ends
    policy: Policy  # how replicas are chosen
    logs: LogsConfig = field(default_factory=LogsConfig)
    tracing: TracingConfig = field(default_factory=TracingConfig)
    threads: int = 0  # of a step; 0: as many as the process has
    prompt_threads: int = 0  # of a step of many tokens
    half_batch_tokens: int = 0  # a step of so many is computed in two halves in turn; 0: none is

    def to_additional_config(self) -> dict[str, Any]:
        """The value for vLLM's `additional_config`."""
        sections = {"logs": self.logs.model_dump(), "tracing": self.tracing.model_dump()}
        return {KEY: asdict(self) | {"policy": self.policy.value} | sections}

    @classmethod
    def parse(cls, additional_config: object) -> "RemoteSettings":
        """Read it back. Raises ConfigError if it is not there."""
        found = additional_config.get(KEY) if isinstance(additional_config, Mapping) else None
        if not isinstance(found, Mapping):
            raise ConfigError(
                f"load_format=expertmesh needs additional_config with the key '{KEY}', got "
                f"{additional_config!r}; start attention through `python -m deploy up`"
            )
        sections = {
            "policy": Policy(found["policy"]),
            "logs": LogsConfig.model_validate(found["logs"]),
            "tracing": TracingConfig.model_validate(found["tracing"]),
        }
        return cls(**{**found, **sections})
