"""Log lines as an operator's tools read them: one object each, nothing lost of what they say."""

import json
import logging
from collections.abc import Iterator

import pytest
from opentelemetry.sdk.trace import TracerProvider

from services.config_watch import LogsConfig
from services.logs import PACKAGES, JsonLines, log_to_stderr


def line(template: str, *args: object, level: int = logging.INFO) -> dict[str, object]:
    record = logging.LogRecord("services.x", level, "x.py", 1, template, args, None)
    written = JsonLines().format(record)
    assert "\n" not in written
    found = json.loads(written)
    assert isinstance(found, dict)
    return found


def test_each_key_of_a_line_becomes_a_field_of_its_kind() -> None:
    found = line("request: request_id=%s status=%s ms=%.1f path=%r", "ab12", 200, 1.2345, "/v1")
    assert found.pop("time", "")
    assert found == {
        "level": "INFO", "logger": "services.x", "event": "request",
        "request_id": "ab12", "status": 200, "ms": 1.2, "path": "/v1",
    }  # fmt: skip


def test_a_list_is_a_list_and_what_libraries_add_to_records_is_left_out() -> None:
    record = logging.LogRecord("services.x", 20, "x.py", 1, "rows: experts=%s", ([0, 2],), None)
    record.vllm_process_name = "EngineCore"
    found = json.loads(JsonLines().format(record))
    assert found["experts"] == [0, 2]
    assert "vllm_process_name" not in found


def test_the_time_is_utc_with_milliseconds() -> None:
    record = logging.LogRecord("services.x", 20, "x.py", 1, "ready", (), None)
    record.created = 1795780800.25
    assert json.loads(JsonLines().format(record))["time"] == "2026-11-27T12:00:00.250+00:00"


def test_what_has_no_key_is_kept_as_detail_or_in_the_event() -> None:
    lost = line("replica lost: request_id=%s %s: %s", "ab12", "before its answer", "it died")
    assert (lost["event"], lost["detail"]) == ("replica lost", "before its answer: it died")
    assert line("shard %s: shard=%s reason=%s", "lost", "a", "no")["event"] == "shard lost"
    assert line("worker died")["event"] == "worker died"
    assert line("100%% done: n=%s", 3) | {"time": 0} == {
        "time": 0, "level": "INFO", "logger": "services.x", "event": "100% done", "n": 3,
    }  # fmt: skip


def test_a_value_that_looks_like_fields_stays_one_value() -> None:
    found = line("rows refused: shard=%s reason=%s", "a", "layer=3 level=DEBUG\nevent=x")
    assert found["reason"] == "layer=3 level=DEBUG\nevent=x"
    assert found["level"] == "INFO"


def test_a_traceback_is_a_field() -> None:
    try:
        raise ValueError("no such thing")
    except ValueError as error:
        record = logging.LogRecord(
            "services.x", 40, "x.py", 1, "failed", (), (ValueError, error, error.__traceback__)
        )
    assert "ValueError: no such thing" in json.loads(JsonLines().format(record))["exc_info"]


def test_a_line_inside_a_span_names_it() -> None:
    with TracerProvider().get_tracer("test").start_as_current_span("one") as span:
        found = line("ready")
    context = span.get_span_context()
    assert found["trace_id"] == f"{context.trace_id:032x}"
    assert found["span_id"] == f"{context.span_id:016x}"
    assert "trace_id" not in line("ready")


@pytest.fixture
def loggers() -> Iterator[list[logging.Logger]]:
    """Ours without handlers, as in a new process."""
    ours = [logging.getLogger(name) for name in PACKAGES]
    before = [(logger, logger.handlers[:], logger.level, logger.propagate) for logger in ours]
    for logger in ours:
        logger.handlers.clear()
    yield ours
    for logger, handlers, level, propagate in before:
        logger.handlers[:], logger.level, logger.propagate = handlers, level, propagate


def test_format_and_level_are_those_of_the_configuration(
    loggers: list[logging.Logger], capsys: pytest.CaptureFixture[str]
) -> None:
    log_to_stderr(LogsConfig(format="json", level="debug"))
    log_to_stderr(LogsConfig())  # the second call changes nothing
    logging.getLogger("services.x").debug("rows served: layer=%s", 3)
    [written] = capsys.readouterr().err.splitlines()
    assert json.loads(written)["layer"] == 3
