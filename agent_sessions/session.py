"""What users hold: a session, its namespaces, and the logs and collections in them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextvars import ContextVar, Token
from typing import Any, TypeVar

from .errors import InvalidError, TurnClosedError
from .identifiers import (
    DEFAULT_NAMESPACE,
    DEFAULT_TENANT,
    check_collection_key,
    check_id,
    check_name,
    check_prefix,
)
from .record import MESSAGES, SessionRecord, record_of
from .stores.base import EntryRange, Key, Part, Store
from .turns.turn import Turn
from .turns.values import Values

T = TypeVar("T")


class Log:
    """An append-only ordered list in a namespace. Get it from `Namespace.log`."""

    def __init__(self, session: Session, part: Part, counter: str | None = None) -> None:
        self._session = session
        self._part = part
        self._counter = counter

    async def append(self, items: Sequence[Any]) -> None:
        """Add items at the end: all of them, or none.

        Raises:
            SerializationError: An item can't be stored; `field` is the path to what can't: `items[2].when`.
        """
        await self._session._open_turn().append_items(self._part, items, counter=self._counter)

    async def read(self, limit: int | None = None) -> list[Any]:
        """The last `limit` items (None: all), oldest first, in a new list.

        Read them, don't change them: a change is never stored, and is undone before the next reader gets them.
        """
        return await self._session._open_turn().read_items(self._part, _checked_limit(limit))

    async def pop(self) -> Any:
        """Take the last item off and return it; None if the log is empty."""
        return await self._session._open_turn().pop_item(self._part, counter=self._counter)

    async def clear(self) -> None:
        """Take all items off."""
        await self._session._open_turn().clear_items(self._part, counter=self._counter)

    async def count(self) -> int:
        """How many items the log has."""
        return await self._session._open_turn().count_items(self._part)

    def __repr__(self) -> str:
        return f"Log({self._part.namespace!r}, {self._part.name!r})"


class Collection:
    """An ordered map of keyed entries in a namespace. Get it from `Namespace.collection`.

    Keys are ordered by their UTF-8 bytes, 1 to 512 of them. Entries are copies: put one again to change it.
    """

    def __init__(self, session: Session, part: Part) -> None:
        self._session = session
        self._part = part

    async def get(self, key: str, default: Any = None) -> Any:
        """The entry of a key, or the default."""
        found = await self.get_many([key])
        return found.get(key, default)

    async def get_many(self, keys: Iterable[str]) -> dict[str, Any]:
        """Those of these keys that have an entry, with it; one round trip at the most."""
        wanted = [check_collection_key(key) for key in keys]
        return await self._session._open_turn().get_entries(self._part, wanted)

    async def put(self, key: str, value: Any) -> None:
        """Put an entry.

        Raises:
            SerializationError: The value can't be stored; `field` is the path to what can't.
        """
        await self.put_many({key: value})

    async def put_many(self, entries: Mapping[str, Any]) -> None:
        """Put entries: all of them, or none."""
        for key in entries:
            check_collection_key(key)
        await self._session._open_turn().put_entries(self._part, entries)

    async def delete(self, *keys: str) -> None:
        """Delete the entries of these keys; not an error if there are none."""
        await self._session._open_turn().delete_entries(self._part, [check_collection_key(key) for key in keys])

    async def delete_prefix(self, prefix: str) -> None:
        """Delete all entries whose key starts so; the empty prefix is all of them."""
        await self._session._open_turn().delete_prefix(self._part, check_prefix(prefix))

    async def range(
        self,
        *,
        prefix: str = "",
        after: str | None = None,
        before: str | None = None,
        reverse: bool = False,
        limit: int | None = None,
    ) -> list[tuple[str, Any]]:
        """The entries whose key starts with `prefix` and lies strictly between `after` and `before`, in order.

        With `reverse` the highest key comes first; `limit` counts from the first.
        """
        for bound, field in ((after, "after"), (before, "before")):
            if bound is not None:
                check_prefix(bound, field)
        asked = EntryRange(self._part, check_prefix(prefix), after, before, reverse, _checked_limit(limit))
        return await self._session._open_turn().range_entries(asked)

    def __repr__(self) -> str:
        return f"Collection({self._part.namespace!r}, {self._part.name!r})"


class ValueNamespace:
    """The values of a part of a session, by name.

    They are there without waiting; every operation on them is safe from any thread. A value read is the same object
    for the whole turn, and changes made to it in place are stored with the turn.
    """

    name: str

    def __init__(self, session: Session, name: str) -> None:
        self._home = session
        self.name = check_name(name, "namespace")

    def get(self, name: str, default: Any = None) -> Any:
        """The value of this name, or the default.

        Raises:
            SerializationError: The stored value can't be decoded here, for example because its class is not
                registered. Other values are not affected.
        """
        return self._session._values().get(self._part(name), default)

    def set(self, name: str, value: Any) -> None:
        """Set a value: JSON types, bytes, datetime, Decimal, UUID, set, tuple and registered classes, up to 16 MiB.

        Raises:
            SerializationError: It can't be stored exactly; `field` is the path to what can't: `cart[2].when`.
            CommitTooLargeError: It takes more than 16 MiB.
        """
        self._session._values().set(self._part(name), value)

    def update(self, name: str, change: Callable[[Any], Any], default: Any = None) -> Any:
        """Set the value to `change(value)` and return it; no other thread or task gets in between.

        `default` stands for a missing value. `change` must not wait: it holds all other values up.
        """
        return self._session._values().update(self._part(name), change, default)

    def delete(self, name: str) -> None:
        """Delete a value; not an error if there is none."""
        self._session._values().delete(self._part(name))

    def keys(self) -> list[str]:
        """The names of all values, sorted."""
        return self._session._values().names(self.name)

    def items(self) -> list[tuple[str, Any]]:
        """All values with their names, sorted by name."""
        return [(name, self.get(name)) for name in self.keys()]

    def clear(self) -> None:
        """Delete all values. Logs and collections stay: they have a `clear` and a `delete_prefix` of their own."""
        for name in self.keys():
            self.delete(name)

    def logs(self) -> dict[str, int]:
        """The names of all logs that have items, with how many."""
        counts = self._session._open_turn().log_counts()
        return {part.name: count for part, count in sorted(counts.items()) if part.namespace == self.name}

    def collections(self) -> list[str]:
        """The names of all collections that have entries, sorted."""
        filled = self._session._open_turn().filled_collections()
        return sorted(part.name for part in filled if part.namespace == self.name)

    def __contains__(self, name: str) -> bool:
        return name in self.keys()

    def __len__(self) -> int:
        return len(self.keys())

    def __bool__(self) -> bool:
        return True

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.name!r} of {self._session.id!r})"

    @property
    def _session(self) -> Session:
        return self._home

    def _part(self, name: str) -> Part:
        return Part(self.name, check_name(name, "name"))


class Namespace(ValueNamespace):
    """A part of a session, one for each framework: values by name, logs and collections."""

    def log(self, name: str, *, messages: bool = False) -> Log:
        """The log of this name; it exists once something was appended.

        With `messages` its items are messages of the session: what is appended and taken off is counted in the
        record's `message_count`, in the same commit. Say so wherever the log is written.
        """
        return Log(self._session, self._part(name), MESSAGES if messages else None)

    def collection(self, name: str) -> Collection:
        """The collection of this name; it exists as long as it has entries."""
        return Collection(self._session, self._part(name))


class Session(Namespace):
    """One session: its id, its record, and the state of all frameworks in namespaces.

    `SessionManager.open`, and the runner, hand one out for a turn: what is changed in it is stored when the turn ends
    well, and discarded if it raises; used later, it raises `TurnClosedError`.

    One made by hand, `Session(id="...")`, names a stored session. Give it to the runner or to `SessionManager.open`:
    during their turns it is the session of the turn, between them it shows what the last one left. What is set on it
    between turns is stored with the next one, not earlier.

    A session is its own default namespace: `session.get(name)` is `session.namespace("default").get(name)`.

    Args:
        id: 1 to 256 characters, not blank, no control characters.
        tenant_id: The tenant that the session belongs to, likewise.
    """

    def __init__(self, id: str, *, tenant_id: str = DEFAULT_TENANT) -> None:
        self.id = check_id(id, "session_id")
        self.tenant_id = check_id(tenant_id, "tenant_id")
        self.volatile: dict[str, Any] = {}
        """Whatever skills share during a run. Never stored, gone when the run ends."""
        self._turn: Turn | None = None
        self._last: Turn | None = None
        self._draft = Values({})
        self._guests: list[Session] = []
        self._lent: dict[Turn, dict[Part, bytes | None]] = {}
        self.name = DEFAULT_NAMESPACE

    def namespace(self, name: str) -> Namespace:
        """The namespace of this name, 1 to 128 bytes of UTF-8: usually a framework's name."""
        return Namespace(self, name)

    def namespaces(self) -> list[str]:
        """The names of all namespaces that hold anything, sorted."""
        if self._turn is not None:
            return self._turn.namespaces()
        parts = set() if self._last is None else self._last.image.filled_parts
        return sorted({*self._draft.namespaces(), *(part.namespace for part in parts)})

    @property
    def record(self) -> SessionRecord | None:
        """What was known about the session when the turn began; None for a new one, or before the first turn."""
        turn = self._turn or self._last
        return None if turn is None else record_of(Key(self.tenant_id, "session", self.id), turn.image)

    @property
    def user_id(self) -> str | None:
        """The user that the session belongs to, if it belongs to one."""
        turn = self._turn or self._last
        if turn is None:
            return None
        return turn.belongs_to or (turn.image.row.belongs_to if turn.image.row else None)

    @property
    def metadata(self) -> dict[str, Any]:
        """A copy of the metadata in the record."""
        turn = self._turn or self._last
        return {} if turn is None else dict(turn.field("metadata") or {})

    def count_messages(self, more: int) -> None:
        """Add to the record's `message_count` when the turn is stored; less than 0 takes off.

        For messages that are not in a log: those of a log are counted by `log(name, messages=True)`.
        """
        self._open_turn().count(MESSAGES, _checked_number(more))

    @property
    def revision(self) -> int:
        """How many commits the session has seen; 0 for a new one."""
        turn = self._turn or self._last
        return 0 if turn is None else turn.image.revision

    def __repr__(self) -> str:
        return f"Session({self.id!r})"

    # -------------------------------------------------------------------------------------------- for the manager

    @classmethod
    def _of(cls, turn: Turn) -> Session:
        session = cls(turn.key.id, tenant_id=turn.key.tenant)
        session._turn = turn
        return session

    def _admit(self, guest: Session) -> None:
        """Let a session made by hand take part in this one's turn, with all that was set on it since its last one."""
        turn = self._turn
        if turn is None or guest is self or guest._turn is turn:
            return
        written = guest._draft.written()
        turn.values.replay(written)
        self.volatile.update(guest.volatile)
        guest._turn, guest._draft, guest.volatile = turn, Values({}), self.volatile
        guest._lent[turn] = written
        self._guests.append(guest)

    def _dismiss(self) -> None:
        """End the turn for all who take part in it."""
        turn = self._turn
        while turn is not None and self._guests:
            self._guests.pop()._leave(turn)

    def _leave(self, turn: Turn) -> None:
        """Show what the turn left, or, if it was discarded, keep what was set before it for the next."""
        unsaved = {} if turn.is_stored else self._lent[turn]
        unsaved = {**unsaved, **self._draft.written()}
        del self._lent[turn]
        if self._turn is turn:
            self._turn, self.volatile = None, {}
        if turn.is_stored:
            self._last = turn
        self._draft = Values({} if self._last is None else self._last.image.values)
        self._draft.replay(unsaved)

    @property
    def _session(self) -> Session:
        return (
            self  # not an attribute: a cycle would keep the turn, and all it has read, until the next full collection
        )

    def _values(self) -> Values:
        return self._draft if self._turn is None else self._turn.values

    def _open_turn(self) -> Turn:
        if self._turn is None:
            raise TurnClosedError(
                f"no turn runs on session {self.id!r}: use its logs and collections in "
                "`async with manager.open(session) as session`"
            )
        return self._turn


