"""Every error the platform raises, by who must act.

PlatformError
├── ConfigError          the operator: refuse to start
│   └── CheckpointError  the model folder cannot be served
├── RoutingError         the table has no usable replica
├── CapacityError        the caller may retry later
├── TransportError       the data plane
│   ├── TransportTimeout a peer did not answer in time
│   ├── PeerLost         a peer's connection is gone
│   └── WireFormatError  a peer spoke another language
├── ShardError           an expert failed on its shard
└── EngineError          vLLM
"""

from typing import ClassVar


class PlatformError(Exception):
    """Base of all errors; the message says what, the value, the limit and what to do."""

    retryable: ClassVar[bool] = False


class ConfigError(PlatformError):
    """The deployment description cannot work; nothing was started."""


class CheckpointError(ConfigError):
    """The model folder is missing, damaged or not a mixture of experts."""


class RoutingError(PlatformError):
    """No live replica of an expert; retryable, because one may be loaded again."""

    retryable: ClassVar[bool] = True


class CapacityError(PlatformError):
    """Too much work or too little room at this moment."""

    retryable: ClassVar[bool] = True


class TransportError(PlatformError):
    """The data plane failed between an attention replica and a shard."""

    retryable: ClassVar[bool] = True


class TransportTimeout(TransportError):
    """A shard did not answer before its deadline."""


class PeerLost(TransportError):
    """A shard's connection is gone."""


class WireFormatError(TransportError):
    """Bytes that are not a message of this version."""

    retryable: ClassVar[bool] = False


class ShardError(PlatformError):
    """A shard could not load or run an expert."""


class EngineError(PlatformError):
    """vLLM is not the version, or not in the state, that this code was written for."""
