"""The operator's command line: `python -m deploy up | status | down | …`.

Parses words, picks the command, and turns errors into one message and an exit code: 0 done, 1 a
start that failed, 2 a refusal, 130 Ctrl-C.
"""

import argparse
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TextIO

from deploy import doctor, keys
from deploy.backend import Backend, RealBackend
from deploy.bench import cli as bench
from deploy.detach import up_detached
from deploy.down import down
from deploy.kubernetes import cli as kubernetes
from deploy.processes import is_alive
from deploy.progress import Progress
from deploy.quiet import own_stream
from deploy.records import RunRecord, find_records
from deploy.settings import parse_setting
from deploy.show import describe_decision, status_json, status_text
from deploy.signals import Stopped, raise_on_stop_signals
from deploy.up import UpOptions, read_config, up
from router.errors import ConfigError, PlatformError
from services.hardware import Machine, this_machine

GRACE_S = 30.0
EXAMPLES = """examples:
  python -m deploy up --demo                       a small chat model on this machine
  python -m deploy up --model PATH                 a Hugging Face mixture-of-experts folder
  python -m deploy up --model PATH --config deploy/configs/two-replicas.yaml
  python -m deploy up --demo --port 8001 --set pool.shards=4 --set pool.redundancy=2
  python -m deploy up --demo --detach              return when it serves, leave it running
  python -m deploy status --experts                what runs, and which shard holds what
  python -m deploy status --json                   the same for programs
  python -m deploy rebalance                       place the experts by the present loads
  python -m deploy down                            stop everything
  python -m deploy doctor --model PATH             look for what would go wrong
  python -m deploy key --name NAME --file FILE     make an API key

Every setting: deploy/configs/reference.yaml; what it means: services/config.py."""


def main(
    argv: Sequence[str] | None = None,
    *,
    backend: Backend | None = None,
    look: Callable[[], Machine] = this_machine,
    out: TextIO | None = None,
    err: TextIO | None = None,
) -> int:
    """Run one command and return its exit code."""
    words = sys.argv[1:] if argv is None else list(argv)
    arguments = make_parser().parse_args(words)
    out, err = out or own_stream(sys.stdout), err or own_stream(sys.stderr)
    backend = backend or RealBackend()
    try:
        if arguments.command == "status":
            return show_status(arguments, backend, out)
        if arguments.command == "rebalance":
            return rebalance(arguments, backend, out)
        if arguments.command == "down":
            raise_on_stop_signals()
            down(arguments.name, backend, Progress(out), grace_s=arguments.grace)
            return 0
        if arguments.command == "bench":
            return bench.run(arguments, out)
        if arguments.command == "doctor":
            return doctor.run(arguments, out)
        if arguments.command == "key":
            return keys.run(arguments, out)
        if arguments.command == "render":
            return kubernetes.run(arguments, out)
        options = options_of(arguments)
        if arguments.detach:
            return up_detached(words, read_config(options), out, err)
        up(options, backend, Progress(out), look())
    except Stopped as stopped:
        return stopped.exit_code
    except KeyboardInterrupt:
        return 130
    except PlatformError as error:
        print(f"error: {error}", file=err, flush=True)
        return 2 if isinstance(error, ConfigError) else 1
    return 0


def show_status(arguments: argparse.Namespace, backend: Backend, out: TextIO) -> int:
    """Print what runs; returns 1 if one that was ready does not answer.

    Raises ConfigError if nothing runs.
    """
    records = running(arguments.name)
    with ThreadPoolExecutor(len(records)) as threads:
        runs = list(threads.map(backend.status, records))
    shown = status_json(runs) if arguments.json else status_text(runs, experts=arguments.experts)
    print(shown, file=out, flush=True)
    return int(any(run.problem and run.record.is_ready for run in runs))


def rebalance(arguments: argparse.Namespace, backend: Backend, out: TextIO) -> int:
    """Have every deployment place its experts anew by the present loads, and print the verdicts."""
    for record in running(arguments.name):
        decision = backend.rebalance(record)
        print(f"{record.name}: {describe_decision(decision)}", file=out, flush=True)
    return 0


def running(name: str | None) -> list[RunRecord]:
    """The deployments that run. Raises ConfigError if there is none."""
    found = find_records(name)
    records = [record for record in found if record.is_joined or is_alive(record.owner)]
    if not records:
        named = f" under the name {name}" if name else ""
        died = f" ({found[0].name} died; clear up with: python -m deploy down)" if found else ""
        raise ConfigError(f"nothing runs{named}{died}; start it with: python -m deploy up --demo")
    return records


def make_parser() -> argparse.ArgumentParser:
    """The words that are understood."""
    parser = argparse.ArgumentParser(
        prog="python -m deploy",
        description="Serve a mixture-of-experts model with attention and experts apart.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    _add_up(
        commands.add_parser(
            "up",
            help="start, and serve until Ctrl-C",
            epilog=EXAMPLES,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )
    )
    status = commands.add_parser(
        "status", help="show deployments, shards and the table", allow_abbrev=False
    )
    status.add_argument("--json", action="store_true", help="print one JSON object")
    status.add_argument(
        "--experts", action="store_true", help="show which experts each shard holds in each layer"
    )
    again = commands.add_parser(
        "rebalance",
        help="place the experts anew by the present loads, whatever the moves cost",
        allow_abbrev=False,
    )
    stop = commands.add_parser(
        "down", help="stop everything; nothing to stop is no error", allow_abbrev=False
    )
    stop.add_argument(
        "--grace",
        metavar="S",
        type=float,
        default=GRACE_S,
        help=f"seconds that open requests may take to finish (default {GRACE_S:g})",
    )
    for command in (status, again, stop):
        command.add_argument("--name", metavar="NAME", help="only this deployment (its name)")
    doctor.add_parser(commands)
    bench.add_parser(commands)
    keys.add_parser(commands)
    kubernetes.add_parser(commands)
    return parser


def _add_up(parser: argparse.ArgumentParser) -> None:
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--model", metavar="PATH", help="folder of the checkpoint (model.path)")
    what.add_argument("--demo", action="store_true", help="build and serve the small demo model")
    parser.add_argument("--config", metavar="FILE", type=Path, help="deployment as a YAML file")
    parser.add_argument("--address", metavar="ADDR", help="running Ray cluster (ray.address)")
    parser.add_argument("--port", metavar="N", type=int, help="port of the API (gateway.port)")
    parser.add_argument(
        "--set",
        metavar="KEY=VALUE",
        action="append",
        default=[],
        help="any setting, such as pool.shards=4; wins over the file; may be repeated",
    )
    parser.add_argument("--detach", action="store_true", help="return when ready, leave it running")


def options_of(arguments: argparse.Namespace) -> UpOptions:
    """The options of `up`. Raises ConfigError for a --set that is not KEY=VALUE."""
    overrides = dict(parse_setting(text) for text in arguments.set)
    for key, value in (
        ("model.path", arguments.model),
        ("ray.address", arguments.address),
        ("gateway.port", arguments.port),
    ):
        if value is not None:
            overrides[key] = value
    return UpOptions(arguments.config, overrides, arguments.demo)
