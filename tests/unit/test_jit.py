"""Compiled loops on disk."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

from router import jit

CALLER = """
from router.called import called
from router.jit import jit

@jit
def caller() -> int:
    return called() + 1

print(caller(), sum(caller.stats.cache_hits.values()))
"""
CALLED = """
from router.constants import MORE
from router.jit import jit

@jit
def called() -> int:
    return {} + MORE
"""


def run_caller(tree: Path) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "router.caller"],
        cwd=tree,
        env={**os.environ, "PYTHONPATH": "", "NUMBA_CACHE_DIR": str(tree / "cache")},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert not done.returncode, done.stderr
    return done.stdout.strip()


def test_a_loop_is_compiled_anew_when_what_is_compiled_into_it_has_changed(tmp_path: Path) -> None:
    folder = tmp_path / "router"
    folder.mkdir()
    (folder / "__init__.py").touch()
    shutil.copy(str(jit.__file__), folder)
    (folder / "caller.py").write_text(CALLER)
    (folder / "called.py").write_text(CALLED.format(1))
    (folder / "constants.py").write_text("MORE = 0")
    assert [run_caller(tmp_path), run_caller(tmp_path)] == ["2 0", "2 1"]
    (folder / "called.py").write_text(CALLED.format(5))
    assert run_caller(tmp_path) == "6 0"
    (folder / "constants.py").write_text("MORE = 10")
    assert run_caller(tmp_path) == "16 0"
