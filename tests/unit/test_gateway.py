"""Which bodies the gateway lets through to the routes."""

import pytest

from services.gateway import unreadable


def scope(content_type: str | None, method: str = "POST") -> dict[str, object]:
    headers = [] if content_type is None else [(b"Content-Type", content_type.encode())]
    return {"type": "http", "method": method, "headers": headers}


@pytest.mark.parametrize("declared", ["application/json", "Application/JSON; charset=utf-8"])
def test_json_is_let_through(declared: str) -> None:
    assert unreadable(scope(declared)) == ""


@pytest.mark.parametrize("declared", ["text/plain", "application/x-www-form-urlencoded"])
def test_anything_else_is_refused_by_name(declared: str) -> None:
    assert declared in unreadable(scope(declared))
    assert "application/json" in unreadable(scope(declared))


def test_a_body_of_no_declared_kind_is_refused() -> None:
    assert unreadable(scope(None))


def test_a_request_without_a_body_needs_no_type() -> None:
    assert unreadable(scope(None, method="GET")) == ""
