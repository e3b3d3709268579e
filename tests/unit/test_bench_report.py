"""What benchmarks say: arithmetic of rounds and pairs, the file, the tables, the words."""

import itertools
import json
import math
import os
from dataclasses import replace
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry, Histogram, generate_latest

from deploy.bench.engine_ttft import NAMES, EngineTtft, read_ttft
from deploy.bench.load import Stream
from deploy.bench.measure import COMPARED, Measurement, RoundId, compare, measure
from deploy.bench.report import (
    Circumstances,
    Hardware,
    circumstances,
    cpu_name,
    describe,
    markdown_table,
    prepare_json,
    write_json,
)
from deploy.bench.sides import (
    EXPERTMESH,
    VLLM,
    EngineSetup,
    expertmesh_words,
    launches_of,
    vllm_words,
)
from deploy.bench.throughput import random_prompts
from deploy.bench.throughput_report import (
    SHOWN,
    Model,
    ThroughputOptions,
    report_of,
    text_of,
    told,
)
from deploy.bench.usage import CpuLook, CpuUse, cpu_between, look_at_cpu, resident_bytes
from deploy.processes import ProcessId, this_process
from router.errors import CheckpointError, ConfigError, EngineError
from tests.support.fake_backend import FakeBackend, run

SETUP = EngineSetup(
    dtype="float32",
    max_model_len=512,
    max_num_seqs=32,
    kv_cache_gib=0.5,
    shards=2,
    redundancy=1,
    settings=("pool.slots_per_layer=3",),
)
AROUND = Circumstances(
    Hardware("A CPU", 2, ("avx2",), 8 * 2**30, 0, "Linux 6"),
    {"python": "3.11.0", "vllm": "0.32.0"},
    "abc123+",
    5,
    "python -m deploy bench throughput",
)


def stream(started_s: float, *arrivals_s: float, error: str = "") -> Stream:
    return Stream("p", "", len(arrivals_s), started_s, arrivals_s, error)


def measured(side: str, pair: int, per_s: float, clients: int = 1) -> Measurement:
    one = measure(
        RoundId("tiny", side, pair, clients),
        [stream(0.0, 1.0, 2.0)],
        engine_ttft_s=0.25,
        resident_bytes=2**30,
        cpu=CpuUse(0.5, 0.0),
        start_s=9.0,
    )
    return replace(one, output_tokens_per_s=per_s)


def options(tmp_path: Path, pairs: int = 3) -> ThroughputOptions:
    return ThroughputOptions(
        models=(Model("tiny", tmp_path),),
        clients=(1,),
        pairs=pairs,
        requests=1,
        requests_per_client=1,
        prompt_tokens=4,
        max_tokens=4,
        seed=5,
        engine=SETUP,
        json_file=tmp_path / "out.json",
    )


def test_a_round_counts_tokens_from_the_first_request_to_the_last_token() -> None:
    one = measure(
        RoundId("tiny", VLLM, 1, 2),
        [stream(10.0, 10.5, 11.0, 12.0), stream(10.1, 10.4, 14.0)],
        engine_ttft_s=0.25,
        resident_bytes=7,
        cpu=CpuUse(2.0, 0.1),
        start_s=30.0,
    )
    assert (one.output_tokens, one.seconds) == (5, 4.0)
    assert one.output_tokens_per_s == pytest.approx(1.25)
    assert one.ttft_p50_s == pytest.approx(0.4)
    assert one.ttft_outside_engine_s == pytest.approx(0.15)
    assert one.gap_p50_s == pytest.approx(1.0)  # of 0.5, 1.0 and 3.6
    assert one.cpu_s_per_token == pytest.approx(0.4)


@pytest.mark.parametrize("name", NAMES)
def test_the_engines_own_first_tokens_are_read_from_either_side(name: str) -> None:
    registry = CollectorRegistry()
    histogram = Histogram(name, "", ("engine",), registry=registry)
    Histogram("vllm:inter_token_latency_seconds", "", registry=registry).observe(9)
    before = read_ttft(generate_latest(registry).decode())
    for engine, seconds in (("0", 0.1), ("1", 0.3)):
        histogram.labels(engine).observe(seconds)
    after = read_ttft(generate_latest(registry).decode())
    assert (before, after.count) == (EngineTtft(0.0, 0), 2)
    assert after.mean_since(before, 2) == pytest.approx(0.2)
    assert math.isnan(after.mean_since(before, 3)), "one request is not in the engines' figures"


def test_a_failed_request_is_counted_but_in_no_figure() -> None:
    failed = stream(0.0, 0.1, error="ReadError: reset")
    one = measure(
        RoundId("tiny", VLLM, 1, 1),
        [failed, stream(1.0, 2.0)],
        engine_ttft_s=0.25,
        resident_bytes=7,
        cpu=CpuUse(1.0, 0.0),
        start_s=1.0,
    )
    assert (one.requests, one.failed, one.output_tokens) == (2, 1, 1)
    assert "1 of 2 failed: ReadError: reset" in told(one)


