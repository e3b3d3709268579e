"""Where a layer's time goes on the attention side, added up."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise


@dataclass(slots=True)
class LayerTimes:
    """Seconds since the start, over all layers; `wait_s` begins when the shared experts end.

    While rows are away shards queue and compute; of those of one layer the slowest one counts.
    """

    layers: int = 0
    choose_s: float = 0.0  # a shard for every (token, choice), and who is sent what
    send_s: float = 0.0
    shared_s: float = 0.0  # shared experts and counting, while rows are away
    wait_s: float = 0.0  # for answers, and taking them in
    combine_s: float = 0.0
    shard_queue_s: float = 0.0  # before a shard began to compute
    shard_compute_s: float = 0.0

    def add(self, marks: Sequence[float], slowest: tuple[float, float]) -> float:
        """Add a layer; returns its seconds.

        marks: when it began, had chosen, had sent, began to wait, had its answers, had combined.
        slowest: what the slowest shard queued and computed.
        """
        choose_s, send_s, shared_s, wait_s, combine_s = (b - a for a, b in pairwise(marks))
        self.layers += 1
        self.choose_s += choose_s
        self.send_s += send_s
        self.shared_s += shared_s
        self.wait_s += wait_s
        self.combine_s += combine_s
        self.shard_queue_s += slowest[0]
        self.shard_compute_s += slowest[1]
        return marks[-1] - marks[0]
