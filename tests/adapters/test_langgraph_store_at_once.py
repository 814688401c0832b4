"""`AgentStore` used by many at once: tasks, threads, processes, and ones that end in the middle."""

from __future__ import annotations

import asyncio
import itertools
import os
import random
import subprocess
import sys
import threading
from collections.abc import Awaitable, Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from agent_sessions import MemoryStore, SessionManager, Settings
from agent_sessions.errors import StoreUnavailableError
from agent_sessions.settings import TurnSettings
from agent_sessions.stores.base import Commit, Committed, Key, Opened, Store
from agent_sessions.testing import FakeClock
from agent_sessions_langgraph import AgentStore
from tests.support import Before

from .agent_stores import INDEX, MakeStore
from .agent_stores import make_store as make_store
from .agent_stores import open_backend as open_backend

ROOT = Path(__file__).parents[2]
ALL = 10_000
Place = tuple[tuple[str, ...], str]


class Shuffled(Before):
    """Lets others go first, now and then, before and after each operation."""

    def __init__(self, inner: Store, dice: random.Random) -> None:
        super().__init__(inner)
        self._dice = dice

    async def open(self, key: Key, **asked: Any) -> Opened:
        await self._others()
        opened = await self.inner.open(key, **asked)
        await self._others()
        return opened

    async def commit(self, key: Key, commit: Commit) -> Committed:
        await self._others()
        committed = await self.inner.commit(key, commit)
        await self._others()
        return committed

    async def _others(self) -> None:
        for _ in range(self._dice.choice([0, 0, 1, 2, 5])):
            await asyncio.sleep(0)


async def found(store: AgentStore) -> dict[Place, Any]:
    return {(item.namespace, item.key): item.value["n"] for item in await store.asearch((), limit=ALL)}


async def put_and_delete(store: AgentStore, worker: int, dice: random.Random, mine: dict[Place, int]) -> None:
    """Put, delete, read and list; the items of a worker are its own, the namespaces are everybody's."""
    for n in range(10):
        namespace, key = (dice.choice("ab"),), f"{worker}-{dice.randrange(2)}"
        what = dice.random()
        if what < 0.4:
            mine[namespace, key] = n
            await store.aput(namespace, key, {"n": n}, ttl=dice.choice([None, None, 5]))
        elif what < 0.85:
            mine.pop((namespace, key), None)
            await store.adelete(namespace, key)
        elif what < 0.9:
            item = await store.aget(namespace, key)
            assert (None if item is None else item.value["n"]) == mine.get((namespace, key))
        elif what < 0.95:
            await store.alist_namespaces()
        else:
            await store.asearch((), filter={"n": n})


@pytest.mark.parametrize("seed", range(8))
async def test_whatever_overtakes_what_all_is_found(seed: int) -> None:
    dice = random.Random(seed)
    for _ in range(15):
        backend = Shuffled(MemoryStore(), dice)
        store = AgentStore(SessionManager(backend.store))
        items: dict[Place, int] = {}
        kept: list[dict[Place, int]] = [{} for _ in range(5)]
        await asyncio.gather(*(put_and_delete(store, worker, dice, mine) for worker, mine in enumerate(kept)))
        for mine in kept:
            items |= mine
        assert await found(store) == items
        assert await store.alist_namespaces() == sorted({namespace for namespace, _ in items})


@pytest.mark.parametrize("seed", range(8))
async def test_what_a_process_leaves_in_the_middle_the_next_one_repairs(seed: int) -> None:
    dice = random.Random(1_000 + seed)
    for _ in range(15):
        backend = Shuffled(MemoryStore(), dice)
        store = AgentStore(SessionManager(backend.store))
        workers = [asyncio.create_task(put_and_delete(store, worker, dice, {})) for worker in range(5)]
        for worker in workers[1:]:
            for _ in range(dice.randrange(60)):
                await asyncio.sleep(0)
            worker.cancel()
        await asyncio.gather(*workers, return_exceptions=True)

        places = [((label,), f"{worker}-{key}") for label in "ab" for worker in range(5) for key in range(2)]
        read = {place: await store.aget(*place) for place in places}
        items = {place: item.value["n"] for place, item in read.items() if item is not None}
        assert await found(store) == items
        assert await store.alist_namespaces() == sorted({namespace for namespace, _ in items})


