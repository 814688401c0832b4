"""Making sessions: as many as the policy allows, and one for each who asks for the same at once."""

from __future__ import annotations

import secrets
import uuid
from collections.abc import AsyncIterator, Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import partial
from typing import Any

from msgspec import structs

from .. import codec
from ..background import uncancelled
from ..errors import (
    SessionConflictError,
    SessionEndedError,
    SessionExistsError,
    SessionExpiredError,
    SessionLimitError,
    SessionNotFoundError,
)
from ..identifiers import check_id
from ..policy import Policy
from ..record import SessionRecord, record_found, record_from
from ..stores.base import ABSENT, Commit, Cursor, Key
from ..stores.lifetime import Own
from ..turns.commits import Traffic, store_commit
from .arguments import check_description, check_expires_at, check_metadata, check_ttl
from .changing import Changing
from .policies import own_of
from .users import UserTurn

_FEW = 10


class Making(Changing):
    """`create` and `get_or_create`."""

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
            policy: Rules of its own for how long it lasts, which win over those of its tenant.

        Raises:
            SessionExistsError: There is one of that id.
            SessionBusyError: A turn that is running is about to make one of that id.
            SessionLimitError: The user has as many sessions as the policy allows.
            SessionConflictError: The user is being erased.
            InvalidError: An argument is wrong; `field` names it.
        """
        self = self._in(tenant_id)
        key = self._session_key(str(uuid.uuid4()) if session_id is None else session_id)
        fields = _fields(agent_id, memory_space_id, description, metadata)
        own: dict[str, int | None] = {} if policy is None else own_of(Policy.of(policy))
        if ttl is not None:
            own["ttl_ms"] = check_ttl(ttl)
        ends = None if expires_at is None else check_expires_at(expires_at, await self._now())
        made = _Made(key, self._user(user_id), own, ends, fields)
        if made.user_id is None or (await self.policies.of(self.tenant_id)).max_sessions_per_user is None:
            record = await self._make(made)
        else:
            async with self._users.turn(made.user_id, partial(self._check_limit, made.user_id)) as user:
                record = await self._make_within_limit(made, made.user_id, user)
        return record

    async def get_or_create(
        self, user_id: str | None = None, metadata: Mapping[str, Any] | None = None
    ) -> SessionRecord:
        """The user's most recently active session that is active, touched; if there is none, a new one.

        However many ask at once, they get the same one.
        """
        user_id = self._needed_user(user_id)
        fields = _fields(None, None, None, metadata)
        there_is_one = partial(self._touched, user_id)
        record = await there_is_one()
        if record is not None:
            return record
        made = _Made(self._session_key(str(uuid.uuid4())), user_id, {}, None, fields)
        async with self._users.turn(user_id, there_is_one) as user:
            if isinstance(user, SessionRecord):
                return user
            record = await self._touched(user_id, user.recent)  # another may have made it meanwhile
            if record is not None:
                return record
            return await self._make_within_limit(made, user_id, user)

    async def _make(self, made: _Made) -> SessionRecord:
        """Make a session, unless its user is being erased. A cancellation waits until that is decided."""
        return await uncancelled(self._make_unless_erased(made))

    async def _make_unless_erased(self, made: _Made) -> SessionRecord:
        commit = Commit(
            id=secrets.token_bytes(8),
            owner=f"create/{made.key.id}",
            expected=ABSENT,
            lifetime=await self._lifetime(),
            own=made.own,
            expires_at=made.expires_at,
            belongs_to=made.user_id,
            fields=dict(made.fields),
        )
        try:
            committed = await store_commit(self.store, made.key, commit, self.lease_ms, Traffic())
        except (SessionConflictError, SessionEndedError, SessionExpiredError):
            raise _exists(made.key) from None
        await self._unless_erased(made.key, made.user_id)
        self._listeners.tell("created", made.key, user_id=made.user_id, revision=committed.version.revision)
        if committed.row is None:  # its reply was lost, and it was sent again
            return await self._read_back(made.key)
        row = structs.replace(committed.row, fields=made.fields)
        return record_from(made.key, row, committed.version.revision, committed.row.active_at)

    async def _make_within_limit(self, made: _Made, user_id: str, user: UserTurn) -> SessionRecord:
        """Make a session, under the lease of its user."""
        policy = await self.policies.of(self.tenant_id)
        if policy.max_sessions_per_user is not None:
            live = await self._live_and_recent(user_id, user.recent)
            number = len(live)
            if number >= policy.max_sessions_per_user:
                if policy.on_limit == "reject":
                    raise _too_many(user_id, number, policy.max_sessions_per_user)
                if await self._read(made.key) is not None:  # before anything is ended for it
                    raise _exists(made.key)
                live.sort(key=lambda record: (record.last_active_at, record.session_id))
                for oldest in live[: number - policy.max_sessions_per_user + 1]:
                    await self._end_if_there(oldest.session_id, "replaced")
        user.remember(made.key.id)  # at first: this may be cancelled when it is made
        return await self._make(made)

    async def _check_limit(self, user_id: str) -> None:
        """Refuse one more if the index alone says that there are enough."""
        policy = await self.policies.of(self.tenant_id)
        if policy.max_sessions_per_user is not None and policy.on_limit == "reject":
            number = len(await self._live(user_id))
            if number >= policy.max_sessions_per_user:
                raise _too_many(user_id, number, policy.max_sessions_per_user)

    async def _live_and_recent(self, user_id: str, recent: Iterable[str]) -> list[SessionRecord]:
        """The user's sessions that have not ended, also those that an index does not show yet."""
        live = await self._live(user_id)
        for session_id in recent:
            record = None if session_id in live else await self._read(self._session_key(session_id))
            if record is not None and record.user_id == user_id and record.status != "ended":
                live[session_id] = record
        return [*live.values()]

    async def _touched(self, user_id: str, recent: Iterable[str] = ()) -> SessionRecord | None:
        """The user's most recently active session that is active, touched."""
        async for session_id in self._active_ids(user_id, recent):
            try:
                return await self._amended(session_id, activity=True)
            except (SessionNotFoundError, SessionEndedError, SessionExpiredError):
                continue
        return None

    async def _active_ids(self, user_id: str, recent: Iterable[str]) -> AsyncIterator[str]:
        """The user's active sessions, the most recently active first, those included that an index does not show."""
        place: Cursor | None = None
        unseen = set(recent)
        while True:
            page = await self._find(user_id, "active", "activity", _FEW, place)
            scope = Key(self.tenant_id, "session", "")
            records = [record_found(scope, found, page.now) for found in page.found]
            for session_id in unseen - {record.session_id for record in records}:
                record = await self._read(scope._replace(id=session_id))
                if record is not None and record.user_id == user_id and record.status == "active":
                    records.append(record)
            unseen = set()
            for record in sorted(records, key=lambda record: (record.last_active_at, record.session_id), reverse=True):
                yield record.session_id
            place = page.next
            if place is None:
                return


@dataclass(frozen=True)
class _Made:
    """What a new session is to be."""

    key: Key
    user_id: str | None
    own: Own
    expires_at: int | None
    fields: dict[str, bytes]


def _exists(key: Key) -> SessionExistsError:
    return SessionExistsError(f"there is a session {key.id!r} already", field="session_id")


def _too_many(user_id: str, number: int, allowed: int) -> SessionLimitError:
    return SessionLimitError(
        f"user {user_id!r} has {number} sessions; the policy allows {allowed}. End one, or set on_limit to end_oldest.",
        field="user_id",
    )


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
