"""Random turns of two processes on one session, against a model of dicts and lists."""

from __future__ import annotations

import asyncio
import copy
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from agent_sessions import MemoryStore, Session, SessionManager
from agent_sessions.errors import CommitUnknownError, SessionConflictError, SessionNotFoundError
from agent_sessions.session import enter_session, leave_session
from tests.support import Before, LosingReplies, before

NAMES = st.sampled_from(["a", "b"])
KEYS = st.sampled_from(["x", "x/1", "x/2", "y", "z"])
PREFIXES = st.sampled_from(["", "x", "x/", "y", "zz"])
VALUES = st.one_of(st.integers(0, 9), st.lists(st.integers(0, 9), max_size=3), st.dictionaries(KEYS, st.none()))
ONE = st.integers(0, 9)
LOG = st.just("a")
LIMITS = st.one_of(st.none(), st.integers(0, 4), st.integers(5, 12))
WANTED: st.SearchStrategy[dict[str, int | None]] = st.one_of(st.just({}), st.dictionaries(LOG, LIMITS))
METADATA = st.dictionaries(NAMES, st.one_of(st.none(), st.integers(0, 2)))
ITEMS = st.lists(VALUES, max_size=6)


IN_A_TURN = {
    "change_value",
    "join",
    "append",
    "pop",
    "clear",
    "read",
    "put",
    "delete_prefix",
    "look_up",
    "overtake",
    "close",
}
"""What is left out once the turn is over, because a step of it was refused."""


class Model:
    """A session as plain dicts and lists."""

    def __init__(self) -> None:
        self.values: dict[tuple[str, str], Any] = {}
        self.logs: dict[str, list[Any]] = {"a": [], "b": []}
        self.entries: dict[str, dict[str, Any]] = {"a": {}, "b": {}}
        self.metadata: dict[str, Any] = {}


class Turns:
    """At most one turn is open. What is in it is compared with a draft of the model, what is stored with the model."""

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        self.store = store = MemoryStore()
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

    def begin_with(self, items: list[Any]) -> None:
        async def fill() -> None:
            async with self.managers[1].open("s") as session:
                await session.log("a").append(items)

        self.run_(fill())
        self.stored.logs["a"] = items

    # ------------------------------------------------------------------------------------------------------- turns

    def open(self, which: int, step: bool, logs: dict[str, int | None], metadata: dict[str, Any]) -> None:
        wanted = {("default", name): limit for name, limit in logs.items()}
        mode: Any = "step" if step else "turn"
        self.manager = self.managers[which]
        self.turn = self.manager.open("s", commit=mode, logs=wanted, metadata=metadata)
        self.session, self.step = self.run_(self.turn.__aenter__()), step
        self.draft, self.is_stale = copy.deepcopy(self.stored), False
        self._merge(metadata)

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

    def append_blindly(self, which: int, name: str, items: list[Any]) -> None:
        self.run_(self.managers[which].append("s", "default", name, items))
        self.stored.logs[name] = self.stored.logs[name] + items

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

    def delete(self, which: int, again: bool) -> None:
        self.run_(self.managers[which].delete("s"))
        self.stored = Model()
        if again:
            self.run_(self.managers[which].append("s", "default", "a", [0, 1]))
            self.stored.logs["a"] = [0, 1]

    # ------------------------------------------------------------------------------------------------------- values

    def change_value(self, namespace: str, name: str, value: Any, in_place: bool) -> None:
        assert self.session is not None
        part, draft = self.session.namespace(namespace), self.draft.values
        held = part.get(name)
        assert held == draft.get((namespace, name))
        if in_place and isinstance(held, list):
            held.append(1)
            draft[namespace, name] = copy.deepcopy(held)
        elif value is None:
            part.delete(name)
            draft.pop((namespace, name), None)
        else:
            part.set(name, copy.deepcopy(value))
            draft[namespace, name] = value

    def join(self, which: int, metadata: dict[str, Any]) -> None:
        """Open the session again inside its turn."""
        assert self.session is not None
        session = self.session

        async def nested() -> None:
            token = enter_session(session)
            async with self.managers[which].open("s", metadata=metadata) as joined:
                assert joined is session
            leave_session(token)

        if self.managers[which] is self.manager:
            self.run_(nested())
            self._merge(metadata)

    def _merge(self, metadata: dict[str, Any]) -> None:
        merged = {**self.draft.metadata, **metadata}
        self.draft.metadata = {name: value for name, value in merged.items() if value is not None}

    # --------------------------------------------------------------------------------------------------------- logs

    def append(self, name: str, items: list[Any]) -> None:
        assert self.session is not None
        self.draft.logs[name] = self.draft.logs[name] + items
        self._did(self.session.log(name).append(items))

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

    def clear(self, name: str) -> None:
        assert self.session is not None
        self.draft.logs[name] = []
        self._did(self.session.log(name).clear())

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

    def delete_prefix(self, name: str, prefix: str) -> None:
        assert self.session is not None
        kept = {key: value for key, value in self.draft.entries[name].items() if not key.startswith(prefix)}
        self.draft.entries[name] = kept
        self._did(self.session.collection(name).delete_prefix(prefix))

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

    def the_turn_is_the_draft(self) -> None:
        if self.session is None:
            return
        session, values = self.session, dict[tuple[str, str], Any]()
        for namespace in ("a", "b"):
            values |= {(namespace, name): value for name, value in session.namespace(namespace).items()}
        assert values == self.draft.values
        assert session.metadata == self.draft.metadata

    def look_beside_it(self, which: int, logs: dict[str, int | None]) -> None:
        self.run_(self._compare(self.managers[which], {("default", name): limit for name, limit in logs.items()}))

    def what_is_stored_is_the_model(self) -> None:
        self.run_(self._compare(SessionManager(self.store), {}))

    async def _compare(self, manager: SessionManager, logs: dict[tuple[str, str], int | None]) -> None:
        async with manager.read("s", logs=logs) as snapshot:
            for name in ("a", "b"):
                assert await snapshot.log(name).read() == self.stored.logs[name]
                assert dict(await snapshot.collection(name).range()) == self.stored.entries[name]
                assert dict(snapshot.namespace(name).items()) == {
                    key: value for (namespace, key), value in self.stored.values.items() if namespace == name
                }
            assert snapshot.metadata == self.stored.metadata


