"""`AgentStore` beside LangGraph's `InMemoryStore`, and beside a dict that forgets: the same results."""

from __future__ import annotations

import asyncio
import math
from datetime import UTC, datetime
from itertools import count
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from langgraph.store.base import GetOp, ListNamespacesOp, MatchCondition, PutOp, SearchOp
from langgraph.store.memory import InMemoryStore

from agent_sessions import SessionManager
from agent_sessions.testing import FakeClock
from agent_sessions_langgraph import AgentStore

from .agent_stores import INDEX, OpenBackend
from .agent_stores import open_backend as open_backend

_tenants = count()

EXAMPLES = {"memory": 150, "sqlite": 15, "redis": 25, "dynamodb": 3}
ALL = 10_000

labels = st.sampled_from(["a", "b", "a!", "é", "*"])
namespaces = st.lists(labels, min_size=1, max_size=3).map(tuple)
prefixes = st.lists(labels, max_size=2).map(tuple)
names = st.sampled_from(["k1", "k2", "k3", "", "x" * 450])
numbers = st.integers(-2, 2) | st.sampled_from([0.5, True])
operators = st.dictionaries(
    st.sampled_from(["$eq", "$ne", "$gt", "$gte", "$lt", "$lte"]), numbers, min_size=1, max_size=2
)
values = st.fixed_dictionaries(
    {"n": numbers},
    optional={
        "text": st.text("abcd", max_size=4),
        "deep": st.fixed_dictionaries({"x": numbers}),
        "list": st.lists(numbers, max_size=2),
        "none": st.none(),
    },
)
filters = st.none() | st.fixed_dictionaries(
    {},
    optional={
        "n": numbers | operators,
        "text": st.text("abcd", max_size=1),
        "deep": st.fixed_dictionaries({"x": numbers | operators}),
        "list": st.lists(numbers, max_size=2),
        "none": st.none(),
    },
)
conditions = st.builds(MatchCondition, st.sampled_from(["prefix", "suffix"]), namespaces)
pages = {"limit": st.integers(0, 6), "offset": st.integers(0, 3)}

indexes = st.sampled_from([None, None, False, ["text"], ["deep.x", "list[*]"]])

ops = st.one_of(
    st.builds(PutOp, namespaces, names, values, indexes, st.none()),
    st.builds(PutOp, namespaces, names, values, st.none(), st.none()),
    st.builds(PutOp, namespaces, names, st.none(), st.none(), st.none()),
    st.builds(GetOp, namespaces, names, st.booleans()),
    st.builds(
        SearchOp,
        prefixes,
        filters,
        query=st.none() | st.text("abcd", min_size=1, max_size=3),
        refresh_ttl=st.booleans(),
        **pages,
    ),
    st.builds(
        ListNamespacesOp,
        st.none() | st.lists(conditions, max_size=2).map(tuple),
        max_depth=st.none() | st.integers(1, 3),
        **pages,
    ),
)


class Reference(InMemoryStore):
    """LangGraph's own store, without its leftovers, and with the order that ours has: the newest first."""

    def __init__(self, index: Any) -> None:
        super().__init__(index=index)
        self.placed: dict[tuple[tuple[str, ...], str], int] = {}
        self._puts = count()

    def batch(self, ops: Any) -> list[Any]:
        puts = {(op.namespace, op.key): op for op in ops if isinstance(op, PutOp)}
        asked = [op for op in ops if not isinstance(op, PutOp)]
        found = super().batch([_unlimited(op) for op in asked])
        answers = iter([self._as_ours(op, one) for op, one in zip(asked, found, strict=True)])
        for place in puts:
            self._vectors[place[0]].pop(place[1], None)  # it keeps those of the value before
        super().batch(puts.values())
        for place in puts:
            self.placed[place] = next(self._puts)
        return [None if isinstance(op, PutOp) else next(answers) for op in ops]

    def _as_ours(self, op: Any, found: Any) -> Any:
        if not isinstance(op, SearchOp):
            return found
        in_order = sorted(
            found,
            key=lambda item: (item.score is not None, round(item.score or 0, 6), self.placed[item.namespace, item.key]),
            reverse=True,
        )
        return in_order[op.offset : op.offset + op.limit]

    def _handle_list_namespaces(self, op: ListNamespacesOp) -> Any:
        """Its own lists namespaces that were only asked for."""
        for namespace in [namespace for namespace, items in self._data.items() if not items]:
            del self._data[namespace]
        return super()._handle_list_namespaces(op)

    def _insertinmem_store(self, to_embed: Any, embeddings: Any) -> None:
        """Its own takes no text twice."""
        for places, embedding in zip(to_embed.values(), embeddings, strict=True):
            for namespace, key, path in places:
                self._vectors[namespace][key][path] = embedding


def _unlimited(op: Any) -> Any:
    return op._replace(limit=ALL, offset=0) if isinstance(op, SearchOp) else op


def examples(request: pytest.FixtureRequest) -> int:
    return EXAMPLES[request.node.callspec.params["open_backend"]]


def shown(result: Any) -> Any:
    """A result without its times."""
    if isinstance(result, list):
        return [shown(one) for one in result]
    if result is None or isinstance(result, tuple):
        return result
    score = getattr(result, "score", None)
    # Vectors are kept in 32 bit.
    return result.namespace, result.key, repr(result.value), None if score is None else pytest.approx(score, abs=1e-5)


