"""Fixtures of all kinds of tests; what only unit tests need is in tests/unit/conftest.py."""

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from tests.support.browser import BINARY, Browser


@pytest.fixture
def rng() -> np.random.Generator:
    """The same random numbers in every run."""
    return np.random.default_rng(20261122)


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """`checkpoint("mixtral")` is the folder of a tiny float32 model, made once in a run."""
    from tests.support.checkpoints import make_checkpoint

    made: dict[str, Path] = {}

    def get(family: str) -> Path:
        if family not in made:
            made[family] = make_checkpoint(family, tmp_path_factory.mktemp(family))
        return made[family]

    return get


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--screenshots", type=Path, help="where browser tests leave their pictures")


@pytest.fixture
def screenshots(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """Where pictures go: nowhere that lasts, unless asked for with `--screenshots=docs`."""
    return request.config.getoption("--screenshots") or tmp_path


@pytest.fixture(scope="session")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    """Headless Chromium."""
    if BINARY is None:
        pytest.skip("no chromium: apt-get install chromium")
    running = Browser(tmp_path_factory.mktemp("browser"))
    try:
        yield running
    finally:
        running.close()
