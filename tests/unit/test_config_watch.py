"""What may be set about logs and traces, and that an engine's process is told the same."""

import json

import pytest

from router.choose import Policy
from router.errors import ConfigError
from services.attention.settings import RemoteSettings
from services.config import load_config
from services.config_watch import LogsConfig, TracingConfig


@pytest.mark.parametrize(
    ("given", "used"),
    [
        ("http://127.0.0.1:4318", "http://127.0.0.1:4318/v1/traces"),
        ("https://collector/", "https://collector/v1/traces"),
        ("http://[::1]:4318/otlp/v1/traces", "http://[::1]:4318/otlp/v1/traces"),
    ],
)
def test_a_collector_is_named_by_its_url(given: str, used: str) -> None:
    assert load_config(None, {"tracing.endpoint": given}).tracing.endpoint == used


@pytest.mark.parametrize(
    ("given", "why"),
    [
        ("127.0.0.1:4318", "not a URL of a collector; write it like http://127.0.0.1:4318"),
        ("grpc://collector:4317", "not a URL of a collector"),
        ("http://collector:port", "not a URL of a collector"),
        ("http://user:secret@collector", "scheme, host, port and path only"),
        ("http://collector/?token=secret", "scheme, host, port and path only"),
    ],
)
def test_what_is_no_such_url_is_refused(given: str, why: str) -> None:
    with pytest.raises(ConfigError, match=why) as refused:
        load_config(None, {"tracing.endpoint": given})
    assert "secret" not in str(refused.value)


@pytest.mark.parametrize(
    ("key", "value", "why"),
    [
        ("tracing.sample_ratio", 1.5, "less than or equal to 1"),
        ("tracing.step_interval", 0, "greater than or equal to 1"),
        ("tracing.layer_interval", 0, "greater than or equal to 1"),
        ("logs.format", "jsn", 'did you mean "json"'),
        ("logs.level", "loud", "it should be 'debug'"),
    ],
)
def test_other_wrong_values_are_refused(key: str, value: object, why: str) -> None:
    with pytest.raises(ConfigError, match=why):
        load_config(None, {key: value})


@pytest.mark.parametrize(
    ("key", "instead"), [("worker_cls", "steps"), ("otlp_traces_endpoint", "tracing.endpoint")]
)
def test_engine_arguments_that_tracing_sets_are_managed(key: str, instead: str) -> None:
    with pytest.raises(ConfigError, match=instead):
        load_config(None, {"attention.engine_args": {key: "x"}})


def test_an_engine_is_told_both_sections() -> None:
    tracing = TracingConfig(endpoint="http://collector", step_interval=3)
    settings = RemoteSettings(
        "ipc://feed", "here", 1.0, 2.0, Policy.EVEN_SPLIT, LogsConfig(format="json"), tracing
    )
    told = json.loads(json.dumps(settings.to_additional_config()))
    assert RemoteSettings.parse(told) == settings
