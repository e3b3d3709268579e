"""What vLLM's answers are used for; vLLM itself is not imported."""

import pytest

from deploy.preflight_vllm import VllmFacts, check_architecture, check_engine_args
from router.errors import CheckpointError, ConfigError

FACTS = VllmFacts(
    architectures=frozenset({"MixtralForCausalLM", "Qwen3MoeForCausalLM"}),
    engine_args=frozenset({"seed", "model", "block_size"}),
)


def test_known_architecture_passes() -> None:
    check_architecture({"architectures": ["Unheard", "MixtralForCausalLM"]}, FACTS)


def test_unknown_architecture_is_refused_with_the_nearest() -> None:
    with pytest.raises(CheckpointError) as caught:
        check_architecture({"architectures": ["MixtralForCausalLLM"]}, FACTS)
    message = str(caught.value)
    assert "architecture MixtralForCausalLLM is unknown to the installed vLLM" in message
    assert 'did you mean "MixtralForCausalLM"?' in message


def test_config_without_architecture_is_refused() -> None:
    with pytest.raises(CheckpointError, match=r'config\.json has no "architectures"'):
        check_architecture({}, FACTS)


def test_unknown_engine_argument_is_refused_with_the_nearest() -> None:
    with pytest.raises(ConfigError, match=r'engine_args\.blocksize is not .* "block_size"\?'):
        check_engine_args({"seed": 1, "blocksize": 16}, FACTS)


def test_far_fetched_argument_gets_no_suggestion() -> None:
    with pytest.raises(ConfigError, match=r"API server; Correct or remove it\."):
        check_engine_args({"zzz": 16}, FACTS)