@pytest.mark.parametrize("index", [None, INDEX], ids=["plain", "indexed"])
def test_results_are_those_of_langgraphs_own_store(
    open_backend: OpenBackend, request: pytest.FixtureRequest, index: Any
) -> None:
    clock = FakeClock()
    backend = open_backend(clock)

    @settings(max_examples=examples(request), deadline=None, suppress_health_check=list(HealthCheck))
    @given(st.lists(st.lists(ops, min_size=1, max_size=6), max_size=8))
    def play(batches: list[list[Any]]) -> None:
        store = AgentStore(SessionManager(backend, tenant_id=f"t{next(_tenants)}"), index=index)
        reference = Reference(index)
        for batch in batches:
            clock.advance(0.001)
            expected = [shown(one) for one in reference.batch(batch)]
            assert [shown(one) for one in loop.run(store.abatch(batch))] == expected

    with asyncio.Runner() as loop:
        try:
            play()
        finally:
            loop.run(backend.aclose())


# ---------------------------------------------------------------------------------------------------- expiry

ttls = st.sampled_from([None, 1, 5, 5.5])
whole = st.just(ALL)
positive = st.none() | st.just({"n": {"$gt": 0}})

timed_ops = st.one_of(
    st.builds(PutOp, namespaces, names, values, st.none(), ttls),
    st.builds(PutOp, namespaces, names, values, st.none(), ttls),
    st.builds(PutOp, namespaces, names, st.none(), st.none(), st.none()),
    st.builds(GetOp, namespaces, names, st.booleans()),
    st.builds(SearchOp, prefixes, positive, whole, st.just(0), st.none(), st.booleans()),
    st.builds(SearchOp, prefixes, st.none(), st.integers(1, 3), st.just(0), st.none(), st.booleans()),
    st.builds(ListNamespacesOp, st.none(), st.none(), whole, st.just(0)),
    st.sampled_from([15.0, 60.0, 240.0, 600.0]),
)


class Kept:
    """An item in the model."""

    def __init__(self, place: tuple[tuple[str, ...], str], op: Any, order: int, created_at: int, now: int) -> None:
        self.place, self.value, self.order, self.created_at, self.updated_at = place, op.value, order, created_at, now
        self.ttl = None if op.ttl is None else op.ttl * 60_000
        self.used(now)

    def used(self, now: int) -> None:
        self.ends = math.inf if self.ttl is None else now + self.ttl

    def shown(self) -> Any:
        times = [datetime.fromtimestamp(at / 1000, UTC) for at in (self.created_at, self.updated_at)]
        return (*self.place, repr(self.value), *times)


class Forgetful:
    """A dict whose items expire."""

    def __init__(self, clock: FakeClock) -> None:
        self._clock = clock
        self._items: dict[tuple[tuple[str, ...], str], Kept] = {}
        self._puts = count()

    def do(self, op: Any) -> Any:
        now = self._clock.now_ms()
        self._items = {place: item for place, item in self._items.items() if now < item.ends}
        if isinstance(op, PutOp):
            place = op.namespace, op.key
            old = self._items.pop(place, None)
            if op.value is not None:
                made = now if old is None else old.created_at
                self._items[place] = Kept(place, op, next(self._puts), made, now)
            return None
        if isinstance(op, ListNamespacesOp):
            return sorted({namespace for namespace, _ in self._items})
        found = [item for place, item in self._items.items() if self._is_asked_for(op, place, item)]
        found.sort(key=lambda item: item.order, reverse=True)
        if isinstance(op, SearchOp):
            found = found[: op.limit]
        if op.refresh_ttl:
            for item in found:
                item.used(now)
        if isinstance(op, GetOp):
            return found[0].shown() if found else None
        return [item.shown() for item in found]

    def _is_asked_for(self, op: Any, place: tuple[tuple[str, ...], str], item: Kept) -> bool:
        if isinstance(op, GetOp):
            return place == (op.namespace, op.key)
        is_under = place[0][: len(op.namespace_prefix)] == op.namespace_prefix
        return is_under and (not op.filter or item.value["n"] > 0)


def with_times(result: Any) -> Any:
    if isinstance(result, list):
        return [with_times(one) for one in result]
    if result is None or isinstance(result, tuple):
        return result
    return result.namespace, result.key, repr(result.value), result.created_at, result.updated_at


def test_items_expire_when_they_should(open_backend: OpenBackend, request: pytest.FixtureRequest) -> None:
    clock = FakeClock()
    backend = open_backend(clock)

    @settings(max_examples=examples(request), deadline=None, suppress_health_check=list(HealthCheck))
    @given(st.lists(timed_ops, max_size=40))
    def play(steps: list[Any]) -> None:
        store = AgentStore(SessionManager(backend, tenant_id=f"t{next(_tenants)}"))
        model = Forgetful(clock)
        for step in steps:
            if isinstance(step, float):
                clock.advance(step)
            else:
                (result,) = loop.run(store.abatch([step]))
                assert with_times(result) == model.do(step)

    with asyncio.Runner() as loop:
        try:
            play()
        finally:
            loop.run(backend.aclose())
