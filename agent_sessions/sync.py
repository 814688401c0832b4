"""The same without async. One implementation underneath: store I/O happens in the background thread's event loop."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, AbstractContextManager, contextmanager
from datetime import timedelta
from functools import partial
from typing import Any, Concatenate, Literal, ParamSpec, Self, TypeVar, overload

from .admin import AdminManager
from .auth import AuthContext
from .background import call, portal
from .errors import InvalidError
from .events import Listener
from .lifecycle import ExpiredSessions, Stats
from .manager import LogsWanted, SessionManager
from .policy import Policy
from .record import SessionRecord
from .session import Collection, Log, Namespace, Session, ValueNamespace, enter_session, leave_session
from .settings import Settings
from .stores.base import Store
from .turns.turn import CommitMode

P = ParamSpec("P")
T = TypeVar("T")


class SyncLog:
    """A `Log`, blocking."""

    def __init__(self, log: Log) -> None:
        self._log = log

    def append(self, items: Sequence[Any]) -> None:
        """See `Log.append`."""
        _call(self._log._session, self._log.append, items)

    def read(self, limit: int | None = None) -> list[Any]:
        """See `Log.read`."""
        return _call(self._log._session, self._log.read, limit)

    def pop(self) -> Any:
        """See `Log.pop`."""
        return _call(self._log._session, self._log.pop)

    def clear(self) -> None:
        """See `Log.clear`."""
        _call(self._log._session, self._log.clear)

    def count(self) -> int:
        """See `Log.count`."""
        return _call(self._log._session, self._log.count)


class SyncCollection:
    """A `Collection`, blocking."""

    def __init__(self, collection: Collection) -> None:
        self._collection = collection

    def get(self, key: str, default: Any = None) -> Any:
        """See `Collection.get`."""
        return _call(self._collection._session, self._collection.get, key, default)

    def get_many(self, keys: Iterable[str]) -> dict[str, Any]:
        """See `Collection.get_many`."""
        return _call(self._collection._session, self._collection.get_many, keys)

    def put(self, key: str, value: Any) -> None:
        """See `Collection.put`."""
        _call(self._collection._session, self._collection.put, key, value)

    def put_many(self, entries: Mapping[str, Any]) -> None:
        """See `Collection.put_many`."""
        _call(self._collection._session, self._collection.put_many, entries)

    def delete(self, *keys: str) -> None:
        """See `Collection.delete`."""
        _call(self._collection._session, self._collection.delete, *keys)

    def delete_prefix(self, prefix: str) -> None:
        """See `Collection.delete_prefix`."""
        _call(self._collection._session, self._collection.delete_prefix, prefix)

    def range(
        self,
        *,
        prefix: str = "",
        after: str | None = None,
        before: str | None = None,
        reverse: bool = False,
        limit: int | None = None,
    ) -> list[tuple[str, Any]]:
        """See `Collection.range`."""

        async def found() -> list[tuple[str, Any]]:
            return await self._collection.range(prefix=prefix, after=after, before=before, reverse=reverse, limit=limit)

        return _call(self._collection._session, found)


class SyncNamespace(ValueNamespace):
    """A `Namespace` whose logs and collections block."""

    def log(self, name: str, *, messages: bool = False) -> SyncLog:
        """See `Namespace.log`."""
        return SyncLog(Namespace(self._session, self.name).log(name, messages=messages))

    def collection(self, name: str) -> SyncCollection:
        """See `Namespace.collection`."""
        return SyncCollection(Collection(self._session, self._part(name)))


class SyncSession(SyncNamespace):
    """A `Session` whose logs and collections block. Values are the same in both."""

    def __init__(self, session: Session) -> None:
        super().__init__(session, session.name)

    @property
    def id(self) -> str:
        """The session's id."""
        return self._session.id

    @property
    def tenant_id(self) -> str:
        """The session's tenant."""
        return self._session.tenant_id

    @property
    def user_id(self) -> str | None:
        """See `Session.user_id`."""
        return self._session.user_id

    @property
    def metadata(self) -> dict[str, Any]:
        """See `Session.metadata`."""
        return self._session.metadata

    @property
    def record(self) -> SessionRecord | None:
        """See `Session.record`."""
        return self._session.record

    @property
    def revision(self) -> int:
        """See `Session.revision`."""
        return self._session.revision

    @property
    def volatile(self) -> dict[str, Any]:
        """See `Session.volatile`."""
        return self._session.volatile

    def count_messages(self, more: int) -> None:
        """See `Session.count_messages`."""
        self._session.count_messages(more)

    def namespace(self, name: str) -> SyncNamespace:
        """See `Session.namespace`."""
        return SyncNamespace(self._session, name)

    def namespaces(self) -> list[str]:
        """See `Session.namespaces`."""
        return self._session.namespaces()


