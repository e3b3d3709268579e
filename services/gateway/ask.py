"""Asks attention replicas through a Serve handle; tells a death from an answer."""

from contextlib import suppress
from dataclasses import replace

from ray.exceptions import ObjectLostError, RayActorError, RayTaskError, WorkerCrashedError
from ray.serve.exceptions import (
    BackPressureError,
    DeploymentUnavailableError,
    ReplicaUnavailableError,
    RequestCancelledError,
)
from ray.serve.handle import DeploymentHandle

from router.errors import CapacityError, EngineError, PeerLost, PlatformError
from services.gateway.relay import Answers, Ask
from services.relayed import RelayedRequest

DEATHS = (RayActorError, ObjectLostError, WorkerCrashedError, ReplicaUnavailableError)


def ask_through(handle: DeploymentHandle, gateway_id: str) -> Ask:
    """handle: of the attention deployment. Serve picks the replica, and does not tell it of deaths

    on this side: what it is asked bears our name, so that it hears of ours from the controller.
    """
    calls = handle.options(method_name="answer", stream=True)

    async def ask(request: RelayedRequest) -> Answers:
        answers = calls.remote(replace(request, gateway_id=gateway_id))
        try:
            async for answer in answers:
                yield answer
        except DEATHS as error:
            raise PeerLost(f"the attention replica died: {type(error).__name__}") from error
        except (BackPressureError, DeploymentUnavailableError) as error:
            raise CapacityError(f"no attention replica can take a request: {error}") from error
        except RayTaskError as error:
            if isinstance(error.cause, PlatformError):
                raise error.cause from None
            raise EngineError(f"the attention replica failed: {error.cause!r}") from error
        finally:
            with suppress(RequestCancelledError):
                answers.cancel()

    return ask
