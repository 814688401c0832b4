"""A store that stands before another one and encrypts all that it is given to keep."""

from __future__ import annotations

from collections.abc import Mapping

from msgspec import structs

from ..base import (
    Amend,
    Amended,
    CollectionChange,
    Commit,
    CommitStatus,
    Committed,
    Cursor,
    Key,
    Keys,
    Kind,
    Known,
    Lease,
    LeaseWanted,
    LogChange,
    LogRead,
    LogWanted,
    Opened,
    Order,
    Page,
    Part,
    Row,
    Store,
    Version,
    Wanted,
)
from ..lifetime import Status
from .envelope import Box, entry_place, field_place, log_place, value_place
from .keyring import Keyring


class EncryptedStore:
    """Encrypts every value, log item, collection entry and record field on its way into a store of whatever kind.

    Ids, namespaces, names, entry keys, owners, users and times stay readable: a store has to find and order by them.
    What can't be decrypted is an error when it is read, and in the way of nothing else.

    Args:
        inner: Where things are kept. It is closed with this.
        keyring: The keys.
    """

    def __init__(self, inner: Store, keyring: Keyring) -> None:
        self.inner = inner
        self.keyring = keyring
        self.never_waits = inner.never_waits

    async def open(
        self,
        key: Key,
        *,
        wanted: Wanted = Wanted(),  # noqa: B008 - frozen
        known: Known | None = None,
        lease: LeaseWanted | None = None,
    ) -> Opened:
        """See `Store.open`."""
        opened = await self.inner.open(key, wanted=wanted, known=known, lease=lease)
        return opened if opened.row is None else _unsealed(self.keyring.box(key), opened, opened.row, wanted)

    async def commit(self, key: Key, commit: Commit) -> Committed:
        """See `Store.commit`."""
        return await self.inner.commit(key, _sealed(self.keyring.box(key), commit))

    async def amend(self, key: Key, amend: Amend) -> Amended:
        """See `Store.amend`."""
        box = self.keyring.box(key)
        amended = await self.inner.amend(key, structs.replace(amend, fields=_fields(box, amend.fields)))
        return structs.replace(amended, row=_row(box, amended.row))

    async def commit_status(self, key: Key, commit_id: bytes, *, since: Version) -> CommitStatus:
        """See `Store.commit_status`."""
        return await self.inner.commit_status(key, commit_id, since=since)

    async def renew(self, key: Key, owner: str, ms: int) -> bool:
        """See `Store.renew`."""
        return await self.inner.renew(key, owner, ms)

    async def release(self, key: Key, owner: str) -> None:
        """See `Store.release`."""
        await self.inner.release(key, owner)

    async def unlock(self, key: Key) -> Lease | None:
        """See `Store.unlock`."""
        return await self.inner.unlock(key)

    async def wait(self, key: Key, owner: str, seconds: float) -> None:
        """See `Store.wait`."""
        await self.inner.wait(key, owner, seconds)

    async def delete(self, key: Key, write_id: bytes) -> bool:
        """See `Store.delete`."""
        return await self.inner.delete(key, write_id)

    async def find(
        self,
        tenant: str,
        kind: Kind,
        *,
        belongs_to: str | None = None,
        status: Status | None = None,
        order: Order = "activity",
        limit: int = 50,
        cursor: Cursor | None = None,
    ) -> Page:
        """See `Store.find`."""
        page = await self.inner.find(
            tenant, kind, belongs_to=belongs_to, status=status, order=order, limit=limit, cursor=cursor
        )
        return self._page(tenant, kind, page)

    async def count(
        self, tenant: str, kind: Kind, *, belongs_to: str | None = None, status: Status | None = None
    ) -> int:
        """See `Store.count`."""
        return await self.inner.count(tenant, kind, belongs_to=belongs_to, status=status)

    async def run_out(self, tenant: str, kind: Kind, *, limit: int = 100) -> Page:
        """See `Store.run_out`."""
        return self._page(tenant, kind, await self.inner.run_out(tenant, kind, limit=limit))

    def _page(self, tenant: str, kind: Kind, page: Page) -> Page:
        box = self.keyring.box
        found = [place._replace(row=_row(box(Key(tenant, kind, place.id)), place.row)) for place in page.found]
        return page._replace(found=found)

    async def scan(self, *, limit: int = 100, cursor: bytes | None = None) -> Keys:
        """See `Store.scan`."""
        return await self.inner.scan(limit=limit, cursor=cursor)

    async def detach(self) -> None:
        """See `Store.detach`."""
        await self.inner.detach()

    async def aclose(self) -> None:
        """See `Store.aclose`."""
        await self.inner.aclose()


def _sealed(box: Box, commit: Commit) -> Commit:
    return structs.replace(
        commit,
        values={part: _put(box, value_place(part), data) for part, data in commit.values.items()},
        logs={part: _log_change(box, log_place(part), change) for part, change in commit.logs.items()},
        collections={part: _collection_change(box, part, change) for part, change in commit.collections.items()},
        fields=_fields(box, commit.fields),
    )


def _fields(box: Box, fields: Mapping[str, bytes | None]) -> dict[str, bytes | None]:
    return {name: _put(box, field_place(name), data) for name, data in fields.items()}


def _put(box: Box, place: bytes, data: bytes | None) -> bytes | None:
    return None if data is None else box.seal(place, data)


def _log_change(box: Box, place: bytes, change: LogChange) -> LogChange:
    return structs.replace(change, append=[box.seal(place, data) for data in change.append])


def _collection_change(box: Box, part: Part, change: CollectionChange) -> CollectionChange:
    entries = {name: _put(box, entry_place(part, name), data) for name, data in change.entries.items()}
    return structs.replace(change, entries=entries)


def _unsealed(box: Box, opened: Opened, row: Row, wanted: Wanted) -> Opened:
    return structs.replace(
        opened,
        row=_row(box, row),
        values={namespace: _values(box, namespace, named) for namespace, named in opened.values.items()},
        logs=[_log(box, asked, read) for asked, read in zip(wanted.logs, opened.logs, strict=True)],
        entries=[
            None if data is None else box.read(entry_place(part, name), data)
            for (part, name), data in zip(wanted.entries, opened.entries, strict=True)
        ],
        ranges=[
            [(name, box.read(entry_place(asked.part, name), data)) for name, data in found]
            for asked, found in zip(wanted.ranges, opened.ranges, strict=True)
        ],
    )


def _row(box: Box, row: Row) -> Row:
    if row.fields is None:
        return row
    return structs.replace(row, fields={name: box.read(field_place(name), data) for name, data in row.fields.items()})


def _values(box: Box, namespace: str, named: dict[str, bytes]) -> dict[str, bytes]:
    return {name: box.read(value_place(Part(namespace, name)), data) for name, data in named.items()}


def _log(box: Box, asked: LogWanted, read: LogRead) -> LogRead:
    return read._replace(items=box.read_all(log_place(asked.part), read.items))
