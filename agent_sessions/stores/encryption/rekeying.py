"""Encrypting everything anew with the first key: beside running turns, and on from where the last attempt stopped."""

from __future__ import annotations

import asyncio
import os
import secrets
import socket
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence

import msgspec
from msgspec import Struct, field, structs

from ...background import uncancelled
from ...errors import (
    CommitUnknownError,
    SessionBusyError,
    SessionConflictError,
    SessionError,
    SessionNotFoundError,
    StoreUnavailableError,
)
from ...identifiers import DEFAULT_TENANT
from ..base import Commit, Key, LeaseWanted, Opened, Store
from ..lifetime import Lifetime
from .keyring import Keyring
from .rewrite import Moved, Rewrite
from .store import EncryptedStore

PAGE_KEYS = 100
"""How many keys lie between two notes of how far it has come."""

AT_ONCE = 8
"""How many keys are rewritten at a time."""

MOST_IN_USE = 256
"""So many keys that turns are using are put off, before it is their turn to be waited for."""

LEASE_MS = 30_000

_JOURNAL = Key(DEFAULT_TENANT, "system", "rekey")
_JOURNAL_FIELD = "progress"
_JOURNAL_TTL_MS = 30 * 86_400_000
_LONGEST_NAP_S = 1.0


class Problem(Struct, frozen=True):
    """A key that is not, or not wholly, encrypted with the first key."""

    key: Key
    what: str
    """Which part of it, and why, or the error that it ended in."""


class Progress(Struct):
    """How far it has come, earlier attempts included that it goes on from."""

    looked_at: int = 0
    """Keys seen, of every tenant and kind. Some stores show a key more than once."""
    rewritten: int = 0
    """Keys of which something was encrypted anew."""
    in_use: int = 0
    """Keys that turns kept for longer than was waited. They are as they were."""
    failed: int = 0
    """Keys of which something could not be decrypted, or not be rewritten. That is as it was."""
    problems: list[Problem] = field(default_factory=list)
    """Those found since the last report."""

    @property
    def is_clean(self) -> bool:
        """Whether no other key than the first is needed for what was looked at."""
        return not (self.in_use or self.failed)


async def rekey(
    store: Store, keyring: Keyring, *, restart: bool = False, wait_s: float = 60.0
) -> AsyncGenerator[Progress, None]:
    """Encrypt everything in a store with the first key.

    That concerns what is encrypted with another key and, if the keyring accepts plaintext, what is not encrypted.
    Turns go on meanwhile, everything stays readable, and no expiry or place in a listing changes. Keys that a turn
    has just then are put off, then waited for. What can't be decrypted is reported and stays as it is.

    Args:
        store: The store itself, without what encrypts before it.
        keyring: The keys.
        restart: Begin again, also if an attempt with the same first key was broken off.
        wait_s: How long to wait for a key that a turn has.

    Yields:
        How far it has come, about every 100 keys, and once more at the end. What is done by then is not repeated.

    Raises:
        StoreUnavailableError: The store is away. The next attempt goes on from the last report.
    """
    run = _Run(store, keyring, wait_s)
    if not restart:
        await run.resume()
    while not run.is_over:
        yield await run.step()


class _Journal(Struct):
    """What the store remembers of an attempt."""

    first_key: str
    cursor: bytes | None = None
    progress: Progress = field(default_factory=Progress)
    put_off: list[Key] = field(default_factory=list)


