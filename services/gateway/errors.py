"""What a gateway says no with."""

import math
from collections.abc import Mapping

from starlette.responses import Response

from services.errors import error_body


class Refusal(Exception):
    """A request that is answered with an error. The message says what, the limit, what to do."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        retry_after_s: float | None = None,
        headers: Mapping[str, str] | None = None,
        full_s: float = 0.0,
    ) -> None:
        """full_s: for how long all with this key would be told the same, for want of room."""
        super().__init__(message)
        self.status = status
        self.message = message
        self.param = param
        self.full_s = full_s
        self.headers = dict(headers or {})
        if retry_after_s is not None:
            self.headers["retry-after"] = str(max(1, math.ceil(retry_after_s)))

    def response(self, path: str) -> Response:
        """In the shape that clients of this path read."""
        return Response(
            error_body(self.status, self.message, self.param, path=path),
            self.status,
            headers=self.headers,
            media_type="application/json",
        )


BROKEN = Refusal(500, "the gateway failed. This is a bug.")
