"""What becomes of sessions, from `create` to `delete_user`: the operations that need no turn."""

from __future__ import annotations

import asyncio
import secrets
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import partial
from typing import Any, Literal, Self, TypeAlias, TypeVar

from msgspec import UNSET, UnsetType, structs

from .. import codec
from ..auth import acting, agreed
from ..background import finished
from ..durations import duration, milliseconds
from ..errors import (
    ForbiddenError,
    InvalidError,
    SessionConflictError,
    SessionEndedError,
    SessionExistsError,
    SessionExpiredError,
    SessionLimitError,
    SessionNotFoundError,
)
from ..events import Listeners
from ..identifiers import check_id
from ..policy import Policy
from ..record import END_REASONS, SessionRecord, record_found, record_from, record_opened
from ..settings import Settings
from ..stores.base import ABSENT, Amend, Amended, Commit, Cursor, Key, Opened, Order, Page, Row, Store, Wanted
from ..stores.lifetime import Lifetime, Own, Status
from ..stores.whole import Content, read_whole
from ..turns.cache import ImageCache
from ..turns.commits import Traffic, store_amend, store_commit, store_delete
from .arguments import (
    added_time,
    check_description,
    check_expires_at,
    check_limit,
    check_metadata,
    check_offset,
    check_status,
    check_time,
    check_ttl,
)
from .copies import from_json, to_json
from .erasure import ErasureReceipt
from .listings import SCANNED, Filters, SessionPage, Stats, read_cursor, write_cursor
from .policies import Policies, lifetime_of, own_of
from .users import UserKeys

T = TypeVar("T")

_List: TypeAlias = list  # which is also an operation below
_Records: TypeAlias = list[SessionRecord]
_Ids: TypeAlias = list[str]

_TRIES = 50
"""How often a change of a record is tried while others change it as well."""

_PAGE = 200
_AT_ONCE = 16


@dataclass(frozen=True)
class SessionSummary:
    """What a session was, at its end."""

    session_id: str
    started_at: datetime
    ended_at: datetime
    end_reason: str
    message_count: int
    memory_count: int

    @property
    def duration(self) -> timedelta:
        """How long it lasted."""
        return self.ended_at - self.started_at


@dataclass(frozen=True)
class EndedSessions:
    """Which sessions an `end_all` ended."""

    ended: int
    session_ids: list[str]


@dataclass(frozen=True)
class ExpiredSessions:
    """Which sessions an `expire_idle` ended, or would have."""

    expired: int
    session_ids: list[str]