def test_a_round_in_which_all_failed_is_no_measurement() -> None:
    with pytest.raises(EngineError, match="vLLM answered none of 1 requests: status 500"):
        measure(
            RoundId("tiny", VLLM, 1, 1),
            [stream(0.0, error="status 500")],
            engine_ttft_s=0.25,
            resident_bytes=7,
            cpu=CpuUse(1.0, 0.0),
            start_s=1.0,
        )


def test_pairs_are_compared_by_medians_and_by_their_own_ratios() -> None:
    rounds = [
        measured(side, pair, per_s)
        for pair, (theirs, ours) in enumerate([(10, 5), (20, 16), (40, 24)], 1)
        for side, per_s in ((VLLM, theirs), (EXPERTMESH, ours))
    ]
    found = {each.quantity: each for each in compare(rounds)}
    assert set(found) == set(COMPARED) == set(SHOWN)
    speed = found["output_tokens_per_s"]
    assert (speed.vllm, speed.expertmesh, speed.pairs) == (20, 16, 3)
    assert (speed.ratio, speed.ratio_min, speed.ratio_max) == (0.6, 0.5, 0.8)


def test_half_a_pair_is_not_compared() -> None:
    rounds = [measured(VLLM, 1, 10), measured(EXPERTMESH, 1, 5), measured(VLLM, 2, 10)]
    assert {each.pairs for each in compare(rounds)} == {1}
    assert compare([measured(VLLM, 1, 10), measured(EXPERTMESH, 2, 5)]) == []


def test_report_shows_circumstances_and_a_table(tmp_path: Path) -> None:
    rounds = [measured(VLLM, 1, 10), measured(EXPERTMESH, 1, 5)]
    shown = text_of(report_of(options(tmp_path, pairs=1), AROUND, rounds, is_complete=True))
    for line in (
        "hardware  A CPU, 2 cores (avx2), 8 GiB, 0 GPUs, Linux 6",
        "versions  python 3.11.0, vllm 0.32.0",
        "commit    abc123+",
        "seed      5",
        "command   python -m deploy bench throughput",
        "fewer than 3 pairs: a trial, not a result",
    ):
        assert line in shown.splitlines()
    assert "| 1 | output tok/s | 10.0 | 5.0 | 0.50 | 0.50-0.50 |" in " ".join(shown.split())


def test_the_file_is_json_without_nan_and_replaces_the_last_one(tmp_path: Path) -> None:
    report = report_of(options(tmp_path), AROUND, [measured(VLLM, 1, math.nan)], is_complete=False)
    file = tmp_path / "out.json"
    file.write_text("old")
    write_json(file, report)
    read = json.loads(file.read_text())
    assert read["measurements"][0]["output_tokens_per_s"] is None
    assert read["circumstances"]["hardware"]["cores"] == 2
    assert read["settings"]["engine"]["dtype"] == "float32"
    assert read["is_complete"] is False
    assert list(tmp_path.iterdir()) == [file]


