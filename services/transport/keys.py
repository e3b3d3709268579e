"""Who may talk over tcp: one CURVE key pair each for shards, attention replicas and gateways.

Made once per deployment by the app builder, handed to the actors as constructor arguments
through Ray, never on a command line and never in the environment.
"""

from dataclasses import dataclass, field

import zmq


@dataclass(frozen=True, slots=True)
class KeyPair:
    """Z85-encoded CURVE keys, 40 characters each; the secret stays out of every repr."""

    public: str
    secret: str = field(repr=False)


@dataclass(frozen=True, slots=True)
class DataPlaneKeys:
    """The pairs of one deployment."""

    shard: KeyPair
    attention: KeyPair
    gateway: KeyPair


def make_keys() -> DataPlaneKeys:
    """Fresh keys for one deployment."""
    return DataPlaneKeys(_pair(), _pair(), _pair())


def _pair() -> KeyPair:
    public, secret = zmq.curve_keypair()
    return KeyPair(public.decode(), secret.decode())


class OnlyKey:
    """Accepts one public key and nothing else, as a callback of ZeroMQ's authenticators."""

    def __init__(self, allowed: bytes) -> None:
        self._allowed = allowed

    def callback(self, _domain: str, key: bytes) -> bool:
        return key == self._allowed


def prove_to(socket: "zmq.Socket[bytes]", *, server: KeyPair, own: KeyPair) -> None:
    """Before it connects: accept only this server, and show our key."""
    socket.curve_serverkey = server.public.encode()
    socket.curve_publickey = own.public.encode()
    socket.curve_secretkey = own.secret.encode()
