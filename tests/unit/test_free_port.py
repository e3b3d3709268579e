"""A port that stays free until a server is there."""

import socket

import pytest

from deploy.free_port import LINUXS, free_port
from router.errors import ConfigError
from services.local_ray import LOOPBACK


def test_it_is_none_that_linux_hands_out() -> None:
    given = range(*(int(n) for n in LINUXS.read_text().split()))
    for _ in range(20):
        port = free_port()
        assert port not in given
        with socket.create_server((LOOPBACK, port)):
            pass


def test_one_that_is_taken_is_passed_over(monkeypatch: pytest.MonkeyPatch) -> None:
    taken, other = free_port(), free_port()
    with socket.create_server((LOOPBACK, taken)):
        monkeypatch.setattr("random.sample", lambda *_: [taken, other])
        assert free_port() == other
        monkeypatch.setattr("random.sample", lambda *_: [taken])
        with pytest.raises(ConfigError, match="all are taken"):
            free_port()
