"""What goes in comes out: any bytes, any names, any size, any range."""

from __future__ import annotations

import random
from itertools import product

import pytest

from agent_sessions.stores.base import (
    CollectionChange,
    EntryRange,
    Key,
    LogChange,
    LogHead,
    LogWanted,
    Part,
    Store,
    Wanted,
)
from agent_sessions.testing.conformance.harness import (
    CHECKPOINTS,
    LOG,
    Harness,
    append,
    change,
    lease,
    read_log,
    read_range,
    read_values,
    version_of,
)

BYTES = [b"", b"\0", b"\0\0", bytes(range(256)), b"\r\n", b"*1\r\n$4\r\nPING\r\n", b"\xff\xfe", b"None", b"\x80" * 1000]

SEPARATORS = [*"/:|#,.-_%{}\\ \0\x1f\n'\"", "%2F", "{}"]

NAMES = [
    *SEPARATORS,
    "..",
    "../..",
    "{a}b{c}",
    "}{",
    "*",
    "?",
    "[a-z]",
    "a\nb",
    "a\r\n",
    "%00",
    "é",
    "e\u0301",
    "x" + "\u0301" * 60,
    "日本語",
    "👩‍👩‍👧",
    "\u202eabc",
    "مرحبا",
    "\ufeffa",
    "\U0010ffff",
    "A",
    "a",
    "x" * 128,
    "null",
    "0",
    "-1",
    "__proto__",
    "v",
    "rev",
]

LONG_IDS = ["x" * 256, "é" * 256, "👩" * 256, "a" + "\u0301" * 255, "%" * 256]

KEYS_IN_ORDER = sorted(
    [*"abBz\0é日\uffff👩", "a/", "a/1", "a/10", "a/2", "a/é", "a/\U0010ffff", "a0", "aa", "\0a"], key=str.encode
)