def _blocking(
    operation: Callable[Concatenate[SessionManager, P], Coroutine[Any, Any, T]],
) -> Callable[Concatenate[SyncSessionManager, P], T]:
    """The blocking half of an operation, with its parameters and documentation."""

    def blocking(self: SyncSessionManager, /, *args: P.args, **kwargs: P.kwargs) -> T:
        return call(partial(operation, self._manager, *args, **kwargs))

    blocking.__name__, blocking.__doc__ = operation.__name__, operation.__doc__
    blocking.__qualname__ = f"SyncSessionManager.{operation.__name__}"
    blocking.__signature__ = inspect.signature(operation)  # type: ignore[attr-defined]
    return blocking


class SyncSessionManager:
    """A `SessionManager`, blocking. Called from a running event loop, it holds that loop up: use the other there.

    Args:
        store: As for `SessionManager`.
        settings: As for `SessionManager`.
        manager: The manager to be the blocking half of, in place of the two above.
    """

    def __init__(
        self,
        store: Store | None = None,
        *,
        settings: Settings | None = None,
        manager: SessionManager | None = None,
    ) -> None:
        self._manager = manager or SessionManager(store, settings=settings)

    @classmethod
    def from_env(cls) -> SyncSessionManager:
        """The blocking half of `SessionManager.from_env()`."""
        return cls(manager=SessionManager.from_env())

    def for_tenant(self, tenant_id: str) -> SyncSessionManager:
        """See `SessionManager.for_tenant`."""
        return SyncSessionManager(manager=self._manager.for_tenant(tenant_id))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """See `SessionManager.aclose`."""
        call(self._manager.aclose)

    @contextmanager
    def open(
        self,
        session: str | Session,
        *,
        create: bool = True,
        user_id: str | None = None,
        metadata: Mapping[str, Any] | None = None,
        commit: CommitMode = "turn",
        wait_s: float | None = None,
        logs: LogsWanted | None = None,
    ) -> Iterator[SyncSession]:
        """See `SessionManager.open`."""
        opening = self._manager.open(
            session, create=create, user_id=user_id, metadata=metadata, commit=commit, wait_s=wait_s, logs=logs
        )
        with _entered(opening) as opened:
            token = enter_session(opened)
            try:
                yield SyncSession(opened)
            finally:
                leave_session(token)

    @contextmanager
    def attempt(self, session_id: str) -> Iterator[SyncSession]:
        """See `SessionManager.attempt`."""
        with _entered(self._manager.attempt(session_id)) as attempted:
            token = enter_session(attempted)
            try:
                yield SyncSession(attempted)
            finally:
                leave_session(token)

    def joined(self, session: str | Session) -> SyncSession | None:
        """See `SessionManager.joined`."""
        joined = self._manager.joined(session)
        return None if joined is None else SyncSession(joined)

    @contextmanager
    def read(self, session: str | Session, *, logs: LogsWanted | None = None) -> Iterator[SyncSession]:
        """See `SessionManager.read`."""
        with _entered(self._manager.read(session, logs=logs)) as snapshot:
            yield SyncSession(snapshot)

    @overload
    def get(self, session_id: str, *, strict: Literal[True]) -> SessionRecord: ...

    @overload
    def get(self, session_id: str, *, strict: bool = False) -> SessionRecord | None: ...

    def get(self, session_id: str, *, strict: bool = False) -> SessionRecord | None:
        """See `SessionManager.get`."""
        return call(partial(self._manager.get, session_id, strict=strict))

    append = _blocking(SessionManager.append)
    create = _blocking(SessionManager.create)
    get_or_create = _blocking(SessionManager.get_or_create)
    touch = _blocking(SessionManager.touch)
    update = _blocking(SessionManager.update)
    extend = _blocking(SessionManager.extend)
    end = _blocking(SessionManager.end)
    end_all = _blocking(SessionManager.end_all)
    delete = _blocking(SessionManager.delete)
    delete_user = _blocking(SessionManager.delete_user)
    list = _blocking(SessionManager.list)
    count = _blocking(SessionManager.count)
    stats = _blocking(SessionManager.stats)
    get_active = _blocking(SessionManager.get_active)
    expire_idle = _blocking(SessionManager.expire_idle)
    fork = _blocking(SessionManager.fork)
    export = _blocking(SessionManager.export)
    import_ = _blocking(SessionManager.import_)
    get_policy = _blocking(SessionManager.get_policy)
    set_policy = _blocking(SessionManager.set_policy)
    apply_policy = _blocking(SessionManager.apply_policy)
    lock = _blocking(SessionManager.lock)
    unlock = _blocking(SessionManager.unlock)
    commit_status = _blocking(SessionManager.commit_status)

    @property
    def tenant_id(self) -> str:
        """See `SessionManager.tenant_id`."""
        return self._manager.tenant_id

    def acting_as(self, auth: AuthContext) -> AbstractContextManager[AuthContext]:
        """See `SessionManager.acting_as`."""
        return self._manager.acting_as(auth)

    def listen(self, listener: Listener) -> Callable[[], None]:
        """See `SessionManager.listen`. It is called in the background thread, where it can't call this manager."""
        return self._manager.listen(listener)


