"""What a gateway and an attention replica tell each other about one HTTP request.

The gateway relays the request as it came; the replica runs vLLM's own routes on it and answers with
a `Head` and then `Part`s, one for each piece of body that those routes sent.
"""

from dataclasses import dataclass, field

Groups = tuple[tuple[int, ...], ...]
"""Token ids as the engine put them out, those of one output together."""


@dataclass(frozen=True, slots=True)
class Resume:
    """What another replica had put out of this request before it died."""

    groups: Groups
    n_parts: int  # that reached the client; the same ones are made again and left out


@dataclass(frozen=True, slots=True)
class RelayedRequest:
    """One HTTP request, body whole, keys taken off."""

    request_id: str
    method: str
    path: str
    query: bytes
    body: bytes
    content_type: str
    expires_s: float  # Unix time after which nobody waits for it
    gateway_id: str = ""
    max_prompt_tokens: int | None = None
    resume: Resume | None = None
    traceparent: str = ""  # of the gateway's span, as W3C has it; empty: nothing is traced


@dataclass(frozen=True, slots=True)
class Head:
    """The first answer. headers: as in ASGI."""

    status: int
    headers: tuple[tuple[bytes, bytes], ...]


@dataclass(frozen=True, slots=True)
class Part:
    """A piece of the body. Token counts are totals so far, over all choices.

    groups: since the last part, of a request that another replica can go on with; else empty.
    """

    body: bytes
    prompt_tokens: int = 0
    output_tokens: int = 0
    can_resume: bool = False
    groups: Groups = field(default=())


Answer = Head | Part