def _op(name: str, /, **arguments: st.SearchStrategy[Any]) -> st.SearchStrategy[tuple[str, dict[str, Any]]]:
    return st.tuples(st.just(name), st.fixed_dictionaries(arguments))


WHICH = st.integers(0, 1)
ON_LOGS = st.one_of(
    _op("append", name=LOG, items=ITEMS),
    _op("pop", name=LOG, at_once=st.integers(1, 3)),
    _op("read", name=LOG, limit=LIMITS, spoil=st.booleans()),
    _op("clear", name=LOG),
)
ON_ENTRIES = st.one_of(
    _op("put", name=LOG, entries=st.dictionaries(KEYS, ONE, max_size=3), deleted=st.sets(KEYS, max_size=2)),
    _op("delete_prefix", name=LOG, prefix=PREFIXES),
    _op(
        "look_up",
        name=LOG,
        keys=st.lists(KEYS, unique=True),
        prefix=st.sampled_from(["", "x"]),
        after=st.one_of(st.none(), KEYS),
        before=st.one_of(st.none(), KEYS),
        reverse=st.booleans(),
        limit=st.one_of(st.none(), st.integers(0, 3)),
    ),
)
ON_VALUES = st.one_of(
    _op("change_value", namespace=NAMES, name=NAMES, value=st.one_of(st.none(), VALUES), in_place=st.booleans()),
    _op("join", which=WHICH, metadata=METADATA),
)
ON_ALL = st.one_of(ON_LOGS, ON_ENTRIES, ON_VALUES)
BESIDE = _op("look_beside_it", which=WHICH, logs=WANTED)
OVERTAKE = _op("overtake", which=WHICH, times=st.sampled_from([1, 2, 70]), pops=st.integers(0, 3), clear=st.booleans())
BETWEEN = st.one_of(
    _op("append_blindly", which=WHICH, name=LOG, items=ITEMS), _op("delete", which=WHICH, again=st.booleans()), BESIDE
)
OPEN = _op("open", which=WHICH, step=st.booleans(), logs=WANTED, metadata=METADATA)
CLOSE = _op("close", discard=st.booleans(), lost_replies=st.integers(0, 1))

Script = list[tuple[str, dict[str, Any]]]


@st.composite
def scripts(draw: st.DrawFn, inside: st.SearchStrategy[Any]) -> Script:
    """Turns of one process or the other, now and then overtaken, and what comes between them."""
    script = [draw(_op("begin_with", items=st.lists(ONE, max_size=12)))]
    for _ in range(draw(st.integers(1, 4))):
        script += draw(st.lists(BETWEEN, max_size=2))
        script += [draw(OPEN), *draw(st.lists(inside, min_size=1, max_size=6))]
        what = draw(st.integers(0, 5))
        if what < 2:
            script += [draw((OVERTAKE, BESIDE)[what]), *draw(st.lists(inside, max_size=2))]
        script.append(draw(CLOSE))
    return script


@pytest.mark.parametrize("on", [ON_LOGS, ON_ENTRIES, ON_VALUES, ON_ALL], ids=["logs", "entries", "values", "all"])
def test_turns_do_what_dicts_and_lists_do(on: st.SearchStrategy[Any]) -> None:
    @settings(max_examples=120, deadline=None, suppress_health_check=list(HealthCheck))
    @given(scripts(on))
    def play(script: Script) -> None:
        turns = Turns()
        try:
            for name, arguments in script:
                if turns.session is not None or name not in IN_A_TURN:
                    getattr(turns, name)(**arguments)
                    turns.the_turn_is_the_draft()
                    turns.what_is_stored_is_the_model()
        finally:
            turns.teardown()

    play()
