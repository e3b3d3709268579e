"""Runs one checkpoint on unmodified vLLM and on attention with remote experts, one after the other.

A program, because vLLM wants a process of its own: `python -m tests.support.compare FOLDER OUT`.
The pool is another process, with real kernels and real sockets; one attention engine meets
several layouts of it by table, so that bits can be compared. Writes JSON.
"""

import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

PROMPTS = [
    "The capital of France is",
    "A router spreads tokens over experts",
    "def place(loads, shards):",
    "Once upon a time",
    "One two three four five six seven",
    "When a shard dies, its rows",
    "0.5 + 0.25 =",
    "The quick brown fox jumps over the lazy dog and runs",
]
TOKENS = 64
WORKER = "services.attention.step_worker.StepWorker"
LONG = [5 + n % 90 for n in range(150)]  # token ids of a prompt that all threads read
NEVER = 10**9  # tokens of a step that is cut in two halves
Tokens = list[list[int]]
Logprobs = list[list[dict[str, float]]]


def engine(folder: Path, dtype: str, **extra: Any) -> Any:
    """vLLM's engine with all of its parts in this process."""
    from vllm import LLM

    return LLM(
        model=str(folder),
        dtype=dtype,
        enforce_eager=True,
        max_model_len=256,
        max_num_seqs=len(PROMPTS),
        enable_prefix_caching=False,
        kv_cache_memory_bytes=2**28,
        distributed_executor_backend="uni",
        disable_log_stats=True,
        **extra,
    )


def run(llm: Any) -> tuple[Tokens, Logprobs]:
    """Greedy tokens of every prompt and the log-probabilities of the five likeliest."""
    from vllm import SamplingParams

    greedy = SamplingParams(temperature=0, max_tokens=TOKENS, logprobs=5, ignore_eos=True)
    outputs = [o.outputs[0] for o in llm.generate(PROMPTS, greedy, use_tqdm=False)]
    logprobs = [
        [{str(t): p.logprob for t, p in step.items()} for step in o.logprobs] for o in outputs
    ]
    return [list(o.token_ids) for o in outputs], logprobs


def expert_parameter_bytes(llm: Any) -> int:
    """Bytes of routed-expert weights in the engine's model; the gate's bias is none."""
    from vllm.model_executor.layers.fused_moe.routed_experts import RoutedExperts

    def count(model: Any) -> int:
        experts = [m for m in model.modules() if isinstance(m, RoutedExperts)]
        named = (item for e in experts for item in e.named_parameters())
        return sum(p.nbytes for name, p in named if name != "e_score_correction_bias")

    return int(llm.apply_model(count)[0])


def attention_backends(llm: Any) -> list[str]:
    """The kinds of attention in the engine's model."""

    def kinds(model: Any) -> list[str]:
        found = (getattr(module, "attn_backend", None) for module in model.modules())
        return sorted({kind.__name__ for kind in found if kind is not None})

    return list(llm.apply_model(kinds)[0])


