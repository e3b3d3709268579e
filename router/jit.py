"""The one door to numba: compiled loops that keep their types for the checker.

Kernels release the GIL and are cached on disk, so only the first process compiles.
"""

from collections.abc import Callable
from functools import lru_cache
from hashlib import sha256
from pathlib import Path
from typing import ParamSpec, TypeVar, cast

import numba

P = ParamSpec("P")
R = TypeVar("R")

ROOT = Path(__file__).parents[1]
COMPILED_IN = ("router", "services/transport")
"""Where loops have other loops from, and the constants that are compiled into them."""


def jit(function: Callable[P, R]) -> Callable[P, R]:
    """Compile `function` at its first call: nogil, cached on disk, IEEE order kept."""
    before, numba.config.CACHE_DIR = numba.config.CACHE_DIR, _cache()  # read by njit, here
    try:
        compiled = numba.njit(cache=True, nogil=True, error_model="numpy")(function)
    finally:
        numba.config.CACHE_DIR = before
    return cast("Callable[P, R]", compiled)


@lru_cache(1)
def _cache() -> str:
    """A folder for this state of the sources, in NUMBA_CACHE_DIR if there is one.

    numba itself looks whether a loop's own file has changed, and not at what else is compiled in.
    """
    digest = sha256()
    for folder in COMPILED_IN:
        for file in sorted((ROOT / folder).glob("*.py")):
            digest.update(file.read_bytes())
    base = numba.config.CACHE_DIR or Path(__file__).parent / "__pycache__"
    return f"{base}/loops-{digest.hexdigest()[:12]}"
