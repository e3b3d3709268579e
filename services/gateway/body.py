"""Reads a request's body, within limits, and looks for what no route should have to see.

vLLM's routes check the fields. Here is what would hurt before or beside that: bodies too large, too
slow or too deep, numbers that no machine word holds, and grammars that take minutes to compile.
"""

import asyncio
import json
import re
from collections.abc import AsyncIterator, Iterator
from typing import Any, NoReturn

from starlette.requests import Request

from services.gateway.errors import Refusal

MAX_DEPTH = 64  # of nested arrays and objects; tool schemas have some ten
MAX_INTEGER = 2**63 - 1
MAX_GRAMMAR_CHARS = 16_384  # of a regular expression, a grammar or a JSON schema
MAX_REPEATS = 4_096  # of {m,n}, nested ones multiplied, and of maxLength, maxItems
REPEAT = re.compile(r"\{(\d*)(?:,(\d*))?\}")
MAX_TOOLS = 128  # as OpenAI
ROLES = ("system", "developer", "user", "assistant", "tool", "function")
BOUNDS = ("minLength", "maxLength", "minItems", "maxItems", "minProperties", "maxProperties")


ALONG = "expertmesh.body"
"""In a request's scope: its body, if the proxy's middleware had all of it at once."""


async def read_body(request: Request, *, max_bytes: int, timeout_s: float) -> bytes:
    """The whole body. Raises Refusal: 413, 408; ClientDisconnect."""
    declared = request.headers.get("content-length", "0")
    if not declared.isdecimal():
        raise Refusal(400, f"Content-Length is {declared[:20]!r}, which is no number.")
    taken = bytearray()
    try:
        async with asyncio.timeout(timeout_s):
            if int(declared[:20]) > max_bytes:
                _too_large(max_bytes)
            async for piece in _pieces(request):
                taken += piece
                if len(taken) > max_bytes:
                    _too_large(max_bytes)
    except TimeoutError:
        raise Refusal(
            408,
            f"the body was not there within {timeout_s:g} s (gateway.body_timeout_s). "
            "Send it faster, or a smaller one.",
        ) from None
    return bytes(taken)


async def _pieces(request: Request) -> AsyncIterator[bytes]:
    if ALONG in request.scope:
        yield request.scope[ALONG]
        return
    async for piece in request.stream():
        yield piece


def parse_body(body: bytes, *, max_n: int, max_output_tokens: int | None) -> dict[str, Any]:
    """The JSON object in it. Raises Refusal 400 that names the place."""
    try:
        values = json.loads(
            body.decode(), parse_constant=_no_number, parse_int=_integer, parse_float=_float
        )
    except UnicodeDecodeError as error:
        raise Refusal(400, f"the body is not UTF-8: byte {error.start} is wrong.") from None
    except RecursionError:
        _too_deep()
    except json.JSONDecodeError as error:
        raise Refusal(
            400, f"the body is not JSON: {error.msg}, line {error.lineno}, column {error.colno}."
        ) from None
    if not isinstance(values, dict):
        raise Refusal(400, f"the body is a JSON {type(values).__name__}; send an object.")
    _check_values(values)
    _check_amounts(values, max_n, max_output_tokens)
    _check_roles(values.get("messages"))
    for name, value in _grammars(values):
        check_grammar(name, value)
    return values


def check_grammar(name: str, value: Any) -> None:
    """Refuse what would take a grammar compiler very long. Raises Refusal 400."""
    text = value if isinstance(value, str) else json.dumps(value)
    if len(text) > MAX_GRAMMAR_CHARS:
        raise Refusal(
            400,
            f"{name} has {len(text)} characters; the limit is {MAX_GRAMMAR_CHARS}. Send less.",
            param=name,
        )
    product = 1
    for found in REPEAT.finditer(text):
        times = max(int(bound[:9]) if bound else 1 for bound in found.groups())
        product *= max(1, times)
    for _, key, bound in _walk(value):
        if key in BOUNDS and isinstance(bound, int):
            product = max(product, bound)
    if product > MAX_REPEATS:
        raise Refusal(
            400,
            f"{name} asks for {product} repetitions; the limit is {MAX_REPEATS}, nested ones "
            "multiplied. Allow fewer, or use * and +.",
            param=name,
        )


