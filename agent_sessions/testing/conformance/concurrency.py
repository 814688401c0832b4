"""Many at once: nothing is lost, nothing is counted twice, nothing is interleaved."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

import pytest

from agent_sessions.errors import SessionBusyError, SessionConflictError
from agent_sessions.stores.base import ABSENT, Key, Part, Store, Wanted
from agent_sessions.testing.clock import FakeClock
from agent_sessions.testing.conformance.harness import (
    Harness,
    append,
    change,
    lease,
    new_id,
    read_log,
    read_values,
    start_turn,
    version_of,
)

COUNT = Part("default", "count")
WORKERS, TURNS = 8, 25


class Concurrency(Harness):
    """Tasks, threads and event loops on one key."""

    async def test_turns_under_leases_lose_nothing(self, store: Store, other: Store, key: Key) -> None:
        async with asyncio.TaskGroup() as tasks:
            for worker in range(WORKERS):
                tasks.create_task(count_up((store, other)[worker % 2], key, f"worker-{worker}", TURNS))
        assert await read_values(store, key) == {COUNT: b"%d" % (WORKERS * TURNS)}
        assert (await version_of(store, key)).revision == WORKERS * TURNS

    async def test_turns_in_threads_with_loops_of_their_own_lose_nothing(self, store: Store, key: Key) -> None:
        async def work(worker: int) -> None:
            await count_up(store, key, f"thread-{worker}", TURNS)

        await in_threads(store, 4, work)
        assert await read_values(store, key) == {COUNT: b"%d" % (4 * TURNS)}

    async def test_without_leases_every_success_counts_once(self, store: Store, other: Store, key: Key) -> None:
        async def work(store: Store) -> int:
            successes = 0
            while successes < 10:
                opened = await store.open(key)
                count = int(opened.values.get("default", {}).get("count", b"0"))
                await asyncio.sleep(0)
                try:
                    await store.commit(key, change(expected=opened.version, values={COUNT: b"%d" % (count + 1)}))
                except SessionConflictError:
                    continue
                successes += 1
            return successes

        total = sum(await asyncio.gather(*(work((store, other)[worker % 2]) for worker in range(6))))
        assert await read_values(store, key) == {COUNT: b"%d" % total}
        assert (await version_of(store, key)).revision == total

    async def test_of_many_that_make_a_key_one_does(self, store: Store, other: Store, key: Key) -> None:
        async def make(number: int) -> bool:
            expected = (await store.open(key)).version
            await asyncio.sleep(0)
            try:
                await (store, other)[number % 2].commit(key, change(expected=expected, logs=append(b"%d" % number)))
            except SessionConflictError:
                return False
            return True

        made = await asyncio.gather(*(make(number) for number in range(20)))
        assert len(await read_log(store, key)) == sum(made) == (await version_of(store, key)).revision
        assert sum(made) >= 1

    async def test_blind_appends_stay_together_and_none_is_lost(self, store: Store, other: Store, key: Key) -> None:
        async def work(worker: int) -> None:
            for turn in range(10):
                batch = [b"%d/%d/%d" % (worker, turn, item) for item in range(5)]
                await (store, other)[worker % 2].commit(key, change(logs=append(*batch)))
                await asyncio.sleep(0)

        await asyncio.gather(*(work(worker) for worker in range(WORKERS)))
        check_batches(await read_log(store, key), workers=WORKERS, turns=10, size=5)

    async def test_blind_appends_from_threads_stay_together(self, store: Store, key: Key) -> None:
        async def work(worker: int) -> None:
            for turn in range(10):
                batch = [b"%d/%d/%d" % (worker, turn, item) for item in range(5)]
                await store.commit(key, change(logs=append(*batch)))

        await in_threads(store, 4, work)
        check_batches(await read_log(store, key), workers=4, turns=10, size=5)

    async def test_a_store_that_says_it_never_waits_never_does(self, store: Store, key: Key) -> None:
        operations: list[Coroutine[Any, Any, object]] = [
            store.commit(key, change(logs=append(b"1"), hold_ms=1000)),
            store.open(key, wanted=Wanted(), lease=lease("us")),
            store.renew(key, "us", 1000),
            store.release(key, "us"),
            store.unlock(key),
            store.commit_status(key, new_id(), since=ABSENT),
            store.find(key.tenant, key.kind),
            store.count(key.tenant, key.kind),
            store.delete(key, new_id()),
        ]
        for operation in operations:
            if store.never_waits:
                with pytest.raises(StopIteration):
                    operation.send(None)
            else:
                await operation

    async def test_a_reader_beside_writers_sees_whole_commits(self, store: Store, other: Store, key: Key) -> None:
        done = asyncio.Event()
        twin = Part("other", "twin")

        async def write() -> None:
            for number in range(50):
                data = b"%d" % number
                await store.commit(key, change(values={COUNT: data, twin: data}, logs=append(data), fields={"n": data}))
                await asyncio.sleep(0)
            done.set()

        async def read() -> int:
            reads = 0
            while not done.is_set():
                opened = await other.open(key, wanted=Wanted())
                if opened.row is not None and opened.row.fields is not None:
                    number = int(opened.values["default"]["count"])
                    assert opened.values["other"]["twin"] == b"%d" % number
                    assert opened.row.fields["n"] == b"%d" % number
                    assert [head.count for head in opened.log_heads.values()] == [number + 1]
                    assert opened.version.revision == number + 1
                reads += 1
                await asyncio.sleep(0)
            return reads

        _, reads = await asyncio.gather(write(), read())
        assert reads > 0

    async def test_a_waiter_in_another_thread_is_woken(self, store: Store, key: Key) -> None:
        opened = await start_turn(store, key, "us")
        assert opened.granted
        queued = threading.Event()

        async def work(_: int) -> None:
            assert not (await store.open(key, lease=lease("them", queue=True))).granted
            queued.set()
            await start_turn(store, key, "them")
            await store.commit(key, change(owner="them", logs=append(b"theirs")))

        async def release() -> None:
            await asyncio.to_thread(queued.wait, 5)
            await store.commit(key, change(logs=append(b"ours")))

        await asyncio.wait_for(asyncio.gather(in_threads(store, 1, work), release()), 10)
        assert await read_log(store, key) == [b"ours", b"theirs"]

    async def test_cancelled_commits_are_stored_whole_or_not_at_all(self, store: Store, key: Key) -> None:
        for number in range(30):
            commit = change(values={COUNT: b"%d" % number}, logs=append(b"%d" % number))
            task = asyncio.create_task(store.commit(key, commit))
            for _ in range(number % 5):
                await asyncio.sleep(0)
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            await store.commit(key, commit)
        assert await read_log(store, key) == [b"%d" % number for number in range(30)]
        assert (await version_of(store, key)).revision == 30

    async def test_a_delete_beside_turns_leaves_nothing_behind(
        self, store: Store, other: Store, key: Key, clock: FakeClock
    ) -> None:
        async def work(worker: int) -> None:
            for _ in range(10):
                try:
                    await store.commit(key, change(logs=append(b"%d" % worker), values={COUNT: b"1"}))
                except SessionBusyError:
                    continue
                await asyncio.sleep(0)

        async def delete() -> None:
            for _ in range(10):
                await other.delete(key, new_id())
                await asyncio.sleep(0)

        await asyncio.gather(work(1), work(2), delete())
        await store.delete(key, new_id())
        assert (await store.open(key)).row is None
        assert await store.count(key.tenant, key.kind) == 0
        await store.commit(key, change(logs=append(b"new")))
        assert await read_log(store, key) == [b"new"]


async def count_up(store: Store, key: Key, owner: str, turns: int) -> None:
    """Read, add one, commit, so many times, each time under a lease."""
    for turn in range(turns):
        opened = await start_turn(store, key, f"{owner}/{turn}")
        count = int(opened.values.get("default", {}).get("count", b"0"))
        await asyncio.sleep(0)
        put = {COUNT: b"%d" % (count + 1)}
        await store.commit(key, change(expected=opened.version, owner=f"{owner}/{turn}", values=put))


async def in_threads(store: Store, number: int, work: Callable[[int], Awaitable[None]]) -> None:
    """Run some work in so many threads, each with an event loop of its own."""

    async def run(worker: int) -> None:
        try:
            await work(worker)
        finally:
            await store.detach()

    await asyncio.gather(*(asyncio.to_thread(asyncio.run, run(worker)) for worker in range(number)))


def check_batches(items: list[bytes], *, workers: int, turns: int, size: int) -> None:
    """Each batch in one piece, each worker's in its order, none missing."""
    seen: list[tuple[int, int]] = []
    for start in range(0, len(items), size):
        worker, turn = (int(number) for number in items[start].split(b"/")[:2])
        assert items[start : start + size] == [b"%d/%d/%d" % (worker, turn, item) for item in range(size)]
        seen.append((worker, turn))
    for number in range(workers):
        assert [turn for worker, turn in seen if worker == number] == list(range(turns))
