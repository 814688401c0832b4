"""What is Redis's own: its keys, its scripts, and what it loses. The rest is in the conformance suite."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import socket
from collections.abc import AsyncIterator
from typing import Any

import pytest

from agent_sessions.errors import (
    SessionBusyError,
    SessionConflictError,
    StateLostError,
)
from agent_sessions.stores.base import (
    ABSENT,
    Amend,
    CollectionChange,
    Key,
    Known,
    LogChange,
    LogWanted,
    Part,
    Wanted,
)
from agent_sessions.stores.lifetime import Lifetime
from agent_sessions.stores.redis import RedisStore
from agent_sessions.testing import FakeClock

from .redis_turns import CART, CHECKPOINTS, EVERYTHING, KEY, LOG, change, everything, lease


@pytest.fixture
async def store(redis_url: str) -> AsyncIterator[RedisStore]:
    store = RedisStore.from_url(redis_url)
    yield store
    await store.aclose()


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


async def test_an_index_goes_with_the_last_of_its_places(store: RedisStore, redis_server: Any) -> None:
    await store.commit(KEY, change(ttl_ms=500_000, belongs_to="ann"))
    await store.commit(KEY._replace(id="s-2"), change(ttl_ms=900_000, belongs_to="ann"))
    await store.commit(KEY._replace(id="s-3"), change(ttl_ms=100_000, belongs_to="ann"))
    indexes = [name for name in redis_server.command("KEYS", "*") if redis_server.command("TYPE", name) == b"zset"]
    assert len(indexes) == 2
    assert all(900_000 < redis_server.command("PTTL", name) <= 1_100_000 for name in indexes)
    await store.commit(KEY, change(ttl_ms=None))
    assert {redis_server.command("PTTL", name) for name in indexes} == {-1}
    await store.delete(KEY, os.urandom(8))
    assert all(900_000 < redis_server.command("PTTL", name) <= 1_100_000 for name in indexes)


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
        await store.amend(KEY, Amend(id=os.urandom(8), fields={"a": b"1"}, lifetime=Lifetime(idle_ms=0, end_ms=0)))
        await store.find("default", "session", belongs_to="ann", status="ended")
        await store.run_out("default", "session")
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


async def test_deleting_an_evicted_session_removes_what_is_left_of_it(store: RedisStore, redis_server: Any) -> None:
    await store.commit(KEY, everything(belongs_to="ann"))
    redis_server.command("DEL", "ak:sessions:s{default/s-1}")
    assert not await store.delete(KEY, os.urandom(8))
    assert [name for name in redis_server.command("KEYS", "*") if b":d" not in name] == []


async def test_deleting_a_session_past_its_time_spares_the_lease_on_its_place(
    redis_url: str, redis_server: Any
) -> None:
    clock = FakeClock()
    store = RedisStore.from_url(redis_url, clock=clock)
    await store.commit(KEY, everything(belongs_to="ann", ttl_ms=60_000))
    clock.advance(60)
    assert (await store.open(KEY, lease=lease("us"))).granted
    assert not await store.delete(KEY, os.urandom(8))
    assert (
        redis_server.command("EXISTS", "ak:sessions:s{default/s-1}:v", "ak:sessions:s{default/s-1}:lopenai/items") == 0
    )
    opened = await store.open(KEY)
    assert opened.row is None
    assert opened.lease is not None
    await store.aclose()


async def test_a_session_ends_by_the_servers_own_time(store: RedisStore, redis_server: Any) -> None:
    await store.commit(KEY, everything(belongs_to="ann", ttl_ms=300))
    assert await store.count("default", "session") == 1
    await asyncio.sleep(0.35)
    assert (await store.open(KEY)).row is None
    assert await store.count("default", "session", belongs_to="ann") == 0
    assert redis_server.command("KEYS", "*{default/s-1}*") == []


async def test_places_of_evicted_sessions_leave_the_listing(redis_url: str, redis_server: Any) -> None:
    clock = FakeClock()
    store = RedisStore.from_url(redis_url, clock=clock)
    for number in range(5):
        await store.commit(Key("default", "session", f"s-{number}"), change(belongs_to="ann"))
    redis_server.command("DEL", "ak:sessions:s{default/s-1}")
    page = await store.find("default", "session", limit=3)
    assert [found.id for found in page.found] == ["s-4", "s-3", "s-2"]
    assert [found.id for found in (await store.find("default", "session", cursor=page.next)).found] == ["s-0"]
    assert await store.count("default", "session") == 4
    assert await store.count("default", "session", belongs_to="ann") == 5
    assert len((await store.find("default", "session", belongs_to="ann")).found) == 4
    assert await store.count("default", "session", belongs_to="ann") == 4
    await store.aclose()


@pytest.mark.parametrize("which", [":i", "/ann:i"])
async def test_an_index_that_was_deleted_comes_back_with_the_turns(
    store: RedisStore, redis_server: Any, which: str
) -> None:
    for id in ("s-1", "s-2"):
        await store.commit(KEY._replace(id=id), change(belongs_to="ann"))
    assert redis_server.command("DEL", f"ak:sessions:{{s@default}}{which}") == 1
    for id in ("s-1", "s-2"):
        await store.commit(KEY._replace(id=id), change())
    for belongs_to in (None, "ann"):
        assert len((await store.find("default", "session", belongs_to=belongs_to)).found) == 2
        assert await store.count("default", "session", belongs_to=belongs_to) == 2


async def test_a_scan_brings_back_indexes_that_were_deleted(redis_url: str, redis_server: Any) -> None:
    clock = FakeClock()
    store = RedisStore.from_url(redis_url, clock=clock)
    for number in range(5):
        await store.commit(
            Key("default", "session", f"s-{number}"), change(belongs_to="ann", ttl_ms=60_000 if number else None)
        )
        clock.advance(1)
    before = [await store.find("default", "session", belongs_to=user) for user in (None, "ann")]
    names = redis_server.command("KEYS", "ak:sessions:{*")
    assert len(names) == 2
    redis_server.command("DEL", *names)
    assert (await store.find("default", "session")).found == []
    cursor = None
    while (page := await store.scan(cursor=cursor)).next is not None:
        cursor = page.next
    assert [await store.find("default", "session", belongs_to=user) for user in (None, "ann")] == before
    assert await store.count("default", "session", belongs_to="ann") == 5
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
