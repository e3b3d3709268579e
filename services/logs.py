"""Our log lines in processes that others set up: Ray's actors and vLLM's workers.

A line is `event: key=value …`; as JSON each key is a field of its own.
"""

import logging
import re
import sys
from datetime import UTC, datetime
from typing import Any

from opentelemetry import trace
from pythonjsonlogger.json import JsonFormatter

from services.config_watch import LogsConfig

PACKAGES = ("router", "services", "monitoring")
FORMAT = "%(asctime)s %(levelname)s %(name)s %(message)s"
PLACE = re.compile(r"(?:(\w+)=)?%(?:%|[-#0 +]*\d*(?:\.\d+)?[a-zA-Z])")
"""One place for an argument in a line's template, and the key before it, if it has one."""


def log_to_stderr(config: LogsConfig) -> None:
    """Write what our packages log, once, to this process's stderr, which Ray keeps in a file."""
    for name in PACKAGES:
        logger = logging.getLogger(name)
        if logger.handlers:
            continue
        handler = logging.StreamHandler(sys.stderr)
        is_json = config.format == "json"
        handler.setFormatter(JsonLines() if is_json else logging.Formatter(FORMAT))
        logger.addHandler(handler)
        logger.setLevel(config.level.upper())
        logger.propagate = False


class JsonLines(JsonFormatter):
    """One object a line: time, level, logger, event, the line's fields, and where it belongs.

    detail: what a line says beyond its event and its fields. exc_info: a traceback.
    """

    def __init__(self) -> None:
        super().__init__(fmt=[], json_ensure_ascii=False)

    def add_fields(
        self, log_data: dict[str, Any], record: logging.LogRecord, message_dict: dict[str, Any]
    ) -> None:
        """For the base class, which writes what is in `log_data`.

        message_dict: a traceback. What a library adds to every record is left out.
        """
        event, fields, detail = parse(record)
        made = datetime.fromtimestamp(record.created, UTC)
        log_data["time"] = made.isoformat(timespec="milliseconds")
        log_data |= {"level": record.levelname, "logger": record.name, "event": event}
        log_data |= {key: value for key, value in fields.items() if key not in log_data}
        if detail:
            log_data["detail"] = detail
        span = trace.get_current_span().get_span_context()
        if span.is_valid:
            log_data["trace_id"] = trace.format_trace_id(span.trace_id)
            log_data["span_id"] = trace.format_span_id(span.span_id)
        log_data |= message_dict


def parse(record: logging.LogRecord) -> tuple[str, dict[str, Any], str]:
    """(event, fields, the rest) of a line.

    Read from its template, not from the finished text, where a value may look like a key.
    """
    args = record.args if isinstance(record.args, tuple) else ()
    fields: dict[str, Any] = {}
    given = iter(args)

    def fill(place: re.Match[str]) -> str:
        key, text = place[1], place[0]
        if text.endswith("%%"):
            return text.replace("%%", "%")
        value = next(given, None)
        if key is None:
            return str(text % (value,))
        fields[key] = _plain(value, text.removeprefix(f"{key}="))
        return ""

    template, colon, rest = str(record.msg).partition(":")
    event = PLACE.sub(fill, template)
    detail = " ".join(PLACE.sub(fill, rest).split())
    if not colon:
        event = " ".join(event.split())
    return event, fields, detail.strip(": ")


def _plain(value: Any, place: str) -> Any:
    """As JSON has it; a float as precise as the line would show it."""
    if isinstance(value, float):
        return float(place % (value,)) if place[-1] in "fge" else value
    if isinstance(value, list):
        return [_plain(item, place) for item in value]
    return value if isinstance(value, bool | int | None) else str(value)
