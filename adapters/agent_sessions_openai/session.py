"""The SDK's Session protocol: the items of a conversation are a log of a session.

`OpenAISession` is for users. `TurnItems` and `ChildItems` are what the adapter gives the SDK inside a turn; used after
it, they raise `TurnClosedError`, so that nothing the SDK left running can write into the session.
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Awaitable, Callable, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from agents.memory import SessionSettings

from agent_sessions import Session, SessionManager
from agent_sessions.codec import encode
from agent_sessions.errors import ForbiddenError, SerializationError
from agent_sessions.identifiers import check_conversation, check_id

if TYPE_CHECKING:
    from agents import RunContextWrapper, TResponseInputItem

T = TypeVar("T")

NAMESPACE = "openai"
CHILDREN = "children"
"""The collection of what child runs said, by thread and number."""


def log_name(thread: str) -> str:
    """The log of a conversation; the main one's name is empty."""
    return f"items/{thread}" if thread else "items"


def _signed(cls: type[T]) -> type[T]:
    """Keep the signatures of the four methods: the SDK asks for them at each call, and finding one takes 12 µs."""
    for name in ("get_items", "add_items", "pop_item", "clear_session"):
        method = getattr(cls, name)
        method.__signature__ = inspect.signature(method)
    return cls


@_signed
class OpenAISession:
    """A conversation of the OpenAI Agents SDK, kept in a session: `Runner.run(agent, "hi", session=OpenAISession(id))`.

    Each call is stored at once, whole or not at all. Inside a turn on the same session, in `manager.open` or in a run
    of `agent_sessions.Runner`, it is part of that turn, and stored or discarded with it.

    Args:
        session_id: The session. It is made by the first items.
        manager: Where it is. None: `SessionManager.from_env()`.
        tenant_id: The session's tenant; None: the manager's.
        user_id: The user that a new session belongs to. Of an existing one it must be the same.
        conversation: The name of another conversation in the session, at most 100 bytes of UTF-8.
        session_settings: The SDK's settings: `limit` is how many items a run loads at most.

    Raises:
        InvalidError: An id or the name is not allowed.
    """

    def __init__(
        self,
        session_id: str,
        *,
        manager: SessionManager | None = None,
        tenant_id: str | None = None,
        user_id: str | None = None,
        conversation: str | None = None,
        session_settings: SessionSettings | None = None,
    ) -> None:
        manager = manager or SessionManager.from_env()
        self.session_id = check_id(session_id, "session_id")
        self.user_id = None if user_id is None else check_id(user_id, "user_id")
        self.conversation = None if conversation is None else check_conversation(conversation)
        self.session_settings: SessionSettings | None = session_settings or SessionSettings()
        self._manager = manager if tenant_id is None else manager.for_tenant(tenant_id)
        self._log = log_name(conversation or "")

    # The keyword `wrapper`, on all four, is how the SDK passes a run's context. It is not needed here: a turn is found
    # by the context variable. But a wrapper of this class may forward it.

    async def get_items(
        self, limit: int | None = None, *, wrapper: RunContextWrapper[Any] | None = None
    ) -> list[TResponseInputItem]:
        """The last `limit` items, oldest first; none if it is 0 or less. None: the settings' limit, else all."""
        if limit is None and self.session_settings is not None:
            limit = self.session_settings.limit
        if limit is not None and limit <= 0:
            return []
        joined = self._manager.joined(self.session_id)
        if joined is not None:
            return await TurnItems(joined, self._log).get_items(limit)
        async with self._manager.read(self.session_id, logs={(NAMESPACE, self._log): limit}) as snapshot:
            if self.user_id is not None and snapshot.user_id not in (None, self.user_id):
                raise ForbiddenError(f"session {self.session_id!r} belongs to another user", field="user_id")
            return await TurnItems(snapshot, self._log).get_items(limit)

    async def add_items(
        self, items: list[TResponseInputItem], *, wrapper: RunContextWrapper[Any] | None = None
    ) -> None:
        """Add items at the end, all of them or none; waits while a turn elsewhere has the session."""

        async def append(items: Sequence[Any]) -> None:
            await self._manager.append(
                self.session_id, NAMESPACE, self._log, items, user_id=self.user_id, messages=True
            )

        if items:
            await _appended(append, items)

    async def pop_item(self, *, wrapper: RunContextWrapper[Any] | None = None) -> TResponseInputItem | None:
        """Take the last item off and return it; None if there is none."""
        async with self._manager.open(self.session_id, user_id=self.user_id, logs={(NAMESPACE, self._log): 1}) as turn:
            return await TurnItems(turn, self._log).pop_item()

    async def clear_session(self, *, wrapper: RunContextWrapper[Any] | None = None) -> None:
        """Take all items of this conversation off. Everything else in the session stays."""
        async with self._manager.open(self.session_id, user_id=self.user_id) as turn:
            await TurnItems(turn, self._log).clear_session()

    def __repr__(self) -> str:
        return f"OpenAISession({self.session_id!r})"


