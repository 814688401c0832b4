"""What the scripts refuse, as the errors that every store raises."""

from __future__ import annotations

from typing import Any

from agent_sessions.errors import (
    CommitUnknownError,
    FormatTooNewError,
    SessionBusyError,
    SessionConflictError,
    SessionEndedError,
    SessionExpiredError,
    SessionNotFoundError,
    StateLostError,
    StoreUnavailableError,
)
from agent_sessions.stores.base import FORMAT, Commit, Key
from agent_sessions.stores.redis.keys import decode, part_of

REFUSALS = frozenset((b"A", b"B", b"C", b"E", b"F", b"K", b"L", b"N", b"U"))
"""What the replies of scripts begin with that have stored nothing."""


def raise_refused(key: Key, commit: Commit, reply: list[Any]) -> None:
    """Raise if a commit was refused."""
    match reply[0]:
        case b"N":
            raise SessionNotFoundError(f"{key.kind} {key.id!r} is gone; nothing was stored")
        case b"E":
            raise over(key, by_the_clock=reply[1] == 1)
        case b"C":
            message = f"{key.kind} {key.id!r} was changed by another turn; nothing of this one was stored"
            raise SessionConflictError(message)
        case b"U":
            message = f"whether the commit of {key.kind} {key.id!r} is stored can't be told: too many followed"
            raise CommitUnknownError(message, commit_id=commit.id.hex())
        case b"B":
            message = f"{key.kind} {key.id!r} is held by {decode(reply[1])!r}; nothing was stored"
            raise SessionBusyError(message)


def raise_not_amended(key: Key, reply: list[Any]) -> None:
    """Raise if an amendment was refused."""
    match reply[0]:
        case b"N":
            raise SessionNotFoundError(f"{key.kind} {key.id!r} does not exist, was deleted, or is past its time")
        case b"E":
            raise over(key, by_the_clock=reply[1] == 1)
        case b"C":
            raise SessionConflictError(f"the record of {key.kind} {key.id!r} has changed: read it again")


def over(key: Key, *, by_the_clock: bool) -> SessionEndedError | SessionExpiredError:
    """It has ended."""
    if by_the_clock:
        return SessionExpiredError(f"{key.kind} {key.id!r} has expired; nothing was stored")
    return SessionEndedError(f"{key.kind} {key.id!r} has ended; nothing was stored")


def state_lost(key: Key, id: bytes) -> StateLostError:
    """A part, by its id in the registry, is counted and not there."""
    sort, part = id[:1], part_of(id[1:])
    what = {b"l": "the log", b"c": "the collection"}.get(sort)
    lost = f"{what} {part.namespace}/{part.name}" if what else "the values"
    message = f"{lost} of {key.kind} {key.id!r} is no longer in Redis (evicted, or removed by hand)"
    return StateLostError(message)


def too_new(key: Key, format: int) -> FormatTooNewError:
    """The record has a format of a later version."""
    message = f"{key.kind} {key.id!r} has format {format}, this version of agent-sessions reads up to {FORMAT}"
    return FormatTooNewError(message)


def too_few_replicas(reached: int, wanted: int) -> StoreUnavailableError:
    """What was written is stored, and may be lost with its server."""
    message = f"of {wanted} replicas only {reached} had what was written in time; if Redis fails now, it may be lost"
    return StoreUnavailableError(message)


def unsettled(key: Key) -> StoreUnavailableError:
    """Each time the keys were declared there were others."""
    return StoreUnavailableError(f"{key.kind} {key.id!r} is changed by others faster than its keys can be declared")
