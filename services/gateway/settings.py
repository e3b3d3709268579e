"""What a gateway needs of the deployment's configuration."""

from dataclasses import dataclass
from pathlib import Path

from services.config import DeploymentConfig
from services.gateway.limits import KeyLimits


@dataclass(frozen=True, slots=True)
class GatewaySettings:
    """Parsed once."""

    app: str
    keys_file: Path | None
    max_body_bytes: int
    body_timeout_s: float
    report_interval_s: float
    key_limits: KeyLimits
    ongoing_per_engine: int
    max_waiting: int
    max_wait_s: float
    request_timeout_s: float
    max_prompt_tokens: int | None
    max_output_tokens: int | None
    max_n: int


def gateway_settings(config: DeploymentConfig) -> GatewaySettings:
    """From the sections `gateway` and `limits`."""
    gateway, limits = config.gateway, config.limits
    return GatewaySettings(
        app=config.name,
        keys_file=None if gateway.keys_file is None else Path(gateway.keys_file),
        max_body_bytes=gateway.max_body_bytes,
        body_timeout_s=gateway.body_timeout_s,
        report_interval_s=config.controller.report_interval_s,
        key_limits=KeyLimits(
            limits.requests_per_minute, limits.tokens_per_minute, limits.streams_per_key
        ),
        ongoing_per_engine=limits.max_ongoing_requests,
        max_waiting=limits.max_queued_requests,
        max_wait_s=limits.max_queue_wait_s,
        request_timeout_s=limits.request_timeout_s,
        max_prompt_tokens=limits.max_prompt_tokens,
        max_output_tokens=limits.max_output_tokens,
        max_n=limits.max_n,
    )
