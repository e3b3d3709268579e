"""The words of `bench faults`: what may be asked, and what it then means."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from deploy.up import ROOT
from router.errors import ConfigError

if TYPE_CHECKING:
    from deploy.bench.faults import FaultOptions

DESCRIPTION = """Ask a running local application the same prompts undisturbed, twice, and then
while a shard is killed, a shard is stopped for four seconds and the controller is killed; then
shift the load, so that experts move. Every part is a real process and gets a real signal.

An application that can take all of it:
  python -m deploy up --demo --detach --set pool.shards=3 --set pool.redundancy=2"""


def add_options(parser: argparse.ArgumentParser) -> None:
    """Declare them."""
    parser.add_argument("--name", metavar="NAME", help="of the application, if several run")
    parser.add_argument(
        "--scenarios",
        metavar="LIST",
        default="kill,stop,controller,rebalance",
        help="which, by commas (default: %(default)s)",
    )
    for word, value, text in (
        ("--clients", 6, "streams at once"),
        ("--requests", 24, "requests of each run"),
        ("--max-tokens", 60, "tokens of each request"),
        ("--settle", 40, "seconds of traffic before the load shifts"),
        ("--follow", 75, "seconds of traffic afterwards"),
    ):
        help_text = f"{text} (default: %(default)s)"
        parser.add_argument(word, metavar="N", type=int, default=value, help=help_text)
    parser.add_argument(
        "--shift",
        metavar="A,B",
        default="100,300",
        help="token ids that outputs are forced to before and after (default: %(default)s)",
    )
    parser.add_argument(
        "--json",
        metavar="FILE",
        type=Path,
        default=ROOT / ".expertmesh" / "bench" / "faults.json",
        help="where results are written (default: %(default)s)",
    )


def fault_options(arguments: argparse.Namespace) -> "FaultOptions":
    """What the words ask for. Raises ConfigError."""
    from deploy.bench.faults import SCENARIOS, FaultOptions
    from deploy.bench.shift import Shift

    scenarios = tuple(word.strip() for word in arguments.scenarios.split(","))
    if unknown := [word for word in scenarios if word not in SCENARIOS]:
        raise ConfigError(
            f"--scenarios {arguments.scenarios}: {unknown[0]!r} is none; there are "
            f"{', '.join(SCENARIOS)}."
        )
    tokens = arguments.shift.split(",")
    if len(tokens) != 2 or not all(token.isdigit() for token in tokens):
        raise ConfigError(f"--shift {arguments.shift} is not two token ids; write 100,300.")
    if min(arguments.clients, arguments.requests, arguments.max_tokens) < 1:
        raise ConfigError("--clients, --requests and --max-tokens must be at least 1.")
    return FaultOptions(
        scenarios,
        arguments.clients,
        arguments.requests,
        arguments.max_tokens,
        Shift(
            before=tokens[0],
            after=tokens[1],
            settle_s=arguments.settle,
            follow_s=arguments.follow,
            clients=arguments.clients,
            max_tokens=arguments.max_tokens,
        ),
        arguments.json,
    )