def _check_values(values: Any) -> None:
    for depth, key, value in _walk(values):
        if depth > MAX_DEPTH:
            _too_deep()
        for text in (key, value):
            if isinstance(text, str) and not text.isascii():
                try:
                    text.encode()
                except UnicodeEncodeError:
                    raise Refusal(
                        400, "a string has half of a surrogate pair, which is no character."
                    ) from None


def _check_amounts(values: dict[str, Any], max_n: int, max_output_tokens: int | None) -> None:
    prompt = values.get("prompt")
    prompts = len(prompt) if isinstance(prompt, list) and not _is_tokens(prompt) else 1
    for field in ("n", "best_of"):
        asked = values.get(field)
        if isinstance(asked, int) and asked * prompts > max_n:
            raise Refusal(
                400,
                f"{field} is {asked}, for {prompts} prompts; the limit is {max_n} choices in all "
                "(limits.max_n). Send several requests.",
                param=field,
            )
    if prompts > max_n:
        raise Refusal(
            400, f"{prompts} prompts; the limit is {max_n} (limits.max_n).", param="prompt"
        )
    for field in ("max_tokens", "max_completion_tokens", "max_output_tokens", "min_tokens"):
        asked = values.get(field)
        if max_output_tokens is not None and isinstance(asked, int) and asked > max_output_tokens:
            raise Refusal(
                400,
                f"{field} is {asked}; the limit is {max_output_tokens} (limits.max_output_tokens).",
                param=field,
            )


def _check_roles(messages: Any) -> None:
    """vLLM leaves them to the model's chat template, which may take any word for the user's."""
    for number, message in enumerate(messages if isinstance(messages, list) else ()):
        role = message.get("role") if isinstance(message, dict) else None
        if isinstance(role, str) and role not in ROLES:
            raise Refusal(
                400,
                f"messages[{number}].role is {role[:40]!r}; known are: {', '.join(ROLES)}.",
                param=f"messages[{number}].role",
            )


def _is_tokens(prompt: list[Any]) -> bool:
    return bool(prompt) and isinstance(prompt[0], int)


def _grammars(values: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    """What the engine would compile: JSON schemas of formats and tools, expressions, grammars."""
    for field in (
        "response_format",
        "text",
        "output_config",
        "output_format",
        "structured_outputs",
    ):
        if isinstance(values.get(field), dict):
            yield field, values[field]
    tools = values.get("tools")
    if isinstance(tools, list) and len(tools) > MAX_TOOLS:
        raise Refusal(400, f"{len(tools)} tools; the limit is {MAX_TOOLS}.", param="tools")
    for number, tool in enumerate(tools if isinstance(tools, list) else ()):
        yield f"tools[{number}]", tool


def _walk(values: Any, depth: int = 0) -> Iterator[tuple[int, str, Any]]:
    """(depth, key, value) of everything inside, without recursion."""
    left: list[tuple[int, str, Any]] = [(depth, "", values)]
    while left:
        depth, key, value = left.pop()
        yield depth, key, value
        if isinstance(value, dict):
            left += [(depth + 1, inner, each) for inner, each in value.items()]
        elif isinstance(value, list):
            left += [(depth + 1, "", each) for each in value if not isinstance(each, int | float)]


def _integer(digits: str) -> int:
    value = int(digits) if len(digits) <= 20 else MAX_INTEGER + 1
    if abs(value) > MAX_INTEGER:
        raise Refusal(400, f"the number {digits[:24]} is too large; the limit is 2^63 - 1.")
    return value


def _float(digits: str) -> float:
    value = float(digits)
    if value in (float("inf"), float("-inf")):
        raise Refusal(400, f"the number {digits[:24]} is too large.")
    return value


def _no_number(name: str) -> NoReturn:
    raise Refusal(400, f"{name} is not JSON; send a number.")


def _too_deep() -> NoReturn:
    raise Refusal(400, f"the body is nested too deeply; the limit is {MAX_DEPTH} levels.")


def _too_large(max_bytes: int) -> NoReturn:
    raise Refusal(
        413, f"the body is larger than {max_bytes} bytes (gateway.max_body_bytes). Send less."
    )
