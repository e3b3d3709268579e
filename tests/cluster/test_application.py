"""The running application through the official OpenAI client, and as the operator sees it."""

import json
import time
from collections.abc import Iterator
from typing import Any

import httpx
import openai
import pytest

from tests.cluster.conftest import MODEL, Application

pytestmark = [pytest.mark.cluster, pytest.mark.slow, pytest.mark.timeout(900)]
FRANCE = [{"role": "user", "content": "What is the capital of France?"}]


@pytest.fixture
def client(application: Application) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(
        base_url=f"{application.url}/v1", api_key="none", max_retries=0, timeout=120
    ) as client:
        yield client


def chat(client: openai.OpenAI, **options: Any) -> Any:
    """A greedy chat of at most 24 tokens, unless told otherwise."""
    chosen = {"messages": FRANCE, "max_tokens": 24, "temperature": 0, **options}
    return client.chat.completions.create(model=MODEL, **chosen)


def test_the_model_is_listed_and_described(client: openai.OpenAI) -> None:
    assert [m.id for m in client.models.list()] == [MODEL]
    assert client.models.retrieve(MODEL).id == MODEL


def test_a_chat_answers_in_english_with_usage(client: openai.OpenAI) -> None:
    answer = chat(client)
    assert "Paris" in answer.choices[0].message.content
    assert answer.choices[0].finish_reason == "stop"
    usage = answer.usage
    assert usage.total_tokens == usage.prompt_tokens + usage.completion_tokens
    assert usage.prompt_tokens > 5


def test_a_completion_goes_on_with_the_prompt(client: openai.OpenAI) -> None:
    answer = client.completions.create(
        model=MODEL, prompt="The capital of France is", max_tokens=3, temperature=0
    )
    assert "Paris" in answer.choices[0].text
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 3


def test_a_stream_comes_token_by_token_and_says_the_same(client: openai.OpenAI) -> None:
    whole = chat(client).choices[0].message.content
    arrived_s, parts, usage = [], [], None
    for chunk in chat(client, stream=True, stream_options={"include_usage": True}):
        arrived_s.append(time.monotonic())
        usage = chunk.usage or usage
        parts += [c.delta.content or "" for c in chunk.choices]
    assert "".join(parts) == whole
    assert usage is not None
    assert len([p for p in parts if p]) >= usage.completion_tokens - 2
    assert arrived_s[-1] - arrived_s[0] > 0.02, "everything came at once"


def test_stop_ends_the_text_before_the_word(client: openai.OpenAI) -> None:
    answer = chat(client, stop=["Paris"]).choices[0]
    assert answer.finish_reason == "stop"
    assert "Paris" not in answer.message.content


def test_max_tokens_is_kept_and_named_as_the_reason(client: openai.OpenAI) -> None:
    answer = chat(client, max_tokens=2)
    assert answer.choices[0].finish_reason == "length"
    assert answer.usage.completion_tokens == 2


def test_logprobs_come_for_every_token(client: openai.OpenAI) -> None:
    answer = chat(client, logprobs=True, top_logprobs=3)
    content = answer.choices[0].logprobs.content
    # the end-of-text token may be counted although it is not part of the text
    assert answer.usage.completion_tokens - len(content) in (0, 1)
    assert all(len(token.top_logprobs) == 3 and token.logprob <= 0 for token in content)


def test_n_gives_several_answers_and_seed_repeats_them(client: openai.OpenAI) -> None:
    def sampled() -> list[str]:
        options = {"n": 3, "seed": 7, "temperature": 1.0, "max_tokens": 12}
        poem = [{"role": "user", "content": "Write a line about the sea."}]
        return [c.message.content for c in chat(client, messages=poem, **options).choices]

    first = sampled()
    assert len(first) == 3
    assert len(set(first)) > 1
    assert sampled() == first