class Contents(Harness):
    """Exactness of bytes and names, sizes, ranges."""

    async def test_bytes_come_back_exactly(self, store: Store, other: Store, key: Key) -> None:
        values = {Part("bytes", f"v{number}"): data for number, data in enumerate(BYTES)}
        entries = {f"e{number:02}": data for number, data in enumerate(BYTES)}
        fields = {f"f{number}": data for number, data in enumerate(BYTES)}
        await store.commit(
            key,
            change(
                values=values,
                logs=append(*BYTES),
                collections={CHECKPOINTS: CollectionChange(entries=dict(entries))},
                fields=dict(fields),
            ),
        )
        assert await read_values(other, key) == values
        assert await read_log(other, key) == BYTES
        assert dict(await read_range(other, key)) == entries
        opened = await other.open(key, wanted=Wanted(entries=[(CHECKPOINTS, name) for name in entries]))
        assert opened.entries == BYTES
        assert opened.row is not None
        assert opened.row.fields == fields

    async def test_bytes_come_out_as_bytes(self, store: Store, key: Key) -> None:
        put = CollectionChange(entries={"a": b"1"})
        await store.commit(
            key, change(values={LOG: b"1"}, logs=append(b"1"), collections={CHECKPOINTS: put}, fields={"a": b"1"})
        )
        for data in [*(await read_values(store, key)).values(), *await read_log(store, key)]:
            assert type(data) is bytes
        assert [type(data) for _, data in await read_range(store, key)] == [bytes]

    async def test_what_is_handed_out_is_the_callers_own(self, store: Store, key: Key) -> None:
        items, put = [b"1"], CollectionChange(entries={"a": b"1"})
        commit = change(
            values={LOG: b"1"}, logs={LOG: LogChange(append=items)}, collections={CHECKPOINTS: put}, fields={"a": b"1"}
        )
        await store.commit(key, commit)
        items.append(b"2")
        put.entries["b"] = b"2"
        for _ in range(2):
            wanted = Wanted(logs=[LogWanted(LOG)], ranges=[EntryRange(CHECKPOINTS)])
            opened = await store.open(key, wanted=wanted)
            assert opened.row is not None
            assert opened.row.fields == {"a": b"1"}
            assert opened.values == {LOG.namespace: {LOG.name: b"1"}}
            assert opened.log_heads == {LOG: LogHead(1, 1)}
            assert opened.logs[0].items == [b"1"]
            assert opened.ranges == [[("a", b"1")]]
            assert opened.collections == {CHECKPOINTS: 1}
            opened.row.fields.clear()
            opened.values[LOG.namespace].clear()
            opened.log_heads.clear()
            opened.logs[0].items.clear()
            opened.ranges[0].clear()
            opened.collections.clear()

    async def test_names_of_any_kind_are_kept_apart(self, store: Store, other: Store, key: Key) -> None:
        named = {Part(namespace, name): f"{namespace}|{name}".encode() for namespace, name in joined_alike()}
        named |= {Part(name, name): name.encode() for name in NAMES}
        await store.commit(
            key,
            change(
                values=dict(named),
                logs={part: LogChange(append=[data]) for part, data in named.items()},
                collections={part: CollectionChange(entries={part.name: data}) for part, data in named.items()},
                fields={part.name: part.name.encode() for part in named},
            ),
        )
        wanted = Wanted(
            logs=[LogWanted(part) for part in named],
            entries=[(part, part.name) for part in named],
            ranges=[EntryRange(part) for part in named],
        )
        opened = await other.open(key, wanted=wanted)
        assert await read_values(other, key) == named
        assert [log.items for log in opened.logs] == [[data] for data in named.values()]
        assert opened.entries == list(named.values())
        assert opened.ranges == [[(part.name, data)] for part, data in named.items()]
        assert opened.log_heads == dict.fromkeys(named, LogHead(1, 1))
        assert opened.collections == dict.fromkeys(named, 1)
        assert opened.row is not None
        assert opened.row.fields == {part.name: part.name.encode() for part in named}

    async def test_a_value_a_log_and_a_collection_of_one_name_are_three_things(self, store: Store, key: Key) -> None:
        put = CollectionChange(entries={"a": b"collection"})
        await store.commit(key, change(values={LOG: b"value"}, logs=append(b"log"), collections={LOG: put}))
        await store.commit(key, change(values={LOG: None}))
        assert await read_log(store, key) == [b"log"]
        await store.commit(key, change(logs=append(clear=True)))
        assert await read_range(store, key, LOG) == [("a", b"collection")]

    async def test_ids_and_tenants_of_any_kind_are_kept_apart(self, store: Store, other: Store, tenant: str) -> None:
        keys = [Key(f"{tenant}{first}", "session", second) for first, second in joined_alike()]
        keys += [Key(tenant, "session", id) for id in [*NAMES, *LONG_IDS]]
        keys += [Key(tenant + name, "session", name) for name in NAMES]
        keys += [Key(tenant, kind, "a") for kind in ("user", "app", "agent", "run", "system")]
        assert len(keys) == len(set(keys))
        for number, key in enumerate(keys):
            committed = await store.commit(key, change(values={LOG: b"%d" % number}, logs=append(b"%d" % number)))
            assert committed.version.revision == 1, key
        for number, key in enumerate(keys):
            assert await read_values(other, key) == {LOG: b"%d" % number}, key
            assert await read_log(other, key) == [b"%d" % number], key
        page = await other.find(tenant, "session", limit=1000)
        assert {found.id for found in page.found} == {*NAMES, *LONG_IDS}

    async def test_owners_of_any_kind_hold_leases(self, store: Store, key: Key) -> None:
        for owner in [name for name in NAMES if name.isprintable()]:
            opened = await store.open(key, lease=lease(owner))
            assert opened.granted
            assert opened.lease is not None
            assert opened.lease.owner == owner
            assert await store.renew(key, owner, 1000)
            await store.release(key, owner)

    # ------------------------------------------------------------------------ sizes

    async def test_large_values_are_kept_exactly(self, store: Store, other: Store, key: Key) -> None:
        data = random.Random(5).randbytes(5 * 1024 * 1024)
        await store.commit(key, change(values={Part("files", "large"): data}, logs=append(data[:1_000_000])))
        assert await read_values(other, key) == {Part("files", "large"): data}
        assert await read_log(other, key) == [data[:1_000_000]]

    async def test_many_log_items_in_one_commit_keep_their_order(self, store: Store, other: Store, key: Key) -> None:
        items = [b"%d" % number for number in range(10_000)]
        committed = await store.commit(key, change(logs=append(*items)))
        assert committed.log_heads == {LOG: LogHead(10_000, 10_000)}
        assert await read_log(other, key) == items
        assert await read_log(other, key, limit=3) == items[-3:]
        await store.commit(key, change(logs=append(b"last", pop=9_000)))
        assert await read_log(other, key) == [*items[:1_000], b"last"]

    async def test_many_entries_in_one_commit_are_ordered(self, store: Store, other: Store, key: Key) -> None:
        names = [f"{number:05}" for number in range(2_000)]
        random.Random(5).shuffle(names)
        put = CollectionChange(entries={name: name.encode() for name in names})
        await store.commit(key, change(collections={CHECKPOINTS: put}))
        assert await read_range(other, key) == [(name, name.encode()) for name in sorted(names)]
        assert await read_range(other, key, after="00997", limit=1) == [("00998", b"00998")]
        await store.commit(key, change(collections={CHECKPOINTS: CollectionChange(delete_prefixes=["00", "019"])}))
        assert [name for name, _ in await read_range(other, key)] == sorted(names)[1000:1900]

    async def test_single_changes_among_many_entries_keep_the_order(self, store: Store, other: Store, key: Key) -> None:
        entries = {f"{number:05}": b"old" for number in range(0, 1_000, 2)}
        await store.commit(key, change(collections={CHECKPOINTS: CollectionChange(entries=dict(entries))}))
        changes: list[dict[str, bytes | None]] = [
            {"00500": None},
            {"00501": b"new"},
            {"00000": None, "00998": None},
            {"00000/": b"new", "00999": b"new", "00502": b"new"},
            {"00501": None, "00500": b"again", "missing": None},
        ]
        for changed in changes:
            await store.commit(key, change(collections={CHECKPOINTS: CollectionChange(entries=dict(changed))}))
            entries.update({name: data for name, data in changed.items() if data is not None})
            entries = {name: data for name, data in entries.items() if changed.get(name, data) is not None}
            assert await read_range(other, key) == sorted(entries.items())
            near = [entry for entry in sorted(entries.items()) if "00490" < entry[0] < "00510"]
            assert await read_range(other, key, after="00490", before="00510") == near

    async def test_a_commit_of_three_hundred_writes_is_one_commit(self, store: Store, other: Store, key: Key) -> None:
        parts = [Part(f"ns{number % 7}", f"name{number}") for number in range(100)]
        committed = await store.commit(
            key,
            change(
                values=dict.fromkeys(parts, b"1"),
                logs={part: LogChange(append=[b"1"]) for part in parts},
                collections={part: CollectionChange(entries={"a": b"1"}) for part in parts},
            ),
        )
        assert committed.version.revision == 1
        opened = await other.open(key)
        assert len(await read_values(other, key)) == len(opened.log_heads) == len(opened.collections) == 100
        await store.commit(
            key,
            change(
                values=dict.fromkeys(parts[:50]),
                logs={part: LogChange(append=[b"2"]) for part in parts},
                collections={part: CollectionChange(entries={"a": None}) for part in parts[50:]},
            ),
        )
        opened = await other.open(key)
        assert len(await read_values(other, key)) == len(opened.collections) == 50
        assert opened.log_heads == dict.fromkeys(parts, LogHead(2, 2))
        assert await version_of(other, key) == opened.version

    # ------------------------------------------------------------------------ entries and ranges

    @pytest.mark.parametrize("reverse", [False, True])
    async def test_ranges_are_in_byte_order_between_their_bounds(self, store: Store, key: Key, reverse: bool) -> None:
        put = CollectionChange(entries={name: name.encode() for name in KEYS_IN_ORDER[::-1]})
        await store.commit(key, change(collections={CHECKPOINTS: put}))
        prefixes, limits = ["", "a", "a/", "nothing", "\0"], [None, 0, 1, 3]
        bounds = [None, "a", "a/1", "a/3", "é", "missing", "\0", "\U0010ffff"]
        asked = [
            EntryRange(CHECKPOINTS, prefix, after, before, reverse, limit)
            for prefix, after, before, limit in product(prefixes, bounds, bounds, limits)
        ]
        opened = await store.open(key, wanted=Wanted(ranges=asked))
        for wanted, found in zip(asked, opened.ranges, strict=True):
            names = [name for name in KEYS_IN_ORDER if in_range(name, wanted)]
            expected = (names[::-1] if reverse else names)[: wanted.limit]
            assert found == [(name, name.encode()) for name in expected], wanted

    async def test_a_prefix_ends_where_its_bytes_end(self, store: Store, key: Key) -> None:
        names = ["a", "a\0", "a\x7f", "a\u0080", "a\ud7ff", "a\uffff", "a\U0010ffff", "a\U0010ffff\U0010ffff", "b", "B"]
        await store.commit(key, change(collections={CHECKPOINTS: CollectionChange(entries=dict.fromkeys(names, b"1"))}))
        assert [name for name, _ in await read_range(store, key, prefix="a")] == names[:8]
        assert [name for name, _ in await read_range(store, key, prefix="a\U0010ffff")] == names[6:8]
        await store.commit(key, change(collections={CHECKPOINTS: CollectionChange(delete_prefixes=["a\U0010ffff"])}))
        assert [name for name, _ in await read_range(store, key)] == ["B", *names[:6], "b"]

    async def test_prefixes_go_before_entries_are_put(self, store: Store, key: Key) -> None:
        put = CollectionChange(entries={"a/1": b"old", "a/2": b"old", "b/1": b"old"})
        await store.commit(key, change(collections={CHECKPOINTS: put}))
        both = CollectionChange(delete_prefixes=["a/", "nothing"], entries={"a/2": b"new", "a/3": b"new", "b/1": None})
        await store.commit(key, change(collections={CHECKPOINTS: both}))
        assert await read_range(store, key) == [("a/2", b"new"), ("a/3", b"new")]

    async def test_the_empty_prefix_is_everything(self, store: Store, key: Key) -> None:
        put = CollectionChange(entries=dict.fromkeys(KEYS_IN_ORDER, b"old"))
        await store.commit(key, change(collections={CHECKPOINTS: put}))
        emptied = CollectionChange(delete_prefixes=[""], entries={"a": b"new"})
        await store.commit(key, change(collections={CHECKPOINTS: emptied}))
        assert await read_range(store, key) == [("a", b"new")]

    async def test_entries_are_put_deleted_and_put_again(self, store: Store, key: Key) -> None:
        for data in (b"1", None, b"2", None, None, b"3"):
            await store.commit(key, change(collections={CHECKPOINTS: CollectionChange(entries={"a": data})}))
            opened = await store.open(key, wanted=Wanted(entries=[(CHECKPOINTS, "a")]))
            assert opened.entries == [data]
            assert await read_range(store, key) == ([("a", data)] if data is not None else [])
            assert (CHECKPOINTS in opened.collections) == (data is not None)

    async def test_long_collection_keys_are_kept_exactly(self, store: Store, key: Key) -> None:
        names = ["x" * 512, "x" * 511 + "y", "👩" * 128, "x" * 511]
        put = CollectionChange(entries={name: name.encode() for name in names})
        await store.commit(key, change(collections={CHECKPOINTS: put}))
        assert await read_range(store, key, prefix="x" * 511) == [
            (name, name.encode()) for name in ("x" * 511, "x" * 512, "x" * 511 + "y")
        ]


def joined_alike() -> list[tuple[str, str]]:
    """Pairs that become one and the same when they are joined without care."""
    pairs = [pair for mark in SEPARATORS for pair in ((f"a{mark}b", "c"), ("a", f"b{mark}c"))]
    pairs += [pair for mark in SEPARATORS for pair in ((f"a{mark}", "b"), ("a", f"{mark}b"))]
    return list(dict.fromkeys(pairs))


def in_range(name: str, wanted: EntryRange) -> bool:
    """Whether a key lies in a range, in bytes."""
    encoded = name.encode()
    return (
        encoded.startswith(wanted.prefix.encode())
        and (wanted.after is None or encoded > wanted.after.encode())
        and (wanted.before is None or encoded < wanted.before.encode())
    )
