"""What is Redis's own: its scripts, its connections, and how it fails. The rest is in the conformance suite."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import re
import socket
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import AsyncIterator
from typing import Any

import pytest
from redis.asyncio import Redis

from agent_sessions.errors import (
    InvalidError,
    SessionBusyError,
    SessionConflictError,
    StateLostError,
    StoreUnavailableError,
)
from agent_sessions.stores.base import (
    ABSENT,
    CollectionChange,
    Commit,
    EntryRange,
    Key,
    Known,
    LeaseWanted,
    LogChange,
    LogWanted,
    Opened,
    Part,
    Store,
    Wanted,
)
from agent_sessions.stores.redis import RedisStore
from agent_sessions.testing import FakeClock

KEY = Key("default", "session", "s-1")
LOG = Part("openai", "items")
CART = Part("shop", "cart")
CHECKPOINTS = Part("langgraph", "checkpoints")
EVERYTHING = Wanted(logs=[LogWanted(LOG)], entries=[(CHECKPOINTS, "a")], ranges=[EntryRange(CHECKPOINTS)])


def change(**changes: Any) -> Commit:
    return Commit(**{"id": os.urandom(8), "owner": "us", "expected": None, "ttl_ms": 600_000, **changes})


def everything(**changes: Any) -> Commit:
    """A commit that makes a session of all sorts of parts."""
    return change(
        values={CART: b"apples"},
        logs={LOG: LogChange(append=[b"hi", b"ho"])},
        collections={CHECKPOINTS: CollectionChange(entries={"a": b"A", "b": b"B"})},
        fields={"status": b"new"},
        **changes,
    )


def lease(owner: str, *, ms: int = 30_000, queue: bool = True) -> LeaseWanted:
    return LeaseWanted(owner, ms, queue)


async def start_turn(store: Store, owner: str, *, ms: int = 30_000) -> Opened:
    while True:
        opened = await store.open(KEY, lease=lease(owner, ms=ms))
        if opened.granted:
            return opened
        await store.wait(KEY, owner, 10)


@pytest.fixture
async def store(redis_url: str) -> AsyncIterator[RedisStore]:
    store = RedisStore.from_url(redis_url)
    yield store
    await store.aclose()


# --------------------------------------------------------------------------------------------------- scripts and keys


async def test_a_warm_turn_is_two_scripts_and_the_bytes_of_what_is_new(store: RedisStore, redis_server: Any) -> None:
    items = [b"x" * 255] * 4
    committed = await store.commit(KEY, change(belongs_to="user-123", logs={LOG: LogChange(append=items * 125)}))
    known, head = Known(committed.version, committed.row.record_tag), committed.log_heads[LOG]  # type: ignore[union-attr]

    async def turn() -> None:
        nonlocal known, head
        owner = "host.example:12345:turn-1"
        opened = await store.open(
            KEY, wanted=Wanted(logs=[LogWanted(LOG, None, *head)]), known=known, lease=lease(owner)
        )
        commit = change(
            owner=owner, expected=opened.version, belongs_to="user-123", logs={LOG: LogChange(append=items)}
        )
        committed = await store.commit(KEY, commit)
        known, head = Known(committed.version, committed.row.record_tag), committed.log_heads[LOG]  # type: ignore[union-attr]

    def traffic() -> int:
        stats = redis_server.command("INFO", "stats")
        return int(stats["total_net_input_bytes"]) + int(stats["total_net_output_bytes"])

    await turn()
    traffic()
    before = traffic()
    cost_of_asking = traffic() - before
    before = traffic()
    await turn()
    assert traffic() - before - cost_of_asking <= 1.5 * sum(map(len, items)) + 700

    redis_server.command("CONFIG", "RESETSTAT")
    for _ in range(10):
        await turn()
    assert sent_commands(redis_server) == {"evalsha": 20}


async def test_a_cold_open_is_one_transaction(store: RedisStore, redis_server: Any) -> None:
    await store.commit(KEY, everything())
    await store.open(KEY, wanted=EVERYTHING)
    redis_server.command("CONFIG", "RESETSTAT")
    opened = await store.open(KEY, wanted=EVERYTHING)
    assert opened.logs[0].items == [b"hi", b"ho"]
    assert opened.entries == [b"A"]
    assert opened.ranges == [[("a", b"A"), ("b", b"B")]]
    sent = sent_commands(redis_server)
    assert sent["multi"] == sent["exec"] == sent["evalsha"] == 1


def sent_commands(redis_server: Any) -> dict[str, int]:
    """The commands that clients sent; INFO counts those inside scripts as well, which are other ones here."""
    stats = redis_server.command("INFO", "commandstats")
    names = ("evalsha", "eval", "script|load", "multi", "exec", "ping", "subscribe", "publish")
    return {name: stats[f"cmdstat_{name}"]["calls"] for name in names if f"cmdstat_{name}" in stats}


async def test_scripts_that_redis_forgot_are_sent_again(store: RedisStore, redis_server: Any) -> None:
    committed = await store.commit(KEY, everything(belongs_to="ann"))
    for _ in range(2):
        redis_server.command("SCRIPT", "FLUSH")
        assert (await store.open(KEY, wanted=EVERYTHING)).logs[0].items[:2] == [b"hi", b"ho"]
        redis_server.command("SCRIPT", "FLUSH")
        committed = await store.commit(KEY, change(expected=committed.version, logs={LOG: LogChange(append=[b"more"])}))
        redis_server.command("SCRIPT", "FLUSH")
        assert (await store.find("default", "session")).found[0].id == "s-1"
    assert (await store.open(KEY, wanted=EVERYTHING)).logs[0].head.count == 4


async def test_every_key_of_a_session_goes_at_the_same_time(store: RedisStore, redis_server: Any) -> None:
    await store.commit(KEY, everything())
    opened = await store.open(KEY, lease=lease("us"))
    await store.commit(KEY, change(expected=opened.version, ttl_ms=500_000, values={Part("other", "value"): b"1"}))
    names = redis_server.command("KEYS", "*{default/s-1}*")
    assert len(names) == 5
    ends = {int(redis_server.command("PEXPIRETIME", name)) for name in names}
    assert len(ends) == 1
    assert opened.now + 499_000 < ends.pop() <= opened.now + 510_000
    await store.commit(KEY, change(ttl_ms=None))
    assert {redis_server.command("PTTL", name) for name in names} == {-1}


async def test_another_process_keeps_alive_what_it_does_not_know(redis_url: str, redis_server: Any) -> None:
    ours, theirs = RedisStore.from_url(redis_url), RedisStore.from_url(redis_url)
    await ours.commit(KEY, change(ttl_ms=1000))
    await theirs.commit(KEY, everything(ttl_ms=1000, belongs_to="ann"))
    await ours.commit(KEY, change(ttl_ms=500_000))
    names = redis_server.command("KEYS", "*{default/s-1}*")
    assert len(names) == 5
    assert all(redis_server.command("PTTL", name) > 400_000 for name in names)
    assert await theirs.delete(KEY, os.urandom(8))
    assert all(b":d" in name for name in redis_server.command("KEYS", "*"))
    await ours.aclose()
    await theirs.aclose()


async def test_a_lease_leaves_nothing_of_an_absent_session(store: RedisStore, redis_server: Any) -> None:
    await store.open(KEY, lease=lease("us", ms=200))
    assert len(redis_server.command("KEYS", "*")) == 1
    await asyncio.sleep(0.3)
    assert redis_server.command("KEYS", "*") == []


HOSTILE = [
    "a}{b",
    "{}",
    "%7B",
    "a/b",
    "a:v",
    "a:lopenai/items",
    "\x00",
    "a\nb",
    "*",
    "👩‍👩‍👧",
    "é" * 256,
    "x" * 256,
    "x" * 255 + "y",
    "#" + "0" * 32,
]


async def test_hostile_ids_stay_in_their_place(store: RedisStore, redis_server: Any) -> None:
    for number, id in enumerate(HOSTILE):
        await store.commit(
            Key("t", "session", id),
            change(fields={"number": b"%d" % number}, logs={LOG: LogChange(append=[b"%d" % number])}),
        )
        await store.commit(Key(id, "session", "t"), change(logs={LOG: LogChange(append=[b"tenant"])}))
    for number, id in enumerate(HOSTILE):
        opened = await store.open(Key("t", "session", id), wanted=Wanted(logs=[LogWanted(LOG)]))
        assert opened.logs[0].items == [b"%d" % number], id
        assert opened.version.revision == 1
        assert await store.count(id, "session") == 1
    page = await store.find("t", "session", limit=100)
    assert {found.id: found.row.fields["number"] for found in page.found if found.row.fields} == {
        id: b"%d" % number for number, id in enumerate(HOSTILE)
    }
    names: list[bytes] = redis_server.command("KEYS", "*")
    sessions = [name for name in names if name.startswith(b"ak:sessions:s{")]
    assert len(sessions) == 4 * len(HOSTILE)
    for name in sessions:
        tag = name.split(b"{", 1)[1].split(b"}", 1)[0]
        assert len(tag) <= 96
        assert name.startswith(b"ak:sessions:s{" + tag + b"}")


async def test_every_key_that_a_script_touches_is_declared(store: RedisStore, redis_server: Any) -> None:
    with monitor(redis_server.port) as lines:
        other = Key("default", "session", "s-2")
        created = await store.commit(KEY, everything(belongs_to="ann", hold_ms=1000))
        await store.open(KEY, wanted=EVERYTHING)
        await store.open(KEY, wanted=EVERYTHING, known=Known(created.version, b""), lease=lease("us"))
        assert not (await store.open(KEY, lease=lease("them"))).granted
        await store.renew(KEY, "us", 900_000)
        await store.commit(
            KEY,
            change(
                values={CART: None, Part("a", "b"): b"1"},
                logs={LOG: LogChange(pop=1), Part("new", "log"): LogChange(append=[b"1"])},
                collections={CHECKPOINTS: CollectionChange(delete_prefixes=["a"])},
            ),
        )
        await store.unlock(KEY)
        await store.release(KEY, "them")
        await store.commit_status(KEY, b"12345678", since=ABSENT)
        await store.commit(other, change(ttl_ms=1))
        await store.find("default", "session")
        await store.find("default", "session", belongs_to="ann")
        await store.count("default", "session")
        await store.delete(KEY, os.urandom(8))
        touched = lines()
    assert undeclared(touched) == []


@contextlib.contextmanager
def monitor(port: int) -> Any:
    """What Redis executes, line by line."""
    with socket.create_connection(("127.0.0.1", port)) as connection:
        connection.sendall(b"MONITOR\r\n")
        assert connection.recv(5) == b"+OK\r\n"
        raw = bytearray()

        def lines() -> list[str]:
            connection.settimeout(0.3)
            with contextlib.suppress(TimeoutError):
                while chunk := connection.recv(65536):
                    raw.extend(chunk)
            return raw.decode("latin-1").split("\r\n")

        yield lines


def undeclared(lines: list[str]) -> list[str]:
    """Commands inside a script on keys that its call did not name."""
    declared: list[str] = []
    wrong = []
    scripts = 0
    for line in lines:
        words = re.findall(r'"((?:[^"\\]|\\.)*)"', line)
        if not words:
            continue
        if words[0].upper() in ("EVALSHA", "EVAL"):
            declared = words[3 : 3 + int(words[2])]
            scripts += 1
        elif " lua]" in line and words[0] not in ("TIME", "PUBLISH"):
            keys = words[1:] if words[0] == "UNLINK" else words[1:2]
            wrong += [line for key in keys if key not in declared]
    assert scripts > 10
    assert sum(" lua]" in line for line in lines) > 100
    return wrong


# --------------------------------------------------------------------------------------------------- lost parts


@pytest.mark.parametrize("known", [True, False])
@pytest.mark.parametrize(
    ("suffix", "what"),
    [
        ("lopenai/items", "the log openai/items"),
        ("v", "the values"),
        ("clanggraph/checkpoints", "the collection langgraph/checkpoints"),
        ("zlanggraph/checkpoints", "the collection"),
    ],
)
async def test_what_redis_evicted_is_reported_as_lost(
    store: RedisStore, redis_server: Any, suffix: str, what: str, known: bool
) -> None:
    created = await store.commit(KEY, everything())
    assert redis_server.command("DEL", f"ak:sessions:s{{default/s-1}}:{suffix}") == 1
    with pytest.raises(StateLostError, match=what):
        await store.open(
            KEY, wanted=EVERYTHING, known=Known(created.version, b"") if known else None, lease=lease("us")
        )
    assert (await store.open(KEY, wanted=Wanted(values=False))).lease is None
    lost = {
        "l": change(logs={LOG: LogChange(append=[b"more"])}),
        "v": change(values={CART: b"pears"}),
        "c": change(collections={CHECKPOINTS: CollectionChange(entries={"c": b"C"})}),
    }[suffix[0].replace("z", "c")]
    with pytest.raises(StateLostError):
        await store.commit(KEY, lost)
    opened = await store.open(KEY, wanted=Wanted(values=False))
    assert opened.version == created.version
    assert await store.delete(KEY, os.urandom(8))


async def test_a_lost_log_can_be_cleared(store: RedisStore, redis_server: Any) -> None:
    await store.commit(KEY, everything())
    redis_server.command("DEL", "ak:sessions:s{default/s-1}:lopenai/items")
    await store.commit(KEY, change(logs={LOG: LogChange(clear=True, append=[b"new"])}))
    read = (await store.open(KEY, wanted=EVERYTHING)).logs[0]
    assert read.items == [b"new"]
    assert read.head.last == 3


async def test_a_session_that_was_evicted_leaves_no_remains_in_a_new_one(store: RedisStore, redis_server: Any) -> None:
    await store.commit(KEY, everything())
    redis_server.command("DEL", "ak:sessions:s{default/s-1}")
    assert (await store.open(KEY, wanted=EVERYTHING)).values == {}
    await store.commit(KEY, change(logs={LOG: LogChange(append=[b"new"])}, values={Part("a", "b"): b"1"}))
    opened = await store.open(KEY, wanted=EVERYTHING)
    assert opened.logs[0].items == [b"new"]
    assert opened.values == {"a": {"b": b"1"}}
    assert opened.ranges == [[]]


async def test_places_of_evicted_sessions_leave_the_listing(redis_url: str, redis_server: Any) -> None:
    clock = FakeClock()
    store = RedisStore.from_url(redis_url, clock=clock)
    for number in range(5):
        await store.commit(Key("default", "session", f"s-{number}"), change(belongs_to="ann"))
    redis_server.command("DEL", "ak:sessions:s{default/s-1}")
    page = await store.find("default", "session", limit=3)
    assert [found.id for found in page.found] == ["s-4", "s-3", "s-2"]
    assert [found.id for found in (await store.find("default", "session", cursor=page.next)).found] == ["s-0"]
    assert await store.count("default", "session") == 5  # it is young: a creation may be on its way
    clock.advance(61)
    assert len((await store.find("default", "session")).found) == 4
    assert await store.count("default", "session") == 4
    await store.aclose()


# --------------------------------------------------------------------------------------------------- Redis in trouble


async def test_a_server_that_is_gone_is_reported_soon_and_used_again_when_it_is_back(start_redis: Any) -> None:
    server = start_redis()
    store = RedisStore.from_url(server.url)
    await asyncio.gather(*(store.commit(Key("t", "session", f"{n}"), change()) for n in range(8)))
    await store.commit(KEY, change())
    server.kill()
    for _ in range(2):
        started = time.monotonic()
        with pytest.raises(StoreUnavailableError, match="can't be reached"):
            await store.open(KEY)
        assert time.monotonic() - started < 1
    server.start()
    assert (await store.open(KEY)).row is None
    await asyncio.gather(*(store.commit(Key("t", "session", f"{n}"), change()) for n in range(16)))
    await store.aclose()


async def test_a_silent_server_is_reported_in_time_and_blocks_nothing(start_redis: Any) -> None:
    server = start_redis()
    store = RedisStore.from_url(server.url, connect_timeout_s=0.5, timeout_s=0.5)
    await store.commit(KEY, change())
    server.freeze()
    started = time.monotonic()
    calls = [asyncio.ensure_future(store.open(KEY)) for _ in range(3)]
    longest, last = 0.0, time.monotonic()
    while not all(call.done() for call in calls):
        await asyncio.sleep(0.005)
        longest, last = max(longest, time.monotonic() - last), time.monotonic()
    assert longest < 0.2
    assert time.monotonic() - started < 2
    for call in calls:
        with pytest.raises(StoreUnavailableError, match=r"did not answer in time|can't be reached"):
            await call
    server.thaw()
    assert (await store.open(KEY)).row is not None
    await store.aclose()


async def test_a_full_redis_refuses_a_commit_whole_and_lets_go_of_leases(start_redis: Any) -> None:
    server = start_redis("--maxmemory-policy", "noeviction")
    store = RedisStore.from_url(server.url)
    created = await store.commit(KEY, everything())
    await store.open(KEY, lease=lease("us"))
    server.command("CONFIG", "SET", "maxmemory", "1")
    full = change(
        expected=created.version,
        values={CART: None},
        logs={LOG: LogChange(pop=2, append=[b"new"])},
        collections={CHECKPOINTS: CollectionChange(delete_prefixes=[""])},
        fields={"status": None},
    )
    with pytest.raises(StoreUnavailableError, match="out of memory"):
        await store.commit(KEY, full)
    await store.release(KEY, "us")
    server.command("CONFIG", "SET", "maxmemory", "0")
    opened = await store.open(KEY, wanted=EVERYTHING)
    assert opened.lease is None
    assert opened.version == created.version
    assert opened.logs[0].items == [b"hi", b"ho"]
    assert opened.ranges == [[("a", b"A"), ("b", b"B")]]
    assert opened.values == {"shop": {"cart": b"apples"}}
    assert (await store.commit(KEY, full)).version.revision == 2
    await store.aclose()


async def test_a_read_only_replica_says_so(start_redis: Any) -> None:
    server = start_redis()
    store = RedisStore.from_url(server.url)
    server.command("REPLICAOF", "127.0.0.1", "1")
    with pytest.raises(StoreUnavailableError, match="read-only replica"):
        await store.commit(KEY, change())
    await store.aclose()


async def test_a_wrong_password_is_reported_without_it(start_redis: Any) -> None:
    server = start_redis()
    server.command("ACL", "SETUSER", "default", ">geheim", "resetpass", ">geheim")
    for password in (None, "wrong-secret"):
        store = RedisStore.from_url(server.url, password=password)
        with pytest.raises(StoreUnavailableError, match="password") as raised:
            await store.open(KEY)
        assert "secret" not in str(raised.value)
        await store.aclose()
    store = RedisStore.from_url(server.url, password="geheim")
    assert (await store.open(KEY)).row is None
    await store.aclose()


def test_what_is_no_url_is_refused_without_repeating_it() -> None:
    with pytest.raises(InvalidError) as raised:
        RedisStore.from_url("http://user:geheim@localhost")
    assert raised.value.field == "url"
    assert "geheim" not in str(raised.value)


async def test_an_acl_user_without_channels_commits_and_waits(start_redis: Any) -> None:
    server = start_redis()
    server.command("ACL", "SETUSER", "app", "on", ">pw", "~ak:sessions:*", "+@all", "resetchannels")
    url = server.url.replace("//", "//app:pw@")
    ours, theirs = RedisStore.from_url(url), RedisStore.from_url(url)
    await start_turn(ours, "us")
    waiting = asyncio.create_task(start_turn(theirs, "them"))
    await asyncio.sleep(0.2)
    await ours.commit(KEY, change())
    assert (await asyncio.wait_for(waiting, 2)).granted
    await ours.aclose()
    await theirs.aclose()


# --------------------------------------------------------------------------------------------------- lost replies


class Proxy:
    """Between a store and Redis; loses what it is told to."""

    def __init__(self, port: int) -> None:
        self._to = port
        self.lose_replies = self.requests = 0

    async def __aenter__(self) -> Proxy:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.url = f"redis://127.0.0.1:{self._server.sockets[0].getsockname()[1]}/0"
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        up_reader, up_writer = await asyncio.open_connection("127.0.0.1", self._to)

        async def forward() -> None:
            while data := await reader.read(1 << 20):
                if b"EVAL" in data:
                    self.requests += 1
                up_writer.write(data)

        async def back() -> None:
            while data := await up_reader.read(1 << 20):
                if self.lose_replies and self.requests:
                    self.lose_replies -= 1
                    break
                writer.write(data)

        tasks = [asyncio.create_task(forward()), asyncio.create_task(back())]
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in tasks:
            task.cancel()
        for closing in (writer, up_writer):
            closing.close()
            with contextlib.suppress(OSError):
                await closing.wait_closed()


async def test_a_commit_that_the_client_sends_again_by_itself_is_stored_once(
    store: RedisStore, redis_server: Any
) -> None:
    await store.commit(KEY, change(logs={LOG: LogChange(append=[b"first"])}))
    async with Proxy(redis_server.port) as proxy:
        behind = RedisStore.from_url(proxy.url)
        version = (await behind.open(KEY, lease=lease("us"))).version
        proxy.lose_replies = 1
        proxy.requests = 0
        committed = await behind.commit(KEY, change(expected=version, logs={LOG: LogChange(append=[b"once"])}))
        assert proxy.requests == 2
        assert committed.repeated
        assert committed.version.revision == 2
        proxy.lose_replies = 1
        proxy.requests = 0
        assert (await behind.commit(KEY, change(logs={LOG: LogChange(append=[b"blind"])}))).repeated
        await behind.aclose()
    assert (await store.open(KEY, wanted=EVERYTHING)).logs[0].items == [b"first", b"once", b"blind"]


# --------------------------------------------------------------------------------------------------- the queue


async def test_sixteen_waiters_are_woken_at_once_and_in_order(redis_url: str) -> None:
    stores = [RedisStore.from_url(redis_url) for _ in range(4)]
    first = await start_turn(stores[0], "first")
    assert first.granted
    served: list[int] = []
    gaps: list[float] = []
    released = 0.0

    async def turn(number: int) -> None:
        nonlocal released
        store = stores[number % 4]
        await start_turn(store, f"w{number}")
        gaps.append(time.monotonic() - released)
        served.append(number)
        await asyncio.sleep(0.01)
        released = time.monotonic()
        await store.commit(KEY, change(owner=f"w{number}", values={Part("n", str(number)): b"1"}))

    waiting = []
    for number in range(16):
        waiting.append(asyncio.create_task(turn(number)))
        while (await stores[0].open(KEY)).waiters <= number:  # noqa: ASYNC110 - it is Redis that tells
            await asyncio.sleep(0.002)
    released = time.monotonic()
    await stores[0].commit(KEY, change(owner="first"))
    await asyncio.gather(*waiting)
    assert served == list(range(16))
    assert sorted(gaps)[len(gaps) // 2] < 0.02
    assert len((await stores[0].open(KEY)).values["n"]) == 16
    for store in stores:
        await store.aclose()


async def test_uncontended_turns_subscribe_to_nothing(store: RedisStore, redis_server: Any) -> None:
    for number in range(3):
        await start_turn(store, f"{number}")
        await store.commit(KEY, change(owner=f"{number}"))
    assert redis_server.command("PUBSUB", "CHANNELS") == []


async def test_a_lost_subscription_is_made_again(store: RedisStore, redis_url: str, redis_server: Any) -> None:
    other = RedisStore.from_url(redis_url)
    await start_turn(store, "us")
    waiting = asyncio.create_task(start_turn(other, "them"))
    while not redis_server.command("PUBSUB", "CHANNELS"):  # noqa: ASYNC110
        await asyncio.sleep(0.01)
    redis_server.command("CLIENT", "KILL", "TYPE", "pubsub")
    await asyncio.sleep(0.1)
    released = time.monotonic()
    await store.release(KEY, "us")
    await waiting
    assert time.monotonic() - released < 0.1
    await other.aclose()


HOLDER = """
import asyncio, sys
from agent_sessions.stores.base import Key, LeaseWanted
from agent_sessions.stores.redis import RedisStore
async def main():
    store, key = RedisStore.from_url(sys.argv[1]), Key("default", "session", "s-1")
    while not (await store.open(key, lease=LeaseWanted("dying", 1000, True))).granted:
        print("waiting", flush=True)
        await store.wait(key, "dying", 10)
    print("holding", flush=True)
    await asyncio.sleep(60)
