"""Random turns of two processes on one session, against a model of dicts and lists."""

from __future__ import annotations

import asyncio
import copy
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from agent_sessions import MemoryStore, Session, SessionManager
from agent_sessions.errors import CommitUnknownError, SessionConflictError, SessionNotFoundError
from tests.support import Before, LosingReplies, before

NAMES = st.sampled_from(["a", "b"])
KEYS = st.sampled_from(["x", "x/1", "x/2", "y", "z"])
PREFIXES = st.sampled_from(["", "x", "x/", "y", "zz"])
VALUES = st.one_of(st.integers(0, 9), st.lists(st.integers(0, 9), max_size=3), st.dictionaries(KEYS, st.none()))
LIMITS = st.one_of(st.none(), st.integers(0, 12))
ITEMS = st.lists(VALUES, max_size=6)


class Model:
    """A session as plain dicts and lists."""

    def __init__(self) -> None:
        self.values: dict[tuple[str, str], Any] = {}
        self.logs: dict[str, list[Any]] = {"a": [], "b": []}
        self.entries: dict[str, dict[str, Any]] = {"a": {}, "b": {}}
        self.metadata: dict[str, Any] = {}


class Turns(RuleBasedStateMachine):
    """At most one turn is open. What is in it is compared with a draft of the model, what is stored with the model."""

    def __init__(self) -> None:
        super().__init__()
        self.loop = asyncio.new_event_loop()
        store = MemoryStore()
        self.managers = [SessionManager(LosingReplies(store, 0).store), SessionManager(Before(store).store)]
        self.stored, self.draft = Model(), Model()
        self.session: Session | None = None
        self.is_stale = False

    def teardown(self) -> None:
        if self.session is not None:
            self._end(discard=True)
        self.loop.close()

    def run_(self, work: Any) -> Any:
        return self.loop.run_until_complete(work)

    @initialize(items=st.lists(VALUES, min_size=0, max_size=30))
    def begin_with(self, items: list[Any]) -> None:
        async def fill() -> None:
            async with self.managers[1].open("s") as session:
                await session.log("a").append(items)

        self.run_(fill())
        self.stored.logs["a"] = items

    # ------------------------------------------------------------------------------------------------------- turns

    @precondition(lambda self: self.session is None)
    @rule(
        which=st.integers(0, 1),
        step=st.booleans(),
        logs=st.dictionaries(NAMES, LIMITS),
        metadata=st.dictionaries(NAMES, st.one_of(st.none(), st.integers(0, 3))),
    )
    def open(self, which: int, step: bool, logs: dict[str, int | None], metadata: dict[str, Any]) -> None:
        wanted = {("default", name): limit for name, limit in logs.items()}
        mode: Any = "step" if step else "turn"
        self.turn = self.managers[which].open("s", commit=mode, logs=wanted, metadata=metadata)
        self.session, self.step = self.run_(self.turn.__aenter__()), step
        self.draft, self.is_stale = copy.deepcopy(self.stored), False
        merged = {**self.draft.metadata, **metadata}
        self.draft.metadata = {name: value for name, value in merged.items() if value is not None}

    @precondition(lambda self: self.session is not None)
    @rule(discard=st.booleans(), lost_replies=st.integers(0, 1))
    def close(self, discard: bool, lost_replies: int) -> None:
        before(self.managers[0], LosingReplies).left = lost_replies
        self._end(discard)
        before(self.managers[0], LosingReplies).left = 0

    def _end(self, discard: bool) -> None:
        self.session = None
        if discard:
            error = ZeroDivisionError()
            assert not self.run_(self.turn.__aexit__(type(error), error, None))
            return
        try:
            self.run_(self.turn.__aexit__(None, None, None))
        except (SessionConflictError, SessionNotFoundError, CommitUnknownError):
            assert self.is_stale
        else:
            assert not self.is_stale
            self.stored = self.draft

    def _did(self, work: Any, *, is_write: bool = True) -> Any:
        """Do what may be a step, which is refused if the turn has been overtaken."""
        try:
            done = self.run_(work)
        except (SessionConflictError, SessionNotFoundError, CommitUnknownError):
            assert self.is_stale
            self._end(discard=True)
            return None
        assert not (self.step and is_write and self.is_stale)
        if self.step and is_write:
            self.stored = copy.deepcopy(self.draft)
        return done

    # ------------------------------------------------------------------------------------------- what others do to it

    @rule(which=st.integers(0, 1), name=NAMES, items=ITEMS)
    def append_blindly(self, which: int, name: str, items: list[Any]) -> None:
        if self.session is None:
            self.run_(self.managers[which].append("s", "default", name, items))
            self.stored.logs[name] += items

    @precondition(lambda self: self.session is not None and not self.is_stale)
    @rule(which=st.integers(0, 1), times=st.sampled_from([1, 2, 70]), pops=st.integers(0, 3), clear=st.booleans())
    def overtake(self, which: int, times: int, pops: int, clear: bool) -> None:
        """Break the turn's lease, and run other turns."""

        async def others() -> None:
            manager = self.managers[which]
            await manager.unlock("s", force=True)
            for n in range(times):
                async with manager.open("s") as session:
                    if clear:
                        await session.log("a").clear()
                    for _ in range(pops):
                        await session.log("a").pop()
                    await session.log("a").append([n])

        self.run_(others())
        for n in range(times):
            log = self.stored.logs["a"]
            self.stored.logs["a"] = [*([] if clear else log[: max(0, len(log) - pops)]), n]
        self.is_stale = True

    @precondition(lambda self: self.session is None)
    @rule(which=st.integers(0, 1), again=st.booleans())
    def delete(self, which: int, again: bool) -> None:
        self.run_(self.managers[which].delete("s"))
        self.stored = Model()
        if again:
            self.run_(self.managers[which].append("s", "default", "a", [0, 1]))
            self.stored.logs["a"] = [0, 1]

    # ------------------------------------------------------------------------------------------------------- values

    @precondition(lambda self: self.session is not None)
    @rule(namespace=NAMES, name=NAMES, value=VALUES)
    def set_value(self, namespace: str, name: str, value: Any) -> None:
        assert self.session is not None
        self.session.namespace(namespace).set(name, copy.deepcopy(value))
        self.draft.values[namespace, name] = value

    @precondition(lambda self: self.session is not None)
    @rule(namespace=NAMES, name=NAMES)
    def change_in_place(self, namespace: str, name: str) -> None:
        assert self.session is not None
        value = self.session.namespace(namespace).get(name)
        assert value == self.draft.values.get((namespace, name))
        if isinstance(value, list):
            value.append(1)
            self.draft.values[namespace, name] = copy.deepcopy(value)

    @precondition(lambda self: self.session is not None)
    @rule(namespace=NAMES, name=NAMES)
    def remove(self, namespace: str, name: str) -> None:
        assert self.session is not None
        self.session.namespace(namespace).delete(name)
        self.draft.values.pop((namespace, name), None)

    # --------------------------------------------------------------------------------------------------------- logs

    @precondition(lambda self: self.session is not None)
    @rule(name=NAMES, items=ITEMS)
    def append(self, name: str, items: list[Any]) -> None:
        assert self.session is not None
        self.draft.logs[name] = self.draft.logs[name] + items
        self._did(self.session.log(name).append(items))

    @precondition(lambda self: self.session is not None)
    @rule(name=NAMES, at_once=st.integers(1, 4))
    def pop(self, name: str, at_once: int) -> None:
        assert self.session is not None
        log = self.session.log(name)
        had_items = bool(self.draft.logs[name])
        expected = [self.draft.logs[name].pop() if self.draft.logs[name] else None for _ in range(at_once)]

        async def pops() -> list[Any]:
            return list(await asyncio.gather(*(log.pop() for _ in range(at_once))))

        popped = self._did(pops(), is_write=had_items)
        if popped is not None:
            assert sorted(map(repr, popped)) == sorted(map(repr, expected))

    @precondition(lambda self: self.session is not None)
    @rule(name=NAMES)
    def clear(self, name: str) -> None:
        assert self.session is not None
        self.draft.logs[name] = []
        self._did(self.session.log(name).clear())

    @precondition(lambda self: self.session is not None)
    @rule(name=NAMES, limit=LIMITS, spoil=st.booleans())
    def read(self, name: str, limit: int | None, spoil: bool) -> None:
        assert self.session is not None
        log = self.draft.logs[name]
        expected = log if limit is None else log[max(0, len(log) - limit) :]
        try:
            items = self.run_(self.session.log(name).read(limit))
        except SessionConflictError:
            assert self.is_stale
            return
        assert items == expected
        assert self.run_(self.session.log(name).count()) == len(log)
        for item in items if spoil else ():
            if isinstance(item, list):
                item.append("spoilt")
            elif isinstance(item, dict):
                item["spoilt"] = object()

    # -------------------------------------------------------------------------------------------------- collections

    @precondition(lambda self: self.session is not None)
    @rule(name=NAMES, entries=st.dictionaries(KEYS, VALUES), deleted=st.sets(KEYS))
    def put(self, name: str, entries: dict[str, Any], deleted: set[str]) -> None:
        assert self.session is not None
        collection = self.session.collection(name)
        self.draft.entries[name] |= entries
        self._did(collection.put_many(entries))
        if self.session is None:
            return
        for key in deleted:
            self.draft.entries[name].pop(key, None)
        self._did(collection.delete(*deleted))

    @precondition(lambda self: self.session is not None)
    @rule(name=NAMES, prefix=PREFIXES)
    def delete_prefix(self, name: str, prefix: str) -> None:
        assert self.session is not None
        kept = {key: value for key, value in self.draft.entries[name].items() if not key.startswith(prefix)}
        self.draft.entries[name] = kept
        self._did(self.session.collection(name).delete_prefix(prefix))

    @precondition(lambda self: self.session is not None)
    @rule(
        name=NAMES,
        keys=st.lists(KEYS, unique=True),
        prefix=PREFIXES,
        after=st.one_of(st.none(), KEYS),
        before=st.one_of(st.none(), KEYS),
        reverse=st.booleans(),
        limit=st.one_of(st.none(), st.integers(0, 4)),
    )
    def look_up(
        self,
        name: str,
        keys: list[str],
        prefix: str,
        after: str | None,
        before: str | None,
        reverse: bool,
        limit: int | None,
    ) -> None:
        assert self.session is not None
        entries, collection = self.draft.entries[name], self.session.collection(name)
        ordered = [
            (key, entries[key])
            for key in sorted(entries, reverse=reverse)
            if key.startswith(prefix) and (after is None or key > after) and (before is None or key < before)
        ]
        try:
            assert self.run_(collection.get_many(keys)) == {key: entries[key] for key in keys if key in entries}
            found = self.run_(collection.range(prefix=prefix, after=after, before=before, reverse=reverse, limit=limit))
        except SessionConflictError:
            assert self.is_stale
            return
        assert found == ordered[:limit]

    # ------------------------------------------------------------------------------------------------- what must hold

    @invariant()
    def the_turn_is_the_draft(self) -> None:
        if self.session is None:
            return
        session, values = self.session, dict[tuple[str, str], Any]()
        for namespace in ("a", "b"):
            values |= {(namespace, name): value for name, value in session.namespace(namespace).items()}
        assert values == self.draft.values
        assert session.metadata == self.draft.metadata

    @invariant()
    def what_is_stored_is_the_model(self) -> None:
        async def compare(manager: SessionManager) -> None:
            async with manager.read("s", logs={("default", "b"): None}) as snapshot:
                for name in ("a", "b"):
                    assert await snapshot.log(name).read() == self.stored.logs[name]
                    assert dict(await snapshot.collection(name).range()) == self.stored.entries[name]
                    assert dict(snapshot.namespace(name).items()) == {
                        key: value for (namespace, key), value in self.stored.values.items() if namespace == name
                    }
                assert snapshot.metadata == self.stored.metadata

        for manager in self.managers:
            self.run_(compare(manager))


TestTurns = Turns.TestCase
TestTurns.settings = settings(
    max_examples=80, stateful_step_count=40, deadline=None, suppress_health_check=list(HealthCheck)
)