def test_a_named_tool_is_called_with_arguments_of_its_schema(client: openai.OpenAI) -> None:
    parameters = {
        "type": "object",
        "properties": {"city": {"type": "string", "enum": ["Paris", "Rome"]}},
        "required": ["city"],
        "additionalProperties": False,
    }
    function = {
        "name": "weather",
        "description": "Tells the weather of a city",
        "parameters": parameters,
        "strict": True,
    }
    answer = chat(
        client,
        messages=[{"role": "user", "content": "What is the weather in Paris?"}],
        tools=[{"type": "function", "function": function}],
        tool_choice={"type": "function", "function": {"name": "weather"}},
        max_tokens=120,
    )
    [call] = answer.choices[0].message.tool_calls
    assert call.function.name == "weather"
    assert json.loads(call.function.arguments)["city"] in ("Paris", "Rome")


def test_json_schema_output_fits_the_schema(client: openai.OpenAI) -> None:
    schema = {
        "type": "object",
        "properties": {"answer": {"type": "integer", "minimum": 0, "maximum": 9}},
        "required": ["answer"],
        "additionalProperties": False,
    }
    answer = chat(
        client,
        messages=[{"role": "user", "content": "How many legs has a dog?"}],
        response_format={"type": "json_schema", "json_schema": {"name": "n", "schema": schema}},
        max_tokens=40,
    )
    assert isinstance(json.loads(answer.choices[0].message.content)["answer"], int)


def test_an_unknown_model_is_a_404(client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError):
        client.chat.completions.create(model="no-such-model", messages=FRANCE)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "wrong",
    [
        {"temperature": -1},
        {"max_tokens": -5},
        {"top_logprobs": 3},
        {"n": 0},
        {"messages": []},
        {"messages": [{"role": "user", "content": "word " * 5000}]},
    ],
    ids=["temperature", "max_tokens", "top_logprobs", "n", "no messages", "too long"],
)
def test_a_bad_request_is_a_400_with_a_message(
    client: openai.OpenAI, wrong: dict[str, Any]
) -> None:
    with pytest.raises(openai.BadRequestError) as refused:
        chat(client, **wrong)
    assert refused.value.message


def test_a_body_that_is_no_json_is_a_4xx(application: Application) -> None:
    url = f"{application.url}/v1/chat/completions"
    broken = httpx.post(url, content=b"{", headers={"Content-Type": "application/json"}, timeout=30)
    assert broken.status_code == 400
    undeclared = httpx.post(url, content=b"{", timeout=30)
    assert undeclared.status_code == 415
    assert "application/json" in undeclared.json()["error"]["message"]


def test_many_clients_at_once_all_get_their_answer(application: Application) -> None:
    async def ask_all() -> list[str]:
        async with openai.AsyncOpenAI(
            base_url=f"{application.url}/v1", api_key="none", max_retries=0, timeout=120
        ) as client:
            return await asyncio.gather(*(ask(client) for _ in range(12)))

    async def ask(client: openai.AsyncOpenAI) -> str:
        answer = await client.chat.completions.create(
            model=MODEL,
            messages=FRANCE,  # type: ignore[arg-type]
            max_tokens=12,
            temperature=0,
        )
        return answer.choices[0].message.content or ""

    import asyncio

    assert all("Paris" in text for text in asyncio.run(ask_all()))


def test_status_tells_deployments_shards_and_the_table(application: Application) -> None:
    seen = application.status()
    names = [d["name"] for d in seen["deployments"]]
    assert {"Controller", "ExpertShard", "Gateway"} <= set(names)
    assert seen["controller"]["complete"] is True
    assert seen["controller"]["redundancy"] == 2
    assert len(seen["controller"]["shards"]) == 2
    for shard in seen["controller"]["shards"]:
        assert [sorted(layer) for layer in shard["held"]] == [list(range(8))] * 30


def test_the_start_showed_its_progress_and_a_line_to_copy(application: Application) -> None:
    log = application.log.read_text()
    assert "demo model" in log
    assert "starting Ray" in log
    assert f"curl {application.url}/v1/chat/completions" in log
    assert "Traceback" not in log
