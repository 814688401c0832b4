"""The index of a tenant's namespaces."""

from __future__ import annotations

import secrets
from collections.abc import AsyncIterator

from agent_sessions import codec
from agent_sessions.stores.base import CollectionChange, EntryRange, Part, Version

from .access import Access
from .names import Namespace, index_entry, index_key, index_prefix, scattered_entry

_NAMESPACES = Part("langgraph", "namespaces")
_SCATTERED = Part("langgraph", "scattered")
"""The same in the order of hashes: what follows on a random one is a fair sample."""

_PAGE = 1_000


class Directory:
    """Says which namespaces there are: each that has items, and some, for a while, that have none any more.

    A namespace is entered before its first item is stored, and taken out after it was found empty.
    """

    def __init__(self, access: Access) -> None:
        self._access = access
        self._key = index_key(access.tenant)

    async def enter(self, namespace: Namespace) -> None:
        """Add a namespace."""
        await self._access.commit(self._key, _entries(namespace, codec.encode(list(namespace))))

    async def version(self) -> Version:
        """What `take_out` wants to know."""
        return (await self._access.open(self._key)).version

    async def take_out(self, namespace: Namespace, unchanged_since: Version) -> None:
        """Remove a namespace.

        Raises:
            SessionConflictError: One was entered since, perhaps this one.
        """
        await self._access.commit(self._key, _entries(namespace, None), expected=unchanged_since)

    async def some(self, most: int) -> list[Namespace]:
        """Any few of the namespaces."""
        wanted = EntryRange(_SCATTERED, after=secrets.token_hex(8), limit=most)
        (found,) = (await self._access.open(self._key, ranges=[wanted])).ranges
        return [_namespace(labels) for _, labels in found]

    async def under(self, prefix: Namespace) -> AsyncIterator[list[Namespace]]:
        """The namespaces that begin so, in order, page by page."""
        after = None
        while True:
            page = EntryRange(_NAMESPACES, prefix=index_prefix(prefix), after=after, limit=_PAGE)
            (found,) = (await self._access.open(self._key, ranges=[page])).ranges
            namespaces = [_namespace(labels) for _, labels in found]
            yield [namespace for namespace in namespaces if namespace[: len(prefix)] == prefix]
            if len(found) < _PAGE:
                return
            after = found[-1][0]


def _entries(namespace: Namespace, labels: bytes | None) -> dict[Part, CollectionChange]:
    in_order = CollectionChange(entries={index_entry(namespace): labels})
    scattered = CollectionChange(entries={scattered_entry(namespace): labels})
    return {_NAMESPACES: in_order, _SCATTERED: scattered}


def _namespace(labels: bytes) -> Namespace:
    return tuple(codec.decode(labels))