class Interrupted(Before):
    """Does something else before one of the operations."""

    def __init__(self, inner: Store, at: int, other: Callable[[], Awaitable[Any]]) -> None:
        super().__init__(inner)
        self._left = at
        self._other = other

    async def open(self, key: Key, **asked: Any) -> Opened:
        await self._interrupt()
        return await self.inner.open(key, **asked)

    async def commit(self, key: Key, commit: Commit) -> Committed:
        await self._interrupt()
        return await self.inner.commit(key, commit)

    async def _interrupt(self) -> None:
        self._left -= 1
        if self._left == 0:
            await self._other()

    @property
    def was(self) -> bool:
        return self._left <= 0


NAMESPACE = ("a",)


async def put_one(store: AgentStore) -> None:
    await store.aput(NAMESPACE, "one", {"n": 1})


async def put_another(store: AgentStore) -> None:
    await store.aput(NAMESPACE, "another", {"n": 2})


async def delete_first(store: AgentStore) -> None:
    await store.adelete(NAMESPACE, "first")


async def put_and_delete_another(store: AgentStore) -> None:
    await put_another(store)
    await store.adelete(NAMESPACE, "another")


async def replace_all(store: AgentStore) -> None:
    await delete_first(store)
    await put_another(store)


async def end(store: AgentStore) -> None:
    raise asyncio.CancelledError


@pytest.mark.parametrize("interruption", [put_another, delete_first, put_and_delete_another, replace_all, end])
@pytest.mark.parametrize("work", [put_one, delete_first])
@pytest.mark.parametrize("first", ["nothing", "an item", "an empty namespace"])
async def test_at_any_moment_another_may_step_in(first: str, work: Any, interruption: Any) -> None:
    for moment in itertools.count(1):
        inner = MemoryStore()
        beside = AgentStore(SessionManager(inner))
        if first != "nothing":
            await beside.aput(NAMESPACE, "first", {"n": 0})
        if first == "an empty namespace":
            await delete_first(beside)
        backend = Interrupted(inner, moment, partial(interruption, beside))

        with suppress(asyncio.CancelledError):
            await work(AgentStore(SessionManager(backend.store)))

        found_at_once = await found(beside)
        read = [await beside.aget(NAMESPACE, key) for key in ("first", "one", "another")]
        items = {(NAMESPACE, item.key): item.value["n"] for item in read if item is not None}
        assert await found(beside) == items
        if interruption is not end:
            assert found_at_once == items  # there was nothing to repair
        assert await beside.alist_namespaces() == [NAMESPACE] * bool(items)
        if not backend.was:
            return


@pytest.mark.parametrize("seed", range(4))
async def test_of_puts_of_one_item_one_wins_whole(seed: int) -> None:
    dice = random.Random(seed)
    clock = FakeClock()
    backend = Shuffled(MemoryStore(clock), dice)
    store = AgentStore(SessionManager(backend.store), index=INDEX)

    async def put(n: int) -> None:
        for _ in range(4):
            await store.aput(("a",), "k", {"n": n, "text": "abcd"[n]}, ttl=dice.choice([None, 5]))
            (item,) = await store.asearch(("a",), query="abcd"[n])
            assert item.score == float("abcd"[item.value["n"]] == "abcd"[n])

    for _ in range(5):
        await asyncio.gather(*(put(n) for n in range(4)))
        clock.advance(61)  # what is left behind is old now
        assert len(await store.asearch((), limit=2)) == 1
    await store.adelete(("a",), "k")
    assert await found(store) == {}
    assert await store.alist_namespaces() == []


async def test_puts_of_many_at_once_are_all_kept(make_store: MakeStore, request: pytest.FixtureRequest) -> None:
    workers = 4 if request.node.callspec.params["open_backend"] == "dynamodb" else 16
    stores = [make_store() for _ in range(4)]
    puts = (
        stores[worker % 4].aput(("new", str(n % 2)), f"{worker}-{n}", {"n": n})
        for worker in range(workers)
        for n in range(4)
    )
    await asyncio.gather(*puts)
    assert len(await found(stores[0])) == workers * 4
    assert await stores[1].alist_namespaces() == [("new", "0"), ("new", "1")]


