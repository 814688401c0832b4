"""Opening sessions: turns and snapshots, and the manager that all operations are on."""

from __future__ import annotations

import asyncio
import copy
import logging
import math
import os
import threading
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AbstractContextManager, asynccontextmanager, suppress
from typing import Any, Literal, Self, get_args, overload

from .auth import AuthContext, act_as, acting, agreed
from .background import uncancelled
from .errors import (
    CommitUnknownError,
    ForbiddenError,
    InvalidError,
    SessionBusyError,
    SessionConflictError,
    SessionEndedError,
    SessionError,
    SessionExpiredError,
    SessionNotFoundError,
)
from .events import Listener, Listeners
from .identifiers import DEFAULT_TENANT, check_id, check_name
from .lifecycle import Lifecycle, Policies
from .lifecycle.arguments import check_metadata, check_seconds, merged_metadata
from .record import MESSAGES, SessionRecord, record_of
from .session import Session, enter_session, joined_session, leave_session
from .settings import Settings
from .stores import open_store
from .stores.base import CommitStatus, Key, LeaseWanted, Opened, Part, Store, Wanted
from .stores.lifetime import Lifetime
from .telemetry import Observation, observed_turn
from .turns.cache import ImageCache
from .turns.commits import parse_commit_name
from .turns.image import Image
from .turns.leases import LeaseKeeper, new_owner
from .turns.turn import CommitMode, Turn

logger = logging.getLogger("agent_sessions")

LogsWanted = Mapping[tuple[str, str], int | None]
"""Logs to load when a session is opened: (namespace, name) → how many items from the end, None for all."""

_LONGEST_NAP_S = 1.0
"""A waiting turn asks again at least so often: that keeps its place in the queue."""


