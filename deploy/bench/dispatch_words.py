"""The words of `bench dispatch`: what may be asked, and what it then means."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from deploy.bench.throughput_words import (
    DEEPSEEK,
    DTYPES,
    RESULTS,
    find_model,
    number,
    numbers,
)
from deploy.progress import Progress
from router.errors import ConfigError
from services.hardware import choose_dtype, this_machine

if TYPE_CHECKING:
    from deploy.bench.dispatch import DispatchOptions


def add_options(parser: argparse.ArgumentParser) -> None:
    """Declare them."""
    parser.add_argument(
        "--model", default=DEEPSEEK, help="of ours, or a checkpoint's folder (default: %(default)s)"
    )
    parser.add_argument(
        "--bare",
        metavar="H,I,E,K",
        help="no model and no vLLM: hidden and intermediate size, experts, choices, in plain torch",
    )
    parser.add_argument(
        "--device", default="cpu", help="of --bare, both sides: cpu or cuda (default: %(default)s)"
    )
    for word, value, text in (
        ("--shards", (2,), "sizes of the pool"),
        ("--tokens", (1, 16, 64), "of a step"),
    ):
        shown = ",".join(map(str, value))
        parser.add_argument(
            word, metavar="LIST", type=numbers, default=value, help=f"{text} (default: {shown})"
        )
    parser.add_argument(
        "--steps", metavar="N", type=number, default=60, help="of each size (default: %(default)s)"
    )
    parser.add_argument("--dtype", default="auto", choices=DTYPES, help="(default: %(default)s)")
    parser.add_argument("--seed", metavar="N", type=int, default=0, help="of rows and experts")
    parser.add_argument(
        "--json",
        metavar="FILE",
        type=Path,
        default=RESULTS / "dispatch.json",
        help="where results are written (default: %(default)s)",
    )


def dispatch_options(arguments: argparse.Namespace, progress: Progress) -> "DispatchOptions":
    """What the words ask for; the model is built if need be. Raises ConfigError."""
    from deploy.bench.bare import BareSizes
    from deploy.bench.dispatch import DispatchOptions

    machine = this_machine()
    if arguments.device != "cpu" and not arguments.bare:
        raise ConfigError("--device goes with --bare; vLLM chooses its own.")
    return DispatchOptions(
        model=BareSizes.parse(arguments.bare)
        if arguments.bare
        else find_model(arguments.model, 0, progress),
        dtype=choose_dtype(machine.flags, machine.gpus > 0, arguments.dtype),
        device=arguments.device,
        shards=arguments.shards,
        tokens=arguments.tokens,
        steps=arguments.steps,
    )
