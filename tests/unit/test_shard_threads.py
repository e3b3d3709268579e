"""A batch has the threads that it is worth, of those that the shard has."""

import pytest

from services.experts.threads import WORTH_BYTES, threads_for

SMALL, LARGE = 786_432, 88_080_384  # bytes of the benchmark's experts and of DeepSeek-V3's


@pytest.mark.parametrize(
    ("n_pairs", "expert_bytes", "most", "expected"),
    [
        (4, SMALL, 8, 1),
        (32, SMALL, 8, 8),
        (1, LARGE, 8, 8),
        (1, WORTH_BYTES - 1, 8, 1),
        (1, WORTH_BYTES, 8, 8),
        (8, LARGE, 1, 1),
        (8, LARGE, 0, 1),  # a sender keeps all of them busy
        (1, 0, 8, 1),  # nothing is loaded
    ],
)
def test_threads_of_a_batch(n_pairs: int, expert_bytes: int, most: int, expected: int) -> None:
    assert threads_for(n_pairs, expert_bytes, most=most) == expected
