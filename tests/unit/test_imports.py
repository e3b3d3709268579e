"""The rooms of the house: which package may import which, read from the source alone."""

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
ROOMS = {"router", "monitoring", "services", "deploy"}
MAY_IMPORT = {
    "router": {"router"},
    "monitoring": {"monitoring", "router"},
    "services": {"services", "monitoring", "router"},
    "deploy": ROOMS,
}
# The router is pure maths, so that every decision can be tested without a machine.
ROUTER_LIBRARIES = {"numpy", "torch", "numba"}
MONITORING_LIBRARIES = {"numpy", "prometheus_client"}
IMPURE_STDLIB = {"asyncio", "multiprocessing", "os", "socket", "subprocess", "threading", "time"}


def imported_packages(source: str) -> Iterator[str]:
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (name.name.partition(".")[0] for name in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield "." if node.level else (node.module or "").partition(".")[0]


def refused_imports(room: str, source: str) -> set[str]:
    names = set(imported_packages(source))
    refused = {name for name in names if name in ROOMS - MAY_IMPORT[room]}
    refused |= names & {".", "tests"}
    if room == "router":
        pure = (set(sys.stdlib_module_names) - IMPURE_STDLIB) | ROUTER_LIBRARIES | {"router"}
        refused |= names - pure
    if room == "monitoring":
        refused |= names - set(sys.stdlib_module_names) - MONITORING_LIBRARIES - ROOMS
    return refused


@pytest.mark.parametrize(
    "file",
    sorted(file for room in ROOMS for file in (ROOT / room).rglob("*.py")),
    ids=lambda file: str(file.relative_to(ROOT)),
)
def test_a_file_imports_only_what_its_room_may(file: Path) -> None:
    room = file.relative_to(ROOT).parts[0]
    assert refused_imports(room, file.read_text()) == set()


@pytest.mark.parametrize(
    ("room", "source", "refused"),
    [
        ("router", "import numpy as np\nfrom router.table import Table", set()),
        ("router", "from ray import serve", {"ray"}),
        ("router", "def f():\n    import time", {"time"}),
        ("monitoring", "import numpy, prometheus_client, json", set()),
        ("monitoring", "import ray", {"ray"}),
        ("monitoring", "from services.config import load", {"services"}),
        ("services", "import deploy.cli, ray", {"deploy"}),
        ("services", "from .config import load", {"."}),
        ("deploy", "from services import app\nfrom tests import fakes", {"tests"}),
    ],
)
def test_an_import_from_a_forbidden_room_is_found(
    room: str, source: str, refused: set[str]
) -> None:
    assert refused_imports(room, source) == refused
