"""An engine's steps have the threads that they are worth."""

from collections.abc import Iterator

import pytest
import torch

from router.choose import Policy
from services.attention.settings import RemoteSettings
from services.attention.step_worker import StepWorker
from services.attention.threads import WORTH_TOKENS


@pytest.fixture(autouse=True)
def _before() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize(
    ("few", "many", "n_tokens", "expected"),
    [
        (1, 2, WORTH_TOKENS - 1, 1),
        (1, 2, WORTH_TOKENS, 2),
        (2, 2, 1, 2),
        (0, 0, WORTH_TOKENS, 3),  # told of none
    ],
)
def test_threads_of_a_step(few: int, many: int, n_tokens: int, expected: int) -> None:
    worker = object.__new__(StepWorker)
    worker._settings = RemoteSettings(
        "", "here", 1.0, 1.0, Policy.LEAST_TOKENS, threads=few, prompt_threads=many
    )
    worker._use_threads(n_tokens)
    assert torch.get_num_threads() == expected
