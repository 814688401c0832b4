"""For backends on the other side of a wire: what happens when a request or a reply is lost."""

from __future__ import annotations

from abc import abstractmethod
from contextlib import AbstractAsyncContextManager
from typing import Literal

import pytest

from agent_sessions.errors import SessionConflictError, StoreUnavailableError
from agent_sessions.stores.base import AMENDMENTS_REMEMBERED, Amend, Commit, Key, Store
from agent_sessions.testing.conformance.harness import Harness, append, change, new_id, read_log, take, version_of

Fault = Literal["request", "reply"]
"""What is lost: the request, before the backend sees it, or the reply, after it has done its work."""


class LostReplies(Harness):
    """A chapter to mix in beside `StoreConformance` by a store whose connection can be cut."""

    @abstractmethod
    def losing(self, fault: Fault) -> AbstractAsyncContextManager[Store]:
        """A store on the same backend that loses each request, or each reply, as long as the block runs."""

    @pytest.mark.parametrize("fault", ["request", "reply"])
    async def test_a_commit_is_stored_once_however_often_it_is_sent(self, store: Store, key: Key, fault: Fault) -> None:
        await store.commit(key, change(logs=append(b"first")))
        commit = change(expected=await version_of(store, key), logs=append(b"once"))
        await self._send(key, commit, fault)
        assert await store.commit_status(key, commit.id, since=commit.expected or await version_of(store, key)) == (
            "stored" if fault == "reply" else "not_stored"
        )
        again = await store.commit(key, commit)
        assert again.repeated == (fault == "reply")
        assert await read_log(store, key) == [b"first", b"once"]

    @pytest.mark.parametrize("fault", ["request", "reply"])
    async def test_a_blind_append_is_stored_once_however_often_it_is_sent(
        self, store: Store, key: Key, fault: Fault
    ) -> None:
        commit = change(logs=append(b"once"))
        await self._send(key, commit, fault)
        await self._send(key, commit, fault)
        await store.commit(key, commit)
        assert await read_log(store, key) == [b"once"]

    async def test_a_commit_whose_reply_was_lost_is_recognised_after_others(self, store: Store, key: Key) -> None:
        commit = change(logs=append(b"once"))
        await self._send(key, commit, "reply")
        for _ in range(10):
            await store.commit(key, change(logs=append(b"more")))
        assert (await store.commit(key, commit)).repeated
        assert (await read_log(store, key)).count(b"once") == 1

    async def test_a_lost_commit_that_was_overtaken_is_a_conflict(self, store: Store, key: Key) -> None:
        version = (await store.commit(key, change())).version
        commit = change(expected=version, logs=append(b"lost"))
        await self._send(key, commit, "request")
        await store.commit(key, change())
        with pytest.raises(SessionConflictError):
            await store.commit(key, commit)

    @pytest.mark.parametrize("fault", ["request", "reply"])
    async def test_an_amendment_is_stored_once_however_often_it_is_sent(
        self, store: Store, key: Key, fault: Fault
    ) -> None:
        await store.commit(key, change(fields={"f": b"old"}))
        amend = Amend(id=new_id(), fields={"f": b"new"}, counters={"n": 1})
        async with self.losing(fault) as losing:
            with pytest.raises(StoreUnavailableError):
                await losing.amend(key, amend)
        assert await self._known(store, key) == (({"f": b"new"}, {"n": 1}) if fault == "reply" else ({"f": b"old"}, {}))
        for others in range(AMENDMENTS_REMEMBERED):
            assert (await store.amend(key, amend)).changed == (fault == "request" and not others)
            assert await self._known(store, key) == ({"f": b"new"}, {"n": 1 + others})
            await store.amend(key, Amend(id=new_id(), counters={"n": 1}))

    @pytest.mark.parametrize("fault", ["request", "reply"])
    async def test_a_lease_can_be_taken_again_after_a_lost_reply(self, store: Store, key: Key, fault: Fault) -> None:
        await store.commit(key, change())
        async with self.losing(fault) as losing:
            with pytest.raises(StoreUnavailableError):
                await take(losing, key, "us")
        assert await take(store, key, "us")
        assert not await take(store, key, "them")

    @pytest.mark.parametrize("fault", ["request", "reply"])
    async def test_a_delete_answers_the_same_after_a_lost_reply(self, store: Store, key: Key, fault: Fault) -> None:
        await store.commit(key, change())
        write_id = new_id()
        async with self.losing(fault) as losing:
            with pytest.raises(StoreUnavailableError):
                await losing.delete(key, write_id)
        assert await store.delete(key, write_id)
        assert (await store.open(key)).row is None

    async def _send(self, key: Key, commit: Commit, fault: Fault) -> None:
        async with self.losing(fault) as losing:
            with pytest.raises(StoreUnavailableError):
                await losing.commit(key, commit)

    async def _known(self, store: Store, key: Key) -> tuple[dict[str, bytes] | None, dict[str, int]]:
        row = (await store.open(key)).row
        assert row is not None
        return row.fields, row.counters
