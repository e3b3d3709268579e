"""DeepSeek's EPLB, as a yardstick for `placement` in tests and benchmarks; never in service.

It balances load only: copies of an expert may share a shard, and most experts have one.
Source: the published algorithm of deepseek-ai/EPLB (`eplb.py`, MIT), written anew.
"""

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


def pack_evenly(weights: Floats, n_packs: int) -> list[list[int]]:
    """Split items of weight [n] into packs of n / n_packs items: heaviest to the lightest pack."""
    per_pack = weights.size // n_packs
    if per_pack == 1:
        return [[item] for item in range(n_packs)]
    packs: list[list[int]] = [[] for _ in range(n_packs)]
    filled = np.zeros(n_packs)
    for item in np.argsort(-weights, kind="stable"):
        has_room = np.array([len(pack) < per_pack for pack in packs])
        pack = int(np.where(has_room, filled, np.inf).argmin())
        packs[pack].append(int(item))
        filled[pack] += weights[item]
    return packs


def replicate(weights: Floats, n_slots: int) -> tuple[Ints, Ints]:
    """The expert in each of n_slots slots, and each expert's copies: heaviest copy is split."""
    copies = np.ones(weights.size, dtype=np.int64)
    experts = list(range(weights.size))
    for _ in range(n_slots - weights.size):
        hottest = int((weights / copies).argmax())
        copies[hottest] += 1
        experts.append(hottest)
    return np.array(experts), copies


def place_like_eplb(
    loads: Floats, *, n_slots: int, n_shards: int, n_groups: int = 1, n_hosts: int = 1
) -> NDArray[np.int32]:
    """Balance every layer over the shards; hosts keep expert groups whole where these divide.

    loads: [L, E]. n_slots: slots a layer, a multiple of n_shards.
    Returns [L, n_shards, n_slots / n_shards] int32 experts.
    """
    if n_groups % n_hosts:
        n_groups = n_hosts = 1
    return np.stack([_place_layer(w, n_slots, n_shards, n_groups, n_hosts) for w in loads])


def _place_layer(
    weights: Floats, n_slots: int, n_shards: int, n_groups: int, n_hosts: int
) -> NDArray[np.int32]:
    members = np.arange(weights.size).reshape(n_groups, -1)
    shards: list[Ints] = []
    for groups in pack_evenly(weights[members].sum(axis=1), n_hosts):
        local = members[groups].reshape(-1)
        slot_experts, copies = replicate(weights[local], n_slots // n_hosts)
        shares = (weights[local] / copies)[slot_experts]
        for slots in pack_evenly(shares, n_shards // n_hosts):
            shards.append(local[slot_experts[slots]])
    return np.stack(shards).astype(np.int32)
