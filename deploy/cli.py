"""The operator's command line: `python -m deploy up | status | down`.

Parses words, picks the command, and turns errors into one message and an exit code: 0 done, 1 a
start that failed, 2 a refusal, 130 Ctrl-C.
"""

import argparse
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TextIO

import yaml

from deploy.backend import Backend, RealBackend
from deploy.detach import up_detached
from deploy.down import down
from deploy.processes import is_alive
from deploy.progress import Progress
from deploy.quiet import own_stream
from deploy.records import find_records
from deploy.show import status_json, status_text
from deploy.signals import Stopped, raise_on_stop_signals
from deploy.up import UpOptions, read_config, up
from router.errors import ConfigError, PlatformError
from services.hardware import Machine, this_machine

EXAMPLES = """examples:
  python -m deploy up --demo                       a small chat model on this machine
  python -m deploy up --model PATH                 a Hugging Face mixture-of-experts folder
  python -m deploy up --model PATH --config deploy/configs/two-replicas.yaml
  python -m deploy up --demo --port 8001 --set pool.shards=4 --set pool.redundancy=2
  python -m deploy up --demo --detach              return when it serves, leave it running
  python -m deploy status --experts                what runs, and which shard holds what
  python -m deploy status --json                   the same for programs
  python -m deploy down                            stop everything

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
        if arguments.command == "down":
            raise_on_stop_signals()
            down(arguments.name, backend, Progress(out))
            return 0
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
    found = find_records(arguments.name)
    records = [record for record in found if record.is_joined or is_alive(record.owner)]
    if not records:
        named = f" under the name {arguments.name}" if arguments.name else ""
        died = f" ({found[0].name} died; clear up with: python -m deploy down)" if found else ""
        raise ConfigError(f"nothing runs{named}{died}; start it with: python -m deploy up --demo")
    with ThreadPoolExecutor(len(records)) as threads:
        runs = list(threads.map(backend.status, records))
    shown = status_json(runs) if arguments.json else status_text(runs, experts=arguments.experts)
    print(shown, file=out, flush=True)
    return int(any(run.problem and run.record.is_ready for run in runs))


def make_parser() -> argparse.ArgumentParser:
    """The words that are understood."""
    parser = argparse.ArgumentParser(
        prog="python -m deploy",
        description="Serve a mixture-of-experts model with attention and experts apart.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="up | status | down")
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
    stop = commands.add_parser(
        "down", help="stop everything; nothing to stop is no error", allow_abbrev=False
    )
    for command in (status, stop):
        command.add_argument("--name", metavar="NAME", help="only this deployment (its name)")
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


def parse_setting(text: str) -> tuple[str, Any]:
    """KEY=VALUE with the value read as YAML, as it would be in the file."""
    key, equals, value = text.partition("=")
    if not (key.strip() and equals):
        raise ConfigError(f"--set {text!r} is not KEY=VALUE. Write it like --set pool.shards=4.")
    try:
        return key.strip(), yaml.safe_load(value)
    except yaml.YAMLError as error:
        raise ConfigError(
            f"--set {text!r}: the value is not valid YAML. Put quotes around it: "
            f"--set {key}='\"...\"'."
        ) from error
