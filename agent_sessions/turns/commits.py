"""Bringing a commit to the store once, whatever happens on the way."""

from __future__ import annotations

import asyncio
import time

from msgspec import Struct

from ..errors import CommitTooLargeError, CommitUnknownError, StoreUnavailableError
from ..stores.base import Commit, Committed, Key, Store

MAX_COMMIT_BYTES = 32 * 2**20

_FIRST_RETRY_S = 0.05
_LONGEST_RETRY_S = 1.0


class Traffic(Struct):
    """What a turn cost, for telemetry."""

    round_trips: int = 0
    bytes_written: int = 0


async def store_commit(store: Store, key: Key, commit: Commit, lease_ms: int, traffic: Traffic) -> Committed:
    """Commit, and repeat under the same id for as long as the store is silent and the lease may still be ours.

    Raises:
        CommitUnknownError: The store took the commit and never answered.
        StoreUnavailableError: The store could not be reached at all: nothing was stored.
    """
    give_up = time.monotonic() + lease_ms / 1000
    pause, maybe_stored = _FIRST_RETRY_S, False
    while True:
        traffic.round_trips += 1
        try:
            return await store.commit(key, commit)
        except StoreUnavailableError as error:
            maybe_stored = maybe_stored or error.maybe_done
            if time.monotonic() + pause >= give_up:
                if maybe_stored:
                    raise _unknown(key, commit) from error
                raise
        await asyncio.sleep(pause)
        pause = min(pause * 2, _LONGEST_RETRY_S)


def check_size(commit: Commit, key: Key) -> int:
    """The bytes that a commit carries; `CommitTooLargeError` if they are more than any store takes."""
    size = sum(len(data) for data in commit.values.values() if data is not None)
    size += sum(len(data) for data in commit.fields.values() if data is not None)
    size += sum(sum(map(len, change.append)) for change in commit.logs.values())
    for change in commit.collections.values():
        size += sum(len(data) for data in change.entries.values() if data is not None)
    if size > MAX_COMMIT_BYTES:
        raise CommitTooLargeError(
            f"this commit of session {key.id!r} carries {size} bytes; at most {MAX_COMMIT_BYTES} are allowed. "
            "Store less in one turn, or in smaller steps (commit='step')."
        )
    return size


def commit_name(commit: Commit) -> str:
    """The commit's id as people and programs pass it on: the revision it was to follow, and its own id."""
    return f"{0 if commit.expected is None else commit.expected.revision}-{commit.id.hex()}"


def _unknown(key: Key, commit: Commit) -> CommitUnknownError:
    name = commit_name(commit)
    return CommitUnknownError(
        f"the store did not answer while session {key.id!r} was committed. When it is back, "
        f"commit_status({key.id!r}, {name!r}) tells whether the commit is stored.",
        commit_id=name,
    )
