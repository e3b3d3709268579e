"""Every family, with random weights and experts that all differ, against unmodified vLLM.

What is claimed: greedy tokens are equal, log-probabilities differ by rounding only, and no bit
depends on how many shards there are, on what they hold or on how often an expert is there.
"""

import json
import statistics
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.support.compare import TOKENS, command
from tests.support.families import FAMILIES
from tests.support.hardware import bfloat16_alone, needs_amx, needs_bfloat16
from tests.support.quantised import FORMATS, make_quantised

LISTED = ["deepseek_v3", "gpt_oss"]  # the others: make test-families
LARGEST_LOGPROB_DIFFERENCE = 1e-4  # float32; about 2e-5 is seen, from another order of sums
# In bfloat16 texts part at near ties, so the median up to there is compared: 0.15 to 0.21 is seen,
# since our normalisation rounds once and vLLM's on CPUs twice (0.07 to 0.12 without that), and 0.5
# to 1.3 with two experts in each other's place.
MEDIAN_LOGPROB_DIFFERENCE = 0.3
LAYOUTS = ["one", "two", "two-shifted", "four", "four-twice"]

pytestmark = [pytest.mark.slow, pytest.mark.timeout(500)]
Compare = Callable[[str], dict[str, Any]]


@pytest.fixture(scope="module")
def compare(checkpoint: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Compare:
    """`compare("mixtral")` runs the comparison once and gives what it wrote."""
    seen: dict[str, dict[str, Any]] = {}

    def get(family: str) -> dict[str, Any]:
        if family not in seen:
            folder = tmp_path_factory.mktemp("compare")
            out, in_few_bits = folder / f"{family}.json", family in FORMATS
            name, _, dtype = family.partition(" in ")
            model = make_quantised(name, folder)[0] if in_few_bits else checkpoint(name)
            dtype = dtype or ("bfloat16" if in_few_bits else "float32")
            words, environment = command(model, out, dtype)
            done = subprocess.run(
                words, env=environment, capture_output=True, text=True, timeout=400, check=False
            )
            assert done.returncode == 0, done.stderr[-3000:]
            seen[family] = json.loads(out.read_text()) | {"log": done.stderr + done.stdout}
        return seen[family]

    return get


def largest_difference(one: list[Any], other: list[Any]) -> float:
    """Over all log-probabilities that both report for the same place and token."""
    return max(
        float(abs(x[token] - y[token]))
        for p, q in zip(one[1], other[1], strict=True)
        for x, y in zip(p, q, strict=True)
        for token in x.keys() & y.keys()
    )


def median_difference(one: list[Any], other: list[Any]) -> float:
    """Over the places until each prompt's texts part, of the largest difference there."""
    seen = []
    for prompt in zip(one[0], other[0], one[1], other[1], strict=True):
        for token, another, x, y in zip(*prompt, strict=True):
            seen.append(max((abs(x[t] - y[t]) for t in x.keys() & y.keys()), default=9.0))
            if token != another:
                break
    return statistics.median(seen)


def families() -> list[Any]:
    return [pytest.param(f, marks=[] if f in LISTED else [pytest.mark.extended]) for f in FAMILIES]


@pytest.mark.parametrize("family", families())
def test_a_family_answers_as_unmodified_vllm_does(
    family: str, compare: Compare, record_property: Callable[[str, object], None]
) -> None:
    seen = compare(family)
    tokens, _ = seen["reference"]
    assert [len(t) for t in tokens] == [TOKENS] * 8
    for name in LAYOUTS:
        assert seen["layouts"][name][0] == tokens, f"{family}: greedy tokens differ with {name}"
    difference = largest_difference(seen["reference"], seen["layouts"]["one"])
    record_property("largest_logprob_difference", difference)
    print(f"{family}: tokens equal 8 x {TOKENS}, largest logprob difference {difference:.2g}")
    assert difference <= LARGEST_LOGPROB_DIFFERENCE


@pytest.mark.parametrize("family", families())
def test_no_bit_depends_on_the_layout(family: str, compare: Compare) -> None:
    seen = compare(family)
    for name in LAYOUTS[1:]:
        assert seen["layouts"][name] == seen["layouts"]["one"], f"{family}: {name} differs from one"


def few_bits() -> list[Any]:
    return [pytest.param(name, marks=[pytest.mark.extended, needs_amx]) for name in FORMATS]


@pytest.mark.parametrize(
    "name", [pytest.param("deepseek_v3 in bfloat16", marks=needs_bfloat16), *few_bits()]
)
def test_sixteen_bits_and_fewer_answer_as_unmodified_vllm_does(name: str, compare: Compare) -> None:
    seen = compare(name)
    for layout in LAYOUTS[1:]:
        assert seen["layouts"][layout] == seen["layouts"]["one"], f"{layout} differs from one"
    assert seen["rows_that_differ_by_threads"] == 0
    assert seen["halves"]["one"] == seen["halves"]["four-twice"]
    assert seen["attention_expert_bytes"] == 0
    difference = median_difference(seen["reference"], seen["layouts"]["one"])
    swapped = median_difference(seen["reference"], seen["swapped"])
    print(f"{name}: median logprob difference {difference:.2g}, experts swapped {swapped:.2g}")
    assert difference < MEDIAN_LOGPROB_DIFFERENCE < swapped
    assert seen["threads"] == [2, 1, 1] * 2
    assert seen["long"][0] == seen["long"][1]
    has_own = name == "deepseek_v3 in bfloat16" and bfloat16_alone()
    assert (seen["backends"] == ["LatentBackend"]) is has_own


@pytest.mark.parametrize("family", families())
def test_no_bit_depends_on_a_shards_threads(family: str, compare: Compare) -> None:
    assert compare(family)["rows_that_differ_by_threads"] == 0


@pytest.mark.parametrize("family", families())
def test_no_bit_of_a_prompt_that_all_threads_read_depends_on_the_layout(
    family: str, compare: Compare
) -> None:
    seen = compare(family)
    assert seen["threads"] == [2, 1, 1] * 2, "of the prompt's step, then of those that decode"
    one, other = seen["long"]
    assert one == other


def test_layers_that_choose_by_groups_do_so_in_one_loop(compare: Compare) -> None:
    assert compare("deepseek_v3")["compiled_gates"] == compare("deepseek_v3")["layers"]
    assert compare("gpt_oss")["compiled_gates"] == 0


@pytest.mark.parametrize("family", families())
def test_steps_in_two_halves_give_the_same_text(family: str, compare: Compare) -> None:
    seen = compare(family)
    assert seen["halved_steps"] == 2 * TOKENS
    assert set(seen["halves"]) == {"one", "four-twice"}
    assert seen["halves"]["one"] == seen["halves"]["four-twice"], "bits, whatever the layout"
    assert seen["halves"]["one"][0] == seen["reference"][0]
    difference = largest_difference(seen["reference"], seen["halves"]["one"])
    assert difference <= LARGEST_LOGPROB_DIFFERENCE


@pytest.mark.parametrize("family", families())
def test_the_comparison_fails_when_two_experts_are_swapped(family: str, compare: Compare) -> None:
    seen = compare(family)
    assert seen["swapped"][0] != seen["reference"][0]
    assert largest_difference(seen["reference"], seen["swapped"]) > 1000 * (
        LARGEST_LOGPROB_DIFFERENCE
    )


@pytest.mark.parametrize("family", families())
def test_experts_are_read_and_held_by_shards_only(family: str, compare: Compare) -> None:
    from tests.support.pool import bytes_in_log

    seen = compare(family)
    assert seen["reference_expert_bytes"] >= seen["routed_bytes"]
    assert seen["attention_expert_bytes"] == 0
    read, skipped = bytes_in_log(seen["log"])
    assert read == seen["total_bytes"] - seen["routed_bytes"]
    assert skipped == seen["routed_bytes"]
    shards = {s["name"]: s for s in seen["shards"]}
    assert shards["one-0"]["read_bytes"] == seen["routed_bytes"]
    for name in ("two", "four"):
        parts = [s for n, s in shards.items() if n.rsplit("-", 1)[0] == name]
        assert sum(s["read_bytes"] for s in parts) == seen["routed_bytes"]
        assert sum(s["weight_bytes"] for s in parts) == shards["one-0"]["weight_bytes"]
