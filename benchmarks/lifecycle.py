"""What listing, counting and sweeping cost among very many sessions: python -m benchmarks.lifecycle STORE [SESSIONS].

STORE is redis, cluster, sqlite or dynamodb. Each operation is measured among 1,000 sessions and among 100,000 (or as
many as are asked for), of the same 1,000 users in 50 tenants, through `SessionManager`. Pages have the same size in
both, and so have answers: among the sessions of a user only one is active.
"""

from __future__ import annotations

import asyncio
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from multiprocessing import get_context
from pathlib import Path

import redis

from agent_sessions import SessionManager
from agent_sessions.stores.base import ABSENT, Commit, Key, Store
from agent_sessions.stores.lifetime import Course, Lifetime, Status

from .measure import promise
from .servers import redis_cluster, redis_server

STORES = ("redis", "cluster", "sqlite", "dynamodb")
USERS, TENANTS, FEW, MANY = 1_000, 50, 1_000, 100_000
USERS_OF_A_TENANT = USERS // TENANTS
CALLS, AT_ONCE, SWEEPERS = 200, 32, 3
PAGE, PAGE_OF_STATUS = 10, 4
COUNTS = frozenset({"count", "count idle", "stats"})
MINUTE, HOUR = 60_000, 3_600_000
LIFETIME = Lifetime(30 * MINUTE, 24 * HOUR, None, 168 * HOUR, 168 * HOUR)


async def run(kind: str, many: int) -> None:
    figures = []
    for sessions in (FEW, many):
        with backend(kind) as spec:
            store = open_store(spec)
            ran_out = await fill(store, sessions)
            figures.append(await operations(store))
            if sessions == many:
                table(kind, figures, many)
                if spec.startswith("redis://"):
                    memory(spec, many)
                await sweep(store, spec, ran_out)
            await store.aclose()


# --------------------------------------------------------------------------------------------------- the sessions


async def fill(store: Store, sessions: int) -> int:
    """Make sessions that had their turns already; return how many of them have run out."""
    now = (await store.open(Key("-", "system", "clock"))).now
    numbers = iter(range(sessions))
    statuses: list[Status] = []

    async def make() -> None:
        for number in numbers:
            user, index = number % USERS, number // USERS
            status = status_of(user, index)
            rests = {"active": MINUTE, "idle": HOUR, "ended": 48 * HOUR}[status] + number % 100_000 * 10
            course = Course(now - rests - HOUR, now - rests)
            commit = Commit(
                id=os.urandom(8),
                owner="fill",
                expected=ABSENT,
                lifetime=LIFETIME,
                course=course,
                belongs_to=f"user-{user}",
            )
            await store.commit(Key(tenant_of(user), "session", f"{number:08}-0000-4000-8000-000000000000"), commit)
            statuses.append(status)

    begun = time.perf_counter()
    await asyncio.gather(*(make() for _ in range(AT_ONCE)))
    print(f"  {sessions:,} sessions made in {time.perf_counter() - begun:.0f} s", flush=True)
    return statuses.count("ended")


def status_of(user: int, index: int) -> Status:
    """Of a user's sessions: the first of every tenth user is active, of the others four in ten are idle."""
    if index == 0 and user % 10 == 0:
        return "active"
    return "idle" if 1 <= (user + index) % 10 <= 4 else "ended"


def tenant_of(user: int) -> str:
    return f"tenant-{user // USERS_OF_A_TENANT}"


# --------------------------------------------------------------------------------------------------- what is measured