# ------------------------------------------------------------------------------------------ the sessions of a context

_sessions: ContextVar[tuple[Session, ...]] = ContextVar("agent_sessions", default=())


def current_session() -> Session:
    """The session whose turn this code runs in: in a skill, a tool, a callback, or anything they call.

    Raises:
        TurnClosedError: No turn is running here.
    """
    for session in reversed(_sessions.get()):
        if session._turn is not None and session._turn.is_open:
            return session
    raise TurnClosedError("no session here: current_session() works inside a run, or inside `manager.open(...)`")


def joined_session(store: Store, key: Key) -> Session | None:
    """The session of that key that a turn of this context has open already."""
    for session in reversed(_sessions.get()):
        turn = session._turn
        if turn is not None and turn.is_open and turn.key == key and turn.store is store:
            return session
    return None


def enter_session(session: Session) -> Token[tuple[Session, ...]]:
    """Make it the current session of this context."""
    return _sessions.set((*_sessions.get(), session))


def leave_session(token: Token[tuple[Session, ...]]) -> None:
    """Undo `enter_session`, also from a context other than the one that entered (a generator closed elsewhere)."""
    try:
        _sessions.reset(token)
    except ValueError:
        return


def _checked_limit(limit: int | None) -> int | None:
    if limit is not None and (type(limit) is not int or limit < 0):
        raise InvalidError("LIMIT", "limit must be a whole number from 0 on, or None for all", field="limit")
    return limit


def _checked_number(more: int) -> int:
    if type(more) is not int:
        raise InvalidError("NUMBER", "what is counted must be a whole number", field="more")
    return more