class SyncAdminManager:
    """An `AdminManager`, blocking.

    Args:
        manager: As for `AdminManager`.
    """

    def __init__(self, manager: SyncSessionManager) -> None:
        self._admin = AdminManager(manager._manager)

    @classmethod
    def from_env(cls) -> SyncAdminManager:
        """The blocking half of `AdminManager.from_env()`."""
        return cls(SyncSessionManager.from_env())

    def for_tenant(self, tenant_id: str) -> SyncSessionManager:
        """See `AdminManager.for_tenant`."""
        return SyncSessionManager(manager=self._admin.for_tenant(tenant_id))

    def tenants(self) -> list[str]:
        """See `AdminManager.tenants`."""
        return call(self._admin.tenants)

    def stats(self) -> dict[str, Stats]:
        """See `AdminManager.stats`."""
        return call(self._admin.stats)

    def expire_idle(
        self, *, max_age: float | timedelta | str | None = None, dry_run: bool = False, limit: int = 10_000
    ) -> dict[str, ExpiredSessions]:
        """See `AdminManager.expire_idle`."""
        return call(partial(self._admin.expire_idle, max_age=max_age, dry_run=dry_run, limit=limit))

    def get_policy(self) -> Policy:
        """See `AdminManager.get_policy`."""
        return call(self._admin.get_policy)

    def set_policy(self, policy: Policy | Mapping[str, Any] | None) -> None:
        """See `AdminManager.set_policy`."""
        call(self._admin.set_policy, policy)

    def apply_policy(self) -> dict[str, int]:
        """See `AdminManager.apply_policy`."""
        return call(self._admin.apply_policy)


def _call(session: Session, function: Callable[..., Awaitable[T]], *args: Any) -> T:
    """Run an operation of a session in the background thread; refuse what would wait for itself for ever."""
    try:
        loop = asyncio.get_running_loop()
    except RuntimeError:
        return call(function, *args)
    if session._open_turn().is_busy_on(loop):
        raise InvalidError(
            "CONTEXT",
            "a blocking call on a session whose operation is under way on this very event loop would never return: "
            "use the session's async half here, or call from a thread",
            field="session",
        )
    return call(function, *args)


@contextmanager
def _entered(opening: AbstractAsyncContextManager[Session]) -> Iterator[Session]:
    with portal().wrap_async_context_manager(opening) as session:
        yield session
