"""The attention deployment: Ray Serve LLM's server around a vLLM engine with remote experts.

This process, a Ray actor, follows the controller; the engine's worker process, which knows no
Ray, gets its tables over the desk's private socket.
"""

import asyncio
import logging
import multiprocessing
import os
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

from ray.serve.llm import LLMConfig
from ray.serve.llm.deployment import LLMServer

from router.choose import Policy
from services import autoscaling
from services.attention.engine import OneProcessEngine, check_engine, engine_is_dead
from services.attention.follower import ControllerFollower
from services.attention.serving import Answer, Routes
from services.attention.settings import RemoteSettings
from services.cluster import ControllerClient, check_checkpoint_here, node_name, replica_name
from services.config import DeploymentConfig
from services.forking.launch import python_for
from services.logs import log_to_stderr
from services.paths import run_dir
from services.relayed import RelayedRequest

log = logging.getLogger(__name__)

ENGINE_POLL_S = 0.1
GIVE_UP_S = 240.0  # a new shard imports vLLM and is filled; requests are told long before
GIVE_UP_RATIO = 4.0
CONFIG_KEY = "expertmesh"
"""Where `LLMConfig.experimental_configs` carries (deployment config, application name)."""


class AttentionServer(LLMServer):
    """One attention replica."""

    async def __init__(self, llm_config: LLMConfig, **options: Any) -> None:  # type: ignore[misc]  # Serve awaits it
        """Ready when the engine is up, which it is when every expert has a replica."""
        log_to_stderr()
        config, app = own_settings(llm_config)
        check_checkpoint_here(config.model.folder)
        replica_id, controller = replica_name(), ControllerClient(app)
        endpoint = f"ipc://{run_dir(config) / f'feed-{replica_id[-16:]}'}"
        self._follower = ControllerFollower(
            replica_id,
            controller,
            endpoint=endpoint,
            keys=await controller.keys(),
            retry_s=config.controller.report_interval_s,
        )
        settings = RemoteSettings(
            feed=endpoint,
            host=node_name(),
            reply_timeout_s=config.router.reply_timeout_s,
            give_up_s=max(GIVE_UP_S, GIVE_UP_RATIO * config.router.lost_expert_deadline_s),
            policy=Policy(config.router.policy),
        )
        multiprocessing.set_executable(python_for(config))  # of the engine's process
        llm_config.update_engine_kwargs(additional_config=settings.to_additional_config())
        check_engine()
        await super().__init__(llm_config, engine_cls=OneProcessEngine, **options)
        self._routes = Routes(
            await self.__serve_build_asgi_app__(),
            is_dead=lambda: engine_is_dead(self.engine),
            stranded=lambda: self._follower.stranded,
            lost_gateways=lambda: self._follower.lost_gateways,
            deadline_s=config.router.lost_expert_deadline_s,
        )
        self._follower.is_ready = True
        self._watching = asyncio.create_task(self._end_with_engine(), name="end-with-engine")

    async def _end_with_engine(self) -> None:
        """A replica without an engine goes at once, so that requests go to others."""
        while not engine_is_dead(self.engine):
            await asyncio.sleep(ENGINE_POLL_S)
        log.error("the engine died; this replica ends")
        os._exit(1)

    async def _start_engine(self) -> None:
        """Without the actor in which the base class keeps telemetry, which is off."""
        await self.engine.start()

    async def answer(self, request: RelayedRequest) -> AsyncGenerator[Answer, None]:
        """Run vLLM's routes on a request that a gateway relays; a head, then parts of the body."""
        async with aclosing(self._routes.answer(request)) as answers:
            async for answer in answers:
                yield answer

    async def describe(self) -> dict[str, Any]:
        """The OpenAPI description of the routes that gateways relay."""
        return self._routes.described

    async def record_autoscaling_stats(self) -> dict[str, float]:
        """For Serve: how many replicas there should be."""
        return autoscaling.told(self._follower.wanted_replicas)

    async def check_health(self) -> None:
        """Serve restarts the replica when this raises."""
        self._follower.check()
        await super().check_health()


def own_settings(llm_config: LLMConfig) -> tuple[DeploymentConfig, str]:
    """What the app builder put into the configuration for this class."""
    packed = llm_config.experimental_configs[CONFIG_KEY]
    return DeploymentConfig.model_validate(packed["config"]), packed["app"]
