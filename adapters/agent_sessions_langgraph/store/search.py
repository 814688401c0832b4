"""Finding items and namespaces."""

from __future__ import annotations

import asyncio
import heapq
from collections import defaultdict
from collections.abc import Awaitable, Callable, Iterable, Sequence
from functools import partial
from typing import NamedTuple, TypeVar

import anyio.to_thread
from langgraph.store.base import ListNamespacesOp, SearchItem, SearchOp

from .access import Access
from .directory import Directory
from .embedding import Vector, similarity
from .filters import passes
from .items import StoredItem, Vectors
from .names import Namespace, literal_prefix, matches
from .namespace import StoredNamespace

S = TypeVar("S")
T = TypeVar("T")

_AT_ONCE = 16
_NAMESPACES_AT_ONCE = 64
_WINDOW_GROWTH = 4
_FEW = 100


class _Found(NamedTuple):
    place: StoredNamespace
    entry: str
    item: StoredItem
    vectors: Vectors | None = None
    score: float | None = None


async def search(access: Access, op: SearchOp, query: Vector | None) -> list[SearchItem]:
    """The items that are asked for: the nearest to the query first, or, without one, the newest."""
    first = max(0, op.offset)
    last = first + max(0, op.limit)
    pages = [page async for page in Directory(access).under(tuple(op.namespace_prefix))]
    places = [StoredNamespace(access, namespace) for page in pages for namespace in page]
    if query is None and not op.filter:
        found = await _newest(places, last)
    else:
        read = await together(_items if query is None else _items_and_vectors, places)
        found = await _computed([one for some in read for one in some], partial(_best, op=op, query=query))
    found = found[first:last]
    if op.refresh_ttl:
        await together(_refresh, _by_place(found))
    return await _computed(found, _as_search_items)


async def list_namespaces(access: Access, op: ListNamespacesOp) -> list[Namespace]:
    """The namespaces that match and have items, in order, cut to the depth that is asked for."""
    conditions = tuple(op.match_conditions or ())
    first = max(0, op.offset)
    last = first + max(0, op.limit)
    found: dict[Namespace, None] = {}
    async for page in Directory(access).under(literal_prefix(conditions)):
        matching = [namespace for namespace in page if all(matches(namespace, one) for one in conditions)]
        while matching and len(found) < last:
            some = min(_NAMESPACES_AT_ONCE, last - len(found))
            unknown = [one for one in matching[:some] if one[: op.max_depth] not in found]
            have_items = await together(lambda one: StoredNamespace(access, one).has_items(), unknown)
            pairs = zip(unknown, have_items, strict=True)
            found |= {one[: op.max_depth]: None for one, has_items in pairs if has_items}
            matching = matching[some:]
        if len(found) >= last:
            break
    return list(found)[first:last]


async def together(work: Callable[[S], Awaitable[T]], subjects: Iterable[S]) -> list[T]:
    """Do it for all of them, some at a time; the results are in their order."""
    gate = asyncio.Semaphore(_AT_ONCE)

    async def one(subject: S) -> T:
        async with gate:
            return await work(subject)

    return await asyncio.gather(*map(one, subjects))


async def _newest(places: Sequence[StoredNamespace], most: int) -> list[_Found]:
    """The newest items of these namespaces.

    A listing may name items that are gone. If too few are left, more of it is read.
    """
    window = most
    while True:
        listings = await together(partial(StoredNamespace.newest, limit=window), places)
        merged = (
            (stamp, entry, place) for place, one in zip(places, listings, strict=True) for stamp, entry in one.places
        )
        top = heapq.nlargest(window, merged, key=lambda named: named[0])
        named: defaultdict[StoredNamespace, list[tuple[str, str]]] = defaultdict(list)
        for stamp, entry, place in top:
            named[place].append((stamp, entry))
        read = await together(lambda one: one[0].at(one[1]), named.items())
        found = [_Found(place, *one) for place, items in zip(named, read, strict=True) for one in items.items()]
        is_all = all(one.is_all for one in listings) and len(top) == sum(len(one.places) for one in listings)
        if is_all or len(found) >= most:
            return sorted(found, key=lambda one: one.item.stamp, reverse=True)
        window *= _WINDOW_GROWTH


async def _items(place: StoredNamespace) -> list[_Found]:
    return [_Found(place, entry, item) for entry, item in (await place.all()).items()]


async def _items_and_vectors(place: StoredNamespace) -> list[_Found]:
    return [_Found(place, entry, *read) for entry, read in (await place.all_with_vectors()).items()]


def _best(candidates: list[_Found], op: SearchOp, query: Vector | None) -> list[_Found]:
    """Those that pass the filter, the nearest first; then, the newest first, those that have no score."""
    found = [one for one in candidates if not op.filter or passes(one.item.value, op.filter)]
    if query is not None:
        found = [one._replace(score=similarity(query, one.vectors)) if one.vectors else one for one in found]
    return sorted(found, key=lambda one: (one.score is not None, one.score or 0.0, one.item.stamp), reverse=True)


def _as_search_items(found: list[_Found]) -> list[SearchItem]:
    return [one.item.as_search_item(one.place.namespace, one.score) for one in found]


async def _refresh(read: tuple[StoredNamespace, dict[str, StoredItem]]) -> None:
    place, items = read
    await place.refresh(items)


def _by_place(found: list[_Found]) -> list[tuple[StoredNamespace, dict[str, StoredItem]]]:
    items: defaultdict[StoredNamespace, dict[str, StoredItem]] = defaultdict(dict)
    for one in found:
        items[one.place][one.entry] = one.item
    return list(items.items())


async def _computed(found: list[_Found], function: Callable[[list[_Found]], list[T]]) -> list[T]:
    """Compute something of items: if they are many, in a thread, beside what else the event loop does."""
    return function(found) if len(found) <= _FEW else await anyio.to_thread.run_sync(function, found)
