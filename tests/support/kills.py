"""Runs one batch undisturbed and then once per scenario, while shards are killed or stopped.

A program, because vLLM wants a process of its own: `python -m tests.support.kills FOLDER DIR`.
The pool is another process and each of its shards one more; this half must not import the router
before the engine has started (services/attention/loader.py says why). Sockets lie in DIR, and
`seen.json` when all is done.
"""

import json
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from services.lifecycle import end_with_parent
from tests.support import compare
from tests.support.doomed_pool_process import POOL_TIMEOUT_S, PoolEnd, pool_process
from tests.support.kill_scenarios import SCENARIOS, TOKENS, Scenario


def before_each_step(llm: Any, act: Callable[[int], None]) -> Callable[[], None]:
    """`act(step)` runs before each step of the engine; returns what begins the count anew."""
    count = 0
    step = llm.llm_engine.step

    def counted() -> Any:
        nonlocal count
        act(count)
        count += 1
        return step()

    def begin() -> None:
        nonlocal count
        count = 0

    llm.llm_engine.step = counted
    return begin


def run(llm: Any, tokens: int = TOKENS) -> dict[str, Any]:
    """Greedy tokens of every prompt, the log-probabilities of the five likeliest, why it ended."""
    from vllm import SamplingParams

    greedy = SamplingParams(temperature=0, max_tokens=tokens, logprobs=5, ignore_eos=True)
    outputs = [o.outputs[0] for o in llm.generate(compare.PROMPTS, greedy, use_tqdm=False)]
    return {
        "tokens": [list(o.token_ids) for o in outputs],
        "logprobs": [
            [{str(t): p.logprob for t, p in step.items()} for step in o.logprobs] for o in outputs
        ],
        "finish_reasons": [o.finish_reason for o in outputs],
    }


def account(llm: Any) -> dict[str, int]:
    """What the attention side has counted since its start."""
    from services.vllm_hooks import moe_runners

    def read(model: Any) -> dict[str, int]:
        pool = moe_runners(model)[0].routed_experts.quant_method.pool
        return {
            "resends": pool.traffic.resends,
            "late_answers": pool.traffic.late_answers,
        }

    return dict(llm.apply_model(read)[0])


def adopt(llm: Any, pool: PoolEnd) -> None:
    """Run short steps until the engine uses the newest table."""
    deadline_s = time.monotonic() + POOL_TIMEOUT_S
    while not pool.call("is_adopted"):
        if time.monotonic() > deadline_s:
            raise TimeoutError(f"no new table was adopted within {POOL_TIMEOUT_S:.0f} s")
        run(llm, tokens=1)


def befall(llm: Any, pool: PoolEnd, scenario: Scenario, begin: Callable[[], None]) -> Any:
    """Run the batch while the scenario happens; what was seen, and what became of the shards."""
    adopt(llm, pool)
    before = account(llm)
    pool.call("begin", scenario)
    begin()
    seen = run(llm)
    counted = {name: count - before[name] for name, count in account(llm).items()}
    return seen | counted | pool.call("finish")


def main(folder: Path, run_dir: Path) -> None:
    """Run everything and write what was seen."""
    from services.attention.engine_args import cpu_engine_args, own_operators
    from services.checkpoint import read_checkpoint

    end_with_parent()
    extra = cpu_engine_args(read_checkpoint(folder).config, "float32") | own_operators()
    with pool_process(folder, run_dir) as pool:
        joined = pool.call("engine_args")
        pool.ask("start")
        llm = compare.engine(folder, "float32", **extra, **joined)
        pool.answer()
        begin = before_each_step(llm, lambda step: pool.call("before_step", step))
        result = {"undisturbed": run(llm), "again": run(llm), "scenarios": {}}
        for scenario in SCENARIOS:
            result["scenarios"][scenario.name] = befall(llm, pool, scenario, begin)
        compare.end(llm)
    (run_dir / "seen.json").write_text(json.dumps(result))


def command(folder: Path, run_dir: Path) -> tuple[Sequence[str], dict[str, str]]:
    """How to run this program: words and environment."""
    return compare.program("tests.support.kills", str(folder), str(run_dir))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
