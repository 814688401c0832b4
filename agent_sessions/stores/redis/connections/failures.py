"""What the errors of Redis, and of connections to it, mean."""

from __future__ import annotations

import ssl

from redis.exceptions import (
    AskError,
    AuthenticationError,
    AuthorizationError,
    BusyLoadingError,
    ClusterCrossSlotError,
    ClusterDownError,
    ClusterError,
    MasterDownError,
    NoPermissionError,
    OutOfMemoryError,
    ReadOnlyError,
    RedisError,
    TryAgainError,
)
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import TimeoutError as RedisTimeoutError

from agent_sessions.errors import StoreUnavailableError


class WrongServersError(RedisError):
    """What was configured is not there. The text is for people."""


class NoPrimaryError(RedisError):
    """Nobody knows, for now, a server that takes writes. The text is for people."""


def unavailable(error: Exception, where: str, *, maybe_done: bool = True) -> StoreUnavailableError:
    """What to tell the caller. The error's own text, which may carry arguments, stays in its cause."""
    return StoreUnavailableError(f"{_reason(error)} ({where})", maybe_done=maybe_done)


def is_broken(error: Exception) -> bool:
    """Whether it was the connection, so that another one may do."""
    if isinstance(error, AuthenticationError | AuthorizationError) or _tls_error(error) is not None:
        return False
    return isinstance(error, RedisConnectionError | OSError)


def will_pass(error: Exception) -> bool:
    """Whether servers that stand in for each other answer so, or not at all, until one has taken over."""
    passing = (RedisTimeoutError, NoPrimaryError, ReadOnlyError, ClusterDownError, MasterDownError, TryAgainError)
    return is_broken(error) or isinstance(error, (*passing, BusyLoadingError))


_CLUSTER = "this Redis is a node of a cluster; say so with AK_SESSION__REDIS__CLUSTER=true, or cluster=True"
_REASONS: tuple[tuple[type[Exception], str], ...] = (
    (AuthenticationError, "Redis refused the user name and password, or wants them"),
    (BusyLoadingError, "Redis is still loading its data"),
    (RedisTimeoutError, "Redis did not answer in time"),
    (RedisConnectionError, "Redis can't be reached"),
    (OutOfMemoryError, "Redis is out of memory (maxmemory is reached); nothing was stored"),
    (ReadOnlyError, "this Redis is a read-only replica; connect to the primary"),
    (NoPermissionError, "the Redis user has no permission for a command or key that the store needs"),
    (TryAgainError, "the keys are being moved to another node of the Redis cluster"),
    (ClusterCrossSlotError, _CLUSTER),
    (AskError, _CLUSTER),
    (ClusterDownError, "the Redis cluster is down"),
    (MasterDownError, "this Redis is a replica whose primary is down"),
    (ClusterError, "the Redis cluster gave no answer"),
    (OSError, "Redis can't be reached"),
)
_CODES = {
    "NOAUTH": "Redis wants a password",
    "WRONGPASS": "Redis refused the password or user name",
    "OOM": "Redis is out of memory (maxmemory is reached); nothing was stored",
    "LOADING": "Redis is still loading its data",
    "MISCONF": "Redis can't save to its disk and refuses writes",
    "NOREPLICAS": "Redis has too few replicas and refuses writes",
    "BUSY": "Redis is busy with a script",
    "WRONGTYPE": "a key under the store's prefix is used by something else",
    "READONLY": "this Redis is a read-only replica; connect to the primary",
    "MASTERDOWN": "this Redis is a replica whose primary is down",
    "EXECABORT": "Redis refused the transaction",
}


def _reason(error: Exception) -> str:
    if isinstance(error, NoPrimaryError | WrongServersError):
        return str(error)
    if (refused := _tls_error(error)) is not None:
        if isinstance(refused, ssl.SSLCertVerificationError):
            return f"the certificate of Redis was not accepted: {refused.verify_message.rstrip('.')}"
        return "the TLS handshake failed: is it a TLS port, and does Redis accept the client's certificate?"
    for kind, reason in _REASONS:
        if isinstance(error, kind):
            return reason
    # redis-py cuts off the codes it knows a class for; then the first word is a part of a sentence.
    code = str(error).split(" ", 1)[0]
    return _CODES.get(code, f"Redis answered with an error, {code if code.isupper() else 'ERR'}")


def _tls_error(error: BaseException) -> ssl.SSLError | None:
    """redis-py wraps it."""
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, ssl.SSLError):
            return seen
        seen = seen.__cause__ or seen.__context__
    return None
