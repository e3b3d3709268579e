"""Who may talk on the data plane over tcp: one CURVE key pair for the shards, one for attention.

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


def make_keys() -> DataPlaneKeys:
    """Fresh keys for one deployment."""
    return DataPlaneKeys(_pair(), _pair())


def _pair() -> KeyPair:
    public, secret = zmq.curve_keypair()
    return KeyPair(public.decode(), secret.decode())
