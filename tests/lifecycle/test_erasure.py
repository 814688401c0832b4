"""Everything of a user is removed, and stays so."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, cast

import pytest

from agent_sessions import ErasureReceipt, MemoryStore, Runner, SessionManager
from agent_sessions.errors import SessionConflictError, SessionError, SessionNotFoundError
from agent_sessions.stores.base import Commit, Key, Store
from agent_sessions.sweeping import MOST_SECONDS
from agent_sessions.testing import FakeClock, ScriptedAgent
from agent_sessions.turns.cache import ImageCache
from agent_sessions.turns.image import NOTHING, Image
from tests.lifecycle.conftest import Everywhere
from tests.support import until

ANN = "ann-0517"
SECRET = "the-secret-of-the-session"


async def fill(manager: SessionManager, user_id: str, *, sessions: int = 3) -> None:
    """Sessions with state of all sorts, with runs, and something outside of sessions."""
    runner = Runner(manager)
    for number in range(sessions):
        session_id = f"{len(user_id)}/{number}"
        await manager.create(user_id, session_id=session_id, metadata={"note": SECRET}, description=SECRET)
        async with manager.open(session_id) as session:
            session.set("secret", SECRET)
            await session.namespace("openai").log("items").append([{"content": SECRET}] * 3)
            await session.namespace("langgraph").collection("checkpoints").put("0", {"text": SECRET})
        await runner.run(ScriptedAgent("hi"), session_id, SECRET, user_id=user_id)
    await manager.get_or_create(user_id)
    commit = Commit(id=b"8 bytes!", owner="us", expected=None, belongs_to=user_id, fields={"secret": SECRET.encode()})
    await manager.store.commit(Key(manager.tenant_id, "user", f"app/{len(user_id)}"), commit)


async def keys_of(manager: SessionManager) -> list[Key]:
    """Every key in the store."""
    keys: set[Key] = set()
    page = await manager.store.scan()
    while True:
        keys.update(page.keys)
        if page.next is None:
            return sorted(keys)
        page = await manager.store.scan(cursor=page.next)


async def test_nothing_of_the_user_is_left_in_the_store(everywhere: Everywhere) -> None:
    manager, elsewhere = everywhere(), everywhere()
    await fill(manager, ANN)
    dry = await elsewhere.delete_user(ANN, dry_run=True)
    assert dry.counts == {"sessions": 3, "activations": 3, "others": 1}
    assert all(text.encode() in everywhere.raw() for text in (ANN, SECRET))
    receipt = await elsewhere.delete_user(ANN)
    assert {kind: sorted(ids) for kind, ids in receipt.ids.items()} == {k: sorted(ids) for k, ids in dry.ids.items()}
    assert (await manager.list(ANN)).sessions == []

    async def is_clean() -> bool:
        left = everywhere.raw()
        return ANN.encode() not in left and SECRET.encode() not in left

    await until(is_clean)  # SQLite sweeps what is deleted little by little
    assert {key.kind for key in await keys_of(manager)} <= {"system"}
    assert (await manager.delete_user(ANN)).counts == {"sessions": 0, "activations": 0, "others": 0}


async def test_others_keep_what_is_theirs(everywhere: Everywhere) -> None:
    manager = everywhere()
    acme = manager.for_tenant("acme")
    for one, user_id in ((manager, ANN), (manager, "bob"), (acme, ANN)):
        await fill(one, user_id, sessions=1)
    assert (await manager.delete_user(ANN)).counts == {"sessions": 1, "activations": 1, "others": 1}
    for one, user_id in ((manager, "bob"), (acme, ANN)):
        dry = await one.delete_user(user_id, dry_run=True)
        assert dry.counts == {"sessions": 1, "activations": 1, "others": 1}
        assert (await one.export(dry.session_ids[0]))["record"]["user_id"] == user_id


async def test_an_erasure_tells_how_far_it_is() -> None:
    manager = SessionManager(MemoryStore())
    for _ in range(450):
        await manager.create(ANN)
    so_far: list[int] = []

    def progress(receipt: ErasureReceipt) -> None:
        so_far.append(receipt.counts["sessions"])

    await manager.delete_user(ANN, dry_run=True, progress=progress)
    await manager.delete_user(ANN, progress=progress)
    assert so_far == [200, 400, 450] * 2


class Dying:
    """Stands before a store, and lets so many operations through."""

    never_waits = False

    def __init__(self, inner: Store, operations: int) -> None:
        self.inner, self.left = inner, operations

    def __getattr__(self, name: str) -> Any:
        operation = getattr(self.inner, name)

        async def carried_out(*args: Any, **kwargs: Any) -> Any:
            self.left -= 1
            if self.left < 0:
                raise Died
            return await operation(*args, **kwargs)

        return carried_out


class Died(Exception):
    """The process died."""


async def test_an_erasure_that_died_anywhere_goes_on_where_it_was() -> None:
    for operations in range(1000):
        store = MemoryStore()
        manager = SessionManager(store)
        await fill(manager, ANN)
        dying = SessionManager(cast(Store, Dying(store, operations)))
        try:
            await dying.delete_user(ANN)
        except Died:
            rest = await manager.delete_user(ANN)
            assert set(rest.session_ids) <= {"8/0", "8/1", "8/2"}
        else:
            break
        assert {key.kind for key in await keys_of(manager)} == {"system"}
    assert 10 < operations < 100


async def test_what_is_made_for_the_user_meanwhile_is_gone_or_refused(everywhere: Everywhere) -> None:
    manager, elsewhere = everywhere(), everywhere()
    await fill(manager, ANN)
    await manager.create("bob", session_id="bobs")
    document = await manager.export("8/0")

    async def opened(number: int) -> None:
        async with elsewhere.open(f"opened {number}", user_id=ANN) as session:
            session.set("secret", SECRET)

    making: list[Callable[[int], Awaitable[object]]] = [
        lambda _: manager.create(ANN),
        lambda _: elsewhere.get_or_create(ANN),
        opened,
        lambda number: manager.append(f"appended {number}", "openai", "items", [1], user_id=ANN),
        lambda _: elsewhere.fork("8/1"),
        lambda number: manager.import_(document, session_id=f"imported {number}"),
    ]
    outcomes: list[str] = []

    async def make(work: Callable[[int], Awaitable[object]]) -> None:
        for number in range(4):
            try:
                await work(number)
            except SessionConflictError:
                outcomes.append("refused")
            except SessionNotFoundError:
                outcomes.append("gone")
            else:
                outcomes.append("made")

    await asyncio.gather(*(make(work) for work in making), elsewhere.delete_user(ANN))
    assert len(outcomes) == 24
    assert outcomes.count("refused") > 0
    assert (await manager.list(ANN)).sessions == []
    assert await manager.count(ANN) == 0
    assert [key.id for key in await keys_of(manager) if key.kind == "session"] == ["bobs"]
    with pytest.raises(SessionConflictError):
        await manager.create(ANN)


async def test_a_turn_that_is_running_stores_nothing(everywhere: Everywhere) -> None:
    manager, elsewhere = everywhere(), everywhere()
    await fill(manager, ANN)

    async def turn() -> None:
        async with manager.open("8/0") as session:
            session.set("secret", SECRET)
            await elsewhere.delete_user(ANN)

    with pytest.raises(SessionNotFoundError):
        await turn()
    assert await manager.get("8/0") is None
    assert {key.kind for key in await keys_of(manager)} == {"system"}


async def test_a_minute_later_the_user_may_come_back(everywhere: Everywhere, clock: FakeClock) -> None:
    manager = everywhere()
    await manager.delete_user(ANN)
    with pytest.raises(SessionError) as refused:
        await manager.create(ANN, session_id="s")
    assert refused.value.code == "SESSION_CONFLICT"
    clock.advance(60)
    await manager.create(ANN, session_id="s")


async def test_a_deleted_session_takes_the_records_of_its_runs_along(everywhere: Everywhere) -> None:
    manager = everywhere()
    await fill(manager, ANN, sessions=2)
    assert await manager.delete("8/0")
    kinds = sorted(key.kind for key in await keys_of(manager))
    assert [kind for kind in kinds if kind != "system"] == ["run", "session", "user"]


# --------------------------------------------------------------------------------------------------- caches


async def test_no_process_holds_a_copy_for_more_than_five_minutes() -> None:
    manager = SessionManager(MemoryStore())
    async with manager.open("s") as session:
        session.set("secret", SECRET)
    image = manager._cache.get(Key("default", "session", "s"))
    assert image is not NOTHING
    now = 0.0
    cache = ImageCache(clock=lambda: now)
    cache.put(Key("default", "session", "old"), image)
    now = 100.0
    cache.put(Key("default", "session", "new"), image)
    now = MOST_SECONDS - 0.001
    assert cache.get(Key("default", "session", "old")) is image
    now = MOST_SECONDS
    assert cache.get(Key("default", "session", "old")) is NOTHING
    assert len(cache) == 1
    now = 100 + MOST_SECONDS - 30
    cache.sweep()  # which a timer does every 30 s
    assert len(cache) == 0


def test_an_empty_image_is_not_kept() -> None:
    cache = ImageCache()
    cache.put(Key("default", "session", "s"), Image())
    assert len(cache) == 0
