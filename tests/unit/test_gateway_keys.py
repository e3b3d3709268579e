"""Who may: keys from a file, hashed, read again when it changes."""

import os
from pathlib import Path

import pytest
import yaml

from router.errors import ConfigError
from services.gateway.errors import Refusal
from services.gateway.keys import Keys, digest_of, make_key, parse_keys
from services.gateway.routes import Scope

DIGEST = "a" * 64


def write(path: Path, *entries: dict[str, object]) -> None:
    path.write_text(yaml.safe_dump({"keys": list(entries)}))
    os.utime(path, ns=(path.stat().st_atime_ns, path.stat().st_mtime_ns + 1_000_000))


def bearer(key: str) -> list[tuple[bytes, bytes]]:
    return [(b"authorization", f"Bearer {key}".encode())]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "keys.yaml"


def test_a_key_opens_what_its_scopes_say(file: Path) -> None:
    user, admin = make_key(), make_key()
    write(
        file,
        {"name": "user", "sha256": digest_of(user)},
        {"name": "boss", "sha256": digest_of(admin), "scopes": ["admin"]},
    )
    keys = Keys(file)
    assert keys.check(bearer(user), Scope.USE).name == "user"
    assert keys.check([(b"x-api-key", user.encode())], Scope.USE).name == "user"
    assert keys.check(bearer(admin), Scope.METRICS).name == "boss"
    for scope in (Scope.ADMIN, Scope.METRICS):
        with pytest.raises(Refusal) as refusal:
            keys.check(bearer(user), scope)
        assert refusal.value.status == 403


def test_no_key_or_a_wrong_one_is_401_and_is_not_repeated(file: Path) -> None:
    write(file, {"name": "user", "sha256": digest_of(make_key())})
    keys = Keys(file)
    for headers in ([], bearer("em-wrong"), bearer(""), [(b"authorization", b"Basic eDp5")]):
        with pytest.raises(Refusal) as refusal:
            keys.check(headers, Scope.USE)
        assert refusal.value.status == 401
        assert "em-wrong" not in refusal.value.message
    assert keys.check([], Scope.NOTHING).name == "anyone"


def test_without_a_file_everyone_may_do_everything() -> None:
    keys = Keys(None)
    assert keys.check([], Scope.ADMIN).name == "anyone"
    assert list(keys.by_name()) == ["anyone"], "its limits hold over several gateways"


def test_a_changed_file_is_taken_over_and_a_broken_one_is_not(
    file: Path, caplog: pytest.LogCaptureFixture
) -> None:
    first, second = make_key(), make_key()
    write(file, {"name": "a", "sha256": digest_of(first)})
    keys = Keys(file)
    write(file, {"name": "b", "sha256": digest_of(second)})
    keys.reread()
    assert keys.check(bearer(second), Scope.USE).name == "b"
    with pytest.raises(Refusal):
        keys.check(bearer(first), Scope.USE)
    file.write_text("keys: 3")
    keys.reread()
    assert keys.check(bearer(second), Scope.USE).name == "b"
    assert "keys unchanged" in caplog.text
    file.unlink()
    keys.reread()
    assert keys.check(bearer(second), Scope.USE).name == "b"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("keys: []", "holds no key"),
        ("nothing", "not a file of keys"),
        ("keys: [{name: a}]", "keys.0.sha256: Field required"),
        ("keys: [{name: a, sha256: em-plain}]", "keys.0.sha256: String should match"),
        (f"keys: [{{name: a b, sha256: {DIGEST}}}]", "keys.0.name"),
        (f"keys: [{{name: a, sha256: {DIGEST}, scope: [use]}}]", "keys.0.scope: Extra"),
        (
            f"keys: [{{name: a, sha256: {DIGEST}}}, {{name: a, sha256: {DIGEST}}}]",
            "more than one key of the name 'a'",
        ),
    ],
)
def test_a_file_that_cannot_be_used_is_refused_with_the_place(text: str, message: str) -> None:
    with pytest.raises(ConfigError) as error:
        parse_keys(text, "keys.yaml")
    assert message in str(error.value)
    assert "em-plain" not in str(error.value)
