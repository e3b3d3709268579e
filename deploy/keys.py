"""`key`: makes an API key and the entry that a file of keys holds of it."""

import argparse
import os
import tempfile
from pathlib import Path
from typing import Any, TextIO

import yaml

from router.errors import ConfigError
from services.gateway.keys import digest_of, make_key, parse_keys

SCOPES = ("use", "metrics", "admin")


def add_parser(commands: Any) -> None:
    """The words of `key`."""
    parser = commands.add_parser("key", help="make an API key", allow_abbrev=False)
    parser.add_argument("--name", metavar="NAME", required=True, help="whose it is; stands in logs")
    parser.add_argument(
        "--scope",
        metavar="SCOPE",
        action="append",
        choices=SCOPES,
        help=f"what it opens, may be repeated: {', '.join(SCOPES)} (default: use)",
    )
    parser.add_argument(
        "--file", metavar="FILE", type=Path, help="add the entry to this file (gateway.keys_file)"
    )


def run(arguments: argparse.Namespace, out: TextIO) -> int:
    """Print the key, which is shown this once, and its entry or where that was added."""
    key = make_key()
    entry = {
        "name": arguments.name,
        "sha256": digest_of(key),
        "scopes": arguments.scope or ["use"],
    }
    shown = yaml.safe_dump({"keys": [entry]}, sort_keys=False)
    parse_keys(shown, f"--name {arguments.name}")
    if arguments.file is None:
        print(f"# key, shown this once: {key}\n{shown}", end="", file=out, flush=True)
        return 0
    add_entry(arguments.file, entry)
    print(f"{key}\nadded to {arguments.file} as {arguments.name}", file=out, flush=True)
    return 0


def add_entry(path: Path, entry: dict[str, Any]) -> None:
    """Add one key to a file that only its owner may read; made if need be, replaced as a whole.

    Raises ConfigError if it is not a file of keys, or has one of that name.
    """
    entries: list[Any] = []
    if path.exists():
        parse_keys(path.read_text(), str(path))
        entries = yaml.safe_load(path.read_text())["keys"]
    text = yaml.safe_dump({"keys": [*entries, entry]}, sort_keys=False)
    parse_keys(text, str(path))
    try:
        handle, made = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}-")  # mode 0600
        with os.fdopen(handle, "w") as file:
            file.write(text)
        os.replace(made, path)
    except OSError as error:
        raise ConfigError(f"{path} cannot be written: {error.strerror}") from None
