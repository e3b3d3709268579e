"""Properties of choosing experts within groups."""

import numpy as np
import pytest
from numpy.typing import NDArray

from router.grouped_topk import Gate, grouped_topk

Chosen = tuple[NDArray[np.float32], NDArray[np.int32]]


def choose(
    scores: NDArray[np.float32],
    *,
    bias: NDArray[np.float32] | None = None,
    n_groups: int = 4,
    n_kept: int = 2,
    n_choices: int = 3,
    renormalises: bool = False,
    factor: float = 1.0,
) -> Chosen:
    weights = np.full((len(scores), n_choices), np.nan, np.float32)
    ids = np.full((len(scores), n_choices), -1, np.int32)
    added = np.zeros(scores.shape[1], np.float32) if bias is None else bias
    gate = Gate(n_groups, n_kept, bias is not None, renormalises, np.float32(factor))
    grouped_topk(scores, added, gate, weights, ids)
    return weights, ids


def meant(
    scores: NDArray[np.float32], bias: NDArray[np.float32] | None, kept: int
) -> NDArray[np.int64]:
    """[T, 3] of four groups, the definition."""
    by = scores if bias is None else scores + bias
    groups = np.sort(by.reshape(len(by), 4, -1), axis=-1)
    worth = groups[..., -1] if bias is None else groups[..., -2:].sum(-1)
    best = np.argsort(-worth, axis=1, kind="stable")[:, :kept]
    shown = np.full_like(by, -np.inf)
    for t, group in np.ndindex(best.shape):
        size = by.shape[1] // 4
        place = slice(best[t, group] * size, (best[t, group] + 1) * size)
        shown[t, place] = by[t, place]
    return np.argsort(-shown, axis=1, kind="stable")[:, :3]


@pytest.mark.parametrize("n_experts", [8, 32, 256])
@pytest.mark.parametrize("is_biased", [False, True])
@pytest.mark.parametrize("kept", [2, 4])
def test_the_best_of_the_best_groups(n_experts: int, is_biased: bool, kept: int) -> None:
    rng = np.random.default_rng(n_experts)
    scores = rng.random((50, n_experts), dtype=np.float32)
    bias = rng.normal(size=n_experts).astype(np.float32) if is_biased else None
    weights, ids = choose(scores, bias=bias, n_kept=kept)
    np.testing.assert_array_equal(ids, meant(scores, bias, kept))
    np.testing.assert_array_equal(weights, np.take_along_axis(scores, ids, axis=1))


def test_of_equals_the_lower_id() -> None:
    _, ids = choose(np.ones((2, 8), np.float32))
    assert ids.tolist() == [[0, 1, 2], [0, 1, 2]]


def test_a_tokens_bits_do_not_depend_on_the_others() -> None:
    scores = np.random.default_rng(1).random((40, 64), dtype=np.float32)
    bias = np.linspace(-1, 1, 64, dtype=np.float32)
    whole = choose(scores, bias=bias, renormalises=True)
    for t in range(40):
        alone = choose(scores[t : t + 1], bias=bias, renormalises=True)
        assert [a.tobytes() for a in alone] == [w[t].tobytes() for w in whole]


def test_weights_add_up_to_the_factor() -> None:
    scores = np.random.default_rng(2).random((40, 64), dtype=np.float32)
    weights, _ = choose(scores, renormalises=True, factor=2.5)
    np.testing.assert_allclose(weights.sum(1), 2.5, rtol=1e-6)
    plain, _ = choose(scores)
    np.testing.assert_allclose(weights, 2.5 * plain / plain.sum(1, keepdims=True), rtol=1e-6)


def test_one_expert_a_group() -> None:
    scores = np.array([[0.1, 0.4, 0.3, 0.2]], np.float32)
    _, ids = choose(scores, n_kept=2, n_choices=2)
    assert ids.tolist() == [[1, 2]]


@pytest.mark.parametrize("is_biased", [False, True])
def test_what_is_not_a_number_still_chooses_different_experts(is_biased: bool) -> None:
    """As many rows go to the pool as it expects; the answer shows what was wrong."""
    scores = np.random.default_rng(3).random((20, 32), dtype=np.float32)
    scores[np.random.default_rng(4).random(scores.shape) < 0.5] = np.nan
    scores[0], scores[1] = np.nan, -np.inf
    _, ids = choose(scores, bias=np.ones(32, np.float32) if is_biased else None)
    assert all(len(set(row)) == 3 for row in ids.tolist())
    assert ids.min() >= 0
    assert ids.max() < 32