class Lifecycle:
    """The lifecycle half of `SessionManager`."""

    store: Store
    settings: Settings
    lease_ms: int
    ttl_ms: int | None
    policies: Policies
    _cache: ImageCache
    _listeners: Listeners

    @property
    def tenant_id(self) -> str:
        """The tenant of every session that is reached."""
        raise NotImplementedError

    def _in(self, tenant_id: str | None) -> Self:
        """This manager, for the tenant that an argument names.

        Raises:
            ForbiddenError: It is for another one.
        """
        raise NotImplementedError

    # ------------------------------------------------------------------------------------------------ making

    async def create(
        self,
        user_id: str | None = None,
        *,
        tenant_id: str | None = None,
        session_id: str | None = None,
        agent_id: str | None = None,
        memory_space_id: str | None = None,
        description: str | None = None,
        metadata: Mapping[str, Any] | None = None,
        ttl: float | timedelta | str | None = None,
        expires_at: datetime | None = None,
        policy: Policy | Mapping[str, Any] | None = None,
    ) -> SessionRecord:
        """Make a session.

        Args:
            user_id: To whom it belongs.
            tenant_id: Its tenant; None: the manager's.
            session_id: Its id; None: a new UUID.
            agent_id: The agent that it is for.
            memory_space_id: The memory space that it is for.
            description: Text for people.
            metadata: Any JSON object.
            ttl: Seconds (or a `timedelta`, or text such as `7d`) after its last activity until it is gone; 0 = never.
                None: as configured.
            expires_at: When it ends, whatever happens. Aware, in the future.
            policy: Rules of its own, which win over those of its tenant.

        Raises:
            SessionExistsError: There is one of that id.
            SessionLimitError: The user has as many sessions as the policy allows.
            InvalidError: An argument is wrong; `field` names it.
        """
        self = self._in(tenant_id)
        key = Key(
            self.tenant_id, "session", str(uuid.uuid4()) if session_id is None else check_id(session_id, "session_id")
        )
        fields = _fields(agent_id, memory_space_id, description, metadata)
        own: dict[str, int | None] = {} if policy is None else own_of(Policy.of(policy))
        if ttl is not None:
            own["ttl_ms"] = check_ttl(ttl)
        make = _Making(key, own, expires_at, fields)
        user_id = self._user(user_id)
        return await (self._make(make, None) if user_id is None else self._make_for(user_id, make))

    async def get_or_create(
        self, user_id: str | None = None, metadata: Mapping[str, Any] | None = None
    ) -> SessionRecord:
        """The user's most recently active session that is active, touched; if there is none, a new one.

        However many ask at once, they get the same one.
        """
        user_id = self._needed_user(user_id)
        make = _Making(Key(self.tenant_id, "session", str(uuid.uuid4())), {}, None, _fields(None, None, None, metadata))
        async with self._users.turn(user_id) as user:
            for session_id in await self._candidates(user_id, user.recent):
                try:
                    record = await self._amended(session_id, activity=True)
                except (SessionNotFoundError, SessionEndedError, SessionExpiredError):
                    continue
                return record
            record = await self._make_within_limit(user_id, make, user.recent)
            user.remember(record.session_id)
        await self._unless_erased(make.key, user_id)
        return record

    # ------------------------------------------------------------------------------------------------ one session

    async def touch(self, session_id: str) -> SessionRecord:
        """Note an activity: an idle session is active again.

        Raises:
            SessionNotFoundError, SessionEndedError, SessionExpiredError: There is nothing to touch any more.
        """
        record = await self._amended(session_id, activity=True)
        self._listeners.tell("touched", self._session_key(session_id), user_id=record.user_id)
        return record

    async def update(
        self,
        session_id: str,
        *,
        metadata: Mapping[str, Any] | None = None,
        description: str | UnsetType | None = UNSET,
        ttl: float | timedelta | str | UnsetType | None = UNSET,
        expires_at: datetime | UnsetType | None = UNSET,
    ) -> SessionRecord:
        """Change a session's record, beside a turn that may be running. It is no activity.

        Args:
            session_id: The session.
            metadata: Merged into what there is, at the top level; None as a value removes a key.
            description: The new one; None removes it.
            ttl: The new one, as in `create`; None: as configured again.
            expires_at: The new end; None removes it.

        Raises:
            SessionNotFoundError, SessionEndedError, SessionExpiredError: There is nothing to change any more.
        """
        merged = None if metadata is None else check_metadata(metadata)

        async def change(opened: Opened) -> dict[str, Any]:
            row = opened.row
            assert row is not None
            changes: dict[str, Any] = {"fields": {}}
            if merged is not None:
                held = codec.decode((row.fields or {}).get("metadata", codec.encode({})))
                kept = {name: value for name, value in {**held, **merged}.items() if value is not None}
                changes["fields"]["metadata"] = codec.encode(kept)
            if description is not UNSET:
                text = None if description is None else codec.encode(check_description(description))
                changes["fields"]["description"] = text
            if ttl is not UNSET:
                changes["own"] = _with_ttl(row.own, ttl)
                changes["lifetime"] = await self._lifetime()
            if expires_at is not UNSET:
                changes["expires_at"] = None if expires_at is None else check_expires_at(expires_at, opened.now)
            return changes

        return await self._changed(session_id, change)

    async def extend(
        self, session_id: str, *, hours: float | None = None, seconds: float | None = None
    ) -> SessionRecord:
        """Move the session's end further away, which is an activity.

        An end that was given (`expires_at`) moves by so much: 1 h more and 6 h more are 7 h more. If none was given, it
        ends so much later than its TTL would have let it go, and that end is in force from then on. It never lies
        beyond the absolute timeout: the record's `expires_at` tells.

        Raises:
            InvalidError: `INVALID_DURATION`: neither or both are given, or not more than 0.
            SessionNotFoundError, SessionEndedError, SessionExpiredError: There is nothing to extend any more.
        """
        added = milliseconds(added_time(hours, seconds))

        async def change(opened: Opened) -> dict[str, Any]:
            row = opened.row
            assert row is not None
            lifetime = (await self._lifetime()).but(row.own)
            own: Own = row.own
            if row.expires_at is None:
                expires_at = opened.now + (lifetime.ttl_ms or 0) + added
                own = {**own, "ttl_ms": None}
            else:
                expires_at = row.expires_at + added
            if lifetime.absolute_ms is not None:
                expires_at = min(expires_at, row.started_at + lifetime.absolute_ms)
            return {"activity": True, "expires_at": expires_at, "own": own, "lifetime": await self._lifetime()}

        return await self._changed(session_id, change)

    async def end(
        self, session_id: str, *, reason: Literal["explicit", "replaced", "revoked"] = "explicit"
    ) -> SessionSummary:
        """End a session at once: a turn that is running on it can't store anything any more.

        Ending it again changes nothing, and tells the same.

        Raises:
            SessionNotFoundError: There is none.
        """
        if reason not in END_REASONS[:3]:
            raise InvalidError("REASON", f"reason must be one of {', '.join(END_REASONS[:3])}", field="reason")
        key = await self._owned(session_id)
        amended = await self._end(key, reason)
        return _summary(record_from(key, amended.row, 0, amended.now))

    # ------------------------------------------------------------------------------------------------ many sessions

    async def list(
        self,
        user_id: str | None = None,
        *,
        tenant_id: str | None = None,
        status: Status | None = None,
        agent_id: str | None = None,
        memory_space_id: str | None = None,
        started_after: datetime | None = None,
        started_before: datetime | None = None,
        metadata: Mapping[str, Any] | None = None,
        order: Literal["activity", "started"] = "activity",
        limit: int = 50,
        cursor: str | None = None,
        offset: int = 0,
    ) -> SessionPage:
        """A page of sessions, those with the newest activity (or start) first.

        While sessions are written no page repeats one; one that became active after the first page may be missed.
        `order="started"` misses none. User and status have an index. With other filters a page looks at 1000 sessions
        at most: it may be short, or empty, and yet not the last.

        Args:
            user_id: Only the user's.
            tenant_id: Those of this tenant; None: of the manager's.
            status: Only of this status.
            agent_id: Only of this agent.
            memory_space_id: Only of this memory space.
            started_after: Only what started later.
            started_before: Only what started earlier.
            metadata: Only where the metadata has all these.
            order: What a page goes by.
            limit: The most sessions of a page, 1 to 1000.
            cursor: The `next_cursor` of the page before.
            offset: How many to pass over first. A cursor is the faster way.
        """
        self = self._in(tenant_id)
        filters = _filters(
            self._user(user_id), status, agent_id, memory_space_id, started_after, started_before, metadata
        )
        if order not in ("activity", "started"):
            raise InvalidError("ORDER", "order must be activity or started", field="order")
        by: Order = "activity" if order == "activity" else "start"
        place = read_cursor(cursor, by)
        limit, passed_over = check_limit(limit), check_offset(offset)
        records: _Records = []
        scanned = 0
        while len(records) < limit and scanned < SCANNED:
            asked = min(_PAGE, limit - len(records) + passed_over) if filters.has_index else _PAGE
            page = await self._find(filters, by, asked, place)
            scanned += 0 if filters.has_index else len(page.found)
            for found in page.found:
                place = Cursor(found.row.active_at if by == "activity" else found.row.started_at, found.id)
                record = record_found(self._scope, found, page.now)
                if not filters.match(record):
                    continue
                if passed_over:
                    passed_over -= 1
                    continue
                records.append(record)
                if len(records) == limit:
                    break
            else:
                if page.next is None:
                    return SessionPage(records, None)
                continue
            is_last = page.next is None and page.found[-1].id == place.id
            return SessionPage(records, None if is_last else write_cursor(place, by))
        return SessionPage(records, write_cursor(place, by))

    async def count(
        self,
        user_id: str | None = None,
        *,
        tenant_id: str | None = None,
        status: Status | None = None,
        agent_id: str | None = None,
        memory_space_id: str | None = None,
        started_after: datetime | None = None,
        started_before: datetime | None = None,
        metadata: Mapping[str, Any] | None = None,
    ) -> int:
        """How many sessions there are. By user and status the index tells; with other filters all are looked at."""
        self = self._in(tenant_id)
        filters = _filters(
            self._user(user_id), status, agent_id, memory_space_id, started_after, started_before, metadata
        )
        if filters.has_index:
            return await self.store.count(self.tenant_id, "session", belongs_to=filters.user_id, status=filters.status)
        return len([record async for record in self._all(filters) if filters.match(record)])

    async def stats(self, *, tenant_id: str | None = None) -> Stats:
        """How many sessions the tenant has, by status."""
        self = self._in(tenant_id)
        active, idle, ended = await asyncio.gather(
            *(self.store.count(self.tenant_id, "session", status=status) for status in ("active", "idle", "ended"))
        )
        return Stats(active, idle, ended)

    async def get_active(self, user_id: str | None = None) -> _Records:
        """All of the user's sessions that are active, the most recently active first."""
        return [record async for record in self._all(Filters(self._needed_user(user_id), "active"))]

    async def end_all(self, user_id: str | None = None, *, except_session_id: str | None = None) -> EndedSessions:
        """End all of the user's sessions, but one that is kept (log out everywhere else)."""
        user_id = self._needed_user(user_id)
        ids = [
            record.session_id
            for status in ("active", "idle")
            async for record in self._all(Filters(user_id, status))
            if record.session_id != except_session_id
        ]
        ended = await self._for_each(ids, lambda id: self._end_if_there(id, "explicit"))
        session_ids = [id for id, done in zip(ids, ended, strict=True) if done]
        return EndedSessions(len(session_ids), session_ids)

    async def expire_idle(
        self,
        *,
        tenant_id: str | None = None,
        max_age: float | timedelta | str | None = None,
        dry_run: bool = False,
        limit: int = 10_000,
    ) -> ExpiredSessions:
        """Stamp the end of sessions that have run out, in batches; each is told once, whoever else runs this.

        Nothing depends on it: what ran out is ended without it. It puts the end down, so that listeners hear of it.

        Args:
            tenant_id: The tenant; None: the manager's.
            max_age: End as well what was last active longer ago than this, whatever its policy.
            dry_run: Only tell.
            limit: The most sessions to look at in one call.
        """
        self = self._in(tenant_id)
        told: _Ids = []
        if max_age is not None:
            told += await self._expire_older(milliseconds(duration(max_age, "max_age")), dry_run, limit)
        while len(told) < limit:
            page = await self.store.run_out(self.tenant_id, "session", limit=min(_PAGE, limit - len(told)))
            ids = [found.id for found in page.found]
            if dry_run:
                return ExpiredSessions(len(told) + len(ids), told + ids)
            reasons = {found.id: "expired" if found.row.expires else "idle" for found in page.found}
            told += await self._expire(ids, reasons)
            if len(ids) < _PAGE:
                break
        return ExpiredSessions(len(told), told)

    # ------------------------------------------------------------------------------------------------ copies

    async def fork(self, session_id: str, new_id: str | None = None) -> SessionRecord:
        """Copy a session with all its state: from here on the two go their own ways.

        The copy starts now, belongs to the same user, and names the session that it was made of (`forked_from`). It
        appears whole, or not at all.

        Raises:
            SessionNotFoundError: There is no such session.
            SessionExistsError: There is one of the new id.
        """
        content = await self._content(session_id)
        content.fields["forked_from"] = codec.encode(session_id)
        content.fields.pop("end_reason", None)
        key = self._session_key(str(uuid.uuid4()) if new_id is None else new_id)
        return await self._bring(key, content, as_new=True)

    async def export(self, session_id: str) -> dict[str, Any]:
        """A session with all its state, as a JSON document for `import_`.

        Raises:
            SessionNotFoundError: There is none.
            DecryptionError: Something of it can't be decrypted here.
        """
        return to_json(self._session_key(session_id), await self._content(session_id))

    async def import_(self, data: Mapping[str, Any], *, session_id: str | None = None) -> SessionRecord:
        """Make a session of what `export` gave, here or elsewhere: the same state byte for byte, and as old.

        It appears whole, or not at all.

        Args:
            data: The document.
            session_id: Another id than the document's.

        Raises:
            InvalidError: `INVALID_DOCUMENT`.
            FormatTooNewError: A newer version has written it.
            SessionExistsError: There is a session of that id.
            ForbiddenError: It belongs to another user than the one that is acting.
            CommitTooLargeError: The store can't take so much in one step.
        """
        own_id, content = from_json(data)
        content.belongs_to = self._user(content.belongs_to)
        key = self._session_key(own_id if session_id is None else session_id)
        return await self._bring(key, content, as_new=False)

    # ------------------------------------------------------------------------------------------------ erasure

    async def delete_user(self, user_id: str | None = None, *, dry_run: bool = False) -> ErasureReceipt:
        """Remove all of a user's sessions, with their state and activations. It can be repeated, and goes on then.

        A session that is being made for the user meanwhile is taken back (`SESSION_CONFLICT`), and a running turn
        can't store anything any more.

        Args:
            user_id: The user.
            dry_run: Only tell what there is.
        """
        user_id = self._needed_user(user_id)
        receipt = ErasureReceipt(user_id, dry_run)
        if not dry_run:
            await self._users.mark_erased(user_id)
        place: Cursor | None = None
        while True:
            page = await self.store.find(self.tenant_id, "session", belongs_to=user_id, limit=_PAGE, cursor=place)
            for found in page.found:
                receipt.activation_ids += await self._erase(found.id, dry_run)
                receipt.session_ids.append(found.id)
            place = page.next if dry_run else None
            if (dry_run and page.next is None) or not page.found:
                break
        if not dry_run:
            await self.store.delete(Key(self.tenant_id, "user", user_id), secrets.token_bytes(8))
        return receipt

    # ------------------------------------------------------------------------------------------------ policies

    async def get_policy(self, *, for_all: bool = False) -> Policy:
        """The policy in force for this tenant; with `for_all`, what is stored for all tenants."""
        return await self.policies.get(None) or Policy() if for_all else await self.policies.of(self.tenant_id)

    async def set_policy(self, policy: Policy | Mapping[str, Any] | None, *, for_all: bool = False) -> None:
        """Store a policy for this tenant (or all): every host goes by it within seconds. None removes it.

        It reaches a session at its next activity; `apply_policy` reaches all.
        """
        await self.policies.set(None if for_all else self.tenant_id, None if policy is None else Policy.of(policy))

    async def apply_policy(self) -> int:
        """Stamp every session of this tenant by the policy in force, in batches; return how many."""
        lifetime = await self._lifetime()
        number = 0
        place: Cursor | None = None
        while True:
            page = await self.store.find(self.tenant_id, "session", order="start", limit=_PAGE, cursor=place)
            keys = [self._session_key(found.id) for found in page.found]
            done = await self._for_each(keys, lambda key: self._stamp(key, lifetime))
            number += sum(done)
            place = page.next
            if place is None:
                return number

    # ------------------------------------------------------------------------------------------------ inside

    @property
    def _users(self) -> UserKeys:
        return UserKeys(self.store, self.tenant_id, self.lease_ms)

    @property
    def _scope(self) -> Key:
        return Key(self.tenant_id, "session", "")

    def _session_key(self, session_id: object) -> Key:
        return Key(self.tenant_id, "session", check_id(session_id, "session_id"))

    def _user(self, user_id: str | None) -> str | None:
        """The user of an operation: the argument, or the identity that is acting."""
        given = None if user_id is None else check_id(user_id, "user_id")
        return agreed(given, acting(self.store).user_id, "user_id")

    def _needed_user(self, user_id: str | None) -> str:
        found = self._user(user_id)
        if found is None:
            raise InvalidError("USER_ID", "say which user, by user_id or by acting_as", field="user_id")
        return found

    def _check_ownership(self, key: Key, row: Row | None) -> None:
        """Refuse another user's session, if that is on and somebody is acting."""
        user_id = acting(self.store).user_id
        if self.settings.enforce_ownership and user_id is not None and row is not None and row.belongs_to != user_id:
            raise ForbiddenError(f"session {key.id!r} belongs to another user", field="user_id")

    async def _owned(self, session_id: object) -> Key:
        """The key of a session that who is acting may touch. Whose it is never changes once it is somebody's."""
        key = self._session_key(session_id)
        if self.settings.enforce_ownership and acting(self.store).user_id is not None:
            self._check_ownership(key, (await self.store.open(key, wanted=Wanted(values=False))).row)
        return key

    async def _lifetime(self) -> Lifetime:
        return lifetime_of(await self.policies.of(self.tenant_id), self.ttl_ms)

    async def _make(self, make: _Making, user_id: str | None) -> SessionRecord:
        lifetime = await self._lifetime()
        commit = Commit(
            id=secrets.token_bytes(8),
            owner=f"create/{make.key.id}",
            expected=ABSENT,
            lifetime=lifetime,
            own=make.own,
            expires_at=None
            if make.expires_at is None
            else check_expires_at(make.expires_at, await self._now(make.key)),
            belongs_to=user_id,
            fields=dict(make.fields),
        )
        try:
            committed = await finished(lambda: store_commit(self.store, make.key, commit, self.lease_ms, Traffic()))
        except SessionConflictError:
            raise SessionExistsError(f"there is a session {make.key.id!r} already", field="session_id") from None
        if committed.row is None:  # repeated: it was made by the attempt before
            record = await self._read(make.key)
            assert record is not None
            return record
        self._listeners.tell("created", make.key, user_id=user_id, revision=committed.version.revision)
        row = structs.replace(committed.row, fields=make.fields)
        return record_from(make.key, row, committed.version.revision, committed.row.active_at)

    async def _make_for(self, user_id: str, make: _Making) -> SessionRecord:
        policy = await self.policies.of(self.tenant_id)
        if policy.max_sessions_per_user is None:
            record = await self._make(make, user_id)
        else:
            async with self._users.turn(user_id) as user:
                record = await self._make_within_limit(user_id, make, user.recent)
                user.remember(record.session_id)
        await self._unless_erased(make.key, user_id)
        return record

    async def _make_within_limit(self, user_id: str, make: _Making, recent: Iterable[str]) -> SessionRecord:
        """Make a session, under the lease of its user."""
        policy = await self.policies.of(self.tenant_id)
        if policy.max_sessions_per_user is not None:
            live = await self._live(user_id, recent)
            while len(live) >= policy.max_sessions_per_user:
                if policy.on_limit == "reject":
                    raise SessionLimitError(
                        f"user {user_id!r} has {len(live)} sessions; the policy allows {policy.max_sessions_per_user}. "
                        "End one, or set on_limit to end_oldest.",
                        field="user_id",
                    )
                oldest = min(live, key=lambda record: (record.last_active_at, record.session_id))
                await self._end_if_there(oldest.session_id, "replaced")
                live.remove(oldest)
        return await self._make(make, user_id)

    async def _live(self, user_id: str, recent: Iterable[str]) -> _Records:
        """The user's sessions that have not ended, also those that the index does not show yet."""
        live = {
            record.session_id: record
            for status in ("active", "idle")
            async for record in self._all(Filters(user_id, status))
        }
        for session_id in recent:
            record = None if session_id in live else await self._read(self._session_key(session_id))
            if record is not None and record.status != "ended":
                live[session_id] = record
        return [*live.values()]

    async def _candidates(self, user_id: str, recent: Iterable[str]) -> _Ids:
        """The user's active sessions, the most recently active first."""
        live = [record for record in await self._live(user_id, recent) if record.status == "active"]
        live.sort(key=lambda record: (record.last_active_at, record.session_id), reverse=True)
        return [record.session_id for record in live]

    async def _unless_erased(self, key: Key, user_id: str) -> None:
        """Take a new session back whose user is being erased: the erasure may have passed it by."""
        if await self._users.is_erased(user_id):
            await self.store.delete(key, secrets.token_bytes(8))
            self._cache.drop(key)
            raise SessionConflictError(f"user {user_id!r} is being erased; try again later", field="user_id")

    async def _now(self, key: Key) -> int:
        return (await self.store.open(key, wanted=Wanted(values=False))).now

    async def _read(self, key: Key) -> SessionRecord | None:
        return record_opened(key, await self.store.open(key, wanted=Wanted(values=False)))

    async def _amended(self, session_id: str, **changes: Any) -> SessionRecord:
        key = await self._owned(session_id)
        amend = Amend(id=secrets.token_bytes(8), lifetime=await self._lifetime(), **changes)
        amended = await finished(lambda: store_amend(self.store, key, amend, self.lease_ms))
        return record_from(key, amended.row, 0, amended.now)

    async def _changed(self, session_id: str, change: Callable[[Opened], Awaitable[dict[str, Any]]]) -> SessionRecord:
        """Amend by what follows from the record as it is; again, if it changed meanwhile."""
        key = self._session_key(session_id)
        for _ in range(_TRIES):
            opened = await self.store.open(key, wanted=Wanted(values=False))
            if opened.row is None:
                raise SessionNotFoundError(f"there is no session {session_id!r}")
            self._check_ownership(key, opened.row)
            changes = await change(opened)
            amend = Amend(id=secrets.token_bytes(8), expected_tag=opened.row.record_tag, **changes)
            try:
                amended = await finished(partial(store_amend, self.store, key, amend, self.lease_ms))
            except SessionConflictError:
                continue
            return record_from(key, amended.row, opened.version.revision, amended.now)
        raise SessionConflictError(f"the record of session {session_id!r} is changed too often to change it")

    async def _content(self, session_id: str) -> Content:
        whole = await read_whole(self.store, await self._owned(session_id))
        if whole is None:
            raise SessionNotFoundError(f"there is no session {session_id!r}")
        return whole.content

    async def _bring(self, key: Key, content: Content, *, as_new: bool) -> SessionRecord:
        commit = content.commit(await self._lifetime(), as_new=as_new)
        try:
            await finished(lambda: store_commit(self.store, key, commit, self.lease_ms, Traffic()))
        except SessionConflictError:
            raise SessionExistsError(f"there is a session {key.id!r} already", field="session_id") from None
        if content.belongs_to is not None:
            await self._unless_erased(key, content.belongs_to)
        self._listeners.tell("created", key, user_id=content.belongs_to, revision=1)
        record = await self._read(key)
        if record is None:
            raise SessionNotFoundError(f"session {key.id!r} was past its time already, or is deleted")
        return record

    async def _erase(self, session_id: str, dry_run: bool) -> _Ids:
        """Remove a session and its activations, those first: what is left after a crash is still found by it."""
        key = self._session_key(session_id)
        activations: _Ids = []
        place: Cursor | None = None
        while True:
            page = await self.store.find(self.tenant_id, "run", belongs_to=session_id, limit=_PAGE, cursor=place)
            ids = [found.id for found in page.found]
            activations += ids
            place = page.next if dry_run else None
            if not dry_run:
                await self._for_each(
                    ids, lambda id: self.store.delete(Key(self.tenant_id, "run", id), secrets.token_bytes(8))
                )
            if (dry_run and page.next is None) or not ids:
                break
        if not dry_run:
            self._cache.drop(key)
            if await finished(lambda: store_delete(self.store, key, self.lease_ms)):
                self._listeners.tell("deleted", key)
        return activations

    async def _end(self, key: Key, reason: str) -> Amended:
        amend = Amend(id=secrets.token_bytes(8), end=True, fields={"end_reason": codec.encode(reason)})
        amended = await finished(lambda: store_amend(self.store, key, amend, self.lease_ms))
        self._cache.drop(key)
        if amended.changed:
            self._listeners.tell("ended", key, user_id=amended.row.belongs_to, reason=reason)
        return amended

    async def _end_if_there(self, session_id: str, reason: str) -> bool:
        try:
            return (await self._end(self._session_key(session_id), reason)).changed
        except SessionNotFoundError:
            return False

    async def _stamp(self, key: Key, lifetime: Lifetime) -> bool:
        amend = Amend(id=secrets.token_bytes(8), lifetime=lifetime)
        try:
            await finished(lambda: store_amend(self.store, key, amend, self.lease_ms))
        except SessionNotFoundError:
            return False
        return True

    async def _expire(self, ids: _Ids, reasons: Mapping[str, str]) -> _Ids:
        done = await self._for_each(ids, lambda id: self._end_if_there(id, reasons[id]))
        return [id for id, changed in zip(ids, done, strict=True) if changed]

    async def _expire_older(self, age_ms: int, dry_run: bool, limit: int) -> _Ids:
        told: _Ids = []
        now = await self._now(Key(self.tenant_id, "system", "clock"))
        for status in ("active", "idle"):
            place: Cursor | None = Cursor(now - age_ms, "")
            while place is not None and len(told) < limit:
                asked = min(_PAGE, limit - len(told))
                page = await self.store.find(self.tenant_id, "session", status=status, limit=asked, cursor=place)
                ids = [found.id for found in page.found]
                told += ids if dry_run else await self._expire(ids, dict.fromkeys(ids, "idle"))
                place = page.next
        return told

    async def _find(self, filters: Filters, order: Order, limit: int, cursor: Cursor | None) -> Page:
        return await self.store.find(
            self.tenant_id,
            "session",
            belongs_to=filters.user_id,
            status=filters.status,
            order=order,
            limit=limit,
            cursor=cursor,
        )

    async def _all(self, filters: Filters) -> AsyncIterator[SessionRecord]:
        place: Cursor | None = None
        while True:
            page = await self._find(filters, "activity", _PAGE, place)
            for found in page.found:
                yield record_found(self._scope, found, page.now)
            place = page.next
            if place is None:
                return

    async def _for_each(self, items: Sequence[Any], work: Callable[[Any], Awaitable[T]]) -> _List[T]:
        """Work on all, a few at once."""
        results: _List[T] = []
        for start in range(0, len(items), _AT_ONCE):
            results += await asyncio.gather(*map(work, items[start : start + _AT_ONCE]))
        return results