class _Run:
    def __init__(self, store: Store, keyring: Keyring, wait_s: float) -> None:
        self.is_over = False
        self._store = store
        self._keyring = keyring
        self._wait_s = wait_s
        self._journals = EncryptedStore(store, keyring)
        self._state = _Journal(keyring.key_ids[0])

    async def resume(self) -> None:
        """Go on where an attempt with the same first key was broken off."""
        row = (await self._journals.open(_JOURNAL)).row
        try:
            found = msgspec.msgpack.decode(((row and row.fields) or {})[_JOURNAL_FIELD], type=_Journal)
        except (KeyError, msgspec.DecodeError):
            return  # there is none, or none that can be read here
        if found.first_key == self._state.first_key:
            self._state = found

    async def step(self) -> Progress:
        """Rewrite a page of keys, and note how far that is."""
        state, progress = self._state, self._state.progress
        page = await self._store.scan(limit=PAGE_KEYS, cursor=state.cursor)
        keys = [key for key in page.keys if key != _JOURNAL]
        progress.looked_at += len(keys)
        state.put_off += await self._not_done(self._try, keys)
        if page.next is None or len(state.put_off) > MOST_IN_USE:
            await self._wait_for_all()
        state.cursor = page.next
        self.is_over = page.next is None
        report = structs.replace(progress)
        progress.problems = []
        await self._note()
        return report

    async def _wait_for_all(self) -> None:
        put_off, self._state.put_off = self._state.put_off, []
        in_use = await self._not_done(self._wait_for, put_off)
        self._state.progress.in_use += len(in_use)
        self._state.progress.problems += [Problem(key, "a turn has it; run this again later") for key in in_use]

    async def _not_done(self, attempt: Callable[[Key], Awaitable[bool]], keys: Sequence[Key]) -> list[Key]:
        """Attempt all of them, some at once, and return those that were in use."""
        in_use: list[Key] = []
        for start in range(0, len(keys), AT_ONCE):
            some = keys[start : start + AT_ONCE]
            for key, done in zip(some, await asyncio.gather(*map(attempt, some), return_exceptions=True), strict=True):
                if isinstance(done, SessionError) and not isinstance(done, StoreUnavailableError):
                    self._fail(key, str(done))
                elif isinstance(done, BaseException):
                    raise done
                elif not done:
                    in_use.append(key)
        return in_use

    async def _note(self) -> None:
        if self.is_over:
            await self._journals.delete(_JOURNAL, secrets.token_bytes(8))
            return
        note = msgspec.msgpack.encode(self._state)
        commit = Commit(
            id=secrets.token_bytes(8),
            owner=_new_owner(),
            expected=None,
            lifetime=Lifetime(ttl_ms=_JOURNAL_TTL_MS),
            fields={_JOURNAL_FIELD: note},
        )
        await self._journals.commit(_JOURNAL, commit)

    # ------------------------------------------------------------------------------------------------ one key

    async def _try(self, key: Key) -> bool:
        """Rewrite a key without its lease, so that nobody has to wait. False: somebody else is at work on it."""
        return await self._rewrite(key, await self._store.open(key), _new_owner(), hold_ms=None)

    async def _wait_for(self, key: Key) -> bool:
        """Rewrite a key in its turn. False: that was too long in coming."""
        owner, end = _new_owner(), time.monotonic() + self._wait_s
        try:
            while True:
                opened = await self._store.open(key, lease=LeaseWanted(owner, LEASE_MS, queue=True))
                if opened.granted:
                    return await self._rewrite(key, opened, owner, hold_ms=LEASE_MS)
                left = end - time.monotonic()
                if left <= 0:
                    return False
                await self._store.wait(key, owner, min(left, _LONGEST_NAP_S))
        finally:
            await uncancelled(self._store.release(key, owner))

    async def _rewrite(self, key: Key, opened: Opened, owner: str, hold_ms: int | None) -> bool:
        rewrite = Rewrite(self._store, key, self._keyring.box(key), owner, hold_ms)
        try:
            await rewrite.run(opened)
        except (Moved, SessionBusyError, SessionConflictError, CommitUnknownError):
            return False
        except SessionNotFoundError:
            return True  # it was deleted meanwhile
        self._state.progress.rewritten += rewrite.changed
        if rewrite.left:
            self._fail(key, *rewrite.left)
        return True

    def _fail(self, key: Key, *problems: str) -> None:
        self._state.progress.failed += 1
        self._state.progress.problems += [Problem(key, what) for what in problems]


def _new_owner() -> str:
    return f"{socket.gethostname()[:24]}/{os.getpid()}/rekey-{secrets.token_hex(4)}"