@_signed
class TurnItems:
    """The items of a conversation in a turn, or in a snapshot."""

    session_settings: SessionSettings | None = None

    def __init__(self, session: Session, log: str) -> None:
        self.session_id = session.id
        self._log = session.namespace(NAMESPACE).log(log, messages=True)

    async def get_items(self, limit: int | None = None) -> list[TResponseInputItem]:
        """The last `limit` items, oldest first."""
        if limit is not None and limit <= 0:
            return []
        return list(map(_item, await self._log.read(limit)))

    async def add_items(self, items: list[TResponseInputItem]) -> None:
        """Add items at the end."""
        if items:
            await _appended(self._log.append, items)

    async def pop_item(self) -> TResponseInputItem | None:
        """Take the last item off."""
        item = await self._log.pop()
        return None if item is None else _item(item)

    async def clear_session(self) -> None:
        """Take all items off."""
        await self._log.clear()


@_signed
class ChildItems:
    """The items of a child run: entries of a collection, because every log is listed whenever its session is opened.

    The run starts with none, and nobody goes on with them; they are kept to be looked at.
    """

    session_settings: SessionSettings | None = None

    def __init__(self, session: Session, thread: str) -> None:
        self.session_id = session.id
        self._entries = session.namespace(NAMESPACE).collection(CHILDREN)
        self._prefix = f"{thread}/"
        self._count = 0

    async def get_items(self, limit: int | None = None) -> list[TResponseInputItem]:
        """The last `limit` items, oldest first."""
        if not self._count or (limit is not None and limit <= 0):
            return []
        newest = await self._entries.range(prefix=self._prefix, reverse=True, limit=limit)
        return [_item(item) for _, item in reversed(newest)]

    async def add_items(self, items: list[TResponseInputItem]) -> None:
        """Add items at the end."""

        async def append(items: Sequence[Any]) -> None:
            await self._entries.put_many({self._key(self._count + index): item for index, item in enumerate(items)})

        if items:
            await _appended(append, items)
            self._count += len(items)

    async def pop_item(self) -> TResponseInputItem | None:
        """Take the last item off."""
        if not self._count:
            return None
        self._count -= 1
        key = self._key(self._count)
        item = await self._entries.get(key)
        await self._entries.delete(key)
        return _item(item)

    async def clear_session(self) -> None:
        """Take all items off."""
        self._count = 0
        await self._entries.delete_prefix(self._prefix)

    def _key(self, number: int) -> str:
        return f"{self._prefix}{number:08}"


async def _appended(append: Callable[[Sequence[Any]], Awaitable[None]], items: Sequence[Any]) -> None:
    """Append items as they are; if they can't be stored so, as what JSON makes of them, as the SDK's own sessions do.

    Half of a surrogate pair, which a model's tool arguments may have, is JSON but no UTF-8: such an item is JSON text.
    """
    try:
        await append(items)
    except SerializationError as refused:
        try:
            plain = [_plain(item) for item in items]
        except (TypeError, ValueError):
            raise refused from None
        await append(plain)


def _plain(item: Any) -> Any:
    text = json.dumps(item)
    plain = json.loads(text)
    try:
        encode(plain)
    except SerializationError:
        return text.encode()
    return plain


def _item(stored: Any) -> TResponseInputItem:
    item: TResponseInputItem = json.loads(stored) if type(stored) is bytes else stored
    return item
