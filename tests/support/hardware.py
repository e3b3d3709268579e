"""What tests ask of the CPU that they run on."""

import pytest

from services.hardware import AMX_FLAG, BFLOAT16_FLAGS, this_machine

FLAGS = this_machine().flags
BFLOAT16_ALONE = "avx512_bf16"


def bfloat16_alone() -> bool:
    """Whether it has AVX-512's bfloat16 and no AMX."""
    return BFLOAT16_ALONE in FLAGS and AMX_FLAG not in FLAGS


needs_amx = pytest.mark.skipif(
    AMX_FLAG not in FLAGS, reason=f"vLLM needs AMX (flag {AMX_FLAG}) for experts in fewer bits"
)
needs_bfloat16 = pytest.mark.skipif(
    not FLAGS & BFLOAT16_FLAGS, reason="float32 is what this CPU is given (no flag for bfloat16)"
)
needs_bfloat16_alone = pytest.mark.skipif(
    not bfloat16_alone(), reason=f"taken where the CPU has {BFLOAT16_ALONE} and not {AMX_FLAG}"
)