class SessionManager(Lifecycle):
    """Sessions of one tenant in one store: turns on them, and what becomes of them.

    `SessionManager.from_env()` is the process's shared one, configured by `AK_SESSION__*`. `SessionManager(store)`
    stands alone.

    Args:
        store: Where sessions are kept. It is the caller's to close. None: the one that the settings name.
        settings: Turns, TTL and cache. None: the defaults.
        tenant_id: The tenant of every session that this manager reaches.
    """

    def __init__(
        self, store: Store | None = None, *, settings: Settings | None = None, tenant_id: str = DEFAULT_TENANT
    ) -> None:
        self.settings = settings or Settings()
        self.store = store or open_store(self.settings)
        self._tenant = check_id(tenant_id, "tenant_id")
        self._owns_store = store is None
        self.lease_ms = round(self.settings.turn.lease_s * 1000)
        ttl = self.settings.session_ttl
        self.ttl_ms = None if ttl is None else round(ttl.total_seconds() * 1000)
        self._listeners = Listeners()
        self.policies = Policies(self.store, self.settings.policy, self.ttl_ms)
        self._cache = ImageCache(self.settings.cache.size, self.settings.cache.max_bytes)
        self.leases = LeaseKeeper(self.store, self.lease_ms)

    @classmethod
    def from_env(cls) -> SessionManager:
        """The manager that everything configured from the environment shares, as the environment is now.

        It lives as long as the process: closing it closes connections, and forgets nothing.
        """
        settings = Settings.load()
        with _shared_lock:
            manager = _shared.get(settings)
            if manager is None:
                manager = _shared[settings] = cls(settings=settings)
                manager._owns_store = False
            return manager

    def for_tenant(self, tenant_id: str) -> Self:
        """The same manager for a tenant's sessions.

        Raises:
            ForbiddenError: This one is for another tenant, and can't reach out of it.
        """
        other = copy.copy(self)
        other._tenant = agreed(check_id(tenant_id, "tenant_id"), self._own_tenant, "tenant_id") or tenant_id
        other._owns_store = False
        return other

    def _in(self, tenant_id: str | None) -> Self:
        return self if tenant_id is None else self.for_tenant(tenant_id)

    @property
    def _own_tenant(self) -> str | None:
        """The tenant that this was made for. None: for whichever an argument names."""
        return None if self._tenant == DEFAULT_TENANT else self._tenant

    @property
    def tenant_id(self) -> str:
        """The tenant of every session that this manager reaches: its own, or that of the identity that is acting.

        Raises:
            ForbiddenError: The two contradict each other.
        """
        return agreed(self._own_tenant, acting(self.store).tenant_id, "tenant_id") or self._tenant

    def acting_as(self, auth: AuthContext) -> AbstractContextManager[AuthContext]:
        """In this block, act with an identity: it says tenant and user where an argument does not.

        An argument that contradicts it is refused (`FORBIDDEN`); with `AK_SESSION__ENFORCE_OWNERSHIP`, so is a session
        that belongs to another user.
        """
        return act_as(self.store, auth)

    def listen(self, listener: Listener) -> Callable[[], None]:
        """Tell a function or coroutine function what happens to sessions through this manager, in this process.

        That of one tenant hears of this tenant's sessions, the one of no tenant in particular of all. Returns what ends
        it. `ended` by the clock comes from `expire_idle`.
        """
        return self._listeners.add(listener, self._own_tenant)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Close the connections that this manager opened. What is stored stays, also in memory."""
        await (self.store.aclose() if self._owns_store else self.store.detach())

    # ------------------------------------------------------------------------------------------------ turns

    @asynccontextmanager
    async def open(
        self,
        session: str | Session,
        *,
        create: bool = True,
        user_id: str | None = None,
        metadata: Mapping[str, Any] | None = None,
        commit: CommitMode = "turn",
        wait_s: float | None = None,
        logs: LogsWanted | None = None,
    ) -> AsyncIterator[Session]:
        """Run one turn on a session: what is changed in it is stored at the end, or nothing if the block raises.

        Inside a turn on the same session, also in a child task or a thread, this joins it: the same session comes
        out, and everything is stored, or discarded, with the outer turn.

        Args:
            session: Its id, or a `Session` made by hand.
            create: False: the session must exist.
            user_id: The user that a new session belongs to. Of an existing one it must be the same, or nobody.
            metadata: What to merge into the record's metadata; None as a value removes a key.
            commit: `turn`: all at the end. `step`: each write to a log or collection is stored by itself at once,
                values with it, and what is stored stays if the block raises.
            wait_s: Seconds to wait while another turn has the session; 0 is not at all. None: as configured.
            logs: Logs to load with the session in the same round trip; others are loaded when first read.

        Raises:
            SessionBusyError: Another turn kept the session for longer than that.
            SessionNotFoundError: `create=False`, and there is none; or it was deleted while the turn ran.
            SessionEndedError, SessionExpiredError: It takes no more writes; at the end: it was ended meanwhile.
            SessionConflictError: At the end: the lease was lost and another turn has changed the session; or the user
                of a new session is being erased.
            ForbiddenError: It belongs to another user.
            StoreUnavailableError: The store can't be reached.
            CommitUnknownError: At the end: the store stopped answering; `commit_status` tells later.
        """
        key, belongs_to = self._key(session), self._user(user_id)
        changes = {} if metadata is None else check_metadata(metadata)
        if commit not in get_args(CommitMode):
            raise InvalidError("COMMIT", "commit must be turn or step", field="commit")
        joined = joined_session(self.store, key)
        if joined is not None:
            self._check_owner(key, joined.user_id, user_id)
            _merge_metadata(joined._open_turn(), changes)
            if isinstance(session, Session):
                joined._admit(session)
            yield joined
            return
        with observed_turn(key) as observation:
            turn = await self._begin(key, user_id, commit, wait_s, logs or {}, create, observation)
            turn.belongs_to = belongs_to
            turn.traffic = observation.traffic
            async with self._running(turn, session) as opened:
                _merge_metadata(turn, changes)
                yield opened

    @asynccontextmanager
    async def attempt(self, session_id: str) -> AsyncIterator[Session]:
        """Run one turn on a session as this process has seen it last, without its lease: one round trip in all.

        It neither waits nor makes others wait. Inside a turn on the same session it joins it, as `open` does.

        Raises:
            SessionConflictError: The session has changed since, this process does not know it, or another turn holds
                it. Nothing is stored; do the same again in `open`.
            SessionNotFoundError: It is gone.
            SessionEndedError, SessionExpiredError: It takes no more writes.
            ForbiddenError: It belongs to another user.
        """
        key = self._key(session_id)
        joined = joined_session(self.store, key)
        if joined is not None:
            self._check_owner(key, joined.user_id)
            yield joined
            return
        image = self._cache.get(key)
        if image.row is None:
            raise SessionConflictError(f"session {session_id!r} is not known here; open it")
        self._check_owner(key, image.belongs_to)
        with observed_turn(key) as observation:
            turn = self._turn(key, image, None, "turn", await self._lifetime())
            turn.traffic = observation.traffic
            try:
                async with self._running(turn, session_id, leased=False) as opened:
                    yield opened
            except CommitUnknownError as error:
                if turn.traffic.round_trips > 1:
                    raise
                # It was sent once, and refused: what was seen last is too long ago for the store to remember.
                raise SessionConflictError(f"session {session_id!r} has changed; open it") from error

    def joined(self, session: str | Session) -> Session | None:
        """The session of the turn on this session that the calling code is part of already, or None."""
        return joined_session(self.store, self._key(session))

    @asynccontextmanager
    async def read(self, session: str | Session, *, logs: LogsWanted | None = None) -> AsyncIterator[Session]:
        """Read a session as it is stored now, beside a turn that may be running on it, without its lease.

        All values, and the `logs` asked for, are of one moment. A log or collection that is first read later must
        still be of that moment, else `SessionConflictError` says so. Of an absent session everything is empty, and
        `record` is None.

        Raises:
            StoreUnavailableError: The store can't be reached.
        """
        key = self._key(session)
        image = await self._load(key, logs or {})
        self._check_owner(key, image.belongs_to)
        turn = Turn(self.store, key, image, owner=None)
        try:
            yield Session._of(turn)
        finally:
            turn.close(f"this snapshot of session {key.id!r} is over")

    async def append(
        self,
        session: str | Session,
        namespace: str,
        log: str,
        items: Sequence[Any],
        *,
        user_id: str | None = None,
        messages: bool = False,
    ) -> None:
        """Add items to a session's log at once, all or none, in one round trip; a new session is made by it.

        Inside a turn on that session it is part of the turn. Otherwise it waits for a turn that is running, as
        `open` does, but not for one that only reads. With a `user_id` the first append of a process takes two round
        trips: it has to see whose session it is. `messages` is as in `Namespace.log`.

        Raises:
            SerializationError: An item can't be stored.
            SessionBusyError: Another turn kept the session for too long.
            ForbiddenError: It belongs to another user.
            StoreUnavailableError, CommitUnknownError: As in `open`.
        """
        key, belongs_to = self._key(session), self._user(user_id)
        image = self._cache.get(key)
        is_known_owner = belongs_to is None or (image.row is not None and image.row.belongs_to == belongs_to)
        if is_known_owner and joined_session(self.store, key) is None:
            part = Part(check_name(namespace, "namespace"), check_name(log, "name"))
            turn = self._turn(key, image, belongs_to, "turn", await self._lifetime(), blind=True)
            await turn.append_items(part, items, counter=MESSAGES if messages else None)
            try:
                await self._commit(turn)
            except SessionBusyError:
                pass  # stand in the queue, below
            else:
                return
        async with self.open(session, user_id=user_id) as opened:
            await opened.namespace(namespace).log(log, messages=messages).append(items)

    # ------------------------------------------------------------------------------------------------ one session

    @overload
    async def get(self, session_id: str, *, strict: Literal[True]) -> SessionRecord: ...

    @overload
    async def get(self, session_id: str, *, strict: bool = False) -> SessionRecord | None: ...

    async def get(self, session_id: str, *, strict: bool = False) -> SessionRecord | None:
        """The record of a session; None if there is no such session in this tenant.

        Raises:
            SessionNotFoundError: With `strict`: there is none.
        """
        key = self._key(session_id)
        image = await self._load(key, {})
        self._check_owner(key, image.belongs_to)
        record = record_of(key, image)
        if record is None and strict:
            raise SessionNotFoundError(f"there is no session {session_id!r}")
        return record

    async def commit_status(self, session_id: str, commit_id: str) -> CommitStatus:
        """Whether a commit that ended in `CommitUnknownError` is stored.

        Returns `stored`, `not_stored`, or `unknown` when more than 64 commits have followed since.
        """
        try:
            since, raw = parse_commit_name(commit_id)
        except (AttributeError, ValueError):
            raise InvalidError(
                "COMMIT_ID", "commit_id must be the one that a CommitUnknownError carries", field="commit_id"
            ) from None
        return await self.store.commit_status(await self._owned(session_id), raw, since=since)

    # ------------------------------------------------------------------------------------------------ inside

    def _key(self, session: str | Session) -> Key:
        if not isinstance(session, Session):
            return Key(self.tenant_id, "session", check_id(session, "session_id"))
        if session.tenant_id not in (self.tenant_id, DEFAULT_TENANT):
            raise ForbiddenError(f"this manager is not for tenant {session.tenant_id!r}", field="tenant_id")
        return Key(self.tenant_id, "session", session.id)

    def _turn(
        self,
        key: Key,
        image: Image,
        user_id: str | None,
        mode: CommitMode,
        lifetime: Lifetime,
        *,
        owner: str = "",
        blind: bool = False,
    ) -> Turn:
        return Turn(
            self.store,
            key,
            image,
            owner=owner or new_owner(),
            lease_ms=self.lease_ms,
            lifetime=lifetime,
            belongs_to=user_id,
            mode=mode,
            blind=blind,
        )

    async def _load(self, key: Key, logs: LogsWanted) -> Image:
        held = self._cache.get(key)
        wanted = held.wanted(_parts(logs))
        image = held.learned(await self.store.open(key, wanted=wanted, known=held.known), wanted)
        self._cache.put(key, image)
        return image

    async def _begin(
        self,
        key: Key,
        user_id: str | None,
        commit: CommitMode,
        wait_s: float | None,
        logs: LogsWanted,
        create: bool,
        observation: Observation,
    ) -> Turn:
        held, owner = self._cache.get(key), new_owner()
        wanted = held.wanted(_parts(logs))
        reading = None if self.policies.is_known(key.tenant) else asyncio.ensure_future(self._lifetime())
        try:
            opened = await self._take(key, owner, wanted, held, wait_s, observation)
            image = held.learned(opened, wanted)
            if image.row is None and not create:
                raise SessionNotFoundError(f"there is no session {key.id!r}")
            self._check_owner(key, image.belongs_to, user_id)
            _check_not_ended(key, image)
            if image.row is not None and (image.row.idle_at or math.inf) < opened.now + self.lease_ms:
                await self.store.renew(key, owner, self.lease_ms)  # it must not idle, end or go while the turn runs
            in_force = await (self._lifetime() if reading is None else reading)
        except BaseException:
            await self._release(key, owner)
            raise
        finally:
            if reading is not None:
                reading.cancel()
                await asyncio.gather(reading, return_exceptions=True)
        self.leases.hold(key, owner)
        return self._turn(key, image, user_id, commit, in_force, owner=owner)

    async def _take(
        self, key: Key, owner: str, wanted: Wanted, held: Image, wait_s: float | None, observation: Observation
    ) -> Opened:
        """Open with the lease, waiting in the queue while another turn has it."""
        patience = self.patience(wait_s)
        started = time.monotonic()
        lease = LeaseWanted(owner, self.lease_ms, queue=False)
        while True:
            opened = await self.store.open(key, wanted=wanted, known=held.known, lease=lease)
            observation.traffic.count_read(opened)
            observation.wait_s = time.monotonic() - started
            if opened.granted:
                return opened
            left = patience - observation.wait_s
            if left <= 0:
                raise _busy(key, opened, patience)
            if lease.queue:
                await self.store.wait(key, owner, min(left, _LONGEST_NAP_S))
            lease = lease._replace(queue=True)

    def patience(self, wait_s: float | None = None) -> float:
        """How many seconds a turn waits, if it is told so many, or nothing (None)."""
        if wait_s is None:
            return 0.0 if self.settings.turn.on_busy == "reject" else self.settings.turn.wait_s
        return check_seconds(wait_s, "wait_s")

    @asynccontextmanager
    async def _running(self, turn: Turn, given: str | Session, *, leased: bool = True) -> AsyncIterator[Session]:
        """The turn as the current one of this context: committed at the end, or discarded."""
        session = Session._of(turn)
        try:
            if isinstance(given, Session):
                session._admit(given)
            token = enter_session(session)
            try:
                yield session
            finally:
                leave_session(token)
            await self._commit(turn)
        except BaseException:
            if not turn.is_stored:
                await uncancelled(self._discard(turn) if leased else turn.discard())
                self._listeners.tell("turn_discarded", turn.key, user_id=turn.belongs_to)
            raise
        finally:
            self.leases.drop(turn.owner or "")
            session._dismiss()

    async def _commit(self, turn: Turn) -> None:
        """Store a turn. What follows on that follows too if this is cancelled when it is on its way."""
        try:
            await turn.commit(release=True)
        except asyncio.CancelledError:
            if turn.is_stored:
                with suppress(SessionError):
                    await self._committed(turn)
            raise
        following = self._committed(turn)
        await (uncancelled(following) if turn.has_given else following)

    async def _committed(self, turn: Turn) -> None:
        """What follows on a turn that is stored."""
        self._remember(turn)
        user_id = turn.image.row.belongs_to if turn.image.row is not None else turn.belongs_to
        if turn.has_given:
            await self._unless_erased(turn.key, user_id)
        if turn.has_made:
            self._listeners.tell("created", turn.key, user_id=user_id)
        self._listeners.tell("turn_committed", turn.key, user_id=user_id, revision=turn.image.revision)

    async def _discard(self, turn: Turn) -> None:
        await turn.discard()
        await self._release(turn.key, turn.owner or "")

    def _remember(self, turn: Turn) -> None:
        self._cache.put(turn.key, turn.image) if turn.is_certain else self._cache.drop(turn.key)

    async def _release(self, key: Key, owner: str) -> None:
        """Give the lease up as soon as possible; if the store is away, it runs out by itself."""
        try:
            releasing = asyncio.wait_for(self.store.release(key, owner), timeout=self.lease_ms / 1000)
            await uncancelled(releasing)
        except Exception as error:  # whatever it is, it must not hide why the turn ended
            logger.warning(
                "the lease of session %r could not be given up (%s); it will run out", key.id, type(error).__name__
            )


_shared: dict[Settings, SessionManager] = {}
_shared_lock = threading.Lock()


def _after_fork() -> None:
    global _shared_lock
    _shared_lock = threading.Lock()  # whoever held it is not in this process


os.register_at_fork(after_in_child=_after_fork)


def _parts(logs: LogsWanted) -> dict[Part, int | None]:
    return {
        Part(check_name(namespace, "namespace"), check_name(name, "name")): limit
        for (namespace, name), limit in logs.items()
    }


def _check_not_ended(key: Key, image: Image) -> None:
    if image.row is not None and image.row.stamps.status(image.now) == "ended":
        if image.row.expires:
            raise SessionExpiredError(f"session {key.id!r} has expired")
        raise SessionEndedError(f"session {key.id!r} has ended")


def _merge_metadata(turn: Turn, changes: Mapping[str, Any]) -> None:
    if changes:
        turn.set_field("metadata", merged_metadata(turn.field("metadata") or {}, changes))


def _busy(key: Key, opened: Opened, patience: float) -> SessionBusyError:
    who = "another turn" if opened.lease is None else f"a turn on {opened.lease.owner}"
    return SessionBusyError(
        f"session {key.id!r} is held by {who}, and it was not free within {patience:g} s. Wait longer (wait_s), or, "
        f"if that turn is stuck, unlock({key.id!r}, force=True)."
    )
