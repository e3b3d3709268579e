"""A shard's process without Ray, for benchmarks: kernel, port and worker as a deployment has them.

`python -m deploy.bench.shard MODEL DTYPE NAME FOLDER EXPERTS`: holds the experts 1,2,3 of every
layer, prints where it listens, and serves until its standard input ends.
"""

import dataclasses
import json
import sys
from pathlib import Path

from router.table import ShardId
from services.experts.kernel import ExpertKernel
from services.experts.worker import ShardWorker
from services.transport.sockets import SocketPort


def main(model: str, dtype: str, name: str, folder: str, experts: str) -> None:
    """Until standard input ends."""
    from services.experts.engine import shard_vllm_config
    from services.experts.vllm_kernel import VllmKernel

    slots = slots_of(experts)
    kernel = VllmKernel(shard_vllm_config(model, dtype=dtype), len(slots))
    serve(kernel, slots, name, folder)


def slots_of(experts: str) -> dict[int, int]:
    """Slot → expert, from "1,2,3"."""
    return dict(enumerate(int(word) for word in experts.split(",")))


def serve(kernel: ExpertKernel, slots: dict[int, int], name: str, folder: str) -> None:
    """Load every layer's slots, say where, and serve until standard input ends."""
    port = SocketPort(ShardId(name), host="bench", run_dir=Path(folder))
    worker = ShardWorker(kernel, port, threads=1)
    worker.start()
    for layer in range(kernel.n_layers):
        worker.load(layer, slots)
    described = {**dataclasses.asdict(port.address), "n_layers": kernel.n_layers}
    print("\n" + json.dumps(described), flush=True)
    sys.stdin.read()
    worker.stop()


if __name__ == "__main__":
    main(*sys.argv[1:])
