"""The words of `bench overload`: what may be asked, and what it then means."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from deploy.up import ROOT
from router.errors import ConfigError

if TYPE_CHECKING:
    from deploy.bench.overload import OverloadOptions

DESCRIPTION = """Ask a running local application for up to four times as much as it can carry: what
those notice who are let in, how many are refused, and whether memory grows."""


def add_options(parser: argparse.ArgumentParser) -> None:
    """Declare them."""
    parser.add_argument("--name", metavar="NAME", help="of the application, if several run")
    parser.add_argument(
        "--loads",
        metavar="LIST",
        default="0.5,1,2,4",
        help="multiples of the most that is carried, by commas (default: %(default)s)",
    )
    for word, value, text in (
        ("--seconds", 60, "of each load"),
        ("--clients", 64, "of the closed loop that finds the most: as many as engines take"),
        ("--max-tokens", 32, "of a request"),
    ):
        parser.add_argument(
            word, metavar="N", type=int, default=value, help=f"{text} (default: %(default)s)"
        )
    for word in ("json", "png"):
        parser.add_argument(
            f"--{word}",
            metavar="FILE",
            type=Path,
            default=ROOT / ".expertmesh" / "bench" / f"overload.{word}",
            help="where it is written (default: %(default)s)",
        )


def overload_options(arguments: argparse.Namespace) -> "OverloadOptions":
    """What the words ask for. Raises ConfigError."""
    from deploy.bench.overload import OverloadOptions

    try:
        loads = tuple(float(word) for word in arguments.loads.split(","))
    except ValueError as error:
        raise ConfigError(f"--loads is a list of numbers: {error}.") from error
    numbers = (*loads, arguments.seconds, arguments.clients, arguments.max_tokens)
    if min(numbers) <= 0:
        raise ConfigError("--loads, --seconds, --clients and --max-tokens must be above 0.")
    return OverloadOptions(
        loads,
        arguments.seconds,
        arguments.clients,
        arguments.max_tokens,
        arguments.json,
        arguments.png,
    )
