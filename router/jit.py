"""The one door to numba: compiled loops that keep their types for the checker.

Kernels release the GIL and are cached beside the source, so only the first process compiles.
"""

from collections.abc import Callable
from typing import ParamSpec, TypeVar, cast

from numba import njit

P = ParamSpec("P")
R = TypeVar("R")


def jit(function: Callable[P, R]) -> Callable[P, R]:
    """Compile `function` at its first call: nogil, cached on disk, IEEE order kept."""
    return cast("Callable[P, R]", njit(cache=True, nogil=True, error_model="numpy")(function))
