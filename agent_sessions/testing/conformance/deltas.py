"""What a store tells a client that knows something already: all that changed since, and never too little."""

from __future__ import annotations

import pytest

from agent_sessions.stores.base import CollectionChange, Key, Known, LogChange, LogHead, LogWanted, Part, Store, Wanted
from agent_sessions.testing.conformance.harness import (
    CHECKPOINTS,
    LOG,
    Client,
    Harness,
    append,
    change,
    commit_many,
    new_id,
    numbered,
)

A, B = Part("one", "a"), Part("two", "b")


class Deltas(Harness):
    """Answers to `known`."""

    async def test_an_unchanged_key_is_told_in_no_words(self, store: Store, key: Key) -> None:
        await store.commit(key, change(values={A: b"1"}, logs=append(b"1", b"2"), fields={"status": b"1"}))
        client = Client(key)
        await client.refresh(store)
        opened = await client.check(store)
        assert opened.continues
        assert opened.values == {}
        assert opened.row is not None
        assert opened.row.fields is None
        assert opened.logs[0].continues
        assert opened.logs[0].items == []

    async def test_only_what_was_appended_is_read(self, store: Store, other: Store, key: Key) -> None:
        await store.commit(key, change(logs=append(*numbered(1, 4))))
        client = Client(key)
        await client.refresh(store)
        await other.commit(key, change(logs=append(*numbered(4, 6))))
        await other.commit(key, change(logs=append(*numbered(6, 7))))
        opened = await client.check(store)
        assert opened.continues
        assert opened.logs[0].continues
        assert opened.logs[0].items == numbered(4, 7)
        assert client.logs[LOG] == numbered(1, 7)

    async def test_only_namespaces_that_changed_are_read_and_each_whole(self, store: Store, key: Key) -> None:
        other_a = Part("one", "other")
        await store.commit(key, change(values={A: b"1", other_a: b"1", B: b"1"}))
        client = Client(key)
        await client.refresh(store)
        await store.commit(key, change(values={A: b"2"}))
        opened = await client.check(store)
        assert opened.values == {"one": {"a": b"2", "other": b"1"}}
        await store.commit(key, change(values={other_a: None}))
        assert (await client.check(store)).values == {"one": {"a": b"2"}}

    async def test_an_emptied_namespace_is_told_as_empty(self, store: Store, key: Key) -> None:
        await store.commit(key, change(values={A: b"1", B: b"1"}))
        client = Client(key)
        await client.refresh(store)
        await store.commit(key, change(values={A: None}))
        await store.commit(key, change(logs=append(b"later")))
        assert (await client.check(store)).values == {"one": {}}
        assert client.values == {"two": {"b": b"1"}}
        await store.commit(key, change(values={A: b"2"}))
        assert (await client.check(store)).values == {"one": {"a": b"2"}}

    async def test_fields_are_read_when_the_record_tag_moved(self, store: Store, key: Key) -> None:
        await store.commit(key, change(fields={"status": b"1", "title": b"1"}))
        client = Client(key)
        await client.refresh(store)
        await store.commit(key, change(values={A: b"1"}))
        opened = await client.check(store)
        assert opened.row is not None
        assert opened.row.fields is None
        await store.commit(key, change(fields={"status": None}))
        opened = await client.check(store)
        assert opened.row is not None
        assert opened.row.fields == {"title": b"1"}

    async def test_values_and_record_are_known_apart(self, store: Store, key: Key) -> None:
        first = await store.commit(key, change(values={A: b"1"}, fields={"status": b"1"}))
        second = await store.commit(key, change(values={A: b"2"}, fields={"status": b"2"}))
        assert first.row is not None
        assert second.row is not None
        opened = await store.open(key, known=Known(second.version, first.row.record_tag))
        assert opened.values == {}
        assert opened.row is not None
        assert opened.row.fields == {"status": b"2"}
        opened = await store.open(key, known=Known(first.version, second.row.record_tag))
        assert opened.values == {"one": {"a": b"2"}}
        assert opened.row is not None
        assert opened.row.fields is None

    async def test_collections_tell_when_they_changed(self, store: Store, key: Key) -> None:
        writes = Part("langgraph", "writes")
        put, drop = CollectionChange(entries={"a": b"1"}), CollectionChange(entries={"a": None})
        await store.commit(key, change(collections={CHECKPOINTS: put, writes: put}))
        committed = await store.commit(key, change(values={A: b"1"}))
        assert committed.row is not None
        known = Known(committed.version, committed.row.record_tag)
        assert (await store.open(key, known=known)).collections == {CHECKPOINTS: 1, writes: 1}
        await store.commit(key, change(collections={writes: put}))
        assert (await store.open(key, known=known)).collections == {CHECKPOINTS: 1, writes: 3}
        await store.commit(key, change(collections={CHECKPOINTS: drop}))
        assert (await store.open(key, known=known)).collections == {writes: 3}

    # ------------------------------------------------------------------------ the limits of what can be known

    @pytest.mark.parametrize("behind", [1, 63, 64, 65, 200])
    async def test_a_client_far_behind_still_gets_everything(self, store: Store, key: Key, behind: int) -> None:
        await store.commit(key, change(values={A: b"1", B: b"1"}, logs=append(b"1"), fields={"status": b"1"}))
        client = Client(key)
        await client.refresh(store)
        await store.commit(key, change(values={A: None}, logs=append(b"2")))
        if behind > 1:
            await commit_many(store, key, behind - 1)
        opened = await client.check(store)
        assert opened.continues or behind > 63
        assert client.values["two"] == {"b": b"1"}
        assert "one" not in client.values
        assert client.logs[LOG] == [b"1", b"2"]

    async def test_a_key_made_again_is_not_taken_for_the_old_one(self, store: Store, other: Store, key: Key) -> None:
        """With as many commits, as many items and the same namespaces."""
        for data in (b"1", b"2"):
            await store.commit(key, change(values={A: data}, logs=append(data), fields={"status": data}))
        client = Client(key)
        await client.refresh(store)
        await other.delete(key, new_id())
        for data in (b"3", b"4"):
            await other.commit(key, change(values={B: data}, logs=append(data), fields={"status": data}))
        opened = await client.check(store)
        assert not opened.continues
        assert not opened.logs[0].continues
        assert client.values == {"two": {"b": b"4"}}
        assert client.fields == {"status": b"4"}
        assert client.logs[LOG] == [b"3", b"4"]

    async def test_a_longer_life_is_not_taken_for_the_old_one(self, store: Store, key: Key) -> None:
        await store.commit(key, change(values={A: b"old"}, logs=append(b"old")))
        client = Client(key)
        await client.refresh(store)
        await store.delete(key, new_id())
        await store.commit(key, change(logs=append(b"new")))
        await commit_many(store, key, 5)
        opened = await client.check(store)
        assert not opened.continues
        assert A.namespace not in client.values
        assert client.logs[LOG] == [b"new"]

    async def test_what_is_known_of_a_deleted_key_is_worth_nothing(self, store: Store, key: Key) -> None:
        await store.commit(key, change(values={A: b"1"}, logs=append(b"1")))
        client = Client(key)
        await client.refresh(store)
        await store.delete(key, new_id())
        opened = await client.refresh(store)
        assert opened.row is None
        assert client.values == {}

    # ------------------------------------------------------------------------ logs

    async def test_a_log_window_is_the_end_of_the_log(self, store: Store, key: Key) -> None:
        await store.commit(key, change(logs=append(*numbered(1, 11))))
        for limit, start in ((3, 8), (10, 1), (50, 1), (None, 1)):
            opened = await store.open(key, wanted=Wanted(logs=[LogWanted(LOG, limit)]))
            assert opened.logs[0].items == numbered(start, 11)
            assert opened.logs[0].head == LogHead(10, 10)
            assert not opened.logs[0].continues

    async def test_a_window_of_nothing_tells_the_head(self, store: Store, key: Key) -> None:
        await store.commit(key, change(logs=append(*numbered(1, 4))))
        opened = await store.open(key, wanted=Wanted(logs=[LogWanted(LOG, 0)]))
        assert opened.logs[0].items == []
        assert opened.logs[0].head == LogHead(3, 3)

    async def test_a_tail_is_not_cut_by_the_window_limit(self, store: Store, key: Key) -> None:
        await store.commit(key, change(logs=append(*numbered(1, 11))))
        client = Client(key, limit=2)
        await client.refresh(store)
        assert client.logs[LOG] == numbered(9, 11)
        await store.commit(key, change(logs=append(*numbered(11, 21))))
        opened = await client.check(store)
        assert opened.logs[0].continues
        assert opened.logs[0].items == numbered(11, 21)

    async def test_several_logs_are_answered_in_the_order_asked(self, store: Store, key: Key) -> None:
        parts = [Part("ns", name) for name in ("b", "a", "c")]
        await store.commit(key, change(logs={part: LogChange(append=[part.name.encode()]) for part in parts}))
        opened = await store.open(key, wanted=Wanted(logs=[LogWanted(part) for part in parts]))
        assert [log.items for log in opened.logs] == [[b"b"], [b"a"], [b"c"]]
        assert opened.log_heads == dict.fromkeys(parts, LogHead(1, 1))

    async def test_sequence_numbers_are_not_used_again_after_a_pop(self, store: Store, key: Key) -> None:
        await store.commit(key, change(logs=append(*numbered(1, 5))))
        popped = await store.commit(key, change(logs=append(pop=2)))
        assert popped.log_heads == {LOG: LogHead(2, 2)}
        appended = await store.commit(key, change(logs=append(b"new")))
        assert appended.log_heads == {LOG: LogHead(3, 5)}
        popped = await store.commit(key, change(logs=append(pop=1)))
        assert popped.log_heads == {LOG: LogHead(2, 2)}
        appended = await store.commit(key, change(logs=append(b"newer", pop=1)))
        assert appended.log_heads == {LOG: LogHead(2, 6)}
        popped = await store.commit(key, change(logs=append(pop=1)))
        assert popped.log_heads == {LOG: LogHead(1, 1)}

    async def test_sequence_numbers_are_not_used_again_after_a_clear(self, store: Store, key: Key) -> None:
        await store.commit(key, change(logs=append(*numbered(1, 4))))
        cleared = await store.commit(key, change(logs=append(clear=True)))
        assert cleared.log_heads == {LOG: LogHead(0, 0)}
        opened = await store.open(key, wanted=Wanted(logs=[LogWanted(LOG)]))
        assert opened.logs[0].head == LogHead(0, 0)
        assert opened.logs[0].items == []
        appended = await store.commit(key, change(logs=append(b"new")))
        assert appended.log_heads == {LOG: LogHead(1, 4)}
        again = await store.commit(key, change(logs=append(b"newer", clear=True)))
        assert again.log_heads == {LOG: LogHead(1, 5)}

    async def test_popping_more_than_there_is_empties_the_log(self, store: Store, key: Key) -> None:
        await store.commit(key, change(logs=append(b"1", b"2")))
        assert (await store.commit(key, change(logs=append(pop=9)))).log_heads == {LOG: LogHead(0, 0)}
        committed = await store.commit(key, change(logs={Part("new", "log"): LogChange(pop=1, append=[b"1"])}))
        assert committed.log_heads == {Part("new", "log"): LogHead(1, 1)}

    async def test_a_log_that_grew_back_to_the_same_length_is_read_anew(self, store: Store, key: Key) -> None:
        await store.commit(key, change(logs=append(*numbered(1, 6))))
        client = Client(key)
        await client.refresh(store)
        await store.commit(key, change(logs=append(b"other 4", b"other 5", pop=2)))
        opened = await client.check(store)
        assert opened.continues
        assert not opened.logs[0].continues
        assert client.logs[LOG] == [*numbered(1, 4), b"other 4", b"other 5"]

    async def test_a_log_cleared_and_filled_again_is_read_anew(self, store: Store, key: Key) -> None:
        await store.commit(key, change(logs=append(*numbered(1, 4))))
        client = Client(key)
        await client.refresh(store)
        await store.commit(key, change(logs=append(clear=True)))
        await store.commit(key, change(logs=append(b"a", b"b", b"c", b"d")))
        assert not (await client.check(store)).logs[0].continues
        assert client.logs[LOG] == [b"a", b"b", b"c", b"d"]

    async def test_a_log_that_shrank_is_not_read_too_long(self, store: Store, key: Key) -> None:
        await store.commit(key, change(logs=append(*numbered(1, 4))))
        client = Client(key)
        await client.refresh(store)
        await store.commit(key, change(logs=append(pop=1)))
        await client.check(store)
        assert client.logs[LOG] == numbered(1, 3)
        await store.commit(key, change(logs=append(clear=True)))
        await client.check(store)
        assert client.logs[LOG] == []

    async def test_a_prefix_from_before_a_pop_that_it_outlived_still_counts(self, store: Store, key: Key) -> None:
        await store.commit(key, change(logs=append(*numbered(1, 4))))
        client = Client(key)
        await client.refresh(store)
        await store.commit(key, change(logs=append(b"4", b"5")))
        await store.commit(key, change(logs=append(b"new", pop=2)))
        await client.check(store)
        assert client.logs[LOG] == [*numbered(1, 4), b"new"]

    async def test_items_between_two_pops_are_told_apart(self, store: Store, key: Key) -> None:
        await store.commit(key, change(logs=append(b"1", b"2", b"3")))
        clients = []
        for data in (b"a", b"b", b"c"):
            await store.commit(key, change(logs=append(data, data + b"'", pop=1)))
            client = Client(key)
            await client.refresh(store)
            clients.append(client)
        for client in clients:
            await client.check(store)
            assert client.logs[LOG] == [b"1", b"2", b"a", b"b", b"c", b"c'"]
