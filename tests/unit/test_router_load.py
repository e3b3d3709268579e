"""The decaying window of loads and the measure of imbalance."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.load import empty_window, imbalance, loads_at, observe, shard_loads


def test_rows_count_half_after_a_half_life() -> None:
    window = observe(empty_window(1, 2, half_life_s=10.0), np.array([[8, 4]]), now_s=100.0)
    assert loads_at(window, now_s=110.0).tolist() == [[4.0, 2.0]]
    assert loads_at(window, now_s=130.0).tolist() == [[1.0, 0.5]]


@given(gaps=st.lists(st.floats(0.0, 50.0), min_size=1, max_size=8))
def test_a_window_is_the_decayed_sum_of_all_that_it_saw(gaps: list[float]) -> None:
    window = empty_window(1, 1, half_life_s=7.0)
    times = np.cumsum(gaps)
    for now_s in times:
        window = observe(window, np.array([[3]]), now_s=float(now_s))
    end_s = float(times[-1]) + 5.0
    expected = (3 * 0.5 ** ((end_s - times) / 7.0)).sum()
    assert loads_at(window, now_s=end_s)[0, 0] == pytest.approx(expected)


def test_observing_makes_a_new_window_and_leaves_the_old_one() -> None:
    old = empty_window(1, 1, half_life_s=1.0)
    new = observe(old, np.array([[5]]), now_s=1.0)
    assert old.rows.tolist() == [[0.0]] and new.rows.tolist() == [[5.0]]
    with pytest.raises(ValueError, match="read-only"):
        new.rows[0, 0] = 1.0


def test_a_clock_that_runs_backwards_loses_nothing() -> None:
    window = observe(empty_window(1, 1, half_life_s=1.0), np.array([[5]]), now_s=50.0)
    window = observe(window, np.array([[2]]), now_s=40.0)
    assert window.as_of_s == 50.0 and window.rows.tolist() == [[7.0]]
    assert loads_at(window, now_s=0.0).tolist() == [[7.0]]


def test_an_experts_rows_split_evenly_over_its_holders() -> None:
    holders = np.array([[[0, 1], [1, -1], [-1, -1]]], dtype=np.int16)
    counts = np.array([[2, 1, 0]], dtype=np.int16)
    loads = np.array([[10.0, 4.0, 99.0]])
    assert shard_loads(loads, holders, counts, n_shards=3).tolist() == [[5.0, 9.0, 0.0]]


def test_imbalance_is_maximum_over_mean_for_each_layer() -> None:
    holders = np.array([[[0], [1]], [[0], [1]], [[0], [1]]], dtype=np.int16)
    counts = np.ones((3, 2), dtype=np.int16)
    loads = np.array([[3.0, 1.0], [2.0, 2.0], [0.0, 0.0]])
    assert imbalance(loads, holders, counts).tolist() == [1.5, 1.0, 1.0]


def test_a_shard_without_experts_counts_in_the_mean() -> None:
    holders, counts = np.zeros((1, 1, 1), dtype=np.int16), np.ones((1, 1), dtype=np.int16)
    loads = np.array([[6.0]])
    assert imbalance(loads, holders, counts).tolist() == [1.0]
    assert imbalance(loads, holders, counts, n_shards=3).tolist() == [3.0]
