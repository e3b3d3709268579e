"""A port for a server that is started in a moment."""

import random
import socket
from pathlib import Path

from router.errors import ConfigError
from services.local_ray import LOOPBACK

ABOVE_RAYS = 20_000  # Ray gives its workers those from 10002 to 19999
LINUXS = Path("/proc/sys/net/ipv4/ip_local_port_range")
TRIES = 50


def free_port() -> int:
    """One on loopback that nobody has, and that nobody is given until it is used.

    Linux hands out those of a range to whoever does not ask for one by number, connections
    included: one of them may be gone when a server has started. Raises ConfigError.
    """
    try:
        first_given = int(LINUXS.read_text().split()[0])
    except OSError:
        first_given = 32_768  # Linux's default
    for port in random.sample(range(ABOVE_RAYS, max(first_given, ABOVE_RAYS + TRIES)), TRIES):
        try:
            with socket.create_server((LOOPBACK, port)):
                return port
        except OSError:
            continue
    raise ConfigError(
        f"{TRIES} ports between {ABOVE_RAYS} and {first_given} on {LOOPBACK} were tried, and all "
        "are taken. End what listens there."
    )
