"""Properties of the grouping of rows into one message a shard."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from router.choose import Policy, choose_shards
from router.dispatch import ShardRows, plan_dispatch, plan_layer, plan_pairs

SEEDS = st.integers(0, 2**32 - 1)


def check_rows(rows: ShardRows, n_choices: int) -> None:
    """What holds for every message: distinct rising tokens, each used, pairs that point at them."""
    assert (np.diff(rows.tokens) > 0).all()
    np.testing.assert_array_equal(rows.tokens[rows.pair_rows], rows.pair_positions // n_choices)
    assert set(rows.pair_rows) == set(range(rows.tokens.size))
    for array in (rows.tokens, rows.pair_rows, rows.pair_experts, rows.pair_positions):
        assert array.dtype == np.int32 and array.flags.c_contiguous


@given(
    seed=SEEDS, n_tokens=st.integers(0, 30), n_choices=st.integers(1, 8), n_shards=st.integers(1, 9)
)
@settings(max_examples=60, deadline=None)
def test_every_pair_is_sent_once_to_the_shard_chosen_for_it(
    seed: int, n_tokens: int, n_choices: int, n_shards: int
) -> None:
    rng = np.random.default_rng(seed)
    shards = rng.integers(0, n_shards, (n_tokens, n_choices)).astype(np.int16)
    ids = rng.integers(0, 64, (n_tokens, n_choices))
    plan = plan_dispatch(shards, ids)
    assert [rows.shard for rows in plan] == sorted(set(shards.ravel().tolist()))
    seen = np.zeros(shards.size, dtype=int)
    for rows in plan:
        check_rows(rows, n_choices)
        seen[rows.pair_positions] += 1
        assert (shards.ravel()[rows.pair_positions] == rows.shard).all()
        np.testing.assert_array_equal(ids.ravel()[rows.pair_positions], rows.pair_experts)
    assert (seen == 1).all()


@given(seed=SEEDS, n_shards=st.integers(1, 5))
@settings(max_examples=60, deadline=None)
def test_a_resent_subset_keeps_its_positions_in_the_step_whatever_its_order(
    seed: int, n_shards: int
) -> None:
    rng = np.random.default_rng(seed)
    ids = rng.integers(0, 64, (12, 4))
    positions = rng.permutation(48)[: rng.integers(0, 49)].astype(np.int32)
    shards = rng.integers(0, n_shards, positions.size).astype(np.int16)
    plan = plan_pairs(positions, shards, ids.ravel()[positions], n_choices=4)
    wanted = dict(zip(positions.tolist(), shards.tolist(), strict=True))
    got = {int(p): rows.shard for rows in plan for p in rows.pair_positions}
    assert got == wanted and sum(rows.pair_positions.size for rows in plan) == positions.size
    for rows in plan:
        check_rows(rows, 4)
        np.testing.assert_array_equal(ids.ravel()[rows.pair_positions], rows.pair_experts)


def test_a_token_with_two_experts_on_one_shard_is_sent_there_once() -> None:
    shards = np.array([[0, 1, 0], [1, 1, 1]], dtype=np.int16)
    ids = np.array([[5, 6, 7], [5, 8, 9]])
    first, second = plan_dispatch(shards, ids)
    assert first.tokens.tolist() == [0] and first.pair_rows.tolist() == [0, 0]
    assert first.pair_experts.tolist() == [5, 7] and first.pair_positions.tolist() == [0, 2]
    assert second.tokens.tolist() == [0, 1] and second.pair_rows.tolist() == [0, 1, 1, 1]
    assert second.pair_positions.tolist() == [1, 3, 4, 5]


@given(seed=SEEDS, policy=st.sampled_from(list(Policy)))
@settings(max_examples=40, deadline=None)
def test_choosing_and_grouping_at_once_is_the_same_as_one_after_the_other(
    seed: int, policy: Policy
) -> None:
    rng = np.random.default_rng(seed)
    ids = rng.integers(0, 8, (9, 3)).astype(np.int32)
    counts = rng.integers(1, 4, 8).astype(np.int16)
    holders = np.stack([rng.permutation(5)[:3] for _ in range(8)]).astype(np.int16)
    load = rng.uniform(0, 9, 5).astype(np.float32)
    wanted = plan_dispatch(choose_shards(ids, holders, counts, load, policy), ids)
    got = plan_layer(ids, holders, counts, load, policy)
    assert got is not None
    assert [rows.shard for rows in got] == [rows.shard for rows in wanted]
    for mine, other in zip(got, wanted, strict=True):
        for name in ("tokens", "pair_rows", "pair_experts", "pair_positions"):
            np.testing.assert_array_equal(getattr(mine, name), getattr(other, name))
    counts[ids[0, 0]] = 0
    assert plan_layer(ids, holders, counts, load, policy) is None
