"""Reading and changing the keys that items and their index are kept under."""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from agent_sessions import SessionManager
from agent_sessions.errors import CommitUnknownError, StoreUnavailableError
from agent_sessions.stores.base import (
    CollectionChange,
    Commit,
    Committed,
    EntryRange,
    Key,
    Opened,
    Part,
    Version,
    Wanted,
)
from agent_sessions.stores.lifetime import Lifetime
from agent_sessions.turns.commits import Traffic, store_commit
from agent_sessions.turns.leases import new_owner


class Access(NamedTuple):
    """One tenant in one store."""

    manager: SessionManager
    tenant: str

    async def open(
        self, key: Key, *, entries: Sequence[tuple[Part, str]] = (), ranges: Sequence[EntryRange] = ()
    ) -> Opened:
        """Read parts of a key at one moment."""
        wanted = Wanted(values=False, entries=entries, ranges=ranges)
        opened = await self.manager.store.open(key, wanted=wanted)
        return opened if opened.row is not None else _as_empty(opened, wanted)

    async def commit(
        self,
        key: Key,
        collections: Mapping[Part, CollectionChange],
        *,
        expected: Version | None = None,
        fields: Mapping[str, bytes | None] | None = None,
        ttl_ms: int | None = None,
    ) -> Committed:
        """Change a key once, also if a reply is lost. It lasts for ever, unless a TTL is given.

        Raises:
            SessionConflictError: It is not at the expected version.
            StoreUnavailableError: The store can't be reached.
        """
        commit = Commit(
            id=secrets.token_bytes(8),
            owner=new_owner(),
            expected=expected,
            lifetime=Lifetime(ttl_ms=ttl_ms),
            collections=dict(collections),
            fields=dict(fields or {}),
        )
        try:
            return await store_commit(self.manager.store, key, commit, self.manager.lease_ms, Traffic())
        except CommitUnknownError as error:
            raise StoreUnavailableError(
                "the store did not answer: what was put may be stored, or not. Put it again."
            ) from error


def _as_empty(opened: Opened, wanted: Wanted) -> Opened:
    """An absent key, as one that has nothing of what was asked for."""
    return Opened(
        opened.now, opened.version, None, entries=[None for _ in wanted.entries], ranges=[[] for _ in wanted.ranges]
    )
