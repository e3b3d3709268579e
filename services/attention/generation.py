"""Follows what the engine puts out for one relayed request, and replays what another one had.

vLLM's serving classes call `EngineClient.generate`; `follow` stands around it. What a request has
generated so far goes to the gateway with the body, so that another replica can go on from there.
"""

import functools
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

import tokenizers.decoders
from vllm.exceptions import VLLMValidationError
from vllm.outputs import CompletionOutput, RequestOutput
from vllm.sampling_params import RequestOutputKind, SamplingParams

from router.errors import EngineError
from services.attention.mark import mark
from services.relayed import Groups

Generate = Callable[..., AsyncGenerator[RequestOutput, None]]


@dataclass(slots=True)
class Generation:
    """The engine's part of one relayed request."""

    replay: Groups = ()  # of another replica; what is generated must begin so
    max_prompt_tokens: int | None = None
    traceparent: str = ""  # of the span that the engine's steps belong to; empty: not traced
    prompt_tokens: int = 0
    output_tokens: int = 0
    calls: int = 0
    is_plain: bool = False  # one prompt, one choice, streamed: another replica can go on
    fresh: list[tuple[int, ...]] = field(default_factory=list)

    @property
    def can_resume(self) -> bool:
        """Whether another replica could go on."""
        return self.is_plain and self.calls == 1

    def take(self) -> Groups:
        """Token ids since the last call."""
        taken, self.fresh = tuple(self.fresh), []
        return taken


current: ContextVar[Generation | None] = ContextVar("generation", default=None)


def follow(client: Any) -> None:
    """Have a vLLM engine client report to the `current` generation of whoever calls it."""
    inner: Generate = client.generate

    @functools.wraps(inner)
    async def generate(
        prompt: Any, sampling_params: SamplingParams, request_id: str, **options: Any
    ) -> AsyncGenerator[RequestOutput, None]:
        generation = current.get()
        if generation is None:
            made = inner(prompt, sampling_params, request_id, **options)
        else:
            _begin(generation, prompt, sampling_params)
            mark(sampling_params, generation.traceparent)
            call = functools.partial(inner, request_id=request_id, **options)
            if not generation.replay:
                made = call(prompt, sampling_params)
            elif can_continue(prompt, sampling_params):
                tokenizer = client.get_tokenizer()
                made = _continued(call, prompt, sampling_params, generation.replay, tokenizer)
            else:
                made = _checked(call(prompt, sampling_params), generation.replay)
        counted = 0
        async with aclosing(made):
            async for output in made:
                if generation is not None:
                    counted = _note(generation, output, sampling_params.output_kind, counted)
                yield output

    client.generate = generate


def can_continue(prompt: Any, params: SamplingParams) -> bool:
    """Whether going on after prompt + output is the same as going on after output.

    Not where sampling looks back at the output: penalties, grammars, stop strings, a seed (it
    counts the draws), or log-probabilities of what is past. Those are generated anew, and checked.
    """
    return (
        isinstance(prompt, dict)
        and prompt.get("type") == "token"
        and params.presence_penalty == 0
        and params.frequency_penalty == 0
        and params.repetition_penalty == 1
        and params.structured_outputs is None
        and not params.stop
        and not params.bad_words
        and params.logprobs is None
        and params.prompt_logprobs is None
        and (params.seed is None or params.temperature == 0)
        and params.detokenize
    )


def _begin(generation: Generation, prompt: Any, params: SamplingParams) -> None:
    ids = prompt.get("prompt_token_ids", ()) if isinstance(prompt, dict) else ()
    limit = generation.max_prompt_tokens
    if limit is not None and len(ids) > limit:
        raise VLLMValidationError(
            f"the prompt has {len(ids)} tokens; the limit is {limit} (limits.max_prompt_tokens). "
            "Send a shorter one.",
            parameter="prompt",
            value=len(ids),
        )
    generation.calls += 1
    generation.prompt_tokens += len(ids)
    generation.is_plain = params.n == 1 and params.output_kind is RequestOutputKind.DELTA


def _note(
    generation: Generation, output: RequestOutput, kind: RequestOutputKind, counted: int
) -> int:
    made = sum(len(one.token_ids) for one in output.outputs)
    if kind is RequestOutputKind.DELTA:
        generation.output_tokens += made
        if generation.is_plain and not output.finished:
            generation.fresh += [tuple(one.token_ids) for one in output.outputs if one.token_ids]
        return counted
    generation.output_tokens += made - counted
    return made


async def _continued(
    call: Generate, prompt: Any, params: SamplingParams, groups: Groups, tokenizer: Any
) -> AsyncGenerator[RequestOutput, None]:
    """The groups as outputs of their own, and then what the engine adds to them."""
    ids, said = list(prompt["prompt_token_ids"]), [token for group in groups for token in group]
    stream = tokenizers.decoders.DecodeStream(
        ids=ids, skip_special_tokens=params.skip_special_tokens
    )
    for group in groups:
        text = "".join(stream.step(tokenizer.backend_tokenizer, token) or "" for token in group)
        yield RequestOutput(
            request_id="replayed",
            prompt=None,
            prompt_token_ids=ids,
            prompt_logprobs=None,
            outputs=[CompletionOutput(0, text, list(group), None, None)],
            finished=False,
        )
    rest = params.clone()
    rest.min_tokens = max(0, params.min_tokens - len(said))
    if params.max_tokens is not None:
        rest.max_tokens = params.max_tokens - len(said)
    longer = {key: value for key, value in prompt.items() if key != "prompt"}
    longer["prompt_token_ids"] = ids + said
    async with aclosing(call(longer, rest)) as outputs:
        async for output in outputs:
            output.prompt_token_ids = ids
            yield output


async def _checked(
    outputs: AsyncGenerator[RequestOutput, None], groups: Groups
) -> AsyncGenerator[RequestOutput, None]:
    """Everything anew, put together in the same groups, so that the same body is made of it.

    Raises EngineError where it is not what the other replica had put out.
    """
    awaited = list(reversed(groups))
    pending: RequestOutput | None = None
    async with aclosing(outputs):
        async for output in outputs:
            if not awaited:
                yield output
                continue
            if pending is not None:
                pending.add(output, aggregate=True)
                output = pending
            made, group = tuple(output.outputs[0].token_ids), awaited[-1]
            if made != group[: len(made)] or output.finished:
                raise EngineError(
                    "the request could not be taken over: generated again it differs from what the "
                    "lost replica had put out. Send it again."
                )
            pending = output
            if made == group:
                awaited.pop()
                pending = None
                yield output
