"""Asks attention replicas through a Serve handle; tells a death from an answer."""

from contextlib import aclosing, suppress
from dataclasses import replace
from typing import cast

from ray.exceptions import ObjectLostError, RayActorError, RayTaskError, WorkerCrashedError
from ray.serve.exceptions import (
    BackPressureError,
    DeploymentUnavailableError,
    ReplicaUnavailableError,
    RequestCancelledError,
)
from ray.serve.handle import DeploymentHandle, DeploymentResponse

from router.errors import CapacityError, EngineError, PeerLost, PlatformError
from services.answers import AnswerDesk
from services.gateway.relay import Answers, Ask
from services.relayed import RelayedRequest

DEATHS = (RayActorError, ObjectLostError, WorkerCrashedError, ReplicaUnavailableError)


def ask_through(handle: DeploymentHandle, desk: AnswerDesk, gateway_id: str) -> Ask:
    """handle: of the attention deployment. Serve picks the replica; pieces come to the desk.

    Serve does not tell a replica of deaths on this side: what it is asked bears our name, so that
    it hears of ours from the controller.
    """
    calls = handle.options(method_name="answer")

    async def ask(request: RelayedRequest) -> Answers:
        call = desk.open()
        response = calls.remote(replace(request, gateway_id=gateway_id), call.reply_to)
        has_ended = False
        try:
            async with aclosing(call.follow(_returned(response))) as answers:
                async for answer in answers:
                    yield answer
            has_ended = True
        except DEATHS as error:
            raise PeerLost(f"the attention replica died: {type(error).__name__}") from error
        except (BackPressureError, DeploymentUnavailableError) as error:
            raise CapacityError(f"no attention replica can take a request: {error}") from error
        except RayTaskError as error:
            if isinstance(error.cause, PlatformError):
                raise error.cause from None
            raise EngineError(f"the attention replica failed: {error.cause!r}") from error
        finally:
            if not has_ended:  # Ray would ask the replica for what it no longer has, twice
                with suppress(RequestCancelledError):
                    response.cancel()

    return ask


async def _returned(response: DeploymentResponse) -> int:
    return cast(int, await response)
