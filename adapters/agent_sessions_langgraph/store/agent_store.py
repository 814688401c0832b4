"""`AgentStore`: LangGraph's `BaseStore` over the stores of sessions."""

from __future__ import annotations

import asyncio
import itertools
import math
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping

from langgraph.store.base import (
    BaseStore,
    GetOp,
    IndexConfig,
    ListNamespacesOp,
    Op,
    PutOp,
    Result,
    SearchOp,
    TTLConfig,
)
from msgspec import Struct, field

from agent_sessions import SessionManager, codec, current_session
from agent_sessions.background import call
from agent_sessions.errors import InvalidError, TurnClosedError
from agent_sessions.identifiers import DEFAULT_TENANT

from .access import Access
from .embedding import Embedder, Vector, packed
from .items import NewItem
from .names import Namespace, check, item_entry
from .namespace import StoredNamespace
from .search import list_namespaces, search, together

_LONGEST_TTL_MINUTES = 100 * 366 * 24 * 60
_MOST_PER_COMMIT = 500
_COMMIT_BYTES = 8 * 2**20

_numbers = itertools.count()


class AgentStore(BaseStore):
    """LangGraph's long-term memory: `graph.compile(store=AgentStore())`.

    Items are kept outside any one session, in the store of the manager, for its tenant: all processes share them, and
    a turn that fails takes none back. Inside a run or a turn of another tenant's session they are that tenant's.

    What one batch puts in one namespace is stored together, up to 500 items or 8 MiB at a time. Puts of several
    processes don't hinder one another.

    Values are what sessions keep: plain data, and objects of registered types. They come back exactly.

    Args:
        manager: Where items are kept. None: `SessionManager.from_env()`, as it is at the first call.
        index: How items are found by a `query`: `embed`, `dims`, `fields`, as of LangGraph's own stores. Vectors are
            compared one by one.
        ttl: `default_ttl`, in minutes, for items that are put without one, and `refresh_on_read`. What is past its time
            is never served; no sweep has to run.
    """

    supports_ttl = True

    def __init__(
        self,
        manager: SessionManager | None = None,
        *,
        index: IndexConfig | None = None,
        ttl: TTLConfig | None = None,
    ) -> None:
        self.ttl_config = ttl
        self._manager = manager
        self._embedder = Embedder(index) if index else None

    def batch(self, ops: Iterable[Op]) -> list[Result]:
        """Carry out operations: reads see what was before; of several puts of one item the last one counts.

        Called from a running event loop, it holds that loop up: use `abatch` there.

        Raises:
            InvalidNamespaceError: A namespace breaks LangGraph's rules.
            SerializationError: A value can't be stored. Nothing of the batch is.
            StoreUnavailableError: The store can't be reached. What was to be put may be stored or not.
        """
        batch = _Batch.of(ops, self._embedder)
        if self._embedder is not None:
            batch.vectors = self._embedder.embed(batch.texts())
            batch.query_vectors = self._embedder.embed_queries(batch.queries())
        return call(batch.carry_out, self._access())

    async def abatch(self, ops: Iterable[Op]) -> list[Result]:
        """`batch`, async."""
        batch = _Batch.of(ops, self._embedder)
        if self._embedder is not None:
            batch.vectors = await self._embedder.aembed(batch.texts())
            batch.query_vectors = await self._embedder.aembed_queries(batch.queries())
        return await batch.carry_out(self._access())

    def _access(self) -> Access:
        if self._manager is None:
            self._manager = SessionManager.from_env()
        tenant = self._manager.tenant_id
        return Access(self._manager, _tenant_here() if tenant == DEFAULT_TENANT else tenant)


class _Put(Struct):
    """An item to put, without its vectors."""

    key: str
    number: int
    data: bytes
    ttl_ms: int | None
    texts: list[str]

    def with_vectors(self, vectors: Mapping[str, Vector]) -> NewItem:
        return NewItem(self.key, self.number, self.data, self.ttl_ms, packed([vectors[text] for text in self.texts]))


