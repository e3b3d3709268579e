"""A shard's process without Ray, for benchmarks: kernel, port and worker as a deployment has them.

`python -m deploy.bench.shard MODEL DTYPE NAME FOLDER EXPERTS`: holds the experts 1,2,3 of every
layer, prints where it listens, and serves until its standard input ends.
"""

import dataclasses
import json
import sys
from collections.abc import Mapping
from pathlib import Path

from router.table import ShardId
from services.experts.worker import ShardWorker
from services.transport.sockets import SocketPort


def main(model: str, dtype: str, name: str, folder: str, experts: str) -> None:
    """Until standard input ends."""
    from services.experts.engine import shard_vllm_config
    from services.experts.vllm_kernel import VllmKernel

    slots = dict(enumerate(int(word) for word in experts.split(",")))
    kernel = VllmKernel(shard_vllm_config(model, dtype=dtype), len(slots))
    port = SocketPort(ShardId(name), host="bench", run_dir=Path(folder))
    serve(ShardWorker(kernel, port, threads=1), kernel.n_layers, slots)


def serve(worker: ShardWorker, n_layers: int, slots: Mapping[int, int]) -> None:
    """Load, say where, and serve until standard input ends. slots: slot → expert, of each layer."""
    worker.start()
    for layer in range(n_layers):
        worker.load(layer, dict(slots))
    described = {**dataclasses.asdict(worker.address), "n_layers": n_layers}
    print("\n" + json.dumps(described), flush=True)
    sys.stdin.read()
    worker.stop()


if __name__ == "__main__":
    main(*sys.argv[1:])
