"""Telling routed experts from everything else by name, and counting them in config.json."""

from typing import Any

import pytest

from router.errors import CheckpointError
from services.checkpoint import (
    expert_id,
    is_routed_expert,
    layer_of,
    n_experts,
    n_experts_per_token,
)


@pytest.mark.parametrize(
    ("name", "expert", "layer"),
    [
        ("model.layers.3.mlp.experts.17.down_proj.weight", 17, 3),
        ("model.layers.3.mlp.experts.17.down_proj.weight_scale_inv", 17, 3),
        ("model.layers.0.block_sparse_moe.experts.0.w1.weight", 0, 0),
        ("model.layers.12.mlp.experts.gate_up_proj", None, 12),
        ("model.layers.12.mlp.experts.down_proj_blocks", None, 12),
        ("transformer.blocks.5.ffn.experts.mlp.w1", None, 5),
        ("language_model.model.layers.1.feed_forward.experts.gate_up_proj", None, 1),
        ("layers.9.ffn.experts.255.w2.weight", 255, 9),
        ("model.layers.4.block_sparse_moe.input_linear.weight", None, 4),
        ("model.layers.4.moe.up_proj.weight", None, 4),
    ],
)
def test_routed_expert_is_recognised(name: str, expert: int | None, layer: int) -> None:
    assert is_routed_expert(name)
    assert (expert_id(name), layer_of(name)) == (expert, layer)


@pytest.mark.parametrize(
    "name",
    [
        "model.layers.3.mlp.shared_experts.down_proj.weight",
        "model.layers.3.mlp.shared_expert.up_proj.weight",
        "model.layers.3.mlp.gate.weight",
        "model.layers.3.mlp.gate.e_score_correction_bias",
        "model.layers.3.block_sparse_moe.router.layer.weight",
        "model.layers.3.self_attn.o_proj.weight",
        "model.embed_tokens.weight",
    ],
)
def test_other_tensor_is_not_taken_for_a_routed_expert(name: str) -> None:
    assert not is_routed_expert(name)
    assert expert_id(name) is None


def test_tensor_outside_the_layers_has_no_layer() -> None:
    assert layer_of("model.embed_tokens.weight") is None


@pytest.mark.parametrize(
    ("config", "experts"),
    [
        ({"n_routed_experts": 256, "n_shared_experts": 1}, 256),
        ({"num_local_experts": 8}, 8),
        ({"num_experts": 128}, 128),
        ({"ffn_config": {"moe_num_experts": 16}}, 16),
        ({"text_config": {"num_experts": 64}, "vision_config": {"num_experts": 4}}, 64),
        ({"thinker_config": {"text_config": {"num_experts": 32}}}, 32),
        ({"moe_num_experts": [64, 64]}, 64),
        ({"num_experts": None, "num_local_experts": 8}, 8),
    ],
)
def test_experts_are_counted(config: dict[str, Any], experts: int) -> None:
    assert n_experts(config) == experts


@pytest.mark.parametrize(
    "config", [{}, {"num_experts": 0}, {"num_experts": 1}, {"num_experts": True}]
)
def test_dense_model_is_refused(config: dict[str, Any]) -> None:
    with pytest.raises(CheckpointError) as caught:
        n_experts({**config, "model_type": "llama"})
    message = str(caught.value)
    assert "the model is not a mixture of experts" in message
    assert "(model_type 'llama') has none of n_routed_experts," in message


@pytest.mark.parametrize(
    "config", [{"num_experts_per_tok": 6}, {"moe_topk": 6}, {"text_config": {"moe_k": 6}}]
)
def test_choices_of_a_token_are_counted(config: dict[str, Any]) -> None:
    assert n_experts_per_token(config) == 6


def test_missing_choices_are_told() -> None:
    with pytest.raises(CheckpointError, match="does not say how many experts a token visits"):
        n_experts_per_token({"num_experts": 8})
