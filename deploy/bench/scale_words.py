"""The words of `bench scale`: what may be asked, and what it then means."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from deploy.up import ROOT
from router.errors import ConfigError

if TYPE_CHECKING:
    from deploy.bench.scale import ScaleOptions

DESCRIPTION = """Ask a running local application that scales itself: few requests a second, then
eight times as many, then few again; count its shards, and what clients notice.

One that can take it:
  python -m deploy up --model .expertmesh/bench-model --detach --set pool.redundancy=2 \\
    --set 'pool.autoscaling={min_shards: 2, max_shards: 4, target_busy_ratio: 0.12,
           grow_after_s: 3.0, shrink_after_s: 20.0}'"""


def add_options(parser: argparse.ArgumentParser) -> None:
    """Declare them."""
    parser.add_argument("--name", metavar="NAME", help="of the application, if several run")
    for word, value, text in (
        ("--rates", "0.25,2,0.25", "requests a second in each phase, by commas"),
        ("--phases", "60,60,150", "seconds of each phase, by commas"),
    ):
        parser.add_argument(
            word, metavar="LIST", default=value, help=f"{text} (default: %(default)s)"
        )
    parser.add_argument(
        "--max-tokens", metavar="N", type=int, default=24, help="of a request (%(default)s)"
    )
    for word in ("json", "png"):
        parser.add_argument(
            f"--{word}",
            metavar="FILE",
            type=Path,
            default=ROOT / ".expertmesh" / "bench" / f"scale.{word}",
            help="where it is written (default: %(default)s)",
        )


def scale_options(arguments: argparse.Namespace) -> "ScaleOptions":
    """What the words ask for. Raises ConfigError."""
    from deploy.bench.scale import ScaleOptions

    try:
        rates = tuple(float(word) for word in arguments.rates.split(","))
        phases = tuple(float(word) for word in arguments.phases.split(","))
    except ValueError as error:
        raise ConfigError(f"--rates and --phases are lists of numbers: {error}.") from error
    if len(rates) != len(phases) or min(rates) < 0 or min(phases) <= 0:
        raise ConfigError(
            f"--rates {arguments.rates} and --phases {arguments.phases} need as many numbers, "
            "rates from 0 and seconds above 0."
        )
    if arguments.max_tokens < 1:
        raise ConfigError("--max-tokens must be at least 1.")
    return ScaleOptions(rates, phases, arguments.max_tokens, arguments.json, arguments.png)
