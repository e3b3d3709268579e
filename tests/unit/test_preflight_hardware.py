"""What is read from a machine's text files, and the dtype and threads that are chosen from it."""

import pytest

from services.hardware import (
    available_bytes,
    choose_dtype,
    choose_threads,
    cpu_flags,
    this_machine,
)

MEMINFO = "MemTotal:  200 kB\nMemAvailable:    100 kB\n"


def test_flags_of_the_first_cpu_are_read() -> None:
    text = "processor\t: 0\nflags\t\t: fpu avx2 amx_tile\n\nprocessor\t: 1\nflags\t\t: fpu\n"
    assert cpu_flags(text) == {"fpu", "avx2", "amx_tile"}


def test_features_of_an_arm_cpu_are_read() -> None:
    assert cpu_flags("processor\t: 0\nFeatures\t: fp asimd bf16\n") == {"fp", "asimd", "bf16"}


def test_no_cpuinfo_means_no_flags() -> None:
    assert cpu_flags("") == set()


@pytest.mark.parametrize(
    ("limit", "used", "expected"),
    [("max\n", "5\n", 102_400), ("", "", 102_400), ("5000\n", "2000\n", 3000), ("5", "9", 0)],
)
def test_container_limit_counts_when_it_is_lower(limit: str, used: str, expected: int) -> None:
    assert available_bytes(MEMINFO, limit, used) == expected


@pytest.mark.parametrize(
    ("flags", "has_gpu", "requested", "expected"),
    [
        ({"avx512f", "avx512_vnni"}, False, "auto", "float32"),
        ({"avx512f", "avx512_bf16"}, False, "auto", "bfloat16"),
        ({"amx_bf16"}, False, "auto", "bfloat16"),
        (set(), True, "auto", "bfloat16"),
        ({"amx_bf16"}, True, "float32", "float32"),
        (set(), False, "float16", "float16"),
    ],
)
def test_dtype_is_the_one_that_was_asked_for_or_the_fast_one(
    flags: set[str], has_gpu: bool, requested: str, expected: str
) -> None:
    assert choose_dtype(flags, has_gpu, requested) == expected


@pytest.mark.parametrize(
    ("cores", "replicas", "shards", "expected"),
    [
        (1, 1, 2, (1, 1, 1)),
        (2, 1, 2, (1, 2, 1)),
        (8, 1, 2, (4, 8, 4)),
        (2, 2, 2, (1, 1, 1)),
        (2, 2, 1, (1, 1, 2)),
        (16, 2, 4, (4, 8, 4)),
        (3, 2, 1, (1, 1, 3)),
    ],
)
def test_cores_are_shared_out(
    cores: int, replicas: int, shards: int, expected: tuple[int, int, int]
) -> None:
    assert choose_threads(cores, replicas, shards, most_replicas=replicas) == expected


def test_prompts_have_the_cores_that_as_many_replicas_as_there_may_be_leave() -> None:
    assert choose_threads(8, 1, 2, most_replicas=2) == (4, 4, 4)
    assert choose_threads(8, 1, 2, most_replicas=4) == (4, 4, 4)


def test_neither_sides_threads_outnumber_cores() -> None:
    for cores in range(8, 65):
        for replicas, shards in ((2, 1), (2, 2), (2, 4), (4, 4)):
            attention, prompts, shard = choose_threads(
                cores, replicas, shards, most_replicas=replicas
            )
            assert attention * replicas <= cores // 2
            assert prompts * replicas <= cores
            assert shard * shards <= cores


def test_this_machine_can_be_looked_at() -> None:
    machine = this_machine()
    assert machine.cores >= 1
    assert machine.available_bytes > 0
