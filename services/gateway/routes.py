"""Which paths there are, what each needs, and who answers it."""

from dataclasses import dataclass
from enum import Enum

from monitoring.page import EVENTS, FILES
from services.gateway.errors import Refusal


class Scope(Enum):
    """What a key may be used for. An admin key may do everything."""

    NOTHING = "nothing"  # no key is asked for
    USE = "use"
    METRICS = "metrics"
    ADMIN = "admin"


@dataclass(frozen=True, slots=True)
class Route:
    """One path. generates: it takes the engine's time, and is limited per key.

    meter: the label that its requests are counted under, `monitoring.meter.ROUTES`.
    """

    methods: frozenset[str]
    scope: Scope
    is_relayed: bool = False
    generates: bool = False
    meter: str = "other"


GET, POST = frozenset({"GET", "HEAD"}), frozenset({"POST"})

ROUTES = {
    "/health": Route(GET, Scope.NOTHING),
    "/ready": Route(GET, Scope.NOTHING),
    "/metrics": Route(GET, Scope.METRICS),
    "/openapi.json": Route(GET, Scope.USE),
    "/admin/status": Route(GET, Scope.ADMIN),
    "/admin/rebalance": Route(POST, Scope.ADMIN),
    **dict.fromkeys(FILES, Route(GET, Scope.NOTHING)),  # a browser has no key yet when it asks
    EVENTS: Route(GET, Scope.ADMIN),
    "/v1/models": Route(GET, Scope.USE, is_relayed=True, meter="models"),
    "/v1/chat/completions": Route(POST, Scope.USE, is_relayed=True, meter="chat", generates=True),
    "/v1/completions": Route(POST, Scope.USE, is_relayed=True, meter="completions", generates=True),
    "/v1/embeddings": Route(POST, Scope.USE, is_relayed=True, meter="embeddings", generates=True),
    "/v1/responses": Route(POST, Scope.USE, is_relayed=True, meter="responses", generates=True),
    "/v1/messages": Route(POST, Scope.USE, is_relayed=True, meter="messages", generates=True),
    "/v1/messages/count_tokens": Route(POST, Scope.USE, is_relayed=True, meter="tokens"),
    "/tokenize": Route(POST, Scope.USE, is_relayed=True, meter="tokens"),
    "/detokenize": Route(POST, Scope.USE, is_relayed=True, meter="tokens"),
}
RELAYED_PATHS = frozenset(path for path, route in ROUTES.items() if route.is_relayed)
ONE_MODEL = "/v1/models/"
MAX_SHOWN = 100  # characters of a path that an error repeats


def find_route(method: str, path: str) -> Route:
    """Raises Refusal: 404 or 405."""
    route = ROUTES.get("/v1/models" if path.startswith(ONE_MODEL) else path)
    if route is None:
        shown = path[:MAX_SHOWN]
        raise Refusal(404, f"there is no {shown!r} here. GET /openapi.json lists the routes.")
    if method not in route.methods:
        allowed = ", ".join(sorted(route.methods))
        raise Refusal(405, f"{path} takes {allowed}, not {method}.", headers={"allow": allowed})
    return route
