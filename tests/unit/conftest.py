"""Keeps Ray out of unit tests: they decide, and deciding needs no cluster."""

import signal
import sys
from collections.abc import Iterator
from typing import Any, NoReturn

import pytest
from hypothesis import HealthCheck, settings

# How long an example takes says something about the machine, nothing about the code.
settings.register_profile("busy", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("busy")


@pytest.fixture(autouse=True)
def no_ray(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Make `ray.init` raise where Ray is imported, without importing it where it is not."""

    def refuse(*_args: Any, **_options: Any) -> NoReturn:
        raise RuntimeError("a unit test called ray.init; it belongs into tests/cluster")

    if "ray" in sys.modules:
        monkeypatch.setattr(sys.modules["ray"], "init", refuse)
    yield
    ray = sys.modules.get("ray")  # imported by the test itself, perhaps
    if ray is not None and ray.is_initialized():
        ray.shutdown()
        pytest.fail("a unit test started Ray; it belongs into tests/cluster")


@pytest.fixture
def handlers() -> Iterator[None]:
    """Put the signal handlers back that a test replaces."""
    before = {signum: signal.getsignal(signum) for signum in (2, 15, 1)}
    yield
    for signum, handler in before.items():
        signal.signal(signum, handler)