@dataclass(frozen=True)
class _Making:
    """What a new session is to be."""

    key: Key
    own: Own
    expires_at: datetime | None
    fields: dict[str, bytes]


def _fields(
    agent_id: str | None, memory_space_id: str | None, description: str | None, metadata: Mapping[str, Any] | None
) -> dict[str, bytes]:
    fields: dict[str, Any] = {}
    if agent_id is not None:
        fields["agent_id"] = check_id(agent_id, "agent_id")
    if memory_space_id is not None:
        fields["memory_space_id"] = check_id(memory_space_id, "memory_space_id")
    if description is not None:
        fields["description"] = check_description(description)
    if metadata is not None:
        fields["metadata"] = check_metadata(metadata)
    return {name: codec.encode(value) for name, value in fields.items()}


def _with_ttl(own: Own, ttl: object) -> Own:
    kept = {name: value for name, value in own.items() if name != "ttl_ms"}
    return kept if ttl is None else {**kept, "ttl_ms": check_ttl(ttl)}


def _summary(record: SessionRecord) -> SessionSummary:
    assert record.ended_at is not None
    return SessionSummary(
        session_id=record.session_id,
        started_at=record.started_at,
        ended_at=record.ended_at,
        end_reason=record.end_reason or "explicit",
        message_count=record.message_count,
        memory_count=record.memory_count,
    )


def _filters(
    user_id: str | None,
    status: Status | None,
    agent_id: str | None,
    memory_space_id: str | None,
    started_after: datetime | None,
    started_before: datetime | None,
    metadata: Mapping[str, Any] | None,
) -> Filters:
    return Filters(
        user_id=None if user_id is None else check_id(user_id, "user_id"),
        status=check_status(status),
        agent_id=None if agent_id is None else check_id(agent_id, "agent_id"),
        memory_space_id=None if memory_space_id is None else check_id(memory_space_id, "memory_space_id"),
        started_after=None if started_after is None else check_time(started_after, "started_after"),
        started_before=None if started_before is None else check_time(started_before, "started_before"),
        metadata={} if metadata is None else check_metadata(metadata),
    )
