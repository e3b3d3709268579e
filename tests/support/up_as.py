"""`python -m tests.support.up_as known|asked up ...`: the command line, but for what vLLM says.

known: vLLM is not asked, which takes ten seconds the first time. asked: it is, every time.
"""

import sys

from deploy.__main__ import run
from deploy.backend import RealBackend
from deploy.cli import main
from deploy.preflight_vllm import VllmFacts, ask_vllm


class KnowingBackend(RealBackend):
    """Has the answer."""

    def ask_vllm(self) -> VllmFacts:
        return VllmFacts(frozenset({"MixtralForCausalLM"}), frozenset())


class AskingBackend(RealBackend):
    """Forgets every answer."""

    def ask_vllm(self) -> VllmFacts:
        return ask_vllm(cache=None)


BACKENDS = {"known": KnowingBackend, "asked": AskingBackend}

if __name__ == "__main__":
    run(lambda: main(sys.argv[2:], backend=BACKENDS[sys.argv[1]]()))