class _Batch(Struct):
    """Operations by what they need, and what came of them."""

    results: list[Result] = field(default_factory=list)
    gets: defaultdict[Namespace, list[tuple[int, GetOp]]] = field(default_factory=lambda: defaultdict(list))
    searches: list[tuple[int, SearchOp]] = field(default_factory=list)
    listings: list[tuple[int, ListNamespacesOp]] = field(default_factory=list)
    puts: defaultdict[Namespace, dict[str, _Put | None]] = field(default_factory=lambda: defaultdict(dict))
    vectors: dict[str, Vector] = field(default_factory=dict)
    query_vectors: dict[str, Vector] = field(default_factory=dict)

    @classmethod
    def of(cls, ops: Iterable[Op], embedder: Embedder | None) -> _Batch:
        """Check operations, and encode what they put."""
        batch = cls()
        last: dict[tuple[Namespace, str], PutOp] = {}
        for place, op in enumerate(ops):
            batch.results.append(None)
            if not isinstance(op, GetOp | SearchOp | ListNamespacesOp | PutOp):
                raise ValueError(f"Unknown operation type: {type(op)}")
            check(op)
            if isinstance(op, GetOp):
                batch.gets[tuple(op.namespace)].append((place, op))
            elif isinstance(op, SearchOp):
                batch.searches.append((place, op))
            elif isinstance(op, ListNamespacesOp):
                batch.listings.append((place, op))
            else:
                last[tuple(op.namespace), op.key] = op
        for (namespace, key), op in last.items():
            batch.puts[namespace][item_entry(key)] = _encoded(op, embedder)
        return batch

    def texts(self) -> Iterator[str]:
        """The texts that items are to be found by."""
        return (text for puts in self.puts.values() for put in puts.values() if put is not None for text in put.texts)

    def queries(self) -> Iterator[str]:
        """What is searched for."""
        return (op.query for _, op in self.searches if op.query)

    async def carry_out(self, access: Access) -> list[Result]:
        """Read, then write."""
        await asyncio.gather(
            together(lambda ops: self._get(StoredNamespace(access, ops[0]), ops[1]), self.gets.items()),
            together(lambda op: self._search(access, *op), self.searches),
            together(lambda op: self._list(access, *op), self.listings),
        )
        await together(lambda puts: self._put(StoredNamespace(access, puts[0]), puts[1]), self.puts.items())
        return self.results

    async def _get(self, stored: StoredNamespace, ops: list[tuple[int, GetOp]]) -> None:
        items = await stored.get(item_entry(op.key) for _, op in ops)
        for place, op in ops:
            item = items.get(item_entry(op.key))
            self.results[place] = None if item is None else item.as_item(stored.namespace)
        refreshed = {item_entry(op.key) for _, op in ops if op.refresh_ttl}
        await stored.refresh({entry: item for entry, item in items.items() if entry in refreshed})

    async def _search(self, access: Access, place: int, op: SearchOp) -> None:
        self.results[place] = await search(access, op, self.query_vectors.get(op.query or ""))

    async def _list(self, access: Access, place: int, op: ListNamespacesOp) -> None:
        self.results[place] = await list_namespaces(access, op)

    async def _put(self, stored: StoredNamespace, puts: dict[str, _Put | None]) -> None:
        part: dict[str, NewItem | None] = {}
        size = 0
        for entry, put in puts.items():
            part[entry] = new = None if put is None else put.with_vectors(self.vectors)
            size += 0 if new is None else len(new.data) + (len(new.vectors.data) if new.vectors else 0)
            if size >= _COMMIT_BYTES or len(part) == _MOST_PER_COMMIT:
                await stored.put(part)
                part, size = {}, 0
        if part:
            await stored.put(part)


def _encoded(op: PutOp, embedder: Embedder | None) -> _Put | None:
    if op.value is None:
        return None
    if not isinstance(op.value, Mapping):
        raise InvalidError(
            "VALUE", f"the value of an item must be a dict, not {type(op.value).__name__}", field="value"
        )
    data = codec.encode(dict(op.value))
    return _Put(op.key, next(_numbers), data, _milliseconds(op.ttl), embedder.texts(op) if embedder else [])


def _milliseconds(minutes: float | None) -> int | None:
    """A TTL as it is stored. It is at least one millisecond."""
    if minutes is None:
        return None
    if not 0 < minutes <= _LONGEST_TTL_MINUTES:  # NaN is refused, too
        raise InvalidError("TTL", "ttl must be a number of minutes above 0, a century at most, or None", field="ttl")
    return math.ceil(minutes * 60_000)


def _tenant_here() -> str:
    """The tenant of the session that the calling code works in, if it does."""
    try:
        return current_session().tenant_id
    except TurnClosedError:
        return DEFAULT_TENANT