async def operations(store: Store) -> dict[str, float]:
    """The median of each operation, over all tenants, in ms."""
    managers = [SessionManager(store).for_tenant(f"tenant-{number}") for number in range(TENANTS)]
    users = [f"user-{user}" for user in range(0, USERS, 10)]
    deep = [await middle(manager, None) for manager in managers]
    deep_idle = [await middle(manager, "idle") for manager in managers]
    work: dict[str, Callable[[int], Awaitable[object]]] = {
        "list, first page": lambda n: managers[n % TENANTS].list(limit=PAGE),
        "list, deep page": lambda n: managers[n % TENANTS].list(limit=PAGE, cursor=deep[n % TENANTS]),
        "list by start": lambda n: managers[n % TENANTS].list(limit=PAGE, order="started"),
        "list idle, first page": lambda n: managers[n % TENANTS].list(limit=PAGE_OF_STATUS, status="idle"),
        "list idle, deep page": lambda n: managers[n % TENANTS].list(
            limit=PAGE_OF_STATUS, status="idle", cursor=deep_idle[n % TENANTS]
        ),
        "get_active": lambda n: managers[n % 100 * 10 // USERS_OF_A_TENANT].get_active(users[n % 100]),
        "count": lambda n: managers[n % TENANTS].count(),
        "count idle": lambda n: managers[n % TENANTS].count(status="idle"),
        "stats": lambda n: managers[n % TENANTS].stats(),
    }
    return {name: await median(call) for name, call in work.items()}


async def middle(manager: SessionManager, status: Status | None) -> str | None:
    """Where a page in the middle of all begins."""
    half, cursor = await manager.count(status=status) // 2, None
    while half > 0:
        page = await manager.list(limit=min(half, 1000), status=status, cursor=cursor)
        half, cursor = half - len(page.sessions), page.next_cursor
    return cursor


async def median(call: Callable[[int], Awaitable[object]]) -> float:
    taken = []
    for number in range(CALLS):
        begun = time.perf_counter()
        await call(number)
        taken.append((time.perf_counter() - begun) * 1000)
    return statistics.median(taken)


def table(kind: str, figures: list[dict[str, float]], many: int) -> None:
    few, more = figures
    print(f"\n{'ms':26}{FEW:>10,}{many:>10,}     ratio")
    for name, ms in more.items():
        print(f"{name:26}{few[name]:10.3f}{ms:10.3f}{ms / few[name]:10.2f}")
    counted = COUNTS if kind in ("sqlite", "dynamodb") else frozenset[str]()  # where the index itself is counted
    worst = max(ms / few[name] for name, ms in more.items() if name not in counted)
    promise(
        f"{'no listing' if counted else 'nothing'} costs more than twice among {many:,}", f"{worst:.2f}", worst <= 2
    )
    if kind == "sqlite":
        slowest = max(more[name] for name in counted)
        promise("counts and stats, ms <= 5", f"{slowest:.2f}", slowest <= 5)


def memory(url: str, sessions: int) -> None:
    """Of the indexes alone."""
    client = redis.Redis.from_url(url)
    indexes = [name for name in client.scan_iter("*", count=10_000) if client.type(name) == b"zset"]
    taken = sum(client.memory_usage(name, samples=0) or 0 for name in indexes)
    print(f"  the indexes take {taken / sessions:,.0f} bytes a session; all of it {used(client) / sessions:,.0f}")
    client.close()


def used(client: redis.Redis) -> int:
    return int(client.info("memory")["used_memory_dataset"])


# --------------------------------------------------------------------------------------------------- the sweep


async def sweep(store: Store, spec: str, ran_out: int) -> None:
    """Processes sweep at once what has run out, while turns go on."""
    manager = SessionManager(store).for_tenant("tenant-0")
    alone = await turns(manager, lambda: False, 200)
    begun = time.perf_counter()
    with ProcessPoolExecutor(SWEEPERS, mp_context=get_context("spawn")) as processes:
        sweeps = [processes.submit(sweep_all, spec, first) for first in range(SWEEPERS)]
        beside = await turns(manager, lambda: all(one.done() for one in sweeps), 1_000_000)
        told = [id for one in sweeps for id in one.result()]
    took = time.perf_counter() - begun
    print(f"\n  {SWEEPERS} processes swept {len(told):,} sessions in {took:.0f} s, {len(told) / took:,.0f} a second")
    print(f"  a turn meanwhile: median {beside[0]:.2f} ms, p95 {beside[1]:.2f}; alone {alone[0]:.2f}, {alone[1]:.2f}")
    promise(f"each of {ran_out:,} is told once", f"{len(set(told)):,}", sorted(set(told)) == sorted(told))
    promise("none is left out", f"{ran_out - len(told)} left", len(told) == ran_out)


async def turns(manager: SessionManager, is_over: Callable[[], bool], most: int) -> tuple[float, float]:
    """Turns on one session; the median and the 95th of a hundred, in ms."""
    taken: list[float] = []
    while len(taken) < most and not (is_over() and len(taken) > 1):
        begun = time.perf_counter()
        async with manager.open("turns") as session:
            session.set("number", len(taken))
        taken.append((time.perf_counter() - begun) * 1000)
        await asyncio.sleep(0.001)
    return statistics.median(taken), statistics.quantiles(taken, n=20)[-1]


def sweep_all(spec: str, first: int) -> list[str]:
    """What one process does; return what it was told."""

    async def work() -> list[str]:
        store = open_store(spec)
        told: list[str] = []
        for number in range(TENANTS):
            manager = SessionManager(store).for_tenant(f"tenant-{(number + first) % TENANTS}")
            told += (await manager.expire_idle()).session_ids
        await store.aclose()
        return told

    return asyncio.run(work())


# --------------------------------------------------------------------------------------------------- the stores


@contextmanager
def backend(kind: str) -> Iterator[str]:
    """An empty backend; yields what `open_store` needs to know."""
    if kind == "redis":
        with redis_server() as url:
            yield url
    elif kind == "cluster":
        with redis_cluster() as ports:
            yield f"cluster:{ports[0]}"
    elif kind == "sqlite":
        with tempfile.TemporaryDirectory() as folder:
            yield f"sqlite:{Path(folder) / 'sessions.db'}"
    else:
        from tests.dynamodb_local import CREDENTIALS, dynamodb_local

        os.environ.update(CREDENTIALS)
        with dynamodb_local() as port:
            yield f"dynamodb:{port}"


def open_store(spec: str) -> Store:
    kind, _, where = spec.partition(":")
    if kind == "sqlite":
        from agent_sessions.stores.sqlite import SQLiteStore

        return SQLiteStore(Path(where), synchronous="normal")
    if kind == "dynamodb":
        from agent_sessions.stores.dynamodb import DynamoDBStore

        return DynamoDBStore("benchmark", endpoint_url=f"http://127.0.0.1:{where}", create_table=True)
    from agent_sessions.stores.redis import RedisStore

    if kind == "cluster":
        return RedisStore.from_url(f"redis://127.0.0.1:{where}", cluster=True)
    return RedisStore.from_url(spec)


if __name__ == "__main__":
    if len(sys.argv) < 2 or sys.argv[1] not in STORES:
        sys.exit(f"usage: python -m benchmarks.lifecycle {'|'.join(STORES)} [SESSIONS]")
    asyncio.run(run(sys.argv[1], int(sys.argv[2]) if len(sys.argv) > 2 else MANY))
