"""Bodies that no client should send, by route; each is to be answered with a 4xx."""

import json
from collections.abc import Iterator
from typing import Any

Case = tuple[str, str, bytes]
"""(name, path, body)"""

HELLO = [{"role": "user", "content": "Hello"}]
DEEP = b"[" * 500_000 + b"]" * 500_000

# What every generating route must refuse, whatever else the body holds.
RAW: dict[str, bytes] = {
    "empty": b"",
    "no-json": b"{",
    "half": b'{"model": "demo-moe", "mess',
    "list": b"[]",
    "null": b"null",
    "string": b'"model"',
    "utf-8": b'{"model": "\xff\xfe"}',
    "utf-16": '{"model": "demo-moe"}'.encode("utf-16"),
    "nul": b"\0" * 64,
    "deep": b'{"model": ' + DEEP + b"}",
    "nan": b'{"model": "demo-moe", "temperature": NaN}',
    "infinity": b'{"model": "demo-moe", "temperature": 1e999}',
    "digits": b'{"model": "demo-moe", "seed": ' + b"9" * 5000 + b"}",
    "surrogate": b'{"model": "demo-moe", "user": "\\ud800"}',
    "multipart": b"--x\r\nContent-Disposition: form-data\r\n\r\n1\r\n--x--",
}

# Changes to a body that is right.
CHANGES: dict[str, dict[str, Any]] = {
    "model-number": {"model": 7},
    "model-unknown": {"model": "no-such-model"},
    "n-huge": {"n": 1_000_000},
    "n-zero": {"n": 0},
    "n-negative": {"n": -1},
    "n-word": {"n": "many"},
    "max-tokens-negative": {"max_tokens": -5},
    "max-tokens-huge": {"max_tokens": 2**62},
    "max-tokens-float": {"max_tokens": 1.5},
    "min-above-max": {"max_tokens": 2, "min_tokens": 3},
    "temperature-negative": {"temperature": -0.1},
    "top-p-zero": {"top_p": 0},
    "top-p-two": {"top_p": 2},
    "top-k-negative": {"top_k": -7},
    "min-p-two": {"min_p": 2},
    "presence": {"presence_penalty": 99},
    "frequency": {"frequency_penalty": -99},
    "repetition": {"repetition_penalty": 0},
    "seed-word": {"seed": "one"},
    "stop-empty": {"stop": [""]},
    "stop-number": {"stop": [1]},
    "stop-token-unknown": {"stop_token_ids": ["x"]},
    "bias-unknown": {"logit_bias": {"99999999": 1}},
    "bias-word": {"logit_bias": {"a": 1}},
    "stream-options-alone": {"stream_options": {"include_usage": True}},
    "allowed-unknown": {"allowed_token_ids": [99_999_999]},
    "grammar-regex-broken": {"structured_outputs": {"regex": "(("}},
    "grammar-regex-bomb": {"structured_outputs": {"regex": "((a{1,999}){1,999}){1,999}"}},
    "grammar-broken": {"structured_outputs": {"grammar": "root ::= ???"}},
    "grammar-two-kinds": {"structured_outputs": {"regex": "a", "choice": ["b"]}},
    "grammar-long": {"structured_outputs": {"regex": "a" * 100_000}},
    "choice-empty": {"structured_outputs": {"choice": []}},
    "schema-bomb": {
        "response_format": {
            "type": "json_schema",
            "json_schema": {
                "name": "x",
                "schema": {"type": "array", "maxItems": 10**9, "items": {"type": "string"}},
            },
        }
    },
    "schema-broken": {
        "response_format": {
            "type": "json_schema",
            "json_schema": {"name": "x", "schema": {"type": "no-such-type"}},
        }
    },
    "format-unknown": {"response_format": {"type": "no-such-format"}},
}

