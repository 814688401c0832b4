"""Bringing a commit to the store once, whatever happens on the way."""

from __future__ import annotations

import asyncio
import time

from msgspec import Struct

from ..errors import CommitTooLargeError, CommitUnknownError, StoreUnavailableError
from ..stores.base import ABSENT, Commit, Committed, Key, Store, Version

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
        CommitUnknownError: The store took the commit and never answered, or can't tell any more whether it did.
        StoreUnavailableError: The store could not be reached at all: nothing was stored.
    """
    give_up = time.monotonic() + lease_ms / 1000
    pause, maybe_stored = _FIRST_RETRY_S, False
    while True:
        traffic.round_trips += 1
        try:
            return await store.commit(key, commit)
        except CommitUnknownError as error:
            raise CommitUnknownError(error.message, commit_id=commit_name(commit)) from error
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
    """The commit's id as people and programs pass it on: the version it was to follow, and its own id."""
    expected = commit.expected or ABSENT
    return f"{expected.revision}-{expected.commit_id.hex()}-{commit.id.hex()}"


def parse_commit_name(name: str) -> tuple[Version, bytes]:
    """The version that a commit was to follow, and its own id.

    Raises:
        ValueError: It is no name of a commit.
    """
    revision, expected_id, own_id = name.split("-")
    return Version(int(revision), bytes.fromhex(expected_id)), bytes.fromhex(own_id)


def _unknown(key: Key, commit: Commit) -> CommitUnknownError:
    name = commit_name(commit)
    return CommitUnknownError(
        f"the store did not answer while session {key.id!r} was committed. When it is back, "
        f"commit_status({key.id!r}, {name!r}) tells whether the commit is stored.",
        commit_id=name,
    )
