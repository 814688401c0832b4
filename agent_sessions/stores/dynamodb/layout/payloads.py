"""Bytes of any size in items of 400 KB: what is larger lies in pieces of its own, and the item tells which."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import msgspec
from msgspec import Struct

from agent_sessions.stores.base import Discreet
from agent_sessions.stores.dynamodb.layout.keys import Names
from agent_sessions.stores.dynamodb.layout.records import binary
from agent_sessions.stores.dynamodb.service.requests import Item, Requests, gather

PIECE_BYTES = 350_000
"""The most bytes of an item that are a payload, or a part of one. An item may have 409,600, its names included."""


class Torn(Exception):
    """What was read is not of one moment, or a part of it is lost."""


class Large(Discreet, Struct, array_like=True, frozen=True):
    """Where the pieces of a payload are."""

    stage: bytes
    first: int
    count: int
    size: int


_large_decoder = msgspec.msgpack.Decoder(Large)


class Pieces:
    """The pieces that a commit needs, under one number of their own: its stage."""

    def __init__(self, names: Names, stage: bytes) -> None:
        self.names = names
        self.stage = stage
        self._pieces: list[bytes] = []

    def __len__(self) -> int:
        return len(self._pieces)

    def put(self, data: bytes) -> bytes:
        """Cut a payload, and return where its pieces will be."""
        first = len(self._pieces)
        self._pieces += [data[at : at + PIECE_BYTES] for at in range(0, len(data), PIECE_BYTES)]
        return msgspec.msgpack.encode(Large(self.stage, first, len(self._pieces) - first, len(data)))

    def items(self, partition: str, expires: int | None) -> list[Item]:
        """The items to be written before anything names them."""
        return [
            with_expiry(
                {"p": {"S": partition}, "k": {"B": self.names.piece(self.stage, number)}, "b": binary(data)}, expires
            )
            for number, data in enumerate(self._pieces)
        ]


def with_expiry(item: Item, expires: int | None) -> Item:
    """An item, with its TTL."""
    return item if expires is None else {**item, "x": {"N": str(expires)}}


def large_of(item: Item) -> Large | None:
    """Where an item's payload lies, if not in itself."""
    return _large_decoder.decode(item["o"]["B"]) if "o" in item else None


async def payloads(requests: Requests, partition: str, names: Names, items: Sequence[Item]) -> list[bytes]:
    """The payloads of items.

    Raises:
        Torn: A piece is missing.
    """
    large = {index: ref for index, item in enumerate(items) if (ref := large_of(item)) is not None}
    if not large:
        return [item["b"]["B"] for item in items]
    read = await gather([partial(read_large, requests, partition, names, ref) for ref in large.values()])
    found = dict(zip(large, read, strict=True))
    return [found[index] if index in found else item["b"]["B"] for index, item in enumerate(items)]


async def read_large(requests: Requests, partition: str, names: Names, ref: Large) -> bytes:
    """Put a payload together.

    Raises:
        Torn: A piece is missing.
    """
    pieces: list[Any] = await requests.query_all(partition, names.pieces(ref.stage, ref.first, ref.count))
    data = b"".join(piece["b"]["B"] for piece in pieces)
    if len(data) != ref.size:
        raise Torn
    return data