CHAT: dict[str, dict[str, Any]] = {
    "messages-missing": {"messages": None},
    "messages-empty": {"messages": []},
    "messages-text": {"messages": "Hello"},
    "messages-null": {"messages": [None]},
    "role-unknown": {"messages": [{"role": "alien", "content": "Hello"}]},
    "role-missing": {"messages": [{"content": "Hello"}]},
    "content-number": {"messages": [{"role": "user", "content": 7}]},
    "content-image": {
        "messages": [
            {
                "role": "user",
                "content": [{"type": "image_url", "image_url": {"url": "http://127.0.0.1:1/x"}}],
            }
        ]
    },
    "prompt-too-long": {"messages": [{"role": "user", "content": "word " * 5000}]},
    "top-logprobs-alone": {"top_logprobs": 3},
    "top-logprobs-many": {"logprobs": True, "top_logprobs": 9999},
    "tools-text": {"tools": "weather"},
    "tools-broken": {"tools": [{"type": "function", "function": {"name": "f", "parameters": 7}}]},
    "tool-choice-unknown": {
        "tools": [{"type": "function", "function": {"name": "f", "parameters": {}}}],
        "tool_choice": {"type": "function", "function": {"name": "g"}},
    },
    "template": {"chat_template": "{% for x in range(10**9) %}x{% endfor %}"},
}

COMPLETION: dict[str, dict[str, Any]] = {
    "prompt-missing": {"prompt": None},
    "prompt-number": {"prompt": 7},
    "prompt-empty-list": {"prompt": []},
    "prompt-token-unknown": {"prompt": [99_999_999]},
    "prompt-token-negative": {"prompt": [-1]},
    "prompt-many": {"prompt": ["a"] * 1000},
    "prompt-too-long": {"prompt": "word " * 5000},
    "logprobs-many": {"logprobs": 9999},
    "best-of-huge": {"best_of": 10**6},
    "embeds": {"prompt_embeds": "AAAA"},
}


def bad_bodies(model: str) -> Iterator[Case]:
    """All of them."""
    right: dict[str, dict[str, Any]] = {
        "/v1/chat/completions": {"model": model, "max_tokens": 4, "messages": HELLO},
        "/v1/completions": {"model": model, "max_tokens": 4, "prompt": "Hello"},
        "/v1/messages": {"model": model, "max_tokens": 4, "messages": HELLO},
        "/v1/responses": {"model": model, "max_output_tokens": 4, "input": "Hello"},
        "/tokenize": {"model": model, "prompt": "Hello"},
        "/detokenize": {"model": model, "tokens": [1]},
    }
    for path, body in right.items():
        for name, raw in RAW.items():
            yield f"{path}:{name}", path, raw
        yield f"{path}:model-other", path, _changed(body, {"model": "no-such-model"})
    for path, own in (("/v1/chat/completions", CHAT), ("/v1/completions", COMPLETION)):
        for name, change in (CHANGES | own).items():
            yield f"{path}:{name}", path, _changed(right[path], change)
    messages: dict[str, dict[str, Any]] = {
        "max-tokens-missing": {"max_tokens": None},
        "max-tokens-negative": {"max_tokens": -1},
        "messages-empty": {"messages": []},
        "role-unknown": {"messages": [{"role": "alien", "content": "Hello"}]},
        "temperature-word": {"temperature": "hot"},
        "too-long": {"messages": [{"role": "user", "content": "word " * 5000}]},
    }
    for name, change in messages.items():
        yield f"/v1/messages:{name}", "/v1/messages", _changed(right["/v1/messages"], change)
    responses: dict[str, dict[str, Any]] = {
        "input-missing": {"input": None},
        "input-number": {"input": 7},
        "tokens-negative": {"max_output_tokens": -1},
        "too-long": {"input": "word " * 5000},
        "previous-unknown": {"previous_response_id": "resp_none"},
    }
    for name, change in responses.items():
        yield f"/v1/responses:{name}", "/v1/responses", _changed(right["/v1/responses"], change)
    detokenize: dict[str, dict[str, Any]] = {
        "tokens-text": {"tokens": "x"},
        "tokens-negative": {"tokens": [-1]},
        "tokens-huge": {"tokens": [2**40]},
    }
    for name, change in detokenize.items():
        yield f"/detokenize:{name}", "/detokenize", _changed(right["/detokenize"], change)


def _changed(right: dict[str, Any], change: dict[str, Any]) -> bytes:
    """A key that is changed to None is left out."""
    body = right | change
    return json.dumps({key: value for key, value in body.items() if value is not None}).encode()
