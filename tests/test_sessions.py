"""What users hold: values, logs, collections, namespaces, and sessions made by hand."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from agent_sessions import MemoryStore, Runner, Session, SessionManager, current_session
from agent_sessions.errors import InvalidError, SerializationError, SessionError, TurnClosedError
from agent_sessions.stores.base import Commit, Part
from tests.fixtures import MakeManager, elsewhere, make_manager, manager
from tests.support import Before

__all__ = ["elsewhere", "make_manager", "manager"]


class Unregistered:
    pass


# ----------------------------------------------------------------------------------------------------------- values


async def test_a_value_is_there_in_the_next_turn(manager: SessionManager, elsewhere: SessionManager) -> None:
    async with manager.open("s") as session:
        session.set("step", {"at": 3})
        assert session.get("step") == {"at": 3}
    for other in (manager, elsewhere):
        async with other.open("s") as session:
            assert session.get("step") == {"at": 3}


async def test_a_missing_value_is_the_default(manager: SessionManager) -> None:
    async with manager.open("s") as session:
        assert session.get("missing") is None
        assert session.get("missing", default=0) == 0
        session.set("none", None)
        assert session.get("none", default=0) is None
        assert "none" in session
        assert "missing" not in session


async def test_deleting_clearing_and_listing_values(manager: SessionManager, elsewhere: SessionManager) -> None:
    async with manager.open("s") as session:
        crew = session.namespace("crewai")
        for name in ("b", "a", "c"):
            crew.set(name, name.upper())
        crew.delete("b")
        crew.delete("never there")
        assert crew.keys() == ["a", "c"]
        assert crew.items() == [("a", "A"), ("c", "C")]
        assert len(crew) == 2
        session.set("mine", 1)
    async with elsewhere.open("s") as session:
        assert session.namespaces() == ["crewai", "default"]
        session.namespace("crewai").clear()
        assert session.namespaces() == ["default"]
    async with manager.read("s") as session:
        assert session.namespace("crewai").keys() == []
        assert session.keys() == ["mine"]


async def test_namespaces_keep_equal_names_apart(manager: SessionManager, elsewhere: SessionManager) -> None:
    async with manager.open("s") as session:
        for namespace in ("a", "b", "a:b", "a/b"):
            session.namespace(namespace).set("x", namespace)
            await session.namespace(namespace).log("x").append([namespace])
            await session.namespace(namespace).collection("x").put("x", namespace)
    async with elsewhere.read("s") as session:
        for namespace in ("a", "b", "a:b", "a/b"):
            part = session.namespace(namespace)
            assert part.get("x") == namespace
            assert await part.log("x").read() == [namespace]
            assert await part.collection("x").get("x") == namespace


async def test_a_session_is_its_own_default_namespace(manager: SessionManager) -> None:
    async with manager.open("s") as session:
        session.set("x", 1)
        assert session.namespace("default").get("x") == 1


async def test_a_change_in_place_is_stored(manager: SessionManager, elsewhere: SessionManager) -> None:
    async with manager.open("s") as session:
        session.set("cart", {"items": []})
        session.get("cart")["items"].append("apple")
    async with elsewhere.open("s") as session:
        cart = session.get("cart")
        cart["items"].append("pear")
        assert session.get("cart") is cart
    async with manager.read("s") as session:
        assert session.get("cart") == {"items": ["apple", "pear"]}


async def test_what_was_given_to_set_counts_as_it_is_at_the_end(manager: SessionManager) -> None:
    given = [1]
    async with manager.open("s") as session:
        session.set("list", given)
        given.append(2)
    given.append(3)
    async with manager.read("s") as session:
        assert session.get("list") == [1, 2]


async def test_a_value_changed_into_something_unstorable_fails_the_turn(manager: SessionManager) -> None:
    cart: dict[str, Any] = {"items": []}

    async def turn() -> None:
        async with manager.open("s") as session:
            session.set("other", 1)
            session.set("cart", cart)
            cart["items"].append(Unregistered())

    with pytest.raises(SerializationError) as caught:
        await turn()
    assert caught.value.field == "cart.items[0]"
    assert await manager.get("s") is None
    assert await manager.lock("s") is None


async def test_set_refuses_what_cannot_be_stored_at_once_and_keeps_what_was(manager: SessionManager) -> None:
    async with manager.open("s") as session:
        session.set("cart", [1])
        with pytest.raises(SerializationError) as caught:
            session.set("cart", [{"when": Unregistered()}])
        assert caught.value.field == "cart[0].when"
        assert session.get("cart") == [1]


async def test_update_returns_and_stores_the_new_value(manager: SessionManager) -> None:
    async with manager.open("s") as session:
        assert session.update("count", lambda n: n + 1, default=0) == 1
        assert session.update("count", lambda n: n + 1, default=0) == 2
    async with manager.read("s") as session:
        assert session.get("count") == 2


async def test_updates_do_not_collect_in_the_default(manager: SessionManager) -> None:
    empty: list[int] = []

    def with_one(value: list[int]) -> list[int]:
        value.append(1)
        return value

    async with manager.open("s") as session:
        session.update("a", with_one, default=empty)
        session.update("b", with_one, default=empty)
        assert (session.get("a"), session.get("b"), empty) == ([1], [1], [])


async def test_an_update_that_raises_changes_nothing(manager: SessionManager) -> None:
    async with manager.open("s") as session:
        session.set("count", 1)
        with pytest.raises(ZeroDivisionError):
            session.update("count", lambda n: n / 0)
        assert session.get("count") == 1


async def test_updates_from_many_threads_lose_nothing(manager: SessionManager) -> None:
    async with manager.open("s") as session:

        def add() -> None:
            for _ in range(50):
                session.update("count", lambda n: n + 1, default=0)

        await asyncio.gather(*(asyncio.to_thread(add) for _ in range(8)))
    async with manager.read("s") as session:
        assert session.get("count") == 400


async def test_an_update_may_ask_the_session_for_anything(make_manager: MakeManager) -> None:
    manager = make_manager(Before)
    async with manager.open("s", metadata={"by": 2}, commit="step") as session:
        log = session.log("l")
        session.set("count", 0)

        def add() -> None:
            for _ in range(100):
                session.update("count", lambda n: n + session.metadata["by"] * len(session.namespaces()))

        adding = [asyncio.to_thread(add) for _ in range(2)]
        await asyncio.wait_for(asyncio.gather(*adding, *(log.append([n]) for n in range(50))), 20)
        assert session.get("count") == 400


# -------------------------------------------------------------------------------------------------------------- logs


async def test_a_log_is_read_in_order_whole_or_from_its_end(manager: SessionManager, elsewhere: SessionManager) -> None:
    async with manager.open("s") as session:
        log = session.namespace("openai").log("items")
        await log.append([1, 2])
        await log.append([3])
        assert await log.read() == [1, 2, 3]
    for other in (manager, elsewhere):
        async with other.open("s") as session:
            log = session.namespace("openai").log("items")
            assert await log.count() == 3
            assert await log.read(limit=2) == [2, 3]
            assert await log.read(limit=0) == []
            assert await log.read(limit=9) == [1, 2, 3]
            assert await log.read() == [1, 2, 3]


async def test_pop_takes_the_last_item_also_beyond_what_is_loaded(
    manager: SessionManager, elsewhere: SessionManager
) -> None:
    async with manager.open("s") as session:
        await session.log("l").append(list(range(10)))
    async with elsewhere.open("s", logs={("default", "l"): 2}) as session:
        log = session.log("l")
        assert [await log.pop() for _ in range(4)] == [9, 8, 7, 6]
        assert await log.read(limit=2) == [4, 5]
        await log.append(["a"])
        assert await log.read(limit=3) == [4, 5, "a"]
        assert await log.pop() == "a"
        assert await log.pop() == 5
        assert await log.count() == 5
    async with manager.read("s") as session:
        assert await session.log("l").read() == [0, 1, 2, 3, 4]


async def test_an_empty_log_pops_none(manager: SessionManager) -> None:
    async with manager.open("s") as session:
        log = session.log("l")
        assert await log.pop() is None
        await log.append([1])
        assert [await log.pop(), await log.pop()] == [1, None]
        assert await log.read() == []


async def test_clear_then_append_leaves_what_was_appended(manager: SessionManager, elsewhere: SessionManager) -> None:
    async with manager.open("s") as session:
        await session.log("l").append([1, 2, 3])
    async with manager.open("s") as session:
        await session.log("l").clear()
        assert await session.log("l").read() == []
        await session.log("l").append([4])
        assert await session.log("l").read(limit=5) == [4]
    for other in (elsewhere, manager):
        async with other.read("s") as session:
            assert await session.log("l").read() == [4]
            assert await session.log("l").count() == 1


async def test_pops_at_once_of_a_log_that_is_not_loaded_yet_take_each_item_once(make_manager: MakeManager) -> None:
    async with make_manager().open("s") as session:
        await session.log("l").append(list(range(8)))
    async with make_manager(Before).open("s") as session:
        log = session.log("l")
        assert sorted(await asyncio.gather(*(log.pop() for _ in range(5)))) == [3, 4, 5, 6, 7]
        assert await log.read() == [0, 1, 2]


async def test_reads_beside_pops_and_appends_get_as_many_items_as_they_ask_for(make_manager: MakeManager) -> None:
    async with make_manager().open("s") as session:
        await session.log("l").append(list(range(40)))
    async with make_manager(Before).open("s", commit="step") as session:
        log = session.log("l")

        async def take_turns() -> None:
            await log.append(["a", "b", "c"])
            await log.pop()

        done = await asyncio.gather(*(work() for _ in range(4) for work in (take_turns, lambda: log.read(limit=10))))
        assert [len(items) for items in done if items is not None] == [10] * 4
        assert await log.count() == 48


async def test_items_must_be_a_list(manager: SessionManager) -> None:
    async with manager.open("s") as session:
        for items in ("text", {"a": 1}, iter([1])):
            with pytest.raises(InvalidError) as caught:
                await session.log("l").append(items)  # type: ignore[arg-type]
            assert caught.value.code == "INVALID_ITEMS"
        with pytest.raises(InvalidError):
            await session.log("l").read(limit=-1)


async def test_a_batch_with_an_unstorable_item_adds_nothing(manager: SessionManager) -> None:
    async with manager.open("s") as session:
        with pytest.raises(SerializationError) as caught:
            await session.log("items").append([1, {"when": Unregistered()}])
        assert caught.value.field == "items[1].when"
        assert await session.log("items").read() == []


# ------------------------------------------------------------------------------------------------------- collections


async def test_a_collection_is_read_by_key_and_by_range(manager: SessionManager, elsewhere: SessionManager) -> None:
    keys = ["a/1", "a/2", "a/3", "b", "é", "\N{GRINNING FACE}"]
    async with manager.open("s") as session:
        await session.collection("c").put_many({key: key for key in reversed(keys)})
    async with elsewhere.open("s") as session:
        entries = session.collection("c")
        assert [key for key, _ in await entries.range()] == sorted(keys, key=str.encode)
        assert await entries.range(prefix="a/", before="a/3", reverse=True, limit=1) == [("a/2", "a/2")]
        assert await entries.range(after="a/1", before="b") == [("a/2", "a/2"), ("a/3", "a/3")]
        assert await entries.range(limit=0) == []
        assert await entries.get("b") == "b"
        assert await entries.get("missing", default=0) == 0
        assert await entries.get_many(["a/1", "missing"]) == {"a/1": "a/1"}


async def test_a_range_shows_what_the_turn_has_put_and_deleted(
    manager: SessionManager, elsewhere: SessionManager
) -> None:
    async with manager.open("s") as session:
        await session.collection("c").put_many({f"{n}": n for n in range(6)})
    async with elsewhere.open("s") as session:
        entries = session.collection("c")
        await entries.put("25", "new")
        await entries.delete("0", "1", "never there")
        assert await entries.range(limit=3) == [("2", 2), ("25", "new"), ("3", 3)]
        assert await entries.range(limit=2, reverse=True) == [("5", 5), ("4", 4)]
        await entries.put("3", None)
        assert await entries.get("3", default="default") is None
    async with manager.read("s") as session:
        found = await session.collection("c").range()
    assert found == [("2", 2), ("25", "new"), ("3", None), ("4", 4), ("5", 5)]


async def test_deleting_a_prefix_then_putting_under_it(manager: SessionManager, elsewhere: SessionManager) -> None:
    async with manager.open("s") as session:
        await session.collection("c").put_many({"a/1": 1, "a/2": 2, "ab": 3})
    async with elsewhere.open("s") as session:
        entries = session.collection("c")
        await entries.put("a/0", 0)
        await entries.delete_prefix("a/")
        await entries.put("a/2", "again")
        assert await entries.get_many(["a/0", "a/1", "a/2", "ab"]) == {"a/2": "again", "ab": 3}
        assert await entries.range(limit=1) == [("a/2", "again")]
    async with manager.open("s") as session:
        entries = session.collection("c")
        assert await entries.range() == [("a/2", "again"), ("ab", 3)]
        await entries.delete_prefix("")
        assert await entries.range() == []
    async with elsewhere.read("s") as session:
        assert await session.collection("c").range() == []
        assert session.namespaces() == []


async def test_a_limited_range_looks_past_what_the_turn_has_deleted(
    manager: SessionManager, elsewhere: SessionManager
) -> None:
    async with manager.open("s") as session:
        await session.collection("c").put_many({"a/1": 1, "a/2": 2, "b": 3, "c": 4, "d": 5})
    async with elsewhere.open("s") as session:
        entries = session.collection("c")
        await entries.delete_prefix("a/")
        assert await entries.range(limit=2) == [("b", 3), ("c", 4)]
        await entries.delete("b")
        assert await entries.range(limit=2) == [("c", 4), ("d", 5)]


async def test_many_entries_are_found_though_few_are_kept(manager: SessionManager, elsewhere: SessionManager) -> None:
    names = [f"{n:04}" for n in range(700)]
    async with manager.open("s") as session:
        await session.collection("c").put_many(dict.fromkeys(names, 1))
    async with elsewhere.open("s") as session:
        assert await session.collection("c").get("0000") == 1
        assert len(await session.collection("c").get_many(names)) == 700


async def test_entries_are_copies(manager: SessionManager) -> None:
    async with manager.open("s") as session:
        entries = session.collection("c")
        await entries.put("k", {"n": 1})
        (await entries.get("k"))["n"] = 2
        assert await entries.get("k") == {"n": 1}


# --------------------------------------------------------------------------------------------------- made by hand


async def test_a_session_made_by_hand_is_the_session_of_its_turns(
    manager: SessionManager, elsewhere: SessionManager
) -> None:
    mine = Session("s")
    mine.set("langgraph_state", {"step": 3})
    assert mine.get("langgraph_state") == {"step": 3}
    async with manager.open(mine) as session:
        assert session.get("langgraph_state") == {"step": 3}
        session.set("seen", True)
        assert mine.get("seen") is True
        await mine.log("l").append([1])
    assert (mine.get("seen"), mine.revision, mine.namespaces()) == (True, 1, ["default"])
    async with elsewhere.read("s") as stored:
        assert stored.items() == [("langgraph_state", {"step": 3}), ("seen", True)]


async def test_what_is_set_between_turns_is_stored_with_the_next(
    manager: SessionManager, elsewhere: SessionManager
) -> None:
    mine = Session("s")
    mine.set("n", 1)
    async with manager.open(mine):
        pass
    async with elsewhere.open("s") as session:
        session.set("n", 5)
    mine.set("n", 1)  # the same as the last turn left, not the same as is stored
    mine.get("n")
    async with elsewhere.read("s") as stored:
        assert stored.get("n") == 5
    async with manager.open(mine):
        pass
    async with elsewhere.read("s") as stored:
        assert stored.get("n") == 1


async def test_reading_between_turns_writes_nothing(manager: SessionManager, elsewhere: SessionManager) -> None:
    mine = Session("s")
    mine.set("list", [1])
    async with manager.open(mine):
        pass
    async with elsewhere.open("s") as session:
        session.set("list", [2])
    assert mine.get("list") == [1]
    async with manager.open(mine) as session:
        assert session.get("list") == [2]


async def test_what_was_set_by_hand_survives_a_turn_that_raises(manager: SessionManager) -> None:
    mine = Session("s")
    mine.set("before", 1)

    async def fail() -> None:
        async with manager.open(mine) as session:
            session.set("in_it", 1)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await fail()
    assert (mine.get("before"), mine.get("in_it")) == (1, None)
    async with manager.open(mine) as session:
        assert session.keys() == ["before"]


async def test_turns_at_once_of_one_session_made_by_hand_lose_nothing(make_manager: MakeManager) -> None:
    manager = make_manager(Before)
    mine = Session("s")
    mine.set("n", 0)

    async def turn() -> None:
        async with manager.open(mine) as session:
            session.update("n", lambda n: n + 1)
            await asyncio.sleep(0)

    await asyncio.gather(*(turn() for _ in range(6)))
    async with manager.read("s") as stored:
        assert stored.get("n") == 6
    assert mine.get("n") == 6


async def test_a_session_made_by_hand_joins_a_turn_that_is_open(manager: SessionManager) -> None:
    mine = Session("s")
    mine.set("by_hand", 1)
    mine.volatile["shared"] = 1
    async with manager.open("s") as session:
        async with manager.open(mine) as joined:
            assert joined is session
            assert session.get("by_hand") == 1
            assert session.volatile["shared"] == 1
            mine.set("through_it", 2)
        assert mine.get("through_it") == 2
    assert mine.keys() == ["by_hand", "through_it"]
    assert mine.volatile == {}


async def test_an_unstorable_value_set_by_hand_leaves_no_lease_behind(manager: SessionManager) -> None:
    mine, value = Session("s"), {"a": 1}
    mine.set("value", value)
    value["b"] = Unregistered()  # type: ignore[assignment]
    with pytest.raises(SerializationError):
        async with manager.open(mine):
            pass
    assert await manager.lock("s") is None
    mine.set("value", {})
    async with manager.open(mine) as session:
        assert session.get("value") == {}


async def test_logs_of_a_session_made_by_hand_need_a_turn(manager: SessionManager) -> None:
    mine = Session("s")
    with pytest.raises(TurnClosedError):
        await mine.log("l").read()
    with pytest.raises(TurnClosedError):
        await mine.collection("c").put("k", 1)


async def test_a_session_of_another_tenant_is_refused(manager: SessionManager) -> None:
    with pytest.raises(SessionError) as caught:
        async with manager.open(Session("s", tenant_id="acme")):
            pass
    assert caught.value.code == "FORBIDDEN"


async def test_tenants_do_not_meet(manager: SessionManager) -> None:
    acme = manager.for_tenant("acme")
    async with acme.open("s") as session:
        session.set("x", 1)
        async with manager.open("s") as other:
            assert other.get("x") is None
            other.set("x", 2)
    async with acme.read("s") as session:
        assert session.get("x") == 1
    assert await acme.delete("s")
    async with manager.read("s") as session:
        assert session.get("x") == 2


# ------------------------------------------------------------------------------------------------------- what is over


async def test_used_after_its_turn_everything_raises_turn_closed(manager: SessionManager) -> None:
    async with manager.open("s") as session:
        session.set("x", 1)
        log, entries, crew = session.log("l"), session.collection("c"), session.namespace("crewai")
    for use in (
        lambda: session.get("x"),
        lambda: session.set("x", 1),
        lambda: session.update("x", lambda n: n),
        lambda: session.delete("x"),
        lambda: session.keys(),
        lambda: session.namespaces(),
        lambda: crew.set("x", 1),
        current_session,
    ):
        with pytest.raises(TurnClosedError):
            use()
    for awaited in (
        log.append([1]),
        log.read(),
        log.pop(),
        log.clear(),
        log.count(),
        entries.get("k"),
        entries.put("k", 1),
        entries.delete("k"),
        entries.delete_prefix(""),
        entries.range(),
    ):
        with pytest.raises(TurnClosedError):
            await awaited


async def test_a_snapshot_takes_no_writes(manager: SessionManager) -> None:
    async with manager.open("s") as session:
        session.set("x", 1)
    async with manager.read("s") as snapshot:
        for write in (
            lambda: snapshot.set("x", 2),
            lambda: snapshot.update("x", lambda n: n + 1),
            lambda: snapshot.delete("x"),
            snapshot.clear,
        ):
            with pytest.raises(TurnClosedError):
                write()
        for awaited in (
            snapshot.log("l").append([1]),
            snapshot.log("l").pop(),
            snapshot.log("l").clear(),
            snapshot.collection("c").put("k", 1),
            snapshot.collection("c").delete_prefix(""),
        ):
            with pytest.raises(TurnClosedError):
                await awaited
        assert snapshot.get("x") == 1


async def test_the_record_tells_of_the_session(manager: SessionManager) -> None:
    assert await manager.get("s") is None
    async with manager.open("s", user_id="user-123", metadata={"deviceType": "web"}) as session:
        assert (session.record, session.user_id, session.metadata) == (None, "user-123", {"deviceType": "web"})
    record = await manager.get("s")
    assert record is not None
    assert (record.session_id, record.tenant_id, record.user_id) == ("s", "default", "user-123")
    assert (record.metadata, record.revision) == ({"deviceType": "web"}, 1)
    assert record.started_at.tzinfo is not None
    assert record.gone_at is not None
    assert record.started_at <= record.last_active_at < record.gone_at


async def test_metadata_is_merged_and_none_removes(manager: SessionManager, elsewhere: SessionManager) -> None:
    async with manager.open("s", metadata={"a": 1, "b": 2}):
        pass
    async with elsewhere.open("s", metadata={"a": None, "c": 3}) as session:
        session.metadata["d"] = 4
        assert session.metadata == {"b": 2, "c": 3}
    async with manager.open("s", metadata={"b": 9}), manager.open("s", metadata={"b": 2}):
        pass
    async with elsewhere.read("s") as session:
        assert session.metadata == {"b": 2, "c": 3}


async def test_metadata_is_known_however_many_turns_lie_between(
    manager: SessionManager, elsewhere: SessionManager
) -> None:
    async with manager.open("s", metadata={"a": 1}):
        pass
    for _ in range(70):
        async with elsewhere.open("s"):
            pass
    async with manager.open("s", metadata={"b": 2}) as session:
        assert session.metadata == {"a": 1, "b": 2}


async def test_a_user_cannot_open_or_write_anothers_session(manager: SessionManager, elsewhere: SessionManager) -> None:
    async with manager.open("s", user_id="alice"):
        pass
    for other in (manager, elsewhere):
        with pytest.raises(SessionError) as caught:
            async with other.open("s", user_id="bob"):
                pass
        assert caught.value.code == "FORBIDDEN"
        with pytest.raises(SessionError) as caught:
            await other.append("s", "openai", "items", [1], user_id="bob")
        assert caught.value.code == "FORBIDDEN"
    async with manager.open("s", user_id="alice"):
        with pytest.raises(SessionError) as caught:
            async with manager.open("s", user_id="bob"):
                pass
        assert caught.value.code == "FORBIDDEN"
    assert await manager.lock("s") is None


# ----------------------------------------------------------------------------------------------------- nothing leaks


SECRET = "hunter2"


async def test_no_repr_carries_a_value() -> None:
    manager = SessionManager(MemoryStore())
    async with manager.open("s", metadata={"token": SECRET}) as session:
        session.set("password", SECRET)
        await session.log("l").append([SECRET])
        await session.collection("c").put("k", SECRET)
        shown = [session, session.log("l"), session.collection("c"), session.namespace("n"), session._turn]
    shown += [await manager.get("s"), manager]
    assert SECRET not in repr(shown)


async def test_no_error_carries_a_value() -> None:
    manager = SessionManager(MemoryStore())
    loop: list[Any] = [SECRET]
    loop.append(loop)
    async with manager.open("s") as session:
        for value in ({SECRET.upper(): Unregistered(), "x": SECRET}, loop, {"a": SECRET + "\ud800"}):
            with pytest.raises(SessionError) as caught:
                session.set("password", value)
            assert SECRET not in str(caught.value)
            with pytest.raises(SessionError) as caught:
                await session.collection("c").put("k", value)
            assert SECRET not in str(caught.value)


def test_values_of_a_draft_are_safe_from_any_thread() -> None:
    mine = Session("s")
    with ThreadPoolExecutor(4) as threads:
        list(threads.map(lambda _: mine.update("n", lambda n: n + 1, default=0), range(200)))
    assert mine.get("n") == 200


async def test_an_update_that_raises_leaves_the_value_as_it_was(manager: SessionManager) -> None:
    async with manager.open("s") as session:
        session.set("cart", ["hat"])
        session.get("cart").append("umbrella")

        def spoil(cart: list[str]) -> None:
            cart.append("brick")
            raise KeyError

        with pytest.raises(KeyError):
            session.update("cart", spoil)
        assert session.get("cart") == ["hat", "umbrella"]
    async with manager.read("s") as snapshot:
        assert snapshot.get("cart") == ["hat", "umbrella"]


async def test_no_repr_shows_what_is_stored(manager: SessionManager) -> None:
    commit = Commit(id=b"8 bytes.", owner="", expected=None, values={Part("default", "key"): b"secret"})
    answer = await Runner(manager).run(lambda prompt, session: "secret", "s", "secret")
    async with manager.open("s") as session:
        session.set("key", "secret")
        shown = [session, session.namespace("n"), session.log("l"), session.collection("c"), session.record, commit]
        assert not [one for one in [*shown, answer, await Runner(manager).activations("s")] if "secret" in repr(one)]
