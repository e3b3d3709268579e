"""Errors as each API's clients expect them, in a body and in the middle of a stream."""

import json
from http import HTTPStatus

TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    405: "invalid_request_error",
    408: "timeout_error",
    413: "request_too_large",
    415: "invalid_request_error",
    429: "rate_limit_error",
    503: "service_unavailable",
    504: "timeout_error",
}
ANTHROPIC_TYPES = TYPES | {503: "overloaded_error"}
ANTHROPIC = "/v1/messages"


def is_anthropic(path: str) -> bool:
    """Whether a route is Anthropic's; all others are in OpenAI's manner."""
    return path == ANTHROPIC or path.startswith(f"{ANTHROPIC}/")


def error_body(status: int, message: str, param: str | None = None, *, path: str = "") -> bytes:
    """JSON of one error. status: of HTTP; param: the field that is wrong; path: of the route."""
    if is_anthropic(path):
        kind = ANTHROPIC_TYPES.get(
            status, "api_error" if status >= 500 else "invalid_request_error"
        )
        return json.dumps({"type": "error", "error": {"type": kind, "message": message}}).encode()
    kind = TYPES.get(status, HTTPStatus(status).phrase.lower().replace(" ", "_"))
    error = {"message": message, "type": kind, "param": param, "code": status}
    return json.dumps({"error": error}).encode()


def error_event(status: int, message: str, *, path: str = "") -> bytes:
    """The last event of a stream that has begun and cannot go on."""
    name = b"event: error\n" if is_anthropic(path) else b""
    return name + b"data: " + error_body(status, message, path=path) + b"\n\n"


def is_error_event(event: bytes) -> bool:
    """Whether it is one, of ours or of vLLM's routes."""
    return event.startswith((b'data: {"error"', b"event: error\n"))


def reshaped(status: int, body: bytes, path: str) -> bytes:
    """An error of vLLM's routes as the clients of this route expect it; theirs if it is not one.

    Its checks of a body's fields answer in OpenAI's shape on every route.
    """
    if not is_anthropic(path):
        return body
    try:
        message = json.loads(body)["error"]["message"]
    except (ValueError, KeyError, TypeError):
        return body
    return error_body(status, str(message), path=path)