def test_a_file_that_cannot_be_written_is_refused_before_the_work(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be written"):
        prepare_json(tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match=r"--json .* Name a file"):
        prepare_json(tmp_path / "file" / "out.json")


def test_table_is_aligned() -> None:
    assert markdown_table(("a", "b"), [("long", "1"), ("x", "1000")]).splitlines() == [
        "| a    |    b |",
        "| ---- | ---: |",
        "| long |    1 |",
        "| x    | 1000 |",
    ]


def test_circumstances_of_this_machine_are_found() -> None:
    found = circumstances(3, ["bench", "throughput", "--json", "a b"])
    assert found.command == "python -m deploy bench throughput --json 'a b'"
    assert {"python", "torch", "ray"} <= set(found.versions)
    assert found.hardware.cores >= 1 and found.hardware.memory_bytes > 0
    assert found.hardware.cpu in describe(found)


def test_cpu_name_is_read() -> None:
    assert cpu_name("processor : 0\nmodel name\t: AMD EPYC \nflags : x") == "AMD EPYC"


def test_prompts_follow_from_the_seed() -> None:
    prompts = random_prompts(400, count=3, tokens=5, seed=1)
    assert prompts == random_prompts(400, count=3, tokens=5, seed=1)
    assert prompts != random_prompts(400, count=3, tokens=5, seed=2)
    assert [len(prompt) for prompt in prompts] == [5, 5, 5]
    assert all(100 <= int(each) < 300 for prompt in prompts for each in prompt)


def checkpoint_of(folder: Path, **config: object) -> Path:
    header = json.dumps({"w": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}).encode()
    content = len(header).to_bytes(8, "little") + header + bytes(4)
    (folder / "model.safetensors").write_bytes(content)
    (folder / "config.json").write_text(json.dumps({"architectures": ["X"], **config}))
    return folder


def test_both_sides_get_the_same_limits(tmp_path: Path) -> None:
    folder = checkpoint_of(tmp_path)
    theirs = vllm_words(SETUP, folder)
    pairs = dict(itertools.pairwise(theirs))
    ours = dict(w.split("=", 1) for w in expertmesh_words(SETUP, folder) if "=" in w)
    for option, setting in (
        ("--dtype", "model.dtype"),
        ("--max-model-len", "model.max_model_len"),
        ("--max-num-seqs", "attention.max_num_seqs"),
        ("--max-num-batched-tokens", "attention.max_num_batched_tokens"),
        ("--served-model-name", "model.name"),
    ):
        assert pairs[option] == ours[setting]
    assert pairs["--kv-cache-memory-bytes"] == str(2**29)
    assert {"--enforce-eager", "--no-enable-prefix-caching"} <= set(theirs)
    assert ours["attention.engine_args.enable_prefix_caching"] == "false"
    assert ours["pool.slots_per_layer"] == "3"


def test_latent_attention_is_run_the_same_way_on_both_sides(tmp_path: Path) -> None:
    words = vllm_words(SETUP, checkpoint_of(tmp_path, kv_lora_rank=512))
    value = words[words.index("--compilation-config") + 1]
    assert json.loads(value) == {"custom_ops": ["-rotary_embedding"]}
    assert "--compilation-config" not in vllm_words(SETUP, checkpoint_of(tmp_path))


def test_unmodified_means_all_cores_and_no_plugin(tmp_path: Path) -> None:
    folder = checkpoint_of(tmp_path)
    [launch] = launches_of(VLLM, SETUP, folder)
    environment = launch.environment
    assert environment["VLLM_PLUGINS"] == ""
    cores = [int(core) for core in environment["VLLM_CPU_OMP_THREADS_BIND"].split(",")]
    assert cores == sorted(os.sched_getaffinity(0))
    assert "VLLM_PLUGINS" not in launches_of(EXPERTMESH, SETUP, folder)[0].environment


def test_whole_engines_share_the_cores_and_replicas_the_pool(tmp_path: Path) -> None:
    folder, setup = checkpoint_of(tmp_path), replace(SETUP, replicas=2)
    launches = launches_of(VLLM, setup, folder)
    assert len({launch.url for launch in launches}) == 2
    bound = [launch.environment["VLLM_CPU_OMP_THREADS_BIND"].split(",") for launch in launches]
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) > 1:
        assert sorted(int(core) for share in bound for core in share) == cores
    [one] = launches_of(EXPERTMESH, setup, folder)
    assert "attention.replicas=2" in one.words


def test_usage_of_this_process_is_seen() -> None:
    me = this_process()
    assert 0 < look_at_cpu(me).server[me] <= look_at_cpu(me).machine_s
    assert resident_bytes(me) > 2**20


def test_cpu_of_those_that_live_to_the_end_counts_and_the_rest_is_elsewhere() -> None:
    old, born, gone = ProcessId(1, 1), ProcessId(2, 2), ProcessId(3, 3)
    before = CpuLook(10.0, {old: 1.0, gone: 5.0}, client_s=1.0, machine_s=100.0)
    after = CpuLook(14.0, {old: 3.0, born: 0.5}, client_s=1.5, machine_s=105.0)
    assert cpu_between(before, after) == CpuUse(server_s=2.5, elsewhere_cores=0.5)


def test_a_busy_machine_is_told(tmp_path: Path) -> None:
    busy = replace(measured(VLLM, 1, 10), elsewhere_cores=0.7)
    shown = text_of(report_of(options(tmp_path), AROUND, [busy], is_complete=True))
    assert "something else kept up to 0.7 cores busy in a round" in shown


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--models", "nowhere"], "--models: 'nowhere' is neither 'demo', 'deepseek', 'deep"),
        (["--max-model-len", "100"], "--prompt-tokens and --max-tokens are 128 together"),
    ],
)
def test_bench_refuses_before_it_starts_anything(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: list[str], message: str
) -> None:
    monkeypatch.setattr("deploy.bench.cli.adopt_orphans", lambda: None)
    monkeypatch.setattr("deploy.bench.cli.end_descendants", int)
    monkeypatch.setattr("deploy.bench.cli.raise_on_stop_signals", lambda: None)
    json_file = str(tmp_path / "out.json")
    result = run(FakeBackend(), "bench", "throughput", "--json", json_file, *words)
    assert (result.code, result.out) == (2, "")
    assert message in result.err


def test_clients_are_numbers_above_zero(capsys: pytest.CaptureFixture[str]) -> None:
    for wrong in ("0", "x", "1,"):
        with pytest.raises(SystemExit):
            run(FakeBackend(), "bench", "throughput", "--clients", wrong)
        assert "argument --clients: " in capsys.readouterr().err


def test_a_checkpoint_that_is_damaged_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(CheckpointError):
        vllm_words(SETUP, tmp_path)