asyncio.run(main())
"""


async def test_a_killed_holder_delays_the_next_by_its_lease(redis_url: str, store: RedisStore) -> None:
    process = await another_process(redis_url, until=b"holding")
    waiting = asyncio.create_task(start_turn(store, "us"))
    await asyncio.sleep(0.1)
    process.kill()
    await process.wait()
    killed = time.monotonic()
    await asyncio.wait_for(waiting, 5)
    assert time.monotonic() - killed < 1.1


async def test_a_killed_waiter_delays_the_next_by_two_seconds(redis_url: str, store: RedisStore) -> None:
    await start_turn(store, "first")
    process = await another_process(redis_url, until=b"waiting")
    waiting = asyncio.create_task(start_turn(store, "us"))
    await asyncio.sleep(0.1)
    process.kill()
    await process.wait()
    released = time.monotonic()
    await store.commit(KEY, change(owner="first"))
    await asyncio.wait_for(waiting, 5)
    assert time.monotonic() - released < 2.2


async def another_process(redis_url: str, *, until: bytes) -> asyncio.subprocess.Process:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", HOLDER, redis_url, stdout=subprocess.PIPE, cwd=os.getcwd()
    )
    assert process.stdout is not None
    assert (await process.stdout.readline()).strip() == until
    return process


# --------------------------------------------------------------------------------------------------- loops and forks


async def test_two_loops_in_two_threads_share_a_store(store: RedisStore) -> None:
    def elsewhere() -> None:
        async def turns() -> None:
            for number in range(20):
                await start_turn(store, f"thread-{number}")
                await store.commit(KEY, change(owner=f"thread-{number}", logs={LOG: LogChange(append=[b"t"])}))
            await store.detach()

        asyncio.run(turns())

    thread = threading.Thread(target=elsewhere)
    thread.start()
    for number in range(20):
        await start_turn(store, f"main-{number}")
        await store.commit(KEY, change(owner=f"main-{number}", logs={LOG: LogChange(append=[b"m"])}))
    await asyncio.to_thread(thread.join)
    items = (await store.open(KEY, wanted=EVERYTHING)).logs[0].items
    assert sorted(items) == [b"m"] * 20 + [b"t"] * 20


def test_throw_away_loops_leave_no_sockets(redis_url: str) -> None:
    store = RedisStore.from_url(redis_url)

    def sockets() -> int:
        return sum("socket:" in _target(entry.path) for entry in os.scandir("/proc/self/fd"))

    asyncio.run(_use(store))
    gc.collect()
    before = sockets()
    for _ in range(10):
        asyncio.run(_use(store))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        gc.collect()
    assert sockets() <= before
    asyncio.run(store.aclose())
    assert sockets() < before


def _target(path: str) -> str:
    try:
        return os.readlink(path)
    except OSError:
        return ""


async def _use(store: RedisStore) -> None:
    await asyncio.gather(*(store.open(KEY, lease=lease("us")) for _ in range(3)))


def test_a_forked_child_uses_connections_of_its_own(redis_url: str, redis_server: Any) -> None:
    store = RedisStore.from_url(redis_url)

    async def append(item: bytes) -> None:
        await store.commit(KEY, change(logs={LOG: LogChange(append=[item])}))

    with asyncio.Runner() as runner:
        runner.run(append(b"parent"))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            child = os.fork()
        if child == 0:
            code = 1
            with contextlib.suppress(BaseException):
                asyncio.run(append(b"child"))
                code = 0
            os._exit(code)
        for _ in range(20):
            runner.run(append(b"parent"))
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        opened = runner.run(store.open(KEY, wanted=EVERYTHING))
        runner.run(store.aclose())
    assert sorted(opened.logs[0].items) == [b"child"] + [b"parent"] * 21


# --------------------------------------------------------------------------------------------------- the other door


async def test_a_client_of_the_users_own_is_used_and_stays_open(redis_url: str) -> None:
    client = Redis.from_url(redis_url)
    store = RedisStore(client, prefix="mine:")
    await store.commit(KEY, everything(belongs_to="ann"))
    opened = await store.open(KEY, wanted=EVERYTHING)
    assert opened.values == {"shop": {"cart": b"apples"}}
    assert [found.id for found in (await store.find("default", "session", belongs_to="ann")).found] == ["s-1"]
    raw_names: Any = await client.keys("*")
    assert all(name.startswith(b"mine:") for name in raw_names)

    def elsewhere() -> Opened:
        async def read() -> Opened:
            opened = await store.open(KEY)
            await store.detach()
            return opened

        return asyncio.run(read())

    assert (await asyncio.to_thread(elsewhere)).version == opened.version
    await start_turn(store, "us")
    waiting = asyncio.create_task(start_turn(store, "them"))
    await asyncio.sleep(0.05)
    await store.release(KEY, "us")
    await asyncio.wait_for(waiting, 0.5)
    await store.aclose()
    assert await client.ping()
    await client.aclose()


async def test_a_client_that_decodes_is_as_good(redis_url: str) -> None:
    client = Redis.from_url(redis_url, decode_responses=True)
    store = RedisStore(client)
    await store.commit(KEY, change(values={CART: b"\xff\x00"}))
    assert (await store.open(KEY)).values == {"shop": {"cart": b"\xff\x00"}}
    await store.aclose()
    await client.aclose()


@pytest.mark.parametrize("scheme", ["valkey", "redis"])
async def test_valkey_urls_are_as_good(redis_url: str, scheme: str) -> None:
    store = RedisStore.from_url(redis_url.replace("redis", scheme))
    assert (await store.open(KEY)).row is None
    await store.aclose()


async def test_more_turns_at_once_than_connections_wait_for_one(redis_url: str) -> None:
    store = RedisStore.from_url(redis_url, max_connections=2)
    keys = [Key("t", "session", f"{number}") for number in range(50)]
    await asyncio.gather(*(store.commit(key, change()) for key in keys))
    assert await store.count("t", "session") == 50
    await store.aclose()


async def test_a_commit_of_thirty_two_megabytes_is_stored(store: RedisStore) -> None:
    parts = {Part("big", f"v{number}"): os.urandom(1 << 20) * 16 for number in range(2)}
    items = [b"%d" % number for number in range(10_000)]
    await store.commit(KEY, change(values=parts, logs={LOG: LogChange(append=items)}))
    opened = await store.open(KEY, wanted=EVERYTHING)
    assert opened.values["big"] == {part.name: value for part, value in parts.items()}
    assert opened.logs[0].items == items


async def test_a_record_of_a_newer_version_is_refused(store: RedisStore, redis_server: Any) -> None:
    from agent_sessions.errors import FormatTooNewError

    created = await store.commit(KEY, everything())
    redis_server.command("HSET", "ak:sessions:s{default/s-1}", "f", "2")
    for call in (
        lambda: store.open(KEY, wanted=EVERYTHING, lease=lease("us")),
        lambda: store.commit(KEY, change(expected=created.version)),
        lambda: store.find("default", "session"),
    ):
        with pytest.raises(FormatTooNewError):
            await call()


async def test_orders_of_refusal(store: RedisStore) -> None:
    created = await store.commit(KEY, change())
    await store.commit(KEY, change(hold_ms=1000, owner="them"))
    with pytest.raises(SessionConflictError):
        await store.commit(KEY, change(expected=created.version))
    with pytest.raises(SessionBusyError):
        await store.commit(KEY, change())
