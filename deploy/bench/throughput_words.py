"""The words of `bench throughput`: what may be asked, and what it then means.

Models that are ours are built here if they are not there.
"""

import argparse
from pathlib import Path
from typing import Any

from deploy.bench.sides import EngineSetup
from deploy.bench.throughput_report import Model, ThroughputOptions
from deploy.progress import Progress
from deploy.up import DEMO_MODEL, ROOT
from router.errors import ConfigError
from services.hardware import choose_dtype, this_machine

DEMO, DEEPSEEK, WIDE_DEEPSEEK = "demo", "deepseek", "deepseek-wide"
DTYPES = ("auto", "float32", "bfloat16", "float16")
RESULTS = ROOT / ".expertmesh" / "bench"
RANDOM_MODEL = ROOT / ".expertmesh" / "bench-model"
WIDE_MODEL = ROOT / ".expertmesh" / "bench-model-wide"  # 7 GB
MIN_MODEL_LEN = 512  # tokens
MIN_NUM_SEQS = 32


def throughput_options(arguments: argparse.Namespace, progress: Progress) -> ThroughputOptions:
    """What the words ask for; models are built if need be. Raises ConfigError."""
    asked_tokens = arguments.prompt_tokens + arguments.max_tokens
    max_model_len = arguments.max_model_len or max(MIN_MODEL_LEN, asked_tokens)
    if asked_tokens > max_model_len:
        raise ConfigError(
            f"--prompt-tokens and --max-tokens are {asked_tokens} together, --max-model-len is "
            f"{max_model_len}; raise it."
        )
    if min(arguments.clients) < arguments.replicas:
        raise ConfigError(
            f"--clients has {min(arguments.clients)}, --replicas is {arguments.replicas}: each "
            "engine needs a client of its own."
        )
    machine = this_machine()
    return ThroughputOptions(
        models=tuple(
            find_model(word.strip(), arguments.seed, progress)
            for word in arguments.models.split(",")
        ),
        clients=arguments.clients,
        pairs=arguments.pairs,
        requests=arguments.requests,
        requests_per_client=arguments.requests_per_client,
        prompt_tokens=arguments.prompt_tokens,
        max_tokens=arguments.max_tokens,
        seed=arguments.seed,
        engine=EngineSetup(
            dtype=choose_dtype(machine.flags, machine.gpus > 0, arguments.dtype),
            max_model_len=max_model_len,
            max_num_seqs=max(MIN_NUM_SEQS, *arguments.clients),
            kv_cache_gib=arguments.kv_cache_gib,
            shards=arguments.shards,
            redundancy=arguments.redundancy,
            replicas=arguments.replicas,
            settings=tuple(arguments.set),
        ),
        json_file=arguments.json,
    )


def find_model(word: str, seed: int, progress: Progress) -> Model:
    """The model of that name, built if it is one of ours and not there. Raises ConfigError."""
    if word == DEMO:
        from deploy.demo_model import build_demo_model

        return Model(DEMO, build_demo_model(DEMO_MODEL, progress=progress.say))
    if word == DEEPSEEK:
        from deploy.random_model import build_random_model

        return Model(DEEPSEEK, build_random_model(RANDOM_MODEL, seed=seed, progress=progress.say))
    if word == WIDE_DEEPSEEK:
        from deploy.random_model import WIDE, build_random_model

        made = build_random_model(WIDE_MODEL, seed=seed, experts=WIDE, progress=progress.say)
        return Model(WIDE_DEEPSEEK, made)
    folder = Path(word).expanduser().absolute()
    if not (folder / "config.json").is_file():
        raise ConfigError(
            f"--models: {word!r} is neither {DEMO!r}, {DEEPSEEK!r}, {WIDE_DEEPSEEK!r}, nor the "
            "folder of a checkpoint."
        )
    return Model(folder.name, folder)


def add_options(parser: argparse.ArgumentParser) -> None:
    def add(option: str, default: Any, help_: str, **more: Any) -> None:
        parser.add_argument(option, default=default, help=f"{help_} (default {default})", **more)

    of_ours = f"{DEMO}, {DEEPSEEK}, {WIDE_DEEPSEEK} (7 GB), or folders of checkpoints"
    add("--models", f"{DEMO},{DEEPSEEK}", of_ours, metavar="LIST")
    parser.add_argument(
        "--clients", type=numbers, default=(1, 8, 32), metavar="LIST", help="(default 1,8,32)"
    )
    add("--pairs", 3, "of one vLLM and one ExpertMesh", type=number, metavar="N")
    add("--requests", 8, "of each round, at least", type=number, metavar="N")
    add("--requests-per-client", 2, "of each round, at least", type=number, metavar="N")
    add("--prompt-tokens", 64, "of each request", type=number, metavar="N")
    add("--max-tokens", 64, "generated for each request", type=number, metavar="N")
    add("--dtype", "auto", "of both sides", choices=DTYPES)
    add("--seed", 0, "of the prompts and the random model", type=int, metavar="N")
    parser.add_argument(
        "--max-model-len", type=number, metavar="N", help="(default: what the requests need)"
    )
    add("--kv-cache-gib", 0.5, "of both sides", type=float, metavar="GIB")
    add("--shards", 2, "of ExpertMesh's pool", type=number, metavar="N")
    add(
        "--replicas",
        1,
        "of attention that share the pool, against as many whole engines, each on its cores",
        type=number,
        metavar="N",
    )
    add("--redundancy", 1, "shards that hold each expert", type=number, metavar="N")
    parser.add_argument(
        "--set",
        metavar="KEY=VALUE",
        action="append",
        default=[],
        help="any other setting of ExpertMesh; may be repeated",
    )
    parser.add_argument("--json", type=Path, default=RESULTS / "throughput.json", metavar="FILE")


def number(text: str) -> int:
    """From 1."""
    found = int(text)
    if found < 1:
        raise argparse.ArgumentTypeError(f"{text} is less than 1")
    return found


def numbers(text: str) -> tuple[int, ...]:
    """A list of them, by commas."""
    return tuple(number(part) for part in text.split(","))
