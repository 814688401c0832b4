"""What nobody should pass, and somebody will: stored exactly as given, or refused with a code and the path."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Awaitable
from typing import Any

import pytest

from agent_sessions import Session, SessionManager
from agent_sessions.errors import CommitTooLargeError, InvalidError, SerializationError, SessionError
from tests.fixtures import MakeManager, elsewhere, make_manager, manager

__all__ = ["elsewhere", "make_manager", "manager"]

GRIN = "\N{GRINNING FACE}"

GOOD_IDS = [
    "a",
    "{}",
    "{a}",
    "}{",
    "a{b}c",
    "a:b:c",
    "/",
    "../../etc/passwd",
    "*",
    "a b",
    " leading",
    "trailing ",
    "'; DROP TABLE sessions; --",
    "%s%n%(x)s{0}",
    "\\",
    '"',
    GRIN,
    "e\N{COMBINING ACUTE ACCENT}",
    "\N{LATIN SMALL LETTER E WITH ACUTE}",
    "\N{RIGHT-TO-LEFT OVERRIDE}abc",
    "\N{ZERO WIDTH JOINER}a",
    "a" * 256,
    GRIN * 256,
]

BAD_IDS: list[Any] = [
    "",
    " ",
    "\t",
    "\N{NO-BREAK SPACE}",
    "a\0b",
    "a\nb",
    "a\x7fb",
    "a\x85b",
    "a" * 257,
    GRIN * 257,
    "a\ud800",
    None,
    5,
    b"bytes",
    ["a"],
    True,
]

GOOD_NAMES = ["{x}", "a:b", "a/b", "a\0b", "a\nb", " ", "\x7f", "*", GRIN, "a" * 128, GRIN * 32, "__proto__", "\\n"]
BAD_NAMES: list[Any] = ["", "a" * 129, GRIN * 33, "\ud800", None, 5, b"x"]

GOOD_KEYS = [*GOOD_NAMES, "a" * 512, GRIN * 128, "\0", "\uffff", "a\0", "a"]
BAD_KEYS: list[Any] = ["", "a" * 513, GRIN * 129, "\ud800", None, 5]


@dataclasses.dataclass
class Unregistered:
    x: int = 1


def nested(depth: int) -> Any:
    value: Any = []
    for _ in range(depth - 1):
        value = [value]
    return value


def itself() -> Any:
    value: list[Any] = [1]
    value.append({"me": value})
    return value


# ---------------------------------------------------------------------------------------------------------------- ids


async def test_every_good_id_is_a_session_of_its_own(manager: SessionManager, elsewhere: SessionManager) -> None:
    for tenant in ("default", "{acme}:/", GRIN):
        for number, session_id in enumerate(GOOD_IDS):
            async with manager.for_tenant(tenant).open(session_id, user_id=session_id) as session:
                assert session.keys() == []
                session.set("number", (tenant, number))
                await session.log("l").append([number])
    for tenant in ("default", "{acme}:/", GRIN):
        for number, session_id in enumerate(GOOD_IDS):
            async with elsewhere.for_tenant(tenant).read(session_id) as session:
                assert (session.id, session.user_id) == (session_id, session_id)
                assert session.get("number") == (tenant, number)
                assert await session.log("l").read() == [number]


@pytest.mark.parametrize("session_id", BAD_IDS, ids=repr)
async def test_every_bad_id_is_refused(manager: SessionManager, session_id: Any) -> None:
    async def opened() -> None:
        async with manager.open(session_id):
            pass

    async def read() -> None:
        async with manager.read(session_id):
            pass

    async def opened_for() -> None:
        async with manager.open("s", user_id=session_id):
            pass

    for work, field in (
        (opened, "session_id"),
        (read, "session_id"),
        (lambda: manager.get(session_id), "session_id"),
        (lambda: manager.delete(session_id), "session_id"),
        (lambda: manager.lock(session_id), "session_id"),
        (lambda: manager.unlock(session_id, force=True), "session_id"),
        (lambda: manager.append(session_id, "n", "l", [1]), "session_id"),
        (lambda: manager.append("s", "n", "l", [1], user_id=session_id), "user_id"),
        (opened_for, "user_id"),
    ):
        if field == "user_id" and session_id is None:
            continue
        with pytest.raises(InvalidError) as caught:
            await work()
        assert (caught.value.code, caught.value.field) == (f"INVALID_{field.upper()}", field)
    with pytest.raises(InvalidError):
        Session(session_id)
    with pytest.raises(InvalidError) as caught:
        manager.for_tenant(session_id)
    assert caught.value.code == "INVALID_TENANT_ID"
    assert await manager.get("s") is None


# --------------------------------------------------------------------------------------------------- names and keys


async def test_every_good_name_is_a_place_of_its_own(manager: SessionManager, elsewhere: SessionManager) -> None:
    async with manager.open("s") as session:
        for namespace in GOOD_NAMES:
            for name in GOOD_NAMES:
                session.namespace(namespace).set(name, [namespace, name])
        for name in GOOD_NAMES:
            await session.namespace(name).log(name).append([name])
            await session.namespace(name).collection(name).put(name, name)
    async with elsewhere.read("s") as session:
        assert session.namespaces() == sorted(GOOD_NAMES)
        for namespace in GOOD_NAMES:
            part = session.namespace(namespace)
            assert part.items() == [(name, [namespace, name]) for name in sorted(GOOD_NAMES)]
            assert await part.log(namespace).read() == [namespace]
            assert await part.collection(namespace).range() == [(namespace, namespace)]


@pytest.mark.parametrize("name", BAD_NAMES, ids=lambda name: repr(name)[:20])
async def test_every_bad_name_is_refused(manager: SessionManager, name: Any) -> None:
    async with manager.open("s") as session:
        for use in (
            lambda: session.namespace(name),
            lambda: session.get(name),
            lambda: session.set(name, 1),
            lambda: session.update(name, lambda n: n),
            lambda: session.delete(name),
            lambda: session.log(name),
            lambda: session.collection(name),
        ):
            with pytest.raises(InvalidError) as caught:
                use()
            assert caught.value.code == "INVALID_KEY"
        assert session.namespaces() == []


async def test_every_good_collection_key_is_kept_and_ordered_by_its_bytes(
    manager: SessionManager, elsewhere: SessionManager
) -> None:
    async with manager.open("s") as session:
        await session.collection("c").put_many({key: key for key in GOOD_KEYS})
    async with elsewhere.open("s") as session:
        entries = session.collection("c")
        ordered = sorted(set(GOOD_KEYS), key=str.encode)
        assert [key for key, _ in await entries.range()] == ordered
        assert [key for key, _ in await entries.range(reverse=True)] == ordered[::-1]
        for key in ordered:
            assert await entries.get(key) == key
            assert (await entries.range(prefix=key))[0] == (key, key)
            following = ordered[ordered.index(key) + 1 :]
            assert [found for found, _ in await entries.range(after=key)] == following
        await entries.delete_prefix("a\0")
        assert await entries.get("a") == "a"
        assert await entries.get("a\0") is None


@pytest.mark.parametrize("key", BAD_KEYS, ids=lambda key: repr(key)[:20])
async def test_every_bad_collection_key_is_refused(manager: SessionManager, key: Any) -> None:
    async with manager.open("s") as session:
        entries = session.collection("c")
        uses: list[Awaitable[Any]] = [
            entries.get(key),
            entries.put(key, 1),
            entries.put_many({"good": 1, key: 1}),
            entries.delete("a", key),
        ]
        if key not in ("", None):
            uses += [entries.range(prefix=key), entries.range(after=key), entries.delete_prefix(key)]
        for use in uses:
            with pytest.raises(InvalidError) as caught:
                await use
            assert caught.value.code == "INVALID_KEY"
        assert await entries.range() == []


# ------------------------------------------------------------------------------------------------------------- values

EXACT: dict[str, Any] = {
    "empty text": "",
    "empty bytes": b"",
    "empty list": [],
    "empty dict": {},
    "none": None,
    "infinity": math.inf,
    "negative infinity": -math.inf,
    "negative zero": -0.0,
    "huge integer": 10**300,
    "nul": "a\0b",
    "emoji": GRIN,
    "odd keys": {"": 1, "\0": 2, "a.b": 3, 1: 4, (1, 2): 5, None: 6},
    "true and one": [True, 1, 1.0],
    "five megabytes": "x" * 5_000_000,
    "five megabytes of bytes": bytes(range(256)) * 20_000,
    "a hundred deep": nested(100),
}

REFUSED: dict[str, tuple[Any, str]] = {
    "lone surrogate": ({"a": ["ok", "\ud800"]}, "v.a[1]"),
    "surrogate in a key": ({"a": {"\udfff": 1}}, "v.a"),
    "unregistered class": ({"cart": [1, 2, {"when": Unregistered()}]}, "v.cart[2].when"),
    "a class itself": ([Unregistered], "v[0]"),
    "function": ({"f": len}, "v.f"),
    "generator": ([iter([1])], "v[0]"),
    "subclass of str": ([type("Text", (str,), {})("x")], "v[0]"),
    "a thousand deep": (nested(1000), "v"),
    "a hundred thousand deep": (nested(100_000), "v"),
    "itself": (itself(), "v"),
}


def same(one: Any, other: Any) -> bool:
    """Equal, and of the same types all the way down."""
    return repr(one) == repr(other) and one == other and type(one) is type(other)


@pytest.mark.parametrize("name", EXACT)
async def test_a_value_is_kept_exactly(manager: SessionManager, elsewhere: SessionManager, name: str) -> None:
    value = EXACT[name]
    async with manager.open("s") as session:
        session.set("v", value)
        await session.log("l").append([value, value])
        await session.collection("c").put("k", value)
    async with elsewhere.open("s", logs={("default", "l"): None}) as session:
        assert same(session.get("v", default="missing"), value)
        assert all(same(item, value) for item in await session.log("l").read())
        assert same(await session.collection("c").get("k", default="missing"), value)
    assert (await manager.get("s")).revision == 2  # type: ignore[union-attr]


async def test_nan_is_kept(manager: SessionManager, elsewhere: SessionManager) -> None:
    async with manager.open("s") as session:
        session.set("v", math.nan)
        await session.log("l").append([{"x": math.nan}])
    async with elsewhere.open("s") as session:
        assert math.isnan(session.get("v"))
        assert math.isnan((await session.log("l").read())[0]["x"])


@pytest.mark.parametrize("name", REFUSED)
async def test_a_value_is_refused_with_its_path(manager: SessionManager, name: str) -> None:
    value, path = REFUSED[name]
    async with manager.open("s") as session:
        session.set("v", "before")
        with pytest.raises(SerializationError) as caught:
            session.set("v", value)
        assert caught.value.code == "SERIALIZATION_FAILED"
        assert str(caught.value.field).startswith(path)
        assert len(str(caught.value)) < 1000
        with pytest.raises(SerializationError) as caught:
            await session.log("v").append(["fine", value])
        assert str(caught.value.field).startswith("v[1]" + path[1:])
        with pytest.raises(SerializationError) as caught:
            await session.collection("v").put_many({"fine": 1, "k": value})
        assert str(caught.value.field).startswith("v['k']" + path[1:])
        with pytest.raises(SerializationError):
            session.update("v", lambda _: value)
    async with manager.read("s") as session:
        assert session.get("v") == "before"
        assert await session.log("v").read() == []
        assert await session.collection("v").range() == []


@pytest.mark.parametrize("name", REFUSED)
async def test_metadata_is_refused_likewise(manager: SessionManager, name: str) -> None:
    async def turn() -> None:
        async with manager.open("s", metadata={"v": REFUSED[name][0]}):
            pass

    with pytest.raises((SerializationError, InvalidError)):
        await turn()
    assert await manager.get("s") is None
    assert await manager.lock("s") is None


async def test_a_value_of_more_than_16_mib_is_refused(manager: SessionManager) -> None:
    async with manager.open("s") as session:
        with pytest.raises(CommitTooLargeError):
            session.set("v", b"x" * (16 * 2**20 + 1))
        with pytest.raises(CommitTooLargeError):
            await session.log("l").append([b"x" * (16 * 2**20 + 1)])
    async with manager.read("s") as session:
        assert session.keys() == []


async def test_a_value_that_is_16_mib_is_kept(manager: SessionManager, elsewhere: SessionManager) -> None:
    value = b"x" * (16 * 2**20 - 5)
    async with manager.open("s") as session:
        session.set("v", value)
    async with elsewhere.read("s") as session:
        assert session.get("v") == value


async def test_the_deepest_item_that_is_stored_can_be_read(manager: SessionManager, elsewhere: SessionManager) -> None:
    async with manager.open("s") as session:
        depth = 128
        await session.log("l").append([nested(depth), "after"])
        assert await session.log("l").read() == [nested(depth), "after"]
    for other in (manager, elsewhere):
        async with other.open("s") as session:
            assert await session.log("l").read() == [nested(depth), "after"]
            assert await session.log("l").read() == [nested(depth), "after"]


async def test_what_cannot_be_decoded_is_named_and_in_nobodys_way(make_manager: MakeManager) -> None:
    """Stored by a process that knows a class which this one does not."""
    from agent_sessions import codec
    from agent_sessions.codec import registry

    @dataclasses.dataclass
    class Elsewhere:
        x: int

    codec.register_type(Elsewhere, name="tests.Elsewhere")
    manager, other = make_manager(), make_manager()
    async with manager.open("s") as session:
        session.set("odd", Elsewhere(1))
        session.set("fine", 1)
        await session.log("l").append(["fine", Elsewhere(2)])
        await session.collection("c").put_many({"fine": 1, "odd": Elsewhere(3)})
    known = registry.by_name.pop("tests.Elsewhere")
    registry.by_class.pop(Elsewhere)
    caught: list[SessionError] = []
    try:
        async with other.open("s") as session:
            for work in (
                lambda: session.get("odd"),
                lambda: session.log("l").read(),
                lambda: session.log("l").pop(),
                lambda: session.collection("c").get("odd"),
                lambda: session.collection("c").range(),
            ):
                try:
                    await work()
                except SerializationError as error:
                    caught.append(error)
            assert session.get("fine") == 1
            assert await session.collection("c").get("fine") == 1
            session.set("new", 1)
            await session.log("l").append(["more"])
            assert await session.log("l").read(limit=1) == ["more"]
    finally:
        registry.by_name["tests.Elsewhere"] = known
        registry.by_class[Elsewhere] = known
    assert [error.field for error in caught] == ["odd", "[1]", "[1]", "odd", "odd"]
    async with manager.read("s") as session:
        assert session.keys() == ["fine", "new", "odd"]
        assert session.get("odd") == Elsewhere(1)
        assert await session.log("l").read() == ["fine", Elsewhere(2), "more"]
        assert await session.collection("c").get("odd") == Elsewhere(3)
