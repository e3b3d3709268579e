"""The event stream that answers one request, taken line by line.

`deploy.bench.load` sends the requests; here is what their answers mean.
"""

import json
import time
from dataclasses import dataclass, field

MAX_ERROR_CHARS = 500
DATA, DONE = "data:", "[DONE]"


@dataclass(slots=True)
class Answer:
    """What has come of one request so far."""

    pieces: list[str] = field(default_factory=list)
    arrivals_s: list[float] = field(default_factory=list)
    tokens: int | None = None
    is_ended: bool = False
    error: str = ""

    def add(self, line: str) -> None:
        """Take one line of the event stream."""
        content = line.removeprefix(DATA).strip()
        if not line.startswith(DATA) or self.error:
            return
        if content == DONE:
            self.is_ended = True
            return
        chunk = json.loads(content)
        if "error" in chunk:
            self.error = f"error event: {json.dumps(chunk['error'])[:MAX_ERROR_CHARS]}"
            return
        if usage := chunk.get("usage"):
            self.tokens = usage["completion_tokens"]
        for choice in chunk.get("choices", ()):
            # Text is held back while a character lacks bytes; its tokens have arrived even so.
            if choice.get("text") or choice.get("token_ids"):
                self.arrivals_s.append(time.monotonic())
                self.pieces.append(choice.get("text") or "")

    @property
    def counted(self) -> int:
        """Tokens by the server's account, or one for each chunk if it gave none."""
        return len(self.pieces) if self.tokens is None else self.tokens

    def problem(self, asked_tokens: int) -> str:
        """Why this is not what was asked for; empty if it is."""
        if self.error:
            return self.error
        if not self.is_ended:
            return f"the stream ended without {DONE} after {len(self.pieces)} chunks"
        if self.counted < asked_tokens:
            return f"only {self.counted} of {asked_tokens} tokens came"
        return ""
