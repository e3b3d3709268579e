"""API keys: a file of their SHA-256 digests, read again when it changes.

Keys are 256 random bits, so a plain digest cannot be guessed back; no slow hash is needed. The
keys themselves are nowhere but with their owners, and in no log, trace or error.
"""

import hashlib
import hmac
import logging
import secrets
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from router.errors import ConfigError
from services.gateway.errors import Refusal
from services.gateway.routes import Scope

log = logging.getLogger(__name__)

PREFIX = "em-"
AtLeastOne = Annotated[int, Field(ge=1)]


class Key(BaseModel):
    """One entry of the file, without the key."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    # Who it belongs to; stands in logs and metrics. [A-Za-z0-9._-]
    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9._-]{1,64}$")]
    # SHA-256 of the key, hexadecimal.
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    # use: the model's routes; metrics: GET /metrics; admin: everything.
    scopes: tuple[Literal["use", "metrics", "admin"], ...] = ("use",)
    # Limits of this key instead of those of the configuration's section `limits`.
    requests_per_minute: AtLeastOne | None = None
    tokens_per_minute: AtLeastOne | None = None
    streams: AtLeastOne | None = None

    def may(self, scope: Scope) -> bool:
        """Whether it opens routes of this scope."""
        return scope is Scope.NOTHING or "admin" in self.scopes or scope.value in self.scopes


ANYONE = Key(name="anyone", sha256="0" * 64, scopes=("admin",))
"""Who asks where no keys are set, on loopback only."""


class KeyFile(BaseModel):
    """`keys: [...]`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    keys: tuple[Key, ...]


def make_key() -> str:
    """A new key, for its owner alone."""
    return PREFIX + secrets.token_urlsafe(32)


def digest_of(key: str) -> str:
    """What the file holds of it."""
    return hashlib.sha256(key.encode()).hexdigest()


def parse_keys(text: str, where: str) -> tuple[Key, ...]:
    """Raises ConfigError that names the entry and never quotes a digest."""
    try:
        values = yaml.safe_load(text)
        for entry in values["keys"]:
            entry["scopes"] = tuple(entry.get("scopes", ("use",)))
        keys = KeyFile.model_validate(values).keys
    except ValidationError as error:
        found = "; ".join(
            f"{'.'.join(map(str, one['loc']))}: {one['msg']}"
            for one in error.errors(include_input=False, include_context=False, include_url=False)
        )
        raise ConfigError(f"{where} is not a file of keys: {found}") from None
    except (yaml.YAMLError, KeyError, TypeError, AttributeError, ValueError):
        raise ConfigError(
            f"{where} is not a file of keys: it should be YAML of the form "
            "'keys: [{name: ..., sha256: ..., scopes: [use]}]'. `python -m deploy key` prints one"
        ) from None
    names = [key.name for key in keys]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ConfigError(f"{where} has more than one key of the name {twice[0]!r}; rename one")
    if not keys:
        raise ConfigError(f"{where} holds no key, so nobody could use the API; add one")
    return keys


def presented(headers: Iterable[tuple[bytes, bytes]]) -> str | None:
    """The key that a request carries, as OpenAI's clients send it or as Anthropic's do."""
    for name, value in headers:
        if name == b"authorization" and value[:7].lower() == b"bearer ":
            return value[7:].strip().decode("latin-1")
        if name == b"x-api-key":
            return value.strip().decode("latin-1")
    return None


class Keys:
    """Those of one file, or no check at all."""

    def __init__(self, path: Path | None) -> None:
        """path: None lets everyone in. Raises ConfigError if the file cannot be used."""
        self._path = path
        self._stamp: tuple[int, int, int] | None = None
        self._keys: tuple[Key, ...] = ()
        if path is not None:
            self._stamp, self._keys = self._read(path)

    def reread(self) -> None:
        """Take over a changed file; one that cannot be used is logged, and the old keys stay."""
        if self._path is None:
            return
        try:
            if self._stamp_of(self._path) != self._stamp:
                self._stamp, self._keys = self._read(self._path)
                log.info("keys read again: count=%s", len(self._keys))
        except ConfigError as error:
            log.error("keys unchanged: %s", error)

    def by_name(self) -> dict[str, Key]:
        """All keys, or the one that everybody has."""
        return {key.name: key for key in self._keys or (ANYONE,)}

    def check(self, headers: Iterable[tuple[bytes, bytes]], scope: Scope) -> Key:
        """Whose request this is. Raises Refusal: 401 or 403."""
        if scope is Scope.NOTHING or self._path is None:
            return ANYONE
        key = presented(headers)
        if key is None:
            raise Refusal(
                401,
                "no API key. Send it as 'Authorization: Bearer KEY' or 'x-api-key: KEY'.",
                headers={"www-authenticate": "Bearer"},
            )
        digest, found = digest_of(key), None
        for one in self._keys:  # all of them, each in the same time
            if hmac.compare_digest(one.sha256, digest):
                found = one
        if found is None:
            raise Refusal(401, "this API key is not known.", headers={"www-authenticate": "Bearer"})
        if not found.may(scope):
            raise Refusal(403, f"this API key does not open routes of the scope {scope.value!r}.")
        return found

    def _read(self, path: Path) -> tuple[tuple[int, int, int], tuple[Key, ...]]:
        stamp = self._stamp_of(path)
        try:
            text = path.read_text()
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"gateway.keys_file {path} cannot be read: {error}") from None
        return stamp, parse_keys(text, str(path))

    @staticmethod
    def _stamp_of(path: Path) -> tuple[int, int, int]:
        try:
            seen = path.stat()
        except OSError as error:
            raise ConfigError(
                f"gateway.keys_file {path} cannot be read: {error.strerror}"
            ) from None
        return seen.st_mtime_ns, seen.st_size, seen.st_ino
