"""What is cancelled anywhere on its way is done, or not; what follows on it follows all the same."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress
from typing import Any, cast

import pytest

from agent_sessions import MemoryStore, SessionManager, Settings
from agent_sessions.errors import SessionConflictError, SessionError, SessionExistsError
from agent_sessions.events import SessionEvent
from agent_sessions.lifecycle.users import UserKeys
from agent_sessions.stores.base import Kind, Page, Store

ANN = "ann"


class Remote:
    """A store that is somewhere else: each operation waits before it, and after it. Its index may lag for ever."""

    never_waits = False

    def __init__(self, inner: Store, *, lags: bool = False) -> None:
        self._inner = inner
        self._lags = lags

    def __getattr__(self, name: str) -> Any:
        operation = getattr(self._inner, name)

        async def carried_out(*args: Any, **kwargs: Any) -> Any:
            await asyncio.sleep(0)
            result = await operation(*args, **kwargs)
            await asyncio.sleep(0)
            return result

        return carried_out

    async def find(self, tenant: str, kind: Kind, **options: Any) -> Page:
        page = await self._inner.find(tenant, kind, **options)
        return Page(page.now, [], None) if self._lags else page


def manager_of(store: MemoryStore, *, lags: bool = False, **policy: object) -> SessionManager:
    settings = Settings.model_validate({"policy": policy})
    return SessionManager(cast(Store, Remote(store, lags=lags)), settings=settings)


async def cancelled_anywhere(
    work: Callable[[SessionManager], Awaitable[object]], made: Callable[[], Awaitable[SessionManager]]
) -> AsyncIterator[tuple[SessionManager, bool]]:
    """Start it in a new place each time, and cancel it one step later each time, until it is through before."""
    for steps in range(500):
        manager = await made()
        task = asyncio.ensure_future(work(manager))
        for _ in range(steps):
            await asyncio.sleep(0)
        is_through = task.done()
        task.cancel()
        with suppress(asyncio.CancelledError, SessionError):
            await task
        yield manager, task.cancelled()
        if is_through:
            assert steps > 5
            return
    raise AssertionError("it never ends")


async def turn(manager: SessionManager) -> None:
    async with manager.open("s", user_id=ANN) as session:
        session.set("a", 1)


WORKS: dict[str, Callable[[SessionManager], Awaitable[object]]] = {
    "create": lambda manager: manager.create(ANN),
    "create within a limit": lambda manager: manager.create(ANN),
    "get_or_create": lambda manager: manager.get_or_create(ANN),
    "open": turn,
    "append": lambda manager: manager.append("s", "openai", "items", [1], user_id=ANN),
    "fork": lambda manager: manager.fork("nobody's"),
}


@pytest.mark.parametrize("name", [name for name in WORKS if name != "fork"])
async def test_nothing_is_left_of_a_user_who_is_being_erased(name: str) -> None:
    async def made() -> SessionManager:
        manager = manager_of(MemoryStore(), max_sessions_per_user=5 if "limit" in name else None)
        await UserKeys(manager.store, "default", manager.lease_ms).mark_erased(ANN)
        return manager

    async for manager, _ in cancelled_anywhere(WORKS[name], made):
        assert await manager.count() == 0


@pytest.mark.parametrize("name", WORKS)
async def test_what_was_made_is_heard_of(name: str) -> None:
    heard: list[SessionEvent] = []

    async def made() -> SessionManager:
        manager = manager_of(MemoryStore())
        await manager.append("nobody's", "openai", "items", [1])
        heard.clear()
        manager.listen(heard.append)
        return manager

    async for manager, _ in cancelled_anywhere(WORKS[name], made):
        assert [event.type for event in heard].count("created") == await manager.count() - 1


async def test_a_limit_holds_though_the_index_lags() -> None:
    async def made() -> SessionManager:
        return manager_of(MemoryStore(), lags=True, max_sessions_per_user=1)

    async for manager, was_cancelled in cancelled_anywhere(WORKS["create within a limit"], made):
        with suppress(SessionError):
            await manager.create(ANN)
        assert await manager.count(ANN) == 1, was_cancelled


async def test_what_was_made_lately_and_is_anothers_now_is_not_given_away() -> None:
    manager = manager_of(MemoryStore(), max_sessions_per_user=1)
    await manager.create(ANN, session_id="s")
    await manager.delete("s")
    await manager.create("eve", session_id="s")
    assert (await manager.get_or_create(ANN)).user_id == ANN


async def test_nothing_is_ended_for_a_session_that_can_not_be_made() -> None:
    manager = manager_of(MemoryStore(), max_sessions_per_user=1, on_limit="end_oldest")
    await manager.create(ANN, session_id="s")
    await manager.create("eve", session_id="taken")
    for session_id in ("s", "taken"):
        with pytest.raises(SessionExistsError):
            await manager.create(ANN, session_id=session_id)
    assert (await manager.get("s", strict=True)).status == "active"


async def test_what_is_taken_back_was_never_told_of() -> None:
    manager, heard = manager_of(MemoryStore()), list[SessionEvent]()
    manager.listen(heard.append)
    await manager.delete_user(ANN)
    with pytest.raises(SessionConflictError):
        await manager.create(ANN)
    assert heard == []


async def test_a_tenant_hears_of_its_own_sessions_only() -> None:
    manager, heard = manager_of(MemoryStore()), list[str]()
    acme, other = manager.for_tenant("acme"), manager.for_tenant("other")
    stop = acme.listen(lambda event: heard.append(event.tenant_id))
    all_heard: list[str] = []
    manager.listen(lambda event: all_heard.append(event.tenant_id))
    for one in (manager, acme, other):
        await one.create()
    assert heard == ["acme"]
    assert all_heard == ["default", "acme", "other"]
    stop()
    await acme.create()
    assert heard == ["acme"]