@pytest.mark.parametrize("open_backend", ["memory", "sqlite", "redis"], indirect=True)
async def test_puts_of_threads_at_once_are_all_kept(make_store: MakeStore) -> None:
    store = make_store()

    def work(worker: int) -> None:
        for n in range(5):
            store.put(("shared",), f"{worker}-{n}", {"n": n})
            assert store.get(("shared",), f"{worker}-{n}") is not None

    threads = [threading.Thread(target=work, args=(worker,)) for worker in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        await asyncio.to_thread(thread.join)
    assert len(await found(store)) == 80


FORKS = """
import asyncio, os, sys
from agent_sessions import SessionManager
from agent_sessions_langgraph import AgentStore

store = AgentStore()
store.put(("shared",), "before", {"n": 0})

def work(worker):
    for n in range(25):
        store.put(("shared",), f"{worker}-{n}", {"n": n})
        if n % 5 == 0:
            store.put(("own", str(worker), str(n)), "k", {"n": n})
            store.put(("empty", str(n)), str(worker), {"n": n})
            store.delete(("empty", str(n)), str(worker))

children = []
for worker in range(16):
    child = os.fork()
    if child == 0:
        code = 1
        try:
            work(worker)
            code = 0
        except BaseException:
            import traceback
            traceback.print_exc()
        finally:
            sys.stderr.flush()
            os._exit(code)
    children.append(child)
assert [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children] == [0] * 16

assert len(store.search(("shared",), limit=1000)) == 401
assert len(store.search(("own",), limit=1000)) == 80
assert len(store.list_namespaces(limit=1000)) == 81, store.list_namespaces(limit=1000)

async def close():
    await SessionManager.from_env().store.aclose()

asyncio.run(close())
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this platform has no fork")
@pytest.mark.parametrize("backend", ["sqlite", "redis"])
def test_puts_of_16_processes_are_all_kept(backend: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    environment = {**os.environ, "AK_SESSION__TYPE": backend, "AK_SESSION__SQLITE__PATH": str(tmp_path / "items.db")}
    if backend == "redis":
        environment["AK_SESSION__REDIS__URL"] = request.getfixturevalue("redis_url")
    done = subprocess.run(
        [sys.executable, "-W", "ignore::DeprecationWarning", "-c", FORKS],
        cwd=tmp_path,
        env={**environment, "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'adapters'}"},
        capture_output=True,
        text=True,
        timeout=90,
    )
    assert done.returncode == 0, done.stderr


# ---------------------------------------------------------------------------------------------------- lost replies


class Unsteady(Before):
    """Loses requests and replies."""

    def __init__(self, inner: Store) -> None:
        super().__init__(inner)
        self.lost = 0

    async def commit(self, key: Key, commit: Commit) -> Committed:
        self.lost += 1
        if self.lost % 3 == 1:
            raise StoreUnavailableError("no answer")
        committed = await super().commit(key, commit)
        if self.lost % 3 == 2:
            raise StoreUnavailableError("no answer")
        return committed


async def test_lost_replies_lose_nothing() -> None:
    store = AgentStore(SessionManager(Unsteady(MemoryStore()).store))
    for n in range(4):
        await store.aput((str(n % 2),), str(n), {"n": n})
    await store.adelete(("0",), "0")
    assert await found(store) == {(("0",), "2"): 2, (("1",), "1"): 1, (("1",), "3"): 3}


async def test_a_store_that_does_not_answer_is_told_of() -> None:
    class Silent(Before):
        async def commit(self, key: Key, commit: Commit) -> Committed:
            raise StoreUnavailableError("no answer")

    settings = Settings(turn=TurnSettings(lease_s=1))
    store = AgentStore(SessionManager(Silent(MemoryStore()).store, settings=settings))
    with pytest.raises(StoreUnavailableError, match="Put it again"):
        await store.aput(("a",), "k", {"secret": "value"})
