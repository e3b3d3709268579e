"""Which part of a model a tensor belongs to, told from its name in the checkpoint.

Nearly every family keeps its routed experts under a path component `experts`: one tensor an expert
(`...mlp.experts.7.up_proj.weight`) or all fused in one (`...mlp.experts.gate_up_proj`). Two other
conventions for fused tensors are known too.
"""

import re

_ROUTED = re.compile(
    r"(?:^|\.)(?:experts\.|block_sparse_moe\.(?:input|output)_linear\.|moe\.(?:gate|up|down)_proj\.)"
)
_EXPERT_ID = re.compile(r"(?:^|\.)experts\.(\d+)\.")
_LAYER = re.compile(r"(?:^|\.)(?:layers|layer|h|blocks)\.(\d+)\.")


def is_routed_expert(name: str) -> bool:
    """Whether it is a weight or scale of routed experts (not shared ones, not the gate)."""
    return _ROUTED.search(name) is not None


def expert_id(name: str) -> int | None:
    """The expert of a per-expert tensor; None for fused experts and everything else."""
    found = _EXPERT_ID.search(name)
    return int(found.group(1)) if found else None


def layer_of(name: str) -> int | None:
    """The index of the decoder layer; None for tensors outside the layers."""
    found = _LAYER.search(name)
    return int(found.group(1)) if found else None
