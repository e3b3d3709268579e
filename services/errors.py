"""Errors as OpenAI's clients expect them, in a body and in the middle of a stream."""

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


def error_body(status: int, message: str, param: str | None = None) -> bytes:
    """JSON of one error. status: of HTTP; param: the field of the request that is wrong."""
    kind = TYPES.get(status, HTTPStatus(status).phrase.lower().replace(" ", "_"))
    error = {"message": message, "type": kind, "param": param, "code": status}
    return json.dumps({"error": error}).encode()


def error_event(status: int, message: str) -> bytes:
    """The last event of a stream that has begun and cannot go on."""
    return b"data: " + error_body(status, message) + b"\n\n"