def main(folder: Path, out: Path, dtype: str) -> None:
    """Compare and write what was seen."""
    from services.attention.engine_args import cpu_engine_args, own_operators
    from services.checkpoint import read_checkpoint
    from tests.support.pool_process import PoolProcess

    checkpoint = read_checkpoint(folder)
    extra = cpu_engine_args(checkpoint.config, dtype)
    result: dict[str, Any] = {
        "routed_bytes": checkpoint.routed_bytes,
        "total_bytes": checkpoint.total_bytes,
    }
    with PoolProcess(folder, dtype) as pool:
        llm = engine(folder, dtype, **extra)
        result["reference_expert_bytes"] = expert_parameter_bytes(llm)
        result["reference"] = run(llm)
        end(llm)
        names = pool.layouts()
        pool.call("publish", 0)
        extra |= own_operators() | pool.call("engine_args")
        llm = engine(folder, dtype, worker_cls=WORKER, **extra)
        result["attention_expert_bytes"] = expert_parameter_bytes(llm)
        result["backends"] = attention_backends(llm)
        result["shards"] = pool.call("shard_facts")
        result["rows_that_differ_by_threads"] = pool.call("rows_that_differ_by_threads")
        result["layouts"] = {}
        for index, name in enumerate(names):
            pool.call("publish", index)
            result["layouts"][name] = run(llm)
        result["compiled_gates"], result["layers"] = compiled_gates(llm)
        result["threads"], result["long"] = watch_threads(llm), []
        for index in (0, len(names) - 1):
            pool.call("publish", index)
            result["long"].append(run_long(llm))
        result["threads"] = list(result["threads"])
        result["halves"] = {}
        result["halved_steps"] = cut_steps(llm, least_tokens=2)
        for index in (0, len(names) - 1):
            pool.call("publish", index)
            result["halves"][names[index]] = run(llm)
        result["halved_steps"] = cut_steps(llm, least_tokens=NEVER)
        pool.call("swap_experts", 0, 0, 1)
        pool.call("publish", 0)
        result["swapped"] = run(llm)
        end(llm)
    out.write_text(json.dumps(result))


def watch_threads(llm: Any) -> list[int]:
    """The threads of every forward pass from now on."""
    import torch

    seen: list[int] = []

    def note(*_: Any) -> None:
        seen.append(torch.get_num_threads())

    llm.apply_model(lambda model: model.register_forward_pre_hook(note) and None)
    return seen


def run_long(llm: Any) -> list[Any]:
    """Three tokens after a long prompt, and the log-probabilities of the likeliest."""
    from vllm import SamplingParams

    few = SamplingParams(temperature=0, max_tokens=3, logprobs=2, ignore_eos=True)
    [answered] = llm.generate({"prompt_token_ids": LONG}, few, use_tqdm=False)
    [output] = answered.outputs
    steps = [sorted((t, p.logprob) for t, p in step.items()) for step in output.logprobs]
    return [list(output.token_ids), steps]


def compiled_gates(llm: Any) -> tuple[int, int]:
    """Layers whose router chooses by `GroupedTopk`, and all that have one."""
    from services.attention.gating import GroupedTopk
    from services.vllm_hooks import moe_runners

    def count(model: Any) -> tuple[int, int]:
        functions = [getattr(r.router, "custom_routing_function", 0) for r in moe_runners(model)]
        return sum(isinstance(function, GroupedTopk) for function in functions), len(functions)

    [(compiled, layers)] = llm.apply_model(count)
    return compiled, layers


def cut_steps(llm: Any, *, least_tokens: int) -> int:
    """How many steps were cut in two halves so far; from now on those of so many tokens are."""

    def tell(worker: Any) -> int:
        halves = worker.model_runner._model_forward
        halves.least_tokens = least_tokens
        return int(halves.steps)

    return int(llm.collective_rpc(tell)[0])


def end(llm: Any) -> None:
    """Let the engine go, so that the next one can start in this process."""
    from vllm.distributed.parallel_state import cleanup_dist_env_and_memory

    llm.llm_engine.engine_core.shutdown()
    cleanup_dist_env_and_memory()


def command(folder: Path, out: Path, dtype: str) -> tuple[Sequence[str], dict[str, str]]:
    """How to run this program: words and environment."""
    return program("tests.support.compare", str(folder), str(out), dtype)


def program(module: str, *words: str) -> tuple[Sequence[str], dict[str, str]]:
    """How to run a program that has vLLM in its own process: words and environment."""
    environment = {
        **os.environ,
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        "VLLM_ALLOW_INSECURE_SERIALIZATION": "1",
        "VLLM_LOGGING_LEVEL": "WARNING",
        "OMP_NUM_THREADS": "1",
        "HF_HUB_OFFLINE": "1",
        "PYTHONPATH": str(Path(__file__).parents[2]),
    }
    return [sys.executable, "-m", module, *words], environment


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3])
