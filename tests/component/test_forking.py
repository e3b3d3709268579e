"""The fork server with real processes: what it runs is like what an interpreter would run."""

import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

from services.forking.launch import ENVIRONMENT, write_python
from services.forking.server import NOT_BEFORE_THE_FORK

ROOT = Path(__file__).parents[2]
TIMEOUT_S = 60.0


@contextmanager
def serving(folder: Path, *modules: str) -> Iterator[Path]:
    """A server; gives the executable that asks it."""
    address, python = folder / "socket", folder / "python"
    write_python(python, address)
    words = [sys.executable, "-m", "services.forking.server", str(address), *modules]
    with subprocess.Popen(words, cwd=ROOT, env={**os.environ, **ENVIRONMENT}) as server:
        while not address.exists():
            assert server.poll() is None
            time.sleep(0.02)
        try:
            yield python
        finally:
            server.kill()


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    with serving(tmp_path_factory.mktemp("forks"), "json") as executable:
        yield executable


def run(python: Path, *words: str, **options: object) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(  # type: ignore[call-overload,no-any-return]
        [python, *words], capture_output=True, text=True, timeout=TIMEOUT_S, **options
    )


SAY = """
import json, os, sys
print(json.dumps([__name__, sys.argv, os.getcwd(), os.environ.get("MARK"), os.getppid()]))
print("and an error", file=sys.stderr)
sys.exit(7)
"""


@pytest.mark.parametrize("how", ["code", "module", "script"])
def test_command_line_is_run_as_by_the_interpreter(python: Path, tmp_path: Path, how: str) -> None:
    file = tmp_path / "say.py"
    file.write_text(SAY)
    words = {
        "code": ["-B", "-c", SAY],
        "module": ["-m", "say"],
        "script": ["-u", str(file)],
    }[how]
    environment = {**os.environ, "MARK": "x y", "PYTHONPATH": str(tmp_path)}
    forked, plain = (
        run(executable, *words, "a", "b c", cwd=tmp_path, env=environment)
        for executable in (python, Path(sys.executable))
    )
    assert forked.returncode == plain.returncode == 7
    assert forked.stderr == plain.stderr == "and an error\n"
    said, wanted = json.loads(forked.stdout), json.loads(plain.stdout)
    assert said[:4] == wanted[:4]
    assert said[4] != os.getpid()


def test_inherited_files_keep_their_numbers(python: Path, tmp_path: Path) -> None:
    reader, writer = os.pipe()
    code = f"import os; os.write({writer}, b'through'); print(sorted(os.listdir('/proc/self/fd')))"
    done = run(python, "-c", code, pass_fds=[writer])
    os.close(writer)
    assert os.read(reader, 100) == b"through"
    os.close(reader)
    plain = run(Path(sys.executable), "-c", code.replace("os.write", "(lambda *_: 0)"))
    assert done.stdout.count("'") == plain.stdout.count("'") + 2, "nothing but that file more"


def test_process_that_is_killed_is_seen_to_be(python: Path) -> None:
    for signum in (signal.SIGKILL, signal.SIGTERM):
        done = run(python, "-c", f"import os; os.kill(os.getpid(), {int(signum)})")
        assert done.returncode == -signum


def test_kill_of_the_stand_in_kills_the_process(python: Path) -> None:
    code = "import os, time; print(os.getpid(), flush=True); time.sleep(600)"
    for signum in (signal.SIGKILL, signal.SIGTERM):
        with subprocess.Popen([python, "-c", code], stdout=subprocess.PIPE) as stand_in:
            assert stand_in.stdout is not None
            process = psutil.Process(int(stand_in.stdout.readline()))
            stand_in.send_signal(signum)
            process.wait(TIMEOUT_S)
            assert stand_in.wait(TIMEOUT_S) == -signum


def test_each_process_is_a_group_of_its_own(python: Path) -> None:
    code = "import os; print(os.getpid() == os.getpgid(0))"
    assert run(python, "-c", code).stdout == "True\n"


def test_without_a_server_the_interpreter_itself_runs(tmp_path: Path) -> None:
    python = tmp_path / "python"
    write_python(python, tmp_path / "nobody")
    done = run(python, "-c", "import sys; print(sys.argv)", "a")
    assert (done.stdout, done.returncode) == ("['-c', 'a']\n", 0)


def double(number: int) -> int:
    return 2 * number


def test_multiprocessing_spawns_through_it(python: Path) -> None:
    before = sys.executable
    multiprocessing.set_executable(str(python))
    try:
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            assert pool.apply(double, (21,)) == 42
    finally:
        multiprocessing.set_executable(before)


def test_forks_have_vllm_and_their_own_number_of_threads(tmp_path: Path) -> None:
    code = f"""
import sys, torch
assert "vllm" in sys.modules
assert not [name for name in {NOT_BEFORE_THE_FORK!r} if name in sys.modules]
print(torch.get_num_threads())
"""
    with serving(tmp_path) as python:
        for threads in ("1", "2"):
            done = run(python, "-c", code, env={**os.environ, "OMP_NUM_THREADS": threads})
            assert done.stdout == f"{threads}\n", done.stderr
