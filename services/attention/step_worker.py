"""vLLM's worker, which tells the pool whose tokens are in each step.

The engine argument `worker_cls` names it; what it reads of the scheduler's output is checked in
`services.vllm_hooks`. Nothing of the router is imported here, see `loader`.
"""

from typing import Any

from vllm.platforms import current_platform

from services.attention.half_batches import HalfBatches
from services.attention.mark import traceparent_of
from services.attention.threads import threads_for, use_threads
from services.vllm_forward import StepForward, can_be_cut
from services.vllm_hooks import moe_runners

if current_platform.is_cpu():
    from vllm.v1.worker.cpu_worker import CPUWorker as PlatformWorker
else:
    from vllm.v1.worker.gpu_worker import Worker as PlatformWorker


class StepWorker(PlatformWorker):
    """The platform's own worker."""

    def load_model(self, *args: Any, **options: Any) -> None:
        """As the base class; then the pool that the model's experts are connected to is known."""
        super().load_model(*args, **options)
        [pool] = {
            runner.routed_experts.quant_method.pool for runner in moe_runners(self.get_model())
        }
        self._steps, self._settings = pool.steps, pool.settings
        least_tokens = pool.settings.half_batch_tokens
        if least_tokens and can_be_cut(self.model_runner):
            self.model_runner._model_forward = HalfBatches(
                StepForward(self.model_runner), pool.turns, least_tokens=least_tokens
            )

    def execute_model(self, scheduler_output: Any) -> Any:
        """One step."""
        self._use_threads(sum(scheduler_output.num_scheduled_tokens.values()))
        new = [(r.req_id, traceparent_of(r)) for r in scheduler_output.scheduled_new_reqs]
        with self._steps.step(
            scheduler_output.num_scheduled_tokens,
            started=new,
            finished=scheduler_output.finished_req_ids,
        ):
            return super().execute_model(scheduler_output)

    def _use_threads(self, n_tokens: int) -> None:
        few, many = self._settings.threads, self._settings.prompt_threads
        threads = threads_for(n_tokens, few=few, many=many)
        if threads:
            use_threads(threads)

    def shutdown(self) -> None:
        """As the base class, once the last spans are away."""
        if hasattr(self, "_steps"):
            self._steps.close()
        super().shutdown()
