"""Bringing a commit to the store once, whatever happens on the way."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Awaitable, Callable
from typing import TypeVar

from msgspec import Struct

from ..errors import CommitTooLargeError, CommitUnknownError, StoreUnavailableError
from ..stores.base import ABSENT, Amend, Amended, Commit, Committed, Key, Opened, Store, Version

MAX_COMMIT_BYTES = 32 * 2**20

T = TypeVar("T")

_ID_DIGITS = 16
_FIRST_RETRY_S = 0.05
_LONGEST_RETRY_S = 1.0


class Traffic(Struct):
    """What a turn cost, for telemetry."""

    round_trips: int = 0
    bytes_read: int = 0
    bytes_written: int = 0

    def count_read(self, opened: Opened) -> None:
        """Count one round trip and what it brought: values, items and entries, as they are encoded."""
        self.round_trips += 1
        self.bytes_read += sum(sum(map(len, names.values())) for names in opened.values.values())
        self.bytes_read += sum(sum(map(len, read.items)) for read in opened.logs)
        self.bytes_read += sum(len(data) for data in opened.entries if data is not None)
        self.bytes_read += sum(len(data) for found in opened.ranges for _, data in found)


async def store_commit(store: Store, key: Key, commit: Commit, lease_ms: int, traffic: Traffic) -> Committed:
    """Commit, and repeat under the same id for as long as the store is silent and the lease may still be ours.

    Raises:
        CommitUnknownError: The store took the commit and never answered, or can't tell any more whether it did.
        StoreUnavailableError: The store could not be reached at all: nothing was stored.
    """

    async def attempt() -> Committed:
        traffic.round_trips += 1
        return await store.commit(key, commit)

    try:
        return await repeated(attempt, lease_ms)
    except CommitUnknownError as error:
        raise CommitUnknownError(error.message, commit_id=commit_name(commit)) from error
    except StoreUnavailableError as error:
        if error.maybe_done:
            raise _unknown(key, commit) from error
        raise


async def store_amend(store: Store, key: Key, amend: Amend, lease_ms: int) -> Amended:
    """Amend, and repeat under the same id for as long as the store is silent, up to the length of a lease."""
    return await repeated(lambda: store.amend(key, amend), lease_ms)


async def store_delete(store: Store, key: Key, lease_ms: int) -> bool:
    """Delete, and repeat under the same id for as long as the store is silent, up to the length of a lease."""
    write_id = secrets.token_bytes(8)
    return await repeated(lambda: store.delete(key, write_id), lease_ms)


async def repeated(attempt: Callable[[], Awaitable[T]], lease_ms: int) -> T:
    """Repeat while the store is silent. The error at the end says whether any attempt may have been carried out."""
    give_up = time.monotonic() + lease_ms / 1000
    pause, maybe_done = _FIRST_RETRY_S, False
    while True:
        try:
            return await attempt()
        except StoreUnavailableError as error:
            maybe_done = error.maybe_done = maybe_done or error.maybe_done
            if time.monotonic() + pause >= give_up:
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
    if len(own_id) != _ID_DIGITS or len(expected_id) not in (0, _ID_DIGITS):
        raise ValueError(name)
    return Version(int(revision), bytes.fromhex(expected_id)), bytes.fromhex(own_id)


def _unknown(key: Key, commit: Commit) -> CommitUnknownError:
    name = commit_name(commit)
    return CommitUnknownError(
        f"the store did not answer while session {key.id!r} was committed. When it is back, "
        f"commit_status({key.id!r}, {name!r}) tells whether the commit is stored.",
        commit_id=name,
    )
