"""The store on Amazon DynamoDB: a warm turn is two requests, one write each.

`UpdateItem` takes the lease and brings the record; `TransactWriteItems` writes what is new, under the condition that
the record is still as it was. What lies where is in `layout`.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from contextlib import AsyncExitStack, suppress
from typing import TYPE_CHECKING, Self

import msgspec
from aiobotocore.session import AioSession, get_session

from agent_sessions.clock import Clock
from agent_sessions.errors import (
    InvalidError,
    SessionBusyError,
    SessionNotFoundError,
    StoreUnavailableError,
)
from agent_sessions.stores.base import (
    ABSENT,
    Amend,
    Amended,
    Commit,
    CommitStatus,
    Committed,
    Cursor,
    Found,
    Key,
    Keys,
    Kind,
    Known,
    Lease,
    LeaseWanted,
    Opened,
    Order,
    Page,
    Version,
    Wanted,
)
from agent_sessions.stores.commit_ring import overtaken
from agent_sessions.stores.dynamodb.amending import Amendments
from agent_sessions.stores.dynamodb.expiry import DAY, Kept, keep_alive, let_go, seconds
from agent_sessions.stores.dynamodb.layout.keys import Names, partition
from agent_sessions.stores.dynamodb.layout.payloads import Torn
from agent_sessions.stores.dynamodb.layout.records import (
    NEVER,
    NOTHING,
    Change,
    Deletion,
    Record,
    binary,
    name_of,
    number,
    read_record,
    remembered,
    state_lost,
)
from agent_sessions.stores.dynamodb.leases import Leases
from agent_sessions.stores.dynamodb.listing import Asked, Listing
from agent_sessions.stores.dynamodb.memory import Records
from agent_sessions.stores.dynamodb.reading import Contents, Reader, is_of_one_moment
from agent_sessions.stores.dynamodb.service import table
from agent_sessions.stores.dynamodb.service.clients import Clients, Endpoint
from agent_sessions.stores.dynamodb.service.requests import Item, Refused, Requests
from agent_sessions.stores.dynamodb.staging import READERS_GONE_MS, Stages
from agent_sessions.stores.dynamodb.times import Times
from agent_sessions.stores.dynamodb.writing import Plan, Planner, Update, garbage
from agent_sessions.stores.lifetime import Status

if TYPE_CHECKING:
    from agent_sessions.settings import Settings

CONNECT_TIMEOUT_S = 2.0
TIMEOUT_S = 5.0
PATIENCE_S = 10.0
MAX_CONNECTIONS = 32

_DELETES_REMEMBERED_MS = 60_000

_READ_UNSEEN_MS = READERS_GONE_MS // 2
"""For so long, at most, a turn that has just taken its lease reads without looking again at the record: nobody else
may change the session, and a deletion leaves the items where they are for twice as long."""

_READ_PATIENCE = 3
"""So many times as long as others wait to get in between, a reader does: it needs more of a pause."""

_ALL = Wanted()


class DynamoDBStore:
    """Keeps sessions in a table of DynamoDB.

    Args:
        table_name: The table.
        region: The AWS region; by the AWS default chain if None.
        endpoint_url: Another endpoint than the region's own, such as DynamoDB Local.
        create_table: Make the table when it is missing.
        check_table: Look, before the first use, whether the table is as it should be.
        clock: For tests; the host's clock if None.
        make_session: Makes the session of aiobotocore that a client comes from, for credentials of another kind than
            those that the AWS default chain finds. Called once by each event loop.
        connect_timeout_s: How long to wait for a connection.
        timeout_s: How long to wait for an answer.
        patience_s: For how long at most a request that DynamoDB throttles is sent again.
        max_connections: The most connections of one event loop.
    """

    never_waits = False

    def __init__(
        self,
        table_name: str,
        *,
        region: str | None = None,
        endpoint_url: str | None = None,
        create_table: bool = False,
        check_table: bool = True,
        clock: Clock | None = None,
        make_session: Callable[[], AioSession] = get_session,
        connect_timeout_s: float = CONNECT_TIMEOUT_S,
        timeout_s: float = TIMEOUT_S,
        patience_s: float = PATIENCE_S,
        max_connections: int = MAX_CONNECTIONS,
    ) -> None:
        endpoint = Endpoint(make_session, region, endpoint_url, connect_timeout_s, timeout_s, max_connections)
        self._clients = Clients(endpoint)
        self._requests = Requests(self._clients, table_name, patience_s)
        if create_table:
            self._requests.before_first_use = table.create
        elif check_table:
            self._requests.before_first_use = table.check_if_allowed
        self._times = Times(clock)
        self._leases = Leases(self._requests, self._times)
        self._stages = Stages(self._requests)
        self._listing = Listing(self._requests, self._stages, self._found)
        self._records = Records(self._requests)
        self._amendments = Amendments(self._requests, self._times, self._stages, self._records, patience_s)
        self._patience_s = patience_s

    @classmethod
    def from_settings(cls, settings: Settings) -> Self:
        """Make the store of `AK_SESSION__TYPE=dynamodb`.

        Raises:
            InvalidError: `INVALID_SETTING`: no table is named.
        """
        dynamodb = settings.dynamodb
        if dynamodb.table_name is None:
            field = "AK_SESSION__DYNAMODB__TABLE_NAME"
            raise InvalidError("SETTING", f"{field} is not set: the DynamoDB store needs a table", field=field)
        return cls(
            dynamodb.table_name,
            region=dynamodb.region,
            endpoint_url=dynamodb.endpoint_url,
            create_table=dynamodb.create_table,
        )

    # ------------------------------------------------------------------------------------------------- open

    async def open(
        self, key: Key, *, wanted: Wanted = _ALL, known: Known | None = None, lease: LeaseWanted | None = None
    ) -> Opened:
        """See `Store.open`."""
        place = partition(key)
        give_up = asyncio.get_running_loop().time() + _READ_PATIENCE * self._patience_s
        lost_at: tuple[Names, Version, bytes] | None = None
        current: Record | None = None
        while True:
            begun = self._times.monotonic_ms()
            record, granted = await self._record(key, lease, current)
            current = None
            now = self._times.now_ms()
            if lease is not None and not granted:
                held = None if record.lease is None else record.lease.lease
                return Opened(now=now, version=ABSENT, row=None, lease=held)
            held = None if record.lease is None or record.lease.until <= now else record.lease.lease
            if not record.is_live(now):
                if granted:
                    await self._sweep(place, record, now)
                return Opened(now=now, version=ABSENT, row=None, granted=granted, lease=held)
            try:
                record = await self._records.whole(place, record)
                contents = await Reader(self._requests, place, record).read(wanted, known)
                alone = granted and self._times.monotonic_ms() - begun < min(_READ_UNSEEN_MS, lease.ms if lease else 0)
                if contents.in_place and not alone:
                    current = read_record(key, await self._requests.get(place))
                    if not is_of_one_moment(record, current, wanted):
                        raise Torn
            except Torn:
                if current is None:
                    current = read_record(key, await self._requests.get(place))
                if current.moment == record.moment:
                    if lost_at == record.moment:
                        raise state_lost(key) from None
                    lost_at = record.moment  # once more: it may have been the last steps of that very commit
                if asyncio.get_running_loop().time() > give_up:
                    raise StoreUnavailableError(f"{name_of(key)} changes faster than it can be read") from None
                continue
            if granted:
                await self._sweep(place, record, now)
            return _opened(record, contents, now, granted, held, known)

    async def _record(self, key: Key, lease: LeaseWanted | None, current: Record | None) -> tuple[Record, bool]:
        """The record as it is now, with the lease if it is wanted and free. Nothing in it is half published.

        Args:
            key: Whose.
            lease: The lease that is wanted.
            current: The record, if it was read in this moment.
        """
        place = partition(key)
        if lease is None:
            record, granted = current or read_record(key, await self._requests.get(place)), False
            self._leases.observe(place, record.lease)
        else:
            record, granted = await self._leases.take(key, lease)
        while record.stage is not None and (granted or lease is None) and record.is_live(self._times.now_ms()):
            record = await self._stages.finish(key, place, record)
        self._records.keep(place, record)
        return record, granted

    async def _sweep(self, place: str, record: Record, now: int) -> None:
        swept = await self._stages.sweep(place, record, now)
        if swept is not record:
            self._records.keep(place, swept)

    # ------------------------------------------------------------------------------------------------- commit

    async def commit(self, key: Key, commit: Commit) -> Committed:
        """See `Store.commit`."""
        if len(commit.id) != 8:
            raise ValueError("a commit id has 8 bytes")
        async with AsyncExitStack() as queue:
            return await self._commit(key, commit, queue)

    async def _commit(self, key: Key, commit: Commit, queue: AsyncExitStack) -> Committed:
        place = partition(key)
        give_up = asyncio.get_running_loop().time() + self._patience_s
        found, is_fresh, tries = self._records.get(place), False, 0
        while True:
            if found is None and commit.expected == ABSENT:
                found = NOTHING  # most likely; if not, the refusal brings the record
            if found is None or (not is_fresh and not self._fits(place, found, commit)):
                found, is_fresh = read_record(key, await self._requests.get(place)), True
            now = self._times.now_ms()
            if found.stage is not None and found.is_live(now):
                found, is_fresh = await self._stages.finish(key, place, found), True
                continue
            old = found if found.is_live(now) else NOTHING
            if (revision := old.commits.find(commit.id)) is not None:
                self._records.keep(place, found)
                return _repeated(commit, revision)
            if is_fresh:
                await self._refuse(key, place, found, old, commit, now)
            try:
                found = await self._records.whole(place, found)
                plan = await self._plan(key, found, commit, now)
                update = Update.of_commit(key, plan, commit, now, self._leases.dead(place))
                await self._stages.carry_out(key, place, plan, update, now)
                break
            except Refused as refused:
                found, is_fresh = read_record(key, refused.item), True
            except Torn:
                found, is_fresh = None, False
            tries += 1
            if asyncio.get_running_loop().time() > give_up:
                raise StoreUnavailableError(f"{name_of(key)} changes faster than it can be committed", maybe_done=False)
            if tries == 2:
                await queue.enter_async_context(self._requests.queue(place))
                found, is_fresh = self._records.get(place), False
            elif tries > 2:
                await asyncio.sleep(random.random() * min(0.01 * tries, 0.25))
        return await self._stored(key, place, plan, old, now)

    def _fits(self, place: str, found: Record, commit: Commit) -> bool:
        """Whether a record that was read some time ago may still be the one to commit on."""
        now = self._times.now_ms()
        old = found if found.is_live(now) else NOTHING
        if commit.expected is not None and commit.expected != old.commits.version:
            return False
        if old.life is not None and old.life.stamps.status(now) == "ended":
            return False
        return not self._leases.was_held_by_another(place, found.lease, commit.owner)

    async def _refuse(self, key: Key, place: str, found: Record, old: Record, commit: Commit, now: int) -> None:
        """Raise what keeps a commit that is not stored yet from being stored."""
        expected, version = commit.expected, old.commits.version
        if old.life is None and expected is not None and expected != ABSENT:
            self._records.keep(place, found)
            await self._stages.sweep(place, found, now)
            raise SessionNotFoundError(f"{name_of(key)} does not exist, was deleted, or is past its time")
        if old.life is not None and not commit.maintenance:
            old.life.refuse_ended(now, name_of(key))
        if expected is not None and expected != version:
            self._records.keep(place, found)
            raise overtaken(name_of(key), commit, version.revision)
        if self._leases.is_held_by_another(place, found.lease, commit.owner):
            self._records.keep(place, found)
            assert found.lease is not None
            raise SessionBusyError(f"{name_of(key)} is held by {found.lease.owner}; nothing was stored")

    async def _plan(self, key: Key, found: Record, commit: Commit, now: int) -> Plan:
        place = partition(key)
        old = found if found.is_live(now) else NOTHING
        planner = Planner(self._requests, place, key, found, commit, now)
        gone_at = planner.life.stamps.gone_at
        if old is NOTHING:  # what is left of an earlier life, and lacks its TTL, would be out of sight
            return await planner.plan(Kept(await let_go(self._requests, place, found, now), None))
        return await planner.plan(await keep_alive(self._requests, place, old, gone_at, now))

    async def _stored(self, key: Key, place: str, plan: Plan, old: Record, now: int) -> Committed:
        """What follows a commit that is stored: its last steps, which anybody else would do as well."""
        record = plan.record
        self._leases.observe(place, record.lease)
        if plan.is_staged:
            # Not even for a moment what is not in its places: another thread would plan on it.
            self._records.forget(place)
        else:
            self._records.keep(place, record)
        with suppress(StoreUnavailableError, Torn):
            if plan.is_staged:
                record = read_record(key, await self._requests.get(place))
                while record.stage is not None:
                    record = await self._stages.finish(key, place, record)
            self._records.keep(place, await self._stages.sweep(place, record, now))
        previous_tag = plan.record.record_tag if old is NOTHING else old.record_tag
        return Committed(
            plan.record.commits.version, old.commits.version, plan.record.row(None), previous_tag, plan.heads
        )

    async def amend(self, key: Key, amend: Amend) -> Amended:
        """See `Store.amend`. Without fields it is one write; and a read, if the record has some."""
        return await self._amendments.amend(key, amend)

    async def commit_status(self, key: Key, commit_id: bytes, *, since: Version) -> CommitStatus:
        """See `Store.commit_status`."""
        record = read_record(key, await self._requests.get(partition(key)))
        if not record.is_live(self._times.now_ms()):
            return "not_stored" if since == ABSENT else "unknown"
        return record.commits.status(commit_id, since)

    # ------------------------------------------------------------------------------------------------- leases

    async def renew(self, key: Key, owner: str, ms: int) -> bool:
        """See `Store.renew`."""
        record = await self._leases.renew(key, owner, ms)
        if record is None:
            return False
        self._records.keep(partition(key), record)
        return True

    async def release(self, key: Key, owner: str) -> None:
        """See `Store.release`."""
        record = await self._leases.release(key, owner)
        if record is not None:
            self._records.keep(partition(key), record)
            await self._sweep(partition(key), record, self._times.now_ms())

    async def unlock(self, key: Key) -> Lease | None:
        """See `Store.unlock`."""
        self._records.forget(partition(key))
        return await self._leases.unlock(key)

    async def wait(self, key: Key, owner: str, seconds: float) -> None:
        """See `Store.wait`. It only lets time go by: DynamoDB wakes nobody. 100 ms first, a second later on."""
        await self._leases.wait(owner, seconds)

    # ------------------------------------------------------------------------------------------------- lifecycle

    async def delete(self, key: Key, write_id: bytes) -> bool:
        """See `Store.delete`. One write takes the session out of reach; its items are deleted after it.

        That waits, a second at most, for a turn that has just begun and may be reading them.

        Raises:
            StoreUnavailableError: The session may have been deleted, and some of its items may be left.
        """
        place = partition(key)
        give_up = asyncio.get_running_loop().time() + self._patience_s
        self._records.forget(place)
        record = read_record(key, await self._requests.get(place))
        while True:
            now = self._times.now_ms()
            kept = remembered(record.deletions, now)
            for deletion in kept:
                if deletion.write_id == write_id:
                    if record.life is None:
                        await self._stages.clear(place, record, now)  # whoever was first may have died over it
                    return deletion.existed
            existed = record.is_live(now)
            kept.append(Deletion(write_id, now + _DELETES_REMEMBERED_MS, existed))
            try:
                item = await self._end(place, record, kept, existed, now)
            except Refused as refused:
                record = read_record(key, refused.item)
                if asyncio.get_running_loop().time() > give_up:
                    raise StoreUnavailableError(f"{name_of(key)} changes faster than it can be deleted") from None
                continue
            if existed:
                self._leases.observe(place, None)
            await self._stages.clear(place, read_record(key, item), now)
            return existed

    async def _end(self, place: str, record: Record, deletions: list[Deletion], existed: bool, now: int) -> Item:
        change = Change().set("dm", binary(msgspec.msgpack.encode(deletions)))
        if record.deletions:
            condition = "dm = :dm_was"
            change.given(dm_was=binary(record.deletions))
        else:
            condition = "attribute_not_exists(dm)"
        if record.life is None:
            condition += " AND attribute_not_exists(c)"
            change.stay_for(seconds(now) + DAY)
            return await self._requests.update(place, change.expression, change.values, condition)
        condition += " AND l = :life_was AND c = :was"
        change.given(life_was=binary(record.names.id), was=binary(record.commits.ids)).end_life()
        taken = 0 if record.lease is None else min(record.lease.since, now)
        not_before = taken + READERS_GONE_MS
        change.add("gb", frozenset((garbage(record.names.everything, not_before if not_before > now else 0),)))
        change.set("x", number(NEVER))  # until all is swept
        if existed:
            change.lease(None)
        return await self._requests.update(place, change.expression, change.values, condition)

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
        asked = Asked(tenant, kind, belongs_to, status, self._times.now_ms())
        return await self._listing.find(asked, order, limit, cursor)

    async def count(
        self, tenant: str, kind: Kind, *, belongs_to: str | None = None, status: Status | None = None
    ) -> int:
        """See `Store.count`."""
        return await self._listing.count(Asked(tenant, kind, belongs_to, status, self._times.now_ms()))

    async def run_out(self, tenant: str, kind: Kind, *, limit: int = 100) -> Page:
        """See `Store.run_out`."""
        return await self._listing.run_out(Asked(tenant, kind, None, "ended", self._times.now_ms()), limit)

    async def _found(self, key: Key) -> Found | None:
        opened = await self.open(key, wanted=Wanted(values=False))
        return None if opened.row is None else Found(key.id, opened.row, opened.version.revision)

    async def scan(self, *, limit: int = 100, cursor: bytes | None = None) -> Keys:
        """See `Store.scan`. It reads the whole table, and sweeps what dead commits and deletions have left."""
        now = self._times.now_ms()
        keys, to_sweep = await self._listing.scan(now, limit=limit, cursor=cursor)
        for place, record in to_sweep:
            await self._stages.sweep(place, record, now)
        return keys

    # ------------------------------------------------------------------------------------------------- the table

    async def create_table(self) -> bool:
        """Make the table, and wait until it is ready; False if it was there already. One that is there is checked.

        Raises:
            StoreUnavailableError: It can't be made, or what is there is not as it should be.
        """
        return await table.create(self._requests)

    async def check_table(self) -> None:
        """Look whether the table is as it should be.

        Raises:
            StoreUnavailableError: It is missing, or what is wrong with it.
        """
        await table.check(self._requests)

    async def detach(self) -> None:
        """See `Store.detach`."""
        await self._clients.detach()

    async def aclose(self) -> None:
        """See `Store.aclose`."""
        await self._clients.aclose()


def _opened(
    record: Record, contents: Contents, now: int, granted: bool, held: Lease | None, known: Known | None
) -> Opened:
    return Opened(
        now=now,
        version=record.commits.version,
        row=record.row(contents.fields),
        granted=granted,
        lease=held,
        continues=known is not None and record.commits.has(known.version),
        values=contents.values,
        log_heads=record.heads(),
        collections=record.filled_collections(),
        logs=contents.logs,
        entries=contents.entries,
        ranges=contents.ranges,
    )


def _repeated(commit: Commit, revision: int) -> Committed:
    previous = commit.expected if commit.expected is not None else ABSENT
    return Committed(Version(revision, commit.id), previous, None, b"", {}, repeated=True)
